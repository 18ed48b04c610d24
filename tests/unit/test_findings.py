"""Every number of docs/findings.md comes out of the committed tables with numpy alone."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.harness import source
from orchestrator.analysis.grouped import fit_pairs
from orchestrator.analysis.table import read_csv
from tests.demo_page import FIGURES

ROOT = Path(__file__).parents[2]
RESULTS, SCRIPT = ROOT / "benchmarks/results", ROOT / "benchmarks/findings_numbers.py"
SAME = {
    "exponent": "exponent b in N^(-b/d)",
    "exponent against 1": "exponent b against the law's 1",
    "log loss on log K_F": "slope of log loss on log K_F at equal 1/d",
    "log R̂ on log K_F": "slope of log R̂ on log K_F at equal 1/d",
    "accuracy lost to the attack on log K_F": "slope of accuracy lost to the attack on log K_F at equal 1/d",
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


def test_it_finds_what_the_products_analysis_finds(numbers):
    tables = sorted(path.name.removesuffix(".csv.gz") for path in RESULTS.glob("*_pairs.csv.gz"))
    assert tables
    for name in tables:
        answers = {slope.on: slope for slope in fit_pairs(read_csv(RESULTS / f"{name}.csv.gz"))}
        for own, question in SAME.items():
            found, theirs = numbers[name][own], answers[question]
            shift = 1 if question == SAME["exponent against 1"] else 0
            assert [found["value"] - shift, found["low"] - shift, found["high"] - shift] == pytest.approx(
                [theirs.value, *theirs.interval], rel=1e-6
            )
            assert found["p"] == pytest.approx(theirs.p_value, rel=1e-5)
            assert found["adjusted_p"] == pytest.approx(theirs.adjusted_p, rel=1e-5)


def test_it_scores_rules_as_the_registered_analysis_did(numbers):
    """The JSON files are of the analysis as it was registered, which fitted the rules as well."""
    for path in RESULTS.glob("*_pairs.json"):
        fit, rivals = json.loads(path.read_text(encoding="utf-8")), numbers[path.stem]["rivals"]
        assert {rule: rivals[rule]["share"] for rule in fit["shares"]} == pytest.approx(
            fit["shares"], rel=1e-6
        )
        for one in fit["rivals"]:
            assert rivals[one["question"]]["adjusted_p"] == pytest.approx(one["adjusted_p"], rel=1e-5)


def test_it_finds_of_the_worlds_what_the_product_finds(numbers):
    product = json.loads((RESULTS / "interventions_many.json").read_text(encoding="utf-8"))
    found = numbers["interventions_many"]
    assert found["passed"] == sum(gate["counts"] for gate in product["gates"])
    theirs = {
        one["response"]: one
        for one in product["effects"]
        if "Δ log K_F" in one["estimand"] and not one["arm"]
    }
    for own, response in (("loss", "loss"), ("r_hat", "R̂")):
        one = theirs[response]
        assert found[own]["worlds"] == one["num_worlds"]
        assert [found[own][key] for key in ("value", "low", "high")] == pytest.approx(
            [one["value"], *one["interval"]], rel=1e-4
        )


def test_readme_says_of_the_worlds_what_their_table_says(numbers):
    found = numbers["interventions_many"]
    loss, robustness = (
        f"{abs(one['value']):.2f} ({min(ends):.2f} to {max(ends):.2f})"
        for one in (found["loss"], found["r_hat"])
        for ends in [(abs(one["low"]), abs(one["high"]))]
    )
    assert found["loss"]["low"] > 0 > found["r_hat"]["high"]
    said = (
        f"Over {found['loss']['worlds']} worlds in which K_F alone was moved, log loss rose by {loss} per "
        f"unit of log K_F, and log [robustness](docs/findings.md) fell by {robustness}: the law has 1 and 1."
    )
    assert said in " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())


@pytest.mark.parametrize(
    ("figure", "table"),
    [
        ("findings-worlds", "interventions_many.csv.gz"),
        ("findings-digit-pairs", "digit_pairs.csv.gz"),
        *((figure, "demo.json") for figure in FIGURES.values()),
    ],
)
def test_every_figure_was_drawn_from_the_committed_numbers(figure, table):
    drawn = Image.open(ROOT / "docs" / "images" / f"{figure}.png")
    assert drawn.text["Source"] == source(RESULTS / table)
