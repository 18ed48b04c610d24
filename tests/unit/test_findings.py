"""Every number of docs/findings.md follows from the committed tables with numpy alone."""

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
RESULTS = ROOT / "benchmarks" / "results"
SCRIPT = ROOT / "benchmarks" / "findings_numbers.py"
PAIRS = ("digit_pairs", "mnist_pairs", "fashion_pairs")
SAME_QUESTIONS = {
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


def test_the_script_imports_numpy_alone():
    modules = set()
    for node in ast.walk(ast.parse(SCRIPT.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules.add(node.module or "")
    packages = {name.partition(".")[0] for name in modules}
    assert packages - sys.stdlib_module_names == {"numpy"}


@pytest.mark.long
def test_the_script_agrees_with_the_products_fits(numbers):
    for sweep in PAIRS:
        slopes = fit_scaling_laws(read_csv(RESULTS / f"{sweep}.csv.gz")).class_pairs
        answers = {slope.on: slope for slope in slopes}
        assert {*answers} == {*SAME_QUESTIONS.values()}
        for name_in_script, question in SAME_QUESTIONS.items():
            result = numbers[sweep]["as isweep fit asks"][name_in_script]
            answer = answers[question]
            # The product gives the exponent beyond 1, the script the exponent.
            shift = 1 if question == class_pairs.EXPONENT_BEYOND else 0
            shifted = [result[key] - shift for key in ("value", "low", "high")]
            assert shifted == pytest.approx([answer.value, *answer.interval], rel=1e-6)
            assert result["p"] == pytest.approx(answer.p_value, rel=1e-5)
            # The units of the pixels alone cause this slope, so it is not tested.
            if question == class_pairs.R_HAT:
                assert (result.get("adjusted_p"), answer.adjusted_p) == (None, None)
            else:
                assert result["adjusted_p"] == pytest.approx(answer.adjusted_p, rel=1e-5)


def findings_text():
    """Return the two pages of findings, results and evidence, with single blanks."""
    pages = [ROOT / "docs" / name for name in ("findings.md", "findings-evidence.md")]
    return " ".join(" ".join(page.read_text(encoding="utf-8").split()) for page in pages)


@pytest.mark.long
def test_findings_give_the_slopes_free_of_scale_and_the_needed_classes(numbers):
    text = findings_text()
    slopes_free_of_scale = [
        numbers[name]["as isweep fit asks"]["log R̂ on log K_F, free of scale"] for name in PAIRS
    ]
    slope_texts = [format_interval(result) for result in slopes_free_of_scale]
    assert ", ".join(slope_texts) in text
    assert all(result["low"] > -1 for result in slopes_free_of_scale)
    needed = [numbers[name]["classes for a width of 0.6"] for name in PAIRS]
    assert [result["classes"] for result in needed] == [98, 65, 96]
    digits, mnist, fashion = ("{} to {}".format(*result["without one class"]) for result in needed)
    for words in (f"({digits} if we omit any one class)", f"({mnist})", f"({fashion})"):
        assert words in text


def test_slopes_free_of_scale_do_not_depend_on_brightness(numbers):
    """A factor on all pixels of a pair multiplies lengths and divides K_F. No answer may change."""
    rows = read_csv(RESULTS / "mnist_pairs.csv.gz")
    pairs = sorted(rows["class_pair"].unique())
    factors = np.exp(np.random.default_rng(0).normal(0, 1, len(pairs)))
    factor = rows["class_pair"].map(dict(zip(pairs, factors, strict=True)))
    brighter = rows.assign(
        r_hat_pred=rows["r_hat_pred"] * factor,
        label_sharpness=rows["label_sharpness"] / factor,
        mean_unlike_distance=rows["mean_unlike_distance"] * factor,
    )
    answers = {slope.on: slope for slope in fit_scaling_laws(brighter).class_pairs}
    results = numbers["mnist_pairs"]["as isweep fit asks"]
    expected_slope = results["log R̂ on log K_F, free of scale"]["value"]
    assert answers[class_pairs.R_HAT_FREE].value == pytest.approx(expected_slope, rel=1e-6)
    in_pixels = answers[class_pairs.R_HAT]
    assert in_pixels.interval[1] < -0.8
    assert in_pixels.adjusted_p is None
    assert not in_pixels.is_significant


def test_the_script_scores_rules_as_the_registered_analysis(numbers):
    """The JSON files have the registered analysis of the first seed, which also fitted rules."""
    for path in RESULTS.glob("*_pairs.json"):
        fit = json.loads(path.read_text(encoding="utf-8"))
        rivals = numbers[path.stem]["seed 0"]["rivals"]
        shares = {rule: rivals[rule]["share"] for rule in fit["shares"]}
        assert shares == pytest.approx(fit["shares"], rel=1e-6)
        for rival in fit["rivals"]:
            adjusted_p = rivals[rival["question"]]["adjusted_p"]
            assert adjusted_p == pytest.approx(rival["adjusted_p"], rel=1e-5)


@pytest.mark.parametrize(
    "sweep", [pytest.param("interventions_many", marks=pytest.mark.long), "interventions_digits"]
)
def test_the_script_agrees_with_the_products_effects_of_base_datasets(numbers, sweep, tmp_path):
    arms = arms_of(Workspace.open(sweep.replace("_", "-"), tmp_path))
    product = fit_interventions(read_csv(RESULTS / f"{sweep}.csv.gz"), arms)
    committed = json.loads((RESULTS / f"{sweep}.json").read_text(encoding="utf-8"))["effects"]
    results = numbers[sweep]
    assert results["passed"] == sum(gate.counts for gate in product.gates)
    for name_in_script, response in (("loss", "loss"), ("r_hat", "R̂")):
        (position,) = (
            index
            for index, effect in enumerate(product.effects)
            if effect.response == response and "Δ log K_F" in effect.estimand and not effect.arm
        )
        effect = product.effects[position]
        result = results[name_in_script]
        wider_interval = max((result["low"], result["high"]), result["by digit"], key=np.ptp)
        assert (effect.num_worlds, effect.num_classes) == (result["worlds"], 10)
        assert [effect.value, *effect.interval] == pytest.approx(
            [result["value"], *wider_interval], rel=1e-4
        )
        assert committed[position]["interval"] == pytest.approx(effect.interval, rel=1e-6)


TRAINING = ("interventions-training", "interventions-digits-training")
IMAGES = {
    ("condition", "base"): "E1', trained on the condition, tested on the base",
    ("base", "condition"): "A, trained on the base, tested on the condition",
    ("condition", "condition"): "B, trained and tested on the condition",
}


@pytest.fixture(scope="module")
def training_effects(tmp_path_factory):
    """The product's joint analysis of the two sweeps that change only training images."""
    tables = []
    arms = []
    for preset in TRAINING:
        tables.append(read_csv(RESULTS / f"{preset.replace('-', '_')}.csv.gz"))
        arms += arms_of(Workspace.open(preset, str(tmp_path_factory.mktemp("root"))))
    return fit_interventions(pd.concat(tables, ignore_index=True), arms)


@pytest.mark.long
def test_the_script_agrees_with_the_products_effects_on_training_images(numbers, training_effects):
    results = numbers["interventions on training images"]
    committed = json.loads((RESULTS / "interventions_training.json").read_text(encoding="utf-8"))
    assert results["counted"] == sum(gate.counts for gate in training_effects.gates)
    assert results["trials"] == committed["trials"] == 1380
    num_compared = 0
    for position, effect in enumerate(training_effects.effects):
        if not effect.tested_on or "Δ log K_F" not in effect.estimand or effect.arm:
            continue
        response = {"loss": "loss", "error": "error", "R̂": "r_hat"}[effect.response]
        result = results[f"{IMAGES[effect.trained_on, effect.tested_on]}, {response}"]
        assert (effect.num_worlds, effect.num_classes) == (result["worlds"], 10)
        assert [effect.value, *effect.interval] == pytest.approx(
            [result["value"], *result["wider"]], rel=1e-6, abs=1e-9
        )
        assert effect.told_from_zero == result["told from 0"]
        assert effect.smaller_than_half == result["smaller than half"]
        assert committed["effects"][position]["interval"] == pytest.approx(
            effect.interval, rel=1e-6
        )
        num_compared += 1
    assert num_compared == 9
    shares = results["share of the loss on moved images"]
    assert training_effects.moved_shares == pytest.approx(
        {"base": shares["as the base has them"], "condition": shares["moved"]}, abs=1e-3
    )


def format_decimals(value, places=3):
    return f"{value:.{places}f}".replace("-", "−")


def format_wider_interval(result):
    low, high = result["wider"]
    return f"{format_decimals(result['value'])} ({format_decimals(low)} to {format_decimals(high)})"


def test_findings_give_the_effects_on_training_images_of_the_tables(numbers):
    text = findings_text()
    results = numbers["interventions on training images"]
    primary, artefact, moved_everywhere = IMAGES.values()
    labeled_effects = (
        ("E1′", "E2′", primary),
        ("A1", "A2", artefact),
        ("B1", "B2", moved_everywhere),
    )
    for loss_label, robustness_label, images in labeled_effects:
        loss = results[f"{images}, loss"]
        robustness = results[f"{images}, r_hat"]
        assert f"{loss_label} {format_wider_interval(loss)}" in text
        assert f"{robustness_label} {format_wider_interval(robustness)}" in text
    groups = (
        ("real images", "real"),
        ("… MNIST", "MNIST"),
        ("… UCI digits", "UCI digits"),
        ("generated", "generated"),
        ("`small_cnn` alone", "small_cnn"),
        ("`small_mlp` alone", "small_mlp"),
    )
    for name, group in groups:
        loss = results[f"{primary}, loss, {group}"]
        robustness = results[f"{primary}, r_hat, {group}"]
        cells = [name, str(loss["worlds"]), format_wider_interval(loss)]
        cells.append(format_wider_interval(robustness))
        assert f"| {' | '.join(cells)} |" in text
    loss = results[f"{primary}, loss"]
    # Increase of the loss in % when K_F doubles, with its interval.
    value, low, high = (round(100 * (2**slope - 1)) for slope in (loss["value"], *loss["wider"]))
    assert f"by about {value} % ({low} to {high} %)" in text
    shares = [
        f"{100 * share:.0f} %" for share in results["share of the loss on moved images"].values()
    ]
    assert (
        f"contribute {shares[0]} of the test loss before the move, and {shares[1]} after the move"
        in text
    )
    third_slopes = [
        results[f"{primary}, loss, {third} losses"]["value"]
        for third in ("smallest", "middle", "largest")
    ]
    third_texts = ", ".join(f"{slope:.2f}" for slope in third_slopes)
    assert f"({third_texts})" in text
    end_slopes = [
        results[f"{artefact}, loss, {third} losses"]["value"] for third in ("smallest", "largest")
    ]
    assert f"A1 falls from {end_slopes[0]:.2f} to {end_slopes[1]:.2f}" in text
    scatter = np.std([*results["by_world"][f"{primary}, loss"].values()], ddof=1)
    assert f"The standard deviation of the slopes of base datasets is {scatter:.2f}" in text
    assert f"{results['counted']} of {results['worlds']} base datasets" in text
    robustness = results[f"{primary}, r_hat"]
    assert (loss["told from 0"], loss["smaller than half"]) == (True, True)
    assert (robustness["told from 0"], robustness["smaller than half"]) == (False, True)


def test_findings_give_the_distances_and_heights_of_the_tables(numbers):
    text = findings_text()
    correlations = [
        numbers[name]["spread"]["r of log K_F with log mean distance"] for name in PAIRS
    ]
    assert f"(r of the logarithms −{-max(correlations):.2f} to −{-min(correlations):.2f})" in text
    heights = [numbers[name]["after"]["log R̂ on log K_F, a height per class"] for name in PAIRS]
    assert [result["low"] < -1 for result in heights] == [False, False, True]
    digits, mnist, fashion = (format_interval(result) for result in heights)
    assert (
        f"{digits}, {mnist} and {fashion.partition(' ')[0]}. The interval contains −1 only on "
        "Fashion-MNIST" in text
    )


def format_number(value):
    """Format a number as the documents do: two decimals, and a true minus sign."""
    return f"{value:.2f}".replace("-", "−")


def format_interval(result, digits=2):
    """Format a number with its interval as the documents do."""
    value, low, high = (
        f"{result[key]:.{digits}f}".replace("-", "−") for key in ("value", "low", "high")
    )
    return f"{value} ({low} to {high})"


def test_findings_give_the_numbers_of_moved_d_of_the_tables(numbers):
    text = findings_text()
    short = numbers["dimension_moved"]
    long = numbers["dimension_moved_longer"]
    assert (short["trials"], long["trials"]) == (1200, 600)
    for table in (short, long):
        cells = " | ".join(format_interval(result, 1) for result in table["b by level"])
        assert f"| {cells} |" in text
        slopes = " | ".join(f"{slope:.2f}" for slope in table["mean slope by level"])
        assert f"| {slopes} |" in text
        accuracies = " | ".join(
            f"{accuracy:.2f}" for accuracy in table["mean training accuracy"].values()
        )
        assert f"| {accuracies} |" in text
        losses = " | ".join(f"{loss:.2f}" for loss in table["median loss by level"])
        assert f"| {losses} |" in text
        answers = (
            "power of d against 0",
            "b/d less one slope, new pairs",
            "b/d less one slope, new pairs and level",
            "power of d at equal height",
        )
        for name in answers:
            assert format_interval(table[name]) in text, name
    assert format_interval(long["power of d, longer less shorter"]) in text
    for name in ("log error", "log error, trained shorter"):
        assert format_interval(long[name]["power of d against 0"]) in text, name
    dimensions = " | ".join(f"{d:.1f}" for d in short["median d by level"])
    assert f"| {dimensions} |" in text


@pytest.mark.parametrize("name", ["dimension_moved", "dimension_moved_longer"])
def test_scipy_gives_the_same_slopes_and_power_of_d(numbers, name):
    """The reference fits each curve with scipy on a pandas table, and averages by level."""
    rows = pd.read_csv(RESULTS / f"{name}.csv.gz", dtype={"dataset": str})
    rows[["pair", "level"]] = rows.dataset.str.extract(r"mnist_(\d\d)_(\d)")
    rows["log_loss"] = np.log(rows.test_loss)
    curves = rows.groupby(["pair", "level", "train_size"])[["log_loss", "d_data_mle"]].mean()
    fitted_curves = []
    for (_, level), curve in curves.groupby(level=["pair", "level"]):
        log_sizes = np.log(curve.index.get_level_values(2))
        slope = -linregress(log_sizes, curve.log_loss).slope
        log_d = np.log(curve.d_data_mle.iloc[-1])
        fitted_curves.append({"level": level, "slope": slope, "log_d": log_d})
    means = pd.DataFrame(fitted_curves).groupby("level").mean()
    assert means.slope.tolist() == pytest.approx(numbers[name]["mean slope by level"], rel=1e-9)
    power = -linregress(means.log_d, np.log(means.slope)).slope
    assert numbers[name]["power of d against 0"]["value"] == pytest.approx(power, rel=1e-9)


def test_readme_gives_the_effects_on_training_images_of_the_tables(numbers):
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
        assert format_interval(slope) in findings
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
    image = Image.open(ROOT / "docs" / "images" / f"{figure}.png")
    assert image.text["Source"] == source(*(RESULTS / table for table in tables))
