"""Links, commands, Python blocks and make targets of the documents exist."""

import json
import re
import shlex
from pathlib import Path

import pandas as pd
import pytest

import isweep
from orchestrator.analysis.curve_answers import MEASURED_ASSURANCE
from orchestrator.cli.app import parse
from orchestrator.cli.looking_ahead import prior_in_words
from search_spaces.errors import SweepError
from search_spaces.sweeps import SweepSpec, UserSourceSpec
from tests.demo_page import RESULT, filled, remark_on_the_fall
from tests.integration.chaos import table

ROOT = Path(__file__).parents[2]
GENERATED = ROOT / "docs" / "reference" / "commands.md"
DOCUMENTS = [
    path
    for path in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"))
    if path != GENERATED and "_build" not in path.parts
]
BLOCK = re.compile(r"^```([^\n`]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
CELL = "{code-cell} python3"
"""Language of a block that is executed when the documentation is built."""


def blocks(document: Path) -> list[tuple[str, str]]:
    return BLOCK.findall(document.read_text(encoding="utf-8"))


def cells(document: Path) -> list[str]:
    """Return the Python of all cells of a page that is a notebook, without their options."""
    bodies = [body for language, body in blocks(document) if language == CELL]
    return [re.sub(r"^:\w+:.*\n", "", body, flags=re.MULTILINE) for body in bodies]


def commands(document: Path) -> list[str]:
    """Return all lines of code blocks that call ``isweep``, without comments."""
    calls = []
    for _, block in blocks(document):
        for line in block.splitlines():
            command = line.strip().removeprefix("$ ").split(" #")[0].strip()
            if re.match(r"^(\.venv/bin/)?isweep ", command):
                calls.append(command)
    return calls


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_relative_links_lead_somewhere(document):
    text = re.sub(BLOCK, "", document.read_text(encoding="utf-8"))
    for link in re.findall(r"\]\(([^)#\s]+)", text):
        if not link.startswith(("http://", "https://", "mailto:")):
            assert (document.parent / link).exists(), f"{document.name} links to {link}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_isweep_command_can_be_parsed(document):
    for command in commands(document):
        if "…" in command or "..." in command:
            continue
        try:
            parse(shlex.split(command)[1:])
        except SweepError as error:
            pytest.fail(f"{document.name}: {command}\n{error}")


def test_the_readme_has_commands_to_check():
    assert len(commands(ROOT / "README.md")) >= 8


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_python_blocks_compile(document):
    for block in cells(document):
        compile(block, document.name, "exec")
    for language, block in blocks(document):
        if language == "python":
            compile(block, document.name, "exec")


def test_the_pictures_of_concepts_are_drawn_by_the_product(monkeypatch):
    import matplotlib as mpl

    mpl.use("agg")
    text = "\n".join(cells(ROOT / "docs" / "concepts.md"))
    variables: dict = {}
    exec(text, variables)
    # Scaling [-1, 1] to [0, 255] multiplies distances by 255 / 2.
    assert variables["sharpness"] == pytest.approx(2 / 255 / variables["distances"].min(), rel=1e-4)


def test_every_key_of_a_sweep_file_is_in_its_reference():
    page = (ROOT / "docs" / "reference" / "sweep-file.md").read_text(encoding="utf-8")
    for spec in (SweepSpec, UserSourceSpec):
        for name, field in spec.model_fields.items():
            key = field.alias or name
            assert f"`{key}`" in page, key


PAGES = {
    "tutorial": ("tutorial",),
    "how-to": (
        *("measure-images", "sweep-of-my-data", "how-many-images", "read-the-report"),
        *("read-results", "fit-a-table", "datasets", "trials", "tuning", "cluster"),
        *("monitoring", "failures", "first-gpu", "gpu", "hospital"),
    ),
    "explanation": (
        *("concepts", "bounds", "trust-fits", "study", "findings", "findings-evidence"),
        *("predictions", "layer-dimension", "fault-tests", "architecture", "decisions/index"),
    ),
    "reference": (
        *("reference/python", "reference/commands", "reference/sweep-file"),
        *("reference/data-formats", "reference/public-datasets", "results-columns"),
        *("measures", "fits", "faults", "security", "glossary"),
    ),
}


def test_every_page_is_listed_under_one_of_four_kinds():
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    listed = []
    for tree in re.findall(r"```{toctree}\n(.*?)```", index, re.DOTALL):
        entries = tree.split("\n\n")[1].splitlines()
        listed.append(tuple(re.sub(r".*<(.*)>", r"\1", entry) for entry in entries))
    assert listed == list(PAGES.values())
    pages = {
        path.relative_to(ROOT / "docs").with_suffix("").as_posix()
        for path in DOCUMENTS
        if (ROOT / "docs") in path.parents and "decisions" not in path.parts
    }
    assert pages <= {*sum(listed, ()), "index", "preregistration"}


def test_the_readmes_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    targets = set(re.findall(r"^(\w+):", makefile, re.MULTILINE))
    readme_targets = set(re.findall(r"^make (\w+)$", readme, re.MULTILINE))
    assert {"demo", "test"} <= readme_targets <= targets


def test_the_readmes_sweep_file_is_valid(tmp_path):
    from orchestrator.planning.sweep_file import load_sweep

    (text,) = [block for language, block in blocks(ROOT / "README.md") if language == "yaml"]
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    assert load_sweep(str(path)).name == "mine"


def test_ci_runs_lint_and_tests():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert re.findall(r"^make (\w+)$", script, re.MULTILINE) == ["lint", "test"]


GUIDES = [ROOT / "CONTRIBUTING.md", ROOT / "docs" / "architecture.md"]
TASKS = (
    "model",
    "dataset",
    "estimator",
    "attack",
    "failure policy",
    "report figure",
    "command",
    "column",
)


@pytest.mark.parametrize("document", GUIDES, ids=lambda path: path.name)
def test_every_path_that_a_guide_names_exists(document):
    text = re.sub(BLOCK, "", document.read_text(encoding="utf-8"))
    paths = {name for name in re.findall(r"`([\w./-]+/[\w./-]*)`", text) if "://" not in name}
    assert len(paths) >= 15
    assert [name for name in sorted(paths) if not (ROOT / name).exists()] == []


def test_the_names_in_a_guides_bullet_are_in_the_files_it_names():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    bullets = re.findall(
        r"^(?:-|\d\.) `.+?(?=^- |^\d\. |^\n|\Z|\n\n)", text, re.MULTILINE | re.DOTALL
    )
    checked = 0
    for bullet in bullets:
        files = [ROOT / name for name in re.findall(r"`([\w./-]+\.(?:py|md))`", bullet)]
        bodies = "".join(file.read_text(encoding="utf-8") for file in files)
        for name in re.findall(r"`(_?[A-Z][A-Z_]+|[a-z_]+_[a-z_]+)`", bullet):
            file_names = [file.name for file in files]
            assert re.search(rf"\b{name}\b", bodies), f"{name} is in none of {file_names}"
            checked += 1
    assert checked >= 8


def test_contributing_answers_how_to_add_each_kind_of_thing():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## Add (.+)$", text, re.MULTILINE)
    for task in TASKS:
        assert any(task in heading for heading in headings), f"nothing about adding {task}"


def test_the_picture_of_the_architecture_names_every_folder():
    (picture, _) = [body for _, body in blocks(ROOT / "docs" / "architecture.md")]
    for package in ("tasks", "orchestrator"):
        for folder in (ROOT / package).iterdir():
            if folder.is_dir() and (folder / "__init__.py").exists():
                assert f"{folder.name}/" in picture


def test_the_table_of_long_fault_runs_is_that_of_its_results():
    text = (ROOT / "benchmarks" / "results" / "chaos.json").read_text(encoding="utf-8")
    page = (ROOT / "docs" / "fault-tests.md").read_text(encoding="utf-8")
    assert table(json.loads(text)) in page


def test_readme_shows_the_output_and_answers_of_the_demos_committed_run():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert filled(text, json.loads(RESULT.read_text(encoding="utf-8"))) == text
    quiet = json.loads((RESULT.parent / "front_demo.json").read_text(encoding="utf-8"))["ours"]
    words = " ".join(text.split())
    assert remark_on_the_fall(json.loads(RESULT.read_text(encoding="utf-8"))) in words
    assert f"`isweep run demo` ({quiet['first_s']:.0f} s on two idle cores)" in words


def test_readme_gives_the_result_of_the_committed_run_of_make_demo():
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    run = json.loads((RESULT.parent / "digits_demo.json").read_text(encoding="utf-8"))
    value, low, high = (f"−{abs(number):.2f}" for number in (run["value"], *run["interval"]))
    assert run["verdict"] == "suggested"
    assert max(run["value"], *run["interval"]) < 0
    assert f"{value} (95 % interval {low} to {high}; 45 pairs" in text
    assert f"{run['seconds_on_two_cores']} s on two cores" in text


def test_readme_is_read_in_two_minutes():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 900


def test_the_page_on_predictions_gives_the_errors_of_the_committed_benchmark():
    page = (ROOT / "docs" / "predictions.md").read_text(encoding="utf-8")
    text = (ROOT / "benchmarks/results/prediction_rivals.json").read_text(encoding="utf-8")
    for row in json.loads(text)["errors"]:
        if row["points"] < 5:
            assert f"{row['ours']:.2f}" in page, row["population"]
            assert f"{row[row['best rival']]:.2f}" in page, row["population"]
            assert f"({row['best rival']})" in page


def test_the_page_on_predictions_gives_the_shares_of_numbers_that_were_large_enough():
    page = (ROOT / "docs" / "predictions.md").read_text(encoding="utf-8")
    results = (ROOT / "benchmarks/results/prediction_rivals.json").read_text(encoding="utf-8")
    rows = pd.DataFrame(json.loads(results)["needed sizes"]).query("probability == 0.8")
    predicted = []
    large_enough = []
    for _, cases in rows.groupby("points"):
        num_predicted = (cases["told"] * cases["curves"]).sum()
        num_enough = (cases["large enough, of all"] * cases["curves"]).sum()
        predicted.append(f"{100 * num_predicted / cases['curves'].sum():.0f} %")
        large_enough.append(f"{100 * num_enough / num_predicted:.0f} %")
    text = " ".join(page.split())
    assert f"for {predicted[0]}, {predicted[1]} and {predicted[2]} of the curves" in text
    shares = f"{large_enough[0]}, {large_enough[1]} and {large_enough[2]} of cases"
    assert f"large enough in only {shares}" in text
    assert large_enough == [f"{percent} %" for percent in MEASURED_ASSURANCE.values()]


def test_the_page_on_needed_images_shows_what_its_command_prints(tmp_path):
    page = (ROOT / "docs" / "how-many-images.md").read_text(encoding="utf-8")
    _, output, table = page.split("```")[1:6:2]
    file = tmp_path / "results.csv"
    file.write_text(table.lstrip(), encoding="utf-8")
    curves = isweep.learning_curves(file, metric="accuracy", target=0.82, test_size=400)
    heading, *lines, prior = output.strip().splitlines()
    assert heading == "Learning curves of results.csv:"
    assert repr(curves) == "\n".join(lines)
    assert prior == prior_in_words(curves.answers[0].prior_sources)
