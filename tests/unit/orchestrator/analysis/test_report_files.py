import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from orchestrator.analysis.figures.of_sweeps import DRAWINGS
from orchestrator.analysis.findings import findings
from orchestrator.analysis.fits import fit_scaling_laws
from orchestrator.analysis.published import published_table
from orchestrator.analysis.report import write_report
from orchestrator.analysis.results_tables.csv_files import read_csv
from tests.synthetic import synthetic_table

FIGURES = [name for name in DRAWINGS if not name.startswith("accuracy_lost")]
"""Names of the figures of several datasets; figures of accuracy lost are of class pairs."""
SUMMARY = {
    "planned": 40,
    "done": 36,
    "failed": 3,
    "diverged": 1,
    "failures": [
        {"trial_id": "t-1", "kind": "out_of_memory", "message": "<script>alert(1)</script>"}
    ],
    "tracebacks": {"t-1": "Traceback: <module>"},
    "measures": [
        {
            "dataset": "natural0",
            "class_pair": "",
            "train_size": 500,
            "d_data": 9.123456,
            "K_F": 0.000637,
        },
        {"dataset": "natural0", "class_pair": "", "train_size": 250, "d_data": 9.2, "K_F": 0.00156},
    ],
    "datasets": {
        "medical0": {"title": "Lesions", "description": "semi-synthetic slices"},
        "medical1": {
            "title": "Textures (derived)",
            "description": ("DERIVED: patches of photographs."),
        },
    },
    "packages": {"torch": "2.10"},
    "devices": {"cpu": 36},
    "description": "A <small> sweep.",
    "preset": "name: <demo>",
}


@pytest.fixture(scope="module")
def table():
    table = synthetic_table(
        num_natural=3, num_medical=2, trial_std=0.2, models=("resnet18", "vgg13")
    )
    table.loc[:3, "code_version"] = "1111111"
    return table


@pytest.fixture(scope="module")
def fits(table):
    return fit_scaling_laws(table, explore=True)


@pytest.fixture(scope="module")
def folder(table, fits, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    path = write_report(table, fits, folder, sweep="<b>&demo", summary=SUMMARY)
    assert path == folder / "report.html"
    return folder


@pytest.fixture(scope="module")
def page(folder):
    return (folder / "report.html").read_text(encoding="utf-8")


def test_every_file_is_there(folder):
    names = {path.name for path in folder.rglob("*") if path.is_file()}
    assert {"report.html", "results.csv", "results.parquet", "fits.json"} <= names
    figures = {name for name in names if name.endswith((".svg", ".pdf"))}
    assert figures == {f"{name}.svg" for name in FIGURES}


def test_numbers_in_one_column_of_measures_have_one_notation(page):
    section = page.partition("<summary>Measures")[2].partition("</table>")[0]
    numbers = re.findall(r'<td data-head="(?:d_data|K_F)" class="number">([^<]*)</td>', section)
    assert numbers == ["9.12", "0.000637", "9.2", "0.00156"]
    assert "maximum likelihood" in section  # explains its headings


def test_the_word_derived_is_not_repeated_in_a_description(page):
    assert "Textures (derived). patches of photographs<" in page


def test_the_page_loads_nothing_from_outside(page):
    assert re.findall(r"src=[\"'](?!data:)", page) == []
    # A link that a reader may follow; the page itself loads nothing.
    assert set(re.findall(r"href=[\"'](?!data:|#)([^\"']*)", page)) == {
        "https://arxiv.org/abs/2401.08865"
    }
    assert re.findall(r"url\((?!#)", page) == []
    assert "default-src 'none'" in page
    assert re.findall(r"<script[^>]*>", page) == [
        '<script type="application/json" id="trial-data">',
        '<script type="application/json" id="point-data">',
        "<script>",
    ]
    assert page.count("<svg ") == len(FIGURES)


def test_names_from_users_are_escaped(page):
    assert "&lt;b&gt;&amp;demo" in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "&lt;demo&gt;" in page
    assert "A &lt;small&gt; sweep." in page
    assert "Traceback: &lt;module&gt;" in page


def test_counts_findings_caveats_and_provenance_are_shown(page):
    assert "<b>40</b>planned" in page
    assert "<b>1</b>diverged" in page
    assert "Lesions. semi-synthetic slices" in page
    assert "2 versions of the code" in page
    assert "torch 2.10" in page
    assert "9.12" in page


def test_a_report_begins_with_how_many_trials_are_finished(page, table, fits, tmp_path):
    unfinished = "The sweep is not complete: 36 of 40 trials are finished."
    assert unfinished in page.partition('class="strip"')[0]
    complete = {**SUMMARY, "planned": 36}
    path = write_report(table, fits, tmp_path, sweep="complete", summary=complete)
    assert "The sweep is not complete" not in path.read_text(encoding="utf-8")


def test_every_column_is_explained(page, table):
    for name in table.columns:
        assert f"<code>{name}</code>" in page
    assert "not part of the standard table" not in page
    columns = page.partition('<details id="columns">')[2]
    assert "<code>natural</code> or <code>medical</code>" in columns
    assert "`" not in columns.partition("</details>")[0]


def test_data_files_hold_the_table(folder, table):
    expected = table.sort_values("trial_id", ignore_index=True)
    for read_back in (
        read_csv(folder / "results.csv"),
        pd.read_parquet(folder / "results.parquet"),
    ):
        assert read_back.columns.tolist() == table.columns.tolist()
        assert read_back["trial_id"].tolist() == expected["trial_id"].tolist()
        assert read_back["test_loss"].tolist() == expected["test_loss"].tolist()


def test_fits_are_stored_completely(folder, fits):
    assert json.loads((folder / "fits.json").read_text(encoding="utf-8")) == fits.to_json()


@pytest.mark.long
def test_the_same_input_gives_the_same_bytes(folder, table, fits, tmp_path):
    write_report(table, fits, tmp_path, sweep="<b>&demo", summary=SUMMARY)
    for path in folder.rglob("*"):
        if path.is_file():
            second_copy = tmp_path / path.relative_to(folder)
            assert path.read_bytes() == second_copy.read_bytes(), path.name


@pytest.mark.parametrize(
    "num_replaced",
    [0, pytest.param(4, marks=pytest.mark.long), pytest.param(7, marks=pytest.mark.long)],
)
def test_a_report_that_is_stopped_leaves_every_file_complete(
    table, fits, folder, tmp_path, monkeypatch, num_replaced
):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    remaining = iter(range(num_replaced))
    replace = Path.replace

    def replace_or_stop(path, target):
        if next(remaining, None) is None:
            raise KeyboardInterrupt
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", replace_or_stop)
    with pytest.raises(KeyboardInterrupt):
        write_report(table.iloc[:-3], fits, tmp_path, sweep="other", summary={})
    monkeypatch.undo()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    first_files = [path for path in folder.rglob("*") if path.is_file()]
    names = {path.relative_to(tmp_path) for path in files}
    assert names == {path.relative_to(folder) for path in first_files}
    assert all(path.stat().st_size for path in files)
    assert (tmp_path / "report.html").read_bytes() == (folder / "report.html").read_bytes()


@pytest.mark.long
def test_names_with_dollar_signs_are_drawn_as_text(tmp_path):
    table = synthetic_table(num_natural=2, num_medical=0, trial_std=0.2, train_sizes=(500, 1000))
    named = table.assign(dataset=table["dataset"] + r" $\frac{$", model=r"$\sqrt{$")
    path = write_report(named, fit_scaling_laws(named), tmp_path, sweep="x", summary={})
    assert r"$\sqrt{$" in path.read_text("utf-8")
    assert (tmp_path / "figures" / "dataset_properties.svg").stat().st_size > 0


def test_a_figure_of_an_earlier_report_that_has_no_data_now_is_removed(tmp_path):
    figures = tmp_path / "figures"
    figures.mkdir()
    for name in (
        "loss_gain_on_sharpness.svg",
        "loss_on_d_data.png",
        "d_repr_on_d_data.pdf",
        "mine.png",
    ):
        (figures / name).write_bytes(b"old")
    (tmp_path / "tables").mkdir()
    claims_file = tmp_path / "tables" / "claims.tex"
    claims_file.write_text("of isweep claims --latex")
    losses_only = synthetic_table(num_natural=2, num_medical=1)[
        ["trial_id", "model", "dataset", "domain", "train_size", "test_loss"]
    ]
    write_report(
        losses_only,
        fit_scaling_laws(losses_only),
        tmp_path,
        sweep="a",
        summary={},
        formats=("pdf", "png"),
    )
    new_figures = {f"loss_on_train_size.{kind}" for kind in ("svg", "pdf", "png")}
    assert {path.name for path in figures.iterdir()} == {"mine.png", *new_figures}
    assert claims_file.is_file()


@pytest.mark.parametrize(
    "table",
    [
        synthetic_table().head(0),
        synthetic_table(num_natural=1, num_medical=0).head(1),
        pytest.param(
            synthetic_table(num_natural=1, num_medical=1, train_sizes=(64,)),
            marks=pytest.mark.long,
        ),
        synthetic_table(num_natural=1, num_medical=1).assign(test_loss=np.nan, status="diverged"),
        pytest.param(
            synthetic_table(num_natural=1, num_medical=1)[
                ["trial_id", "model", "dataset", "domain", "train_size", "test_loss"]
            ],
            marks=pytest.mark.long,
        ),
    ],
    ids=["empty", "one trial", "one size", "all diverged", "losses only"],
)
def test_a_report_of_little_data_explains_what_is_not_possible(table, tmp_path):
    page = write_report(table, fit_scaling_laws(table), tmp_path, sweep="s", summary={}).read_text()
    assert "cannot be" in page or "no slope can be fitted" in page
    assert not re.search(r"\bnan\b", re.sub(r"base64,[^\"]*", "", page))


@pytest.mark.long
def test_a_sweep_is_scored_against_published_numbers_of_matching_datasets_only(page, tmp_path):
    assert "Against every published quantity" not in page
    table = published_table()
    table = table[(table["dataset"].isin(["mnist", "brats"])) & (table["model"] == "vgg13")]
    fits = fit_scaling_laws(table)
    text = write_report(table, fits, tmp_path, sweep="s", summary={}).read_text(encoding="utf-8")
    assert "Against every published quantity" in text
    assert "12 of 12" in text  # losses


def test_the_report_starts_with_its_answers(page, fits):
    """Verdicts come first, and everything after the trials is folded."""
    parts_in_order = (
        'class="strip"',
        "<h2>Summary of the data",
        "<svg ",
        "<h2>Answers",
        "<h2>Failures",
        "<h2>Datasets",
        "<h2>Best models",
        "<h2>Trials",
        "<h2>The rest",
    )
    places = [page.index(part) for part in parts_in_order]
    assert places == sorted(places)
    strip = page.partition('class="strip"')[2].partition("</table>")[0]
    for finding in findings(fits):
        assert finding.question in strip
        assert f">{finding.verdict}</span>" in strip
        assert (" such studies" in finding.answer) == (finding.verdict == "undecided")
    assert page.partition("<h2>Answers")[0].count("<svg ") == 2
    folded = page.partition("<h2>The rest")[2]
    assert 0 < folded.count("<details") == folded.count("</details>")
    assert "open" not in re.findall(r"<details([^>]*)>", folded)
    assert " fits were not possible: " in folded
