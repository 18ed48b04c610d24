"""Test the commands that read the results of a sweep."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from orchestrator.analysis.limits import SweepFacts
from orchestrator.analysis.results_tables.csv_files import read_csv
from orchestrator.cli import looking_ahead, printing, results
from orchestrator.cli.options import Place
from orchestrator.cli.stored_results import FitInputs, print_what_is_missing
from orchestrator.planning.workspace import Workspace
from orchestrator.results.store import ResultStore
from tests.synthetic import synthetic_table
from tests.unit.orchestrator.results.examples import (
    dimension,
    measure_record,
    state_of,
    trial_record,
)


@pytest.fixture
def output_for(run, monkeypatch):
    """Run a command as if the sweep had the given table, and return its output."""

    def run_with_table(table: pd.DataFrame, command: str, *words: str) -> str:
        for reader in (results, looking_ahead):
            monkeypatch.setattr(reader, "read_table", lambda *_, **__: (table, ()))
        inputs = FitInputs(table, (), SweepFacts())
        monkeypatch.setattr(results, "read_fit_inputs", lambda *_, **__: inputs)
        code, out, err = run(command, "smoke", *words)
        assert code == 0, err
        return out

    return run_with_table


def one_dataset_table(**columns) -> pd.DataFrame:
    """Return a table of one dataset."""
    return synthetic_table(num_natural=1, num_medical=0).assign(**columns)


def test_a_read_only_root_gets_no_report(run, root, monkeypatch):
    def refuse_to_write(*_, **__):
        raise OSError(30, "Read-only file system", "results.csv")

    monkeypatch.setattr("orchestrator.analysis.report.report_sweep", refuse_to_write)
    monkeypatch.setattr(
        results, "read_results", lambda *_, **__: (Workspace.open("smoke", root), None)
    )
    code, _, err = run("report", "smoke", "--from-store")
    assert code == 3
    message = "The report results.csv cannot be written: Read-only file system. Copy the root to a"
    assert message in err


@pytest.mark.parametrize("command", ["results", "fit", "report"])
def test_a_command_names_damaged_results_and_counts_the_remaining_trials(run, root, command):
    workspace = Workspace.open("smoke", root)
    store = ResultStore(workspace.results_url)
    two_trials = workspace.plan.trials[:2]
    records = [trial_record(trial_id=spec.trial_id, spec=spec) for spec in two_trials]
    for record in records:
        store.save(record)
    path = workspace.sweep_paths.folder / "trials" / records[0].trial_id / "result.json"
    path.write_bytes(path.read_bytes().replace(b"0.5", b"0.4"))
    _, out, err = run(command, "smoke", "--from-store", "--json")
    assert f"isweep does not use the file {path}: its checksum does not match its content" in err
    planned = len(workspace.plan.trials)
    hint = f"1 of {planned} trials are done. To run the other {planned - 1} trials, use `isweep run"
    assert hint in err
    assert "does not use the file" not in out


def test_a_blank_dimension_has_its_reason(capsys, root):
    measured = measure_record()
    no_dimension = replace(dimension("mle", None), reason="too few")
    size = replace(measured.result.sizes[0], d_data={"mle": no_dimension})
    result = measured.result.model_copy(update={"sizes": (size,)})
    without_d = measured.model_copy(update={"result": result})
    state = state_of({}, measures={"a": measured, "b": without_d, "c": without_d})
    print_what_is_missing("smoke", Workspace.open("smoke", root), state, Place())
    assert capsys.readouterr().err == "d_data at N = 40 is undefined: too few\n"


def test_left_out_losses_and_losses_at_chance_level_are_counted(output_for):
    assert "Left out: trials without a test loss (1)." in output_for(
        one_dataset_table(test_loss=[None, 0.5, 0.4]), "fit"
    )
    diverged = one_dataset_table(status=["diverged", "done", "done"])
    remark = "trials that diverged because their loss was no longer a finite number (1)"
    assert remark in " ".join(output_for(diverged, "claims").split())
    losses = {"test_loss": [0.1, 0.6, 3.0], "test_accuracy": [0.9, 0.5, 0.5]}
    assert "Losses at chance level: 2 of 3." in output_for(one_dataset_table(**losses), "results")
    ten_classes = one_dataset_table(**losses | {"test_accuracy": 0.1}, num_classes=10)
    assert "Losses at chance level: 1 of 3." in output_for(ten_classes, "results")
    assert "chance level" not in output_for(one_dataset_table(test_loss=0.1), "results")
    # Robustness has a column if it was measured.
    assert "R̂" not in output_for(one_dataset_table(r_hat_pred=float("nan")), "results")
    output = output_for(one_dataset_table(r_hat_pred=37.5), "results")
    assert ("R̂" in output, "37.5" in output) == (True, True)


def test_a_fit_fits_one_screen_and_shows_its_tables_on_request(output_for):
    table = synthetic_table(num_natural=4, num_medical=4, models=("a", "b"), trial_std=0.3)
    summary = output_for(table, "fit")
    lines = summary.splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines[:-1])) <= 80  # the last line has a command with its root
    assert re.match(r"To see every number( and \d+ more remarks?)?, type: ", lines[-1])
    assert "Do datasets with sharper labels have higher losses?" in summary
    all_output = output_for(table, "fit", "--all")
    for title in ("Summary of the data", "Answers", "Losses of datasets at equal N"):
        assert title in all_output
        assert title not in summary


@pytest.mark.long
def test_class_pairs_of_a_sweep_and_of_any_table_are_fitted(run, output_for, tmp_path):
    table = read_csv(Path(__file__).parents[4] / "benchmarks" / "results" / "digit_pairs.csv.gz")
    out = output_for(table, "fit")
    lines = out.splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines[:-1])) <= 80  # the last line has a command with its root
    place = lines.index("SUPPORTED: Does the loss fall with N?")
    assert lines[place + 1].startswith("  Doubling N goes with ")
    details = " ".join(output_for(table, "fit", "--all").split())
    assert "the exponent b in N^(-b/d) is 7.34 (95 % interval 5.56 to 9.12)." in details
    slopes = json.loads(output_for(table, "fit", "--json"))["class_pairs"]
    assert [slope["num_groups"] for slope in slopes] == [10] * 10
    user_table = table.assign(a=table["class_pair"].str[0], b=table["class_pair"].str[-1])
    user_table.to_csv(tmp_path / "own.csv", index=False)
    words = ("--response", "test_loss", "--on", "train_size", "--groups", "a", "--groups", "b")
    out = run("fit", str(tmp_path / "own.csv"), *words)[1]
    assert "Within one a and b, " in out
    text = " ".join(out.split())
    assert "45 combinations of a and b" in text
    # All digits but 0 and 9 are the first class of a pair and the second of another.
    assert "8 names in both a and b are read as the same group" in text


@pytest.mark.parametrize("words", [("--model", "nosuch"), ("--model", "a", "--domain", "medical")])
def test_an_impossible_prediction_is_refused_before_anything_is_measured(run, monkeypatch, words):
    monkeypatch.setattr(results, "read_table", lambda *_, **__: (one_dataset_table(), ()))
    measure = "orchestrator.measuring.sources.measure_source"
    monkeypatch.setattr(measure, lambda *_: pytest.fail("measured"))
    options = ("--measured", "images.npz", "--train-size", "100")
    code, _, err = run("predict", "smoke", *options, *words)
    assert code == 2
    assert "images.npz" not in err


def test_a_prediction_suggests_an_accuracy_if_every_training_has_one(output_for):
    sizes = [100, 200, 400, 800]
    scores = {"test_loss": [0.9, 0.8, 0.7, 0.63], "train_size": sizes}
    table = pd.DataFrame(scores).assign(dataset="cats", model="cnn", num_classes=2)
    accuracies = table.assign(test_accuracy=[0.6, 0.68, 0.75, 0.8], test_size=500)
    hint = "To see how many images a target needs, add, for example, `--target-"
    assert f"{hint}accuracy 0.8" in output_for(accuracies, "predict")
    assert f"{hint}loss 0.5" in output_for(table, "predict")


SEEDS = pd.DataFrame(
    {
        "trial_id": f"{model}-{dataset}-{seed}",
        "model": model,
        "recipe": "demo",
        "dataset": dataset,
        "domain": "natural",
        "class_pair": "0-1",
        "train_size": 100,
        "seed": seed,
        "status": "done",
        "test_loss": loss + seed / 10,
        "test_accuracy": 0.5,
    }
    for model, dataset, loss in (("a", "x", 0.5), ("a", "y", 0.1), ("b", "x", 0.3), ("b", "y", 0.2))
    for seed in range(3)
)
"""Table of two models, two datasets and three seeds."""


def test_rows_are_chosen_sorted_averaged_and_compared(output_for):
    def rows(*words: str):
        return json.loads(output_for(SEEDS, "results", *words, "--json"))

    chosen = rows("--where", "dataset=x", "--where", "N=100", "--where", "seed=2")
    assert [row["trial_id"] for row in chosen] == ["a-x-2", "b-x-2"]
    losses = [row["test_loss"] for row in rows("--sort", "loss")]
    assert losses == sorted(losses)
    assert [row["test_loss"] for row in rows("--sort", "test_loss")] == losses
    means = {(row["model"], row["dataset"]): row for row in rows("--mean")}
    assert len(means) == 4
    assert means["b", "x"]["test_loss"] == pytest.approx(0.4)
    assert {row["num_seeds"] for row in means.values()} == {3}
    best = [(row["dataset"], row["model"], row["runner_up"]) for row in rows("--best")]
    assert best == [("x", "b", "a"), ("y", "a", "b")]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--where dataset", "--where dataset does not have the form COLUMN=VALUE"),
        ("--where datset=x", "The table has no column 'datset'"),
        ("--where dataset=z", "'z'"),
        ("--sort los", "The table has no column 'los'"),
        (
            "--best --mean",
            "Mutually exclusive arguments: {--mean, --best}. See `isweep results --help`",
        ),
        ("--search --best", "Mutually exclusive arguments: {--best, --search}"),
    ],
)
def test_mistakes_in_the_choice_of_rows_are_refused(run, monkeypatch, words, message):
    monkeypatch.setattr(results, "read_table", lambda *_, **__: (SEEDS, ()))
    code, _, err = run("results", "smoke", *words.split())
    assert (code, message in err) == (2, True)


def test_fit_accepts_any_table(run, tmp_path):
    table = tmp_path / "scores.csv"
    # In each of four groups, loss = g + k² and d = k.
    lines = [f"{g + k * k},{k},s{g},m{k % 2}" for g in range(4) for k in range(6)]
    table.write_text("\n".join(["loss,d,dataset,model", *lines]), encoding="utf-8")
    words = ("fit", str(table), "--response", "loss", "--on", "d", "--groups", "dataset")
    figure = tmp_path / "scores.svg"
    code, out, err = run(*words, "--within", "model", "--figure", str(figure))
    assert (code, f"wrote {figure}" in err, figure.is_file()) == (0, True, True)
    assert max(map(len, out.splitlines())) <= 80
    out = " ".join(out.split())
    assert "At equal model, within one dataset, loss rises with d (slope 5" in out
    reason = "the slope on d cannot be estimated: a slope needs 3 groups that differ in d."
    assert f"between 4 groups, {reason}" in out
    code, out, _ = run(*words, "--json")
    assert (code, json.loads(out)["num_groups"]) == (0, 4)
    code, _, err = run("fit", str(table), "--response", "loss")
    assert code == 2
    assert "needs --response, --on and --groups. For example, type `isweep fit" in err


def test_fit_of_a_sweep_refuses_the_options_of_a_table(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = run("fit", "mine", "--response", "loss", "--on", "d", "--groups", "dataset")
    assert code == 2
    assert "There is no table mine. The options --response," in err
    assert "If mine is a sweep, type `isweep fit mine" in err


def test_claims_of_the_published_numbers_and_power_of_a_plan(run, tmp_path):
    files = [tmp_path / "ledger.md", tmp_path / "ledger.tex"]
    words = ("--markdown", str(files[0]), "--latex", str(files[1]))
    code, out, _ = run("claims", "--published", "--json", *words)
    entries = json.loads(out)["entries"]
    assert (code, len(entries)) == (0, 11)
    texts = [file.read_text(encoding="utf-8") for file in files]
    for entry in entries:
        assert all(entry["number"] in text for text in texts)
    assert r"\begin{tabular}" in texts[1]
    code, out, _ = run("power", "paper", "--num-tables", "20", "--json")
    power = json.loads(out)
    assert (code, power["num_datasets"], power["num_tables"]) == (0, 11, 20)
    for name, adjusted in power["adjusted"].items():
        assert 0 <= adjusted <= power["alone"][name] <= 1


def test_a_terminal_too_narrow_for_a_table_gets_its_rows_as_text(output_for, monkeypatch):
    table = SEEDS.assign(model="timm_mobilenetv3_small_050", d_data_mle=9.25)
    monkeypatch.setattr(printing.stdout, "width", 60)
    lines = output_for(table, "results", "--where", "seed=0").splitlines()
    assert lines[0] == "model timm_mobilenetv3_small_050  dataset x  pair 0-1  N 100"
    assert lines[1] == "  seed 0  loss 0.5  accuracy 0.5  d_data 9.25"
    assert max(map(len, lines)) <= 60
