"""Every number of docs/findings.md comes out of the committed tables with numpy alone."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.stats import linregress

from benchmarks.harness import source
from orchestrator.analysis import class_pairs
from orchestrator.analysis.experiments.interventions import fit_interventions
from orchestrator.analysis.fits import fit_scaling_laws
from orchestrator.analysis.report import arms_of
from orchestrator.analysis.results_tables.csv_files import read_csv
from orchestrator.planning.workspace import Workspace
from tests.demo_page import FIGURES

ROOT = Path(__file__).parents[2]
RESULTS, SCRIPT = ROOT / "benchmarks/results", ROOT / "benchmarks/findings_numbers.py"
PAIRS = ("digit_pairs", "mnist_pairs", "fashion_pairs")
SAME = {
    "exponent": class_pairs.EXPONENT,
    "exponent against 1": class_pairs.EXPONENT_BEYOND,
    "log loss on log K_F": class_pairs.LOSS,
    "log R̂ on log K_F, free of scale": class_pairs.R_HAT_FREE,
    "log R̂ on log K_F": class_pairs.R_HAT,
    "accuracy lost to the attack on log K_F": class_pairs.DROP,
    "accuracy lost to the attack on log δ": class_pairs.DROP_ON_DELTA,
    "log loss on log K_F, at equal δ": class_pairs.LOSS_AT_DELTA,
    "log R̂ on log K_F, at equal δ": class_pairs.R_HAT_AT_DELTA,
    "accuracy lost on log K_F, at equal δ": class_pairs.DROP_AT_DELTA,
}


@pytest.fixture(scope="module")
def numbers():
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_the_script_knows_nothing_of_the_product():
    imported = {
        name.partition(".")[0]
        for node in ast.walk(ast.parse(SCRIPT.read_text(encoding="utf-8")))
        for name in ([a.name for a in node.names] if isinstance(node, ast.Import) else [])
        + ([node.module or ""] if isinstance(node, ast.ImportFrom) else [])
    }
    assert imported - sys.stdlib_module_names == {"numpy"}


@pytest.mark.long
def test_it_finds_what_the_products_analysis_finds(numbers):
    for name in PAIRS:
        slopes = fit_scaling_laws(read_csv(RESULTS / f"{name}.csv.gz")).class_pairs
        answers = {slope.on: slope for slope in slopes}
        assert {*answers} == {*SAME.values()}
        for own, question in SAME.items():
            found, theirs = numbers[name]["as isweep fit asks"][own], answers[question]
            shift = 1 if question == class_pairs.EXPONENT_BEYOND else 0
            assert [
                found["value"] - shift,
                found["low"] - shift,
                found["high"] - shift,
            ] == pytest.approx([theirs.value, *theirs.interval], rel=1e-6)
            assert found["p"] == pytest.approx(theirs.p_value, rel=1e-5)
            if question == class_pairs.R_HAT:  # units alone give it, so it is not tested
                assert (found.get("adjusted_p"), theirs.adjusted_p) == (None, None)
            else:
                assert found["adjusted_p"] == pytest.approx(theirs.adjusted_p, rel=1e-5)


def findings_text():
    """The two pages of findings, results and evidence, with single blanks."""
    pages = [ROOT / "docs" / name for name in ("findings.md", "findings-evidence.md")]
    return " ".join(" ".join(page.read_text(encoding="utf-8").split()) for page in pages)


def test_findings_say_what_isweep_fit_finds_free_of_scale_and_how_many_classes_it_takes(numbers):
    said = findings_text()
    free = [
        numbers[name]["as isweep fit asks"]["log R̂ on log K_F, free of scale"] for name in PAIRS
    ]
    slopes = [
        f"{written(one['value'])} ({written(one['low'])} to {written(one['high'])})" for one in free
    ]
    assert ", ".join(slopes) in said
    assert all(one["low"] > -1 for one in free)
    needed = [numbers[name]["classes for a width of 0.6"] for name in PAIRS]
    assert [one["classes"] for one in needed] == [98, 65, 96]
    digits, mnist, fashion = ("{} to {}".format(*one["without one class"]) for one in needed)
    for words in (f"({digits} when one class is left out)", f"({mnist})", f"({fashion})"):
        assert words in said


def test_slopes_free_of_scale_do_not_see_how_bright_each_pair_is(numbers):
    """A factor on all pixels of a pair moves lengths by it, K_F by its inverse, and no answer."""
    rows = read_csv(RESULTS / "mnist_pairs.csv.gz")
    pairs = sorted(rows["class_pair"].unique())
    drawn = np.exp(np.random.default_rng(0).normal(0, 1, len(pairs)))
    factor = rows["class_pair"].map(dict(zip(pairs, drawn, strict=True)))
    brighter = rows.assign(
        r_hat_pred=rows["r_hat_pred"] * factor,
        label_sharpness=rows["label_sharpness"] / factor,
        mean_unlike_distance=rows["mean_unlike_distance"] * factor,
    )
    answers = {slope.on: slope for slope in fit_scaling_laws(brighter).class_pairs}
    free = numbers["mnist_pairs"]["as isweep fit asks"]["log R̂ on log K_F, free of scale"]
    assert answers[class_pairs.R_HAT_FREE].value == pytest.approx(free["value"], rel=1e-6)
    in_pixels = answers[class_pairs.R_HAT]
    assert in_pixels.interval[1] < -0.8
    assert in_pixels.adjusted_p is None
    assert not in_pixels.is_significant


def test_it_scores_rules_as_the_registered_analysis_did(numbers):
    """The JSON files are of the first seed, by the analysis as registered, which fitted rules
    too."""
    for path in RESULTS.glob("*_pairs.json"):
        fit, rivals = (
            json.loads(path.read_text(encoding="utf-8")),
            numbers[path.stem]["seed 0"]["rivals"],
        )
        assert {rule: rivals[rule]["share"] for rule in fit["shares"]} == pytest.approx(
            fit["shares"], rel=1e-6
        )
        for one in fit["rivals"]:
            assert rivals[one["question"]]["adjusted_p"] == pytest.approx(
                one["adjusted_p"], rel=1e-5
            )


@pytest.mark.parametrize("sweep", ["interventions_many", "interventions_digits"])
def test_it_finds_of_the_worlds_what_the_product_finds(numbers, sweep, tmp_path):
    arms = arms_of(Workspace.open(sweep.replace("_", "-"), tmp_path))
    product = fit_interventions(read_csv(RESULTS / f"{sweep}.csv.gz"), arms)
    committed = json.loads((RESULTS / f"{sweep}.json").read_text(encoding="utf-8"))["effects"]
    found = numbers[sweep]
    assert found["passed"] == sum(gate.counts for gate in product.gates)
    for own, response in (("loss", "loss"), ("r_hat", "R̂")):
        (place,) = (
            k
            for k, one in enumerate(product.effects)
            if one.response == response and "Δ log K_F" in one.estimand and not one.arm
        )
        one, ours = product.effects[place], found[own]
        wider = max((ours["low"], ours["high"]), ours["by digit"], key=np.ptp)
        assert (one.num_worlds, one.num_classes) == (ours["worlds"], 10)
        assert [one.value, *one.interval] == pytest.approx([ours["value"], *wider], rel=1e-4)
        assert committed[place]["interval"] == pytest.approx(one.interval, rel=1e-6)


TRAINING = ("interventions-training", "interventions-digits-training")
IMAGES = {
    ("condition", "base"): "E1', trained on the condition, tested on the base",
    ("base", "condition"): "A, trained on the base, tested on the condition",
    ("condition", "condition"): "B, trained and tested on the condition",
}


@pytest.fixture(scope="module")
def on_training(tmp_path_factory):
    """The product's analysis of both sweeps that move training images alone, together."""
    tables, arms = [], []
    for preset in TRAINING:
        tables.append(read_csv(RESULTS / f"{preset.replace('-', '_')}.csv.gz"))
        arms += arms_of(Workspace.open(preset, str(tmp_path_factory.mktemp("root"))))
    return fit_interventions(pd.concat(tables, ignore_index=True), arms)


def test_it_finds_of_moved_training_images_what_the_product_finds(numbers, on_training):
    found = numbers["interventions on training images"]
    committed = json.loads((RESULTS / "interventions_training.json").read_text(encoding="utf-8"))
    assert found["counted"] == sum(gate.counts for gate in on_training.gates)
    assert found["trials"] == committed["trials"] == 1380
    compared = 0
    for place, one in enumerate(on_training.effects):
        if not one.tested_on or "Δ log K_F" not in one.estimand or one.arm:
            continue
        response = {"loss": "loss", "error": "error", "R̂": "r_hat"}[one.response]
        ours = found[f"{IMAGES[one.trained_on, one.tested_on]}, {response}"]
        assert (one.num_worlds, one.num_classes) == (ours["worlds"], 10)
        assert [one.value, *one.interval] == pytest.approx(
            [ours["value"], *ours["wider"]], rel=1e-6, abs=1e-9
        )
        assert one.told_from_zero == ours["told from 0"]
        assert one.smaller_than_half == ours["smaller than half"]
        assert committed["effects"][place]["interval"] == pytest.approx(one.interval, rel=1e-6)
        compared += 1
    assert compared == 9
    shares = found["share of the loss on moved images"]
    assert on_training.moved_shares == pytest.approx(
        {"base": shares["as the base has them"], "condition": shares["moved"]}, abs=1e-3
    )


def spelled(value, places=3):
    return f"{value:.{places}f}".replace("-", "−")


def with_interval(one):
    low, high = one["wider"]
    return f"{spelled(one['value'])} ({spelled(low)} to {spelled(high)})"


def test_findings_say_of_moved_training_images_what_the_tables_say(numbers):
    said = findings_text()
    found = numbers["interventions on training images"]
    primary, artefact, both = IMAGES.values()
    for label, where, row in (
        ("E1′", "E2′", primary),
        ("A1", "A2", artefact),
        ("B1", "B2", both),
    ):
        loss, robustness = found[f"{row}, loss"], found[f"{row}, r_hat"]
        assert f"{label} {with_interval(loss)}" in said
        assert f"{where} {with_interval(robustness)}" in said
    for name, group in (
        ("real images", "real"),
        ("… MNIST", "MNIST"),
        ("… UCI digits", "UCI digits"),
        ("generated", "generated"),
        ("`small_cnn` alone", "small_cnn"),
        ("`small_mlp` alone", "small_mlp"),
    ):
        loss, robustness = (found[f"{primary}, {of}, {group}"] for of in ("loss", "r_hat"))
        row = [str(loss["worlds"]), with_interval(loss), with_interval(robustness)]
        assert f"| {name} | {' | '.join(row)} |" in said
    loss = found[f"{primary}, loss"]
    doubled = [round(100 * (2**bound - 1)) for bound in (loss["value"], *loss["wider"])]
    assert f"by about {doubled[0]} % ({doubled[1]} to {doubled[2]} %)" in said
    shares = [
        f"{100 * share:.0f} %" for share in found["share of the loss on moved images"].values()
    ]
    assert (
        f"have {shares[0]} of the test loss before they are moved, and {shares[1]} after they are "
        "moved" in said
    )
    thirds = [
        found[f"{primary}, loss, {third} losses"]["value"]
        for third in ("smallest", "middle", "largest")
    ]
    assert f"({', '.join(f'{value:.2f}' for value in thirds)})" in said
    ends = [
        found[f"{artefact}, loss, {third} losses"]["value"] for third in ("smallest", "largest")
    ]
    assert f"A1 falls from {ends[0]:.2f} to {ends[1]:.2f}" in said
    scatter = np.std([*found["by_world"][f"{primary}, loss"].values()], ddof=1)
    assert f"The slopes of base datasets scatter by {scatter:.2f}" in said
    assert f"{found['counted']} of {found['worlds']} base datasets" in said
    verdicts = [
        (found[f"{primary}, {of}"]["told from 0"], found[f"{primary}, {of}"]["smaller than half"])
        for of in ("loss", "r_hat")
    ]
    assert verdicts == [(True, True), (False, True)]


def test_findings_say_of_distances_and_heights_what_the_tables_say(numbers):
    said = findings_text()
    r = [numbers[name]["spread"]["r of log K_F with log mean distance"] for name in PAIRS]
    assert f"(r of the logarithms −{-max(r):.2f} to −{-min(r):.2f})" in said
    heights = [numbers[name]["after"]["log R̂ on log K_F, a height per class"] for name in PAIRS]
    assert [one["low"] < -1 for one in heights] == [False, False, True]
    digits, mnist, fashion = (
        " ".join([f"−{-one['value']:.2f}", f"(−{-one['low']:.2f} to −{-one['high']:.2f})"])
        for one in heights
    )
    assert (
        f"{digits}, {mnist} and {fashion.partition(' ')[0]}. Only on Fashion-MNIST does its interval "
        "contain −1" in said
    )


def written(value):
    """A number as documents write it: two digits, and a true minus sign."""
    return f"{value:.2f}".replace("-", "−")


def interval(one, digits=2):
    """A number with its interval, as the page writes it."""
    value, low, high = (
        f"{one[key]:.{digits}f}".replace("-", "−") for key in ("value", "low", "high")
    )
    return f"{value} ({low} to {high})"


def test_findings_say_of_d_moved_what_its_tables_say(numbers):
    said = findings_text()
    short, long = numbers["dimension_moved"], numbers["dimension_moved_longer"]
    assert (short["trials"], long["trials"]) == (1200, 600)
    for table in (short, long):
        cells = " | ".join(interval(one, 1) for one in table["b by level"])
        assert f"| {cells} |" in said
        slopes = " | ".join(f"{slope:.2f}" for slope in table["mean slope by level"])
        assert f"| {slopes} |" in said
        accuracies = " | ".join(f"{of:.2f}" for of in table["mean training accuracy"].values())
        assert f"| {accuracies} |" in said
        losses = " | ".join(f"{loss:.2f}" for loss in table["median loss by level"])
        assert f"| {losses} |" in said
        for name in (
            "power of d against 0",
            "b/d less one slope, new pairs",
            "b/d less one slope, new pairs and level",
            "power of d at equal height",
        ):
            assert interval(table[name]) in said, name
    assert interval(long["power of d, longer less shorter"]) in said
    for name in ("log error", "log error, trained shorter"):
        assert interval(long[name]["power of d against 0"]) in said, name
    dimensions = " | ".join(f"{d:.1f}" for d in short["median d by level"])
    assert f"| {dimensions} |" in said


@pytest.mark.parametrize("name", ["dimension_moved", "dimension_moved_longer"])
def test_slopes_and_the_power_of_d_come_out_of_another_libraries_hands(numbers, name):
    """Slopes of each curve by scipy on a pandas table, then the levels' means."""
    rows = pd.read_csv(RESULTS / f"{name}.csv.gz", dtype={"dataset": str})
    rows[["pair", "level"]] = rows.dataset.str.extract(r"mnist_(\d\d)_(\d)")
    rows["log_loss"] = np.log(rows.test_loss)
    curves = rows.groupby(["pair", "level", "train_size"])[["log_loss", "d_data_mle"]].mean()
    fitted = [
        {
            "level": level,
            "slope": -linregress(np.log(curve.index.get_level_values(2)), curve.log_loss).slope,
            "log_d": np.log(curve.d_data_mle.iloc[-1]),
        }
        for (_, level), curve in curves.groupby(level=["pair", "level"])
    ]
    means = pd.DataFrame(fitted).groupby("level").mean()
    assert means.slope.tolist() == pytest.approx(numbers[name]["mean slope by level"], rel=1e-9)
    power = -linregress(means.log_d, np.log(means.slope)).slope
    assert numbers[name]["power of d against 0"]["value"] == pytest.approx(power, rel=1e-9)


def test_readme_says_of_moved_training_images_what_the_tables_say(numbers):
    primary, artefact, _ = IMAGES.values()
    of_training = numbers["interventions on training images"]
    loss = of_training[f"{primary}, loss"]
    low, high = loss["wider"]
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert (
        f"log test loss rose by {loss['value']:.3f} (95 % interval {low:.3f} to {high:.3f})"
        in readme
    )
    assert f"In {loss['worlds']} experiments we changed training images only" in readme
    assert loss["value"] == pytest.approx(1 / 5, abs=0.02)
    robustness = of_training[f"{primary}, r_hat"]
    assert not robustness["told from 0"]
    costs = of_training[f"{artefact}, loss"]["value"] / loss["value"]
    assert costs == pytest.approx(5, abs=0.5)


def test_the_erratum_gives_slopes_with_the_intervals_of_the_tables(numbers):
    findings = findings_text()
    for name in PAIRS:
        slope = numbers[name]["after"]["log R̂ on log K_F, free of scale"]
        value, low, high = (written(slope[key]) for key in ("value", "low", "high"))
        assert f"{value} ({low} to {high})" in findings
    for response in ("K_F", "mean distance"):
        shares = [numbers[name]["explained"]["log R̂"][response] for name in PAIRS]
        assert ", ".join(f"{share:.2f}" for share in shares) in findings


@pytest.mark.parametrize(
    ("figure", "tables"),
    [
        ("findings-worlds", ["interventions_many.csv.gz", "interventions_digits.csv.gz"]),
        (
            "findings-worlds-training",
            ["interventions_training.csv.gz", "interventions_digits_training.csv.gz"],
        ),
        ("findings-pairs", [f"{name}.csv.gz" for name in PAIRS]),
        *((figure, ["demo.json"]) for figure in FIGURES.values()),
    ],
)
def test_every_figure_was_drawn_from_the_committed_numbers(figure, tables):
    drawn = Image.open(ROOT / "docs" / "images" / f"{figure}.png")
    assert drawn.text["Source"] == source(*(RESULTS / table for table in tables))
