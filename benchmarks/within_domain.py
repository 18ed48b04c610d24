"""Fits of the class pairs of one dataset, and error rates of these fits on simulated tables.

Commands:

- ``within-domain`` fits the committed table of ``isweep run digit-pairs`` or ``mnist-pairs``.
  ``--keep CSV`` first copies the needed columns from a table of ``isweep results --csv``. It also
  computes the tails of the covariance spectra from the images below ``--root``.
- ``drawn`` simulates tables with a known law or without a law, and counts true and false claims.
  In these tables, each class has an effect on heights, slopes, d and K_F of its pairs. The
  simulation shares no code with the analysis.
- ``level`` counts how often ``isweep fit`` makes a claim on class pairs without an effect.
- ``interventions`` and ``training-interventions`` fit the committed tables of experiments.
- ``figure``, ``worlds-figure`` and ``training-worlds-figure`` draw figures of docs/findings.md.
- ``add-delta`` measures the training images of every pair again, without training, and adds δ to
  the committed table. Prepare the dataset first:
  ``isweep prepare digits --sweep digit-pairs --root DIR``.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from blind_tables import share
from harness import Result, run, source
from scipy.spatial.distance import cdist

from orchestrator.analysis.answers import holm_adjusted
from orchestrator.analysis.class_pairs import fit_pairs
from orchestrator.analysis.experiments.interventions import fit_interventions
from orchestrator.analysis.fits import prepare
from orchestrator.analysis.grouped_tables.design import Design
from orchestrator.analysis.grouped_tables.fit import fit_groups
from orchestrator.analysis.grouped_tables.slopes import Slope
from orchestrator.analysis.inference import t_p_values
from orchestrator.analysis.report import arms_of
from orchestrator.analysis.results_tables.csv_files import read_csv
from orchestrator.planning.workspace import Workspace
from orchestrator.results.metrics import measure_metrics
from orchestrator.running.preparation import load_arrays, measure_subset
from search_spaces.specs import pair_name
from tasks.prepared.store import PreparedDataset
from tasks.remote import InlineExecutor

RESULTS = Path(__file__).with_name("results")
COLUMNS = [
    *("trial_id", "domain", "dataset", "class_pair", "model", "train_size", "seed", "status"),
    *("test_loss", "test_accuracy", "train_accuracy", "accuracy_drop", "r_hat_pred"),
    *("d_data_mle", "d_data_twonn", "label_sharpness", "mean_unlike_distance"),
]
TRAINING_PRESETS = ("interventions-training", "interventions-digits-training")
TAIL = (5, 40)
"""Eigenvalues, counted from 1, whose fall on log-log axes is the spectrum's tail."""


def within_domain(
    preset: str = "digit-pairs", *, keep: Path | None = None, root: str = ""
) -> Result:
    """Fit the class pairs of a preset."""
    stem = RESULTS / preset.replace("-", "_")
    table_path = stem.with_suffix(".csv.gz")
    if keep:
        read = pd.read_csv(keep)
        (drop,) = [name for name in read if name.endswith("accuracy_drop")]
        rows = read.rename(columns={drop: "accuracy_drop"})[COLUMNS].sort_values(
            ["class_pair", "model", "train_size", "seed"]
        )
        save(rows, table_path)
        tails(preset, root).to_csv(
            stem.with_name(f"{stem.name}_tail.csv"), index=False, float_format="%.5g"
        )
    return {"answers": [asdict(slope) for slope in fit_pairs(prepare(read_csv(table_path)).points)]}


def save(rows: pd.DataFrame, path: Path) -> None:
    """Write a table with five digits. The bytes are always the same."""
    compression = {"method": "gzip", "mtime": 0}
    rows.to_csv(path, index=False, float_format="%.5g", compression=compression)


MEASURED = ("label_sharpness", "d_data_mle", "d_data_twonn")


def add_delta(preset: str = "digit-pairs", *, root: Path) -> Result:
    """Add δ to a committed table, from the training images of its trials.

    To check that the images are the same, K_F and d are measured again, too. If they differ from
    the table in its five digits, nothing is written.
    """
    path = RESULTS / f"{preset.replace('-', '_')}.csv.gz"
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    measured = measured_again(preset, root)
    cells = pd.MultiIndex.from_arrays([table["class_pair"], table["train_size"].astype(int)])
    again = measured.loc[cells].reset_index(drop=True)
    committed = table[[*MEASURED]].apply(pd.to_numeric)
    both = committed.notna() & again[[*MEASURED]].notna()
    apart = float((again[[*MEASURED]] / committed - 1)[both].abs().max(axis=None))
    if apart > 5.1e-5:
        raise SystemExit(f"{path.name}: K_F or d measured again differ by {apart:.2g}")
    delta = again["mean_unlike_distance"].map("{:.5g}".format)
    save(table.assign(mean_unlike_distance=delta), path)
    return {"rows": len(table), "largest relative difference of K_F and d": apart}


def measured_again(preset: str, root: Path) -> pd.DataFrame:
    """Return the measures of each pair at each train size."""
    workspace = Workspace.open(preset, str(root))
    rows = {}
    for spec in workspace.plan.measures:
        data = load_arrays(workspace, spec.subset, max(spec.train_sizes))
        dataset = workspace.plan.datasets[spec.subset.prepared.dataset]
        record = measure_subset(spec, data, dataset, InlineExecutor())
        for size in spec.train_sizes:
            rows[pair_name(spec.subset.class_pair), size] = measure_metrics(record, size)
    return pd.DataFrame.from_dict(rows, orient="index")


def interventions(preset: str = "interventions-digits") -> Result:
    """Fit the committed table of a preset's worlds as the report does."""
    rows = read_csv(next(RESULTS.glob(f"{preset.replace('-', '_')}.csv*")))
    with tempfile.TemporaryDirectory() as root:
        workspace = Workspace.open(preset, root)
    result = {"trials": len(rows), "planned": len(workspace.plan.trials)}
    return result | asdict(fit_interventions(rows, arms_of(workspace)))


def training_interventions(*, keep: tuple[Path, ...] = ()) -> Result:
    """Fit the worlds of both sweeps that change only training images, together.

    ``keep`` first copies the needed columns from tables of ``isweep results --csv``, in the order
    of :data:`TRAINING_PRESETS`.
    """
    columns = [name for name in COLUMNS if name not in ("accuracy_drop", "d_data_twonn")]
    for preset, path in zip(TRAINING_PRESETS, keep, strict=bool(keep)):
        table = pd.read_csv(path)
        tested = [name for name in table if name.startswith("test_on_")]
        rows = table[[*columns, *tested]].sort_values(["dataset", "model", "train_size", "seed"])
        rows.to_csv(
            RESULTS / f"{preset.replace('-', '_')}.csv.gz",
            index=False,
            float_format="%.6g",
            compression={"method": "gzip", "mtime": 0},
        )
    tables, arms = [], []
    for preset in TRAINING_PRESETS:
        tables.append(read_csv(RESULTS / f"{preset.replace('-', '_')}.csv.gz"))
        with tempfile.TemporaryDirectory() as root:
            arms += arms_of(Workspace.open(preset, root))
    rows = pd.concat(tables, ignore_index=True)
    result = fit_interventions(rows, arms)
    conclusions = [
        {
            "response": effect.response,
            "trained_on": effect.trained_on,
            "tested_on": effect.tested_on,
            "told_from_zero": effect.told_from_zero,
            "smaller_than_half": effect.smaller_than_half,
        }
        for effect in result.effects
        if effect.tested_on and "Δ log K_F" in effect.estimand and not effect.arm
    ]
    return {"trials": len(rows), "conclusions": conclusions} | asdict(result)


def tails(preset: str, root: str) -> pd.DataFrame:
    """Return two measures of each pair's images, with pixels from 0 to 1.

    The first is α of their covariance spectrum, whose eigenvalue k falls as k^-(1 + α). The second
    is the mean distance of an image to the nearest image of the other class.
    """
    workspace = Workspace.open(preset, root, prefer_root=True)
    (spec,) = workspace.plan.prepared
    prepared = PreparedDataset.open(workspace.paths.prepared(spec))
    images = np.asarray(prepared.read(0, prepared.num_images), dtype=float).reshape(
        prepared.num_images, -1
    )
    rows = []
    for pair in combinations(range(10), 2):
        of_pair = images[np.isin(prepared.classes, pair)]
        apart = cdist(*(images[prepared.classes == name] / images.max() for name in pair))
        nearest = np.concatenate([apart.min(axis=0), apart.min(axis=1)]).mean()
        values = np.sort(np.linalg.eigvalsh(np.cov(of_pair.T)))[::-1][TAIL[0] - 1 : TAIL[1]]
        slope = np.polyfit(np.log(np.arange(TAIL[0], TAIL[0] + len(values))), np.log(values), 1)[0]
        rows.append({"class_pair": f"{pair[0]}-{pair[1]}", "alpha": -slope - 1, "nearest": nearest})
    return pd.DataFrame(rows)


def figure() -> Result:
    """Draw log R̂ and log loss of each pair against log K_F at equal 1/d, for the three sets."""
    import findings_numbers
    import matplotlib.pyplot as plt

    sheet, sides = plt.subplots(1, 2, figsize=(8, 3.6), layout="constrained")
    for name, title in findings_numbers.PAIRS.items():
        pairs = findings_numbers.PairTable(name)
        held = np.column_stack([np.ones(len(pairs.d)), 1 / pairs.d])
        rest = np.eye(len(pairs.d)) - held @ np.linalg.pinv(held)
        along = rest @ pairs.log_k
        for side, response in zip(sides, (pairs.r_hat, pairs.loss), strict=True):
            slope = pairs.on_sharpness(response, pairs.d)
            words = f"{title}: {slope['value']:.2f} ({slope['low']:.2f} to {slope['high']:.2f})"
            (dots,) = side.plot(along, rest @ response.mean((1, 2)), "o", ms=3, label=words)
            ends = np.array([along.min(), along.max()])
            side.plot(ends, slope["value"] * ends, color=dots.get_color())
    for side, what, law in zip(sides, ("log R̂", "log loss"), (-1, 1), strict=True):
        side.axline((0, 0), slope=law, linestyle="--", color="black", label=f"the law: {law}")
        side.set(xlabel="log K_F at equal 1/d", ylabel=f"{what} at equal 1/d")
        side.legend(fontsize=6)
    return saved(sheet, "pairs", *(RESULTS / f"{name}.csv.gz" for name in findings_numbers.PAIRS))


def worlds_figure() -> Result:
    """Draw the change of log loss and log R̂ per unit of log K_F in each world, by kind of images."""
    import findings_numbers
    import matplotlib.pyplot as plt

    sweeps = ("interventions_many", "interventions_digits")
    by_world = findings_numbers.interventions(*sweeps)["by_world"]
    kinds = ("generated", "UCI digits", "MNIST", "other images")
    sheet, sides = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
    for side, (response, law) in zip(sides, (("loss", 1), ("r_hat", -1)), strict=True):
        for kind in kinds:
            result = np.sort(
                [v for w, v in by_world[response].items() if findings_numbers.kind(w) == kind]
            )
            side.plot(
                result, np.linspace(0, 100, len(result)), "o", ms=3, label=f"{kind} ({len(result)})"
            )
        side.axvline(law, linestyle="--", color="black", label=f"the law: {law}")
        side.axvline(0, linestyle=":", color="black")
        what = "log loss" if response == "loss" else "log R̂"
        side.set(xlabel=f"Δ {what} / Δ log K_F", ylabel="% of worlds at or below")
        side.legend(fontsize=6)
    return saved(sheet, "worlds", *(RESULTS / f"{name}.csv.gz" for name in sweeps))


def training_worlds_figure() -> Result:
    """Draw the change of log loss and log R̂ in each world, by the images that were changed."""
    import findings_numbers
    import matplotlib.pyplot as plt

    sweeps = findings_numbers.TRAINING_SWEEPS
    worlds = findings_numbers.TrainingWorlds(*sweeps)
    labels = ("training images moved", "test images moved", "both moved")
    sheet, sides = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
    for side, (response, law) in zip(sides, (("loss", 1), ("r_hat", -1)), strict=True):
        for images, label in zip(findings_numbers.NETWORKS.values(), labels, strict=True):
            slopes = worlds.slopes(response, *images)
            result = findings_numbers.concluded(slopes)
            low, high = result["wider"]
            digits = 2 if response == "loss" else 3
            ends = f"{low:.{digits}f} to {high:.{digits}f}"
            words = f"{label}: {result['value']:.{digits}f} ({ends})".replace("-", "−")
            at = np.linspace(0, 100, len(slopes))
            side.plot(np.sort([*slopes.values()]), at, "o", ms=3, label=words)
        side.axvspan(-0.5, 0.5, color="0.9", label="smaller than half the law's rate")
        side.axvline(law, linestyle="--", color="black", label=f"the law: {law}")
        side.axvline(0, linestyle=":", color="black")
        what = "log loss" if response == "loss" else "log R̂"
        side.set(xlabel=f"Δ {what} / Δ log K_F", ylabel="% of worlds at or below")
        side.legend(fontsize=6, loc="lower right" if response == "loss" else "center right")
    return saved(sheet, "worlds-training", *(RESULTS / f"{name}.csv.gz" for name in sweeps))


def saved(sheet: Any, name: str, *tables: Path) -> Result:
    """Save a figure of the findings, with the checksums of its tables.

    A test compares the checksums with the tables.
    """
    path = Path(__file__).parents[1] / "docs" / "images" / f"findings-{name}.png"
    sheet.savefig(path, dpi=100, metadata={"Source": source(*tables)})
    return {"figure": path.name}


def drawn(num_tables: int = 200, *, seed: int = 0, num_classes: int = 10) -> Result:
    """Fit simulated tables of each kind, and count their true and false claims.

    Args:
        num_tables: Number of tables of each kind.
        seed: Seed of the simulation.
        num_classes: Number of classes of a table.
    """
    result: Result = {}
    for name, world in WORLDS.items():
        rng = np.random.default_rng([seed, len(result)])
        fits = [
            {slope.on: slope for slope in fit_pairs(prepare(draw(world, rng, num_classes)).points)}
            for _ in range(num_tables)
        ]
        result[name] = {
            q: _counts([fit[q] for fit in fits], value) for q, value in world["truth"].items()
        }
        nothing = [q for q, value in world["truth"].items() if value == 0]
        result[name]["any_false"] = float(
            np.mean([any(fit[q].is_significant for q in nothing) for fit in fits])
        )
    return {"num_tables": num_tables, **result}


def _counts(slopes: list[Slope], truth: float) -> dict[str, float]:
    """Return how often a slope was significant, and how often its interval held the true value."""
    bounds = np.array([slope.interval for slope in slopes])
    return {
        "truth": truth,
        "established": float(np.mean([slope.is_significant for slope in slopes])),
        "held": float(np.mean((bounds[:, 0] <= truth) & (truth <= bounds[:, 1]))),
        "median_width": float(np.median(bounds[:, 1] - bounds[:, 0])),
    }


EXPONENT, BEYOND_LAW = "exponent b in N^(-b/d)", "exponent b against the law's 1"
SHARPER_LOSS, SHARPER_R_HAT, SHARPER_ATTACKED = (
    f"slope of {what} on log K_F at equal 1/d"
    for what in ("log loss", "log R̂", "accuracy lost to the attack")
)


def _world(
    exponent: float, sharpness: float, robust: float, **spreads: float
) -> dict[str, dict[str, float]]:
    truth = {
        EXPONENT: exponent,
        BEYOND_LAW: exponent - 1,
        SHARPER_LOSS: sharpness,
        SHARPER_R_HAT: robust,
        SHARPER_ATTACKED: -robust / 5,
    }
    return {"truth": truth, "spreads": {**SPREADS, **spreads}}


LEVEL_DESIGNS = {
    "6 classes": (6, 1, 1),
    "10 classes": (10, 1, 1),
    "10 classes, three rows a pair": (10, 1, 3),
    "10 classes, two columns": (10, 2, 1),
    "20 classes": (20, 1, 1),
}
"""Kind of a table without an effect -> its numbers of classes, columns, and rows per pair."""


def level(num_tables: int = 1000, *, seed: int = 0, designs: tuple[str, ...] = ()) -> Result:
    """Count claims of ``isweep fit`` on simulated tables of class pairs without an effect.

    A row belongs to two groups: the two classes of its pair. The response and every column are
    independent sums of class effects. For comparison, ``theirs`` counts the claims of the jackknife
    over classes alone, on the same tables.
    """
    ours, theirs = {}, {}
    for name in designs or LEVEL_DESIGNS:
        rng = np.random.default_rng([seed, *LEVEL_DESIGNS[name]])
        claims = [_claimed(*LEVEL_DESIGNS[name], rng) for _ in range(num_tables)]
        ours[name], theirs[name] = (
            share(sum(side), num_tables) for side in zip(*claims, strict=True)
        )
    return {"ours": ours, "theirs": theirs}


def _claimed(
    num_classes: int, num_columns: int, num_repeats: int, rng: np.random.Generator
) -> tuple[bool, bool]:
    """Simulate a table without an effect, and return whether each of two tests makes a claim.

    The first test is the one of ``isweep fit``. The second one is the jackknife alone.
    """
    pairs = np.repeat([*combinations(range(num_classes), 2)], num_repeats, axis=0)
    columns = {
        name: rng.normal(size=num_classes)[pairs].sum(axis=1) + rng.normal(0, 0.1, len(pairs))
        for name in ("y", *(f"x{k}" for k in range(num_columns)))
    }
    places = {"first": pairs[:, 0].astype(str), "second": pairs[:, 1].astype(str)}
    rows = pd.DataFrame({**columns, **places})
    design = Design("y", tuple(name for name in columns if name != "y"), ("first", "second"))
    fit = fit_groups(rows, design)
    scatter_p = {part.on: part.p_value for part in fit.scatter if part.p_value is not None}
    by_jackknife = []
    for slope in fit.slopes:
        if slope.test is None:
            continue
        p = float(t_p_values(slope.value, slope.test.std_error, slope.test.degrees))
        if slope.level == "between":
            p = max(p, scatter_p.get(slope.on, 0.0))
        by_jackknife.append(replace(slope, p_value=p))
    today = any(slope.is_significant for slope in fit.slopes)
    jackknife = any(slope.is_significant for slope in holm_adjusted(by_jackknife, "table"))
    return today, jackknife


SPREADS = {
    "class_height": 0.7,
    "pair_height": 0.9,
    "class_slope": 1.5,
    "pair_slope": 3.0,
    "model": 0.4,
    "subset": 0.3,
    "trial": 0.5,
    "class_d": 0.07,
    "pair_d": 0.07,
    "class_k": 0.1,
    "pair_k": 0.1,
}
"""Standard deviations of simulated effects. Heights are in log loss, and slopes in units of the
exponent. The values are close to those of 180 trainings of digit-pairs with another seed, two train
sizes and more epochs."""
WORLDS = {
    "null": _world(0, 0, 0),
    "null, classes alone": _world(
        0, 0, 0, pair_height=0.1, pair_slope=0.1, pair_k=0.02, class_k=0.12
    ),
    "law at its bound": _world(1, 1, -1),
    "4/d": _world(4, 1, -1),
}


def draw(
    world: dict[str, dict[str, float]], rng: np.random.Generator, num_classes: int = 10
) -> pd.DataFrame:
    """Return a simulated table of all class pairs, with six train sizes, two networks and two seeds.

    Args:
        world: True slopes (``truth``) and standard deviations (``spreads``) of the simulation.
        rng: Random generator.
        num_classes: Number of classes, and so of pairs.
    """
    truth, spread = world["truth"], world["spreads"]
    pairs = np.array([*combinations(range(num_classes), 2)])
    sizes = np.geomspace(20, 400, 6).round()

    def drawn_for(name: str) -> np.ndarray:
        shared = rng.normal(0, spread[f"class_{name}"], num_classes)[pairs].sum(1)
        return np.asarray(shared + rng.normal(0, spread[f"pair_{name}"], len(pairs)))

    d, log_k = 8 * np.exp(drawn_for("d")), -7.5 + drawn_for("k")
    slope = (truth[EXPONENT] + drawn_for("slope")) / d
    shape = (len(pairs), 2, 6, 2)
    log_n = np.log(sizes) - np.log(sizes).mean()
    noise = (
        rng.normal(0, spread["model"], shape[:2])[..., None, None]
        + rng.normal(0, spread["subset"], (len(pairs), 1, 6, 1))
        + rng.normal(0, spread["trial"], shape)
    )
    at = np.indices(shape).reshape(4, -1)

    def response(on_k: float, scale: float) -> np.ndarray:
        heights = scale * drawn_for("height") + on_k * (log_k + 7.5)
        return np.asarray((heights[:, None, None, None] + scale * noise).reshape(-1))

    loss = response(truth[SHARPER_LOSS], 1.0) - (slope[at[0]] * log_n[at[2]])
    return pd.DataFrame(
        {
            "trial_id": [f"t{k}" for k in range(at.shape[1])],
            "domain": "natural",
            "dataset": "drawn",
            "class_pair": [f"{a}-{b}" for a, b in pairs[at[0]]],
            "model": np.array(["one", "two"])[at[1]],
            "train_size": sizes[at[2]].astype(int),
            "seed": at[3],
            "status": "done",
            "test_loss": np.exp(loss - 2.5),
            "test_accuracy": 0.9,
            "r_hat_pred": 80 * np.exp(response(truth[SHARPER_R_HAT], 0.3)),
            "pgd_32_accuracy_drop": 0.4 + response(truth[SHARPER_ATTACKED], 0.1),
            "d_data_mle": d[at[0]] * (sizes[at[2]] / sizes[-1]) ** 0.05,
            "label_sharpness": np.exp(log_k)[at[0]],
        }
    )


if __name__ == "__main__":
    run(
        within_domain,
        interventions,
        parts=(
            *(drawn, level, add_delta, figure, worlds_figure),
            *(training_interventions, training_worlds_figure),
        ),
    )
