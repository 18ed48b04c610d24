"""The command line in this process: users' mistakes end in one message, an exit code, and nothing lost."""

import json
import logging
import os
import re
import shlex
import subprocess
import sys
import warnings
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

from orchestrator.cli import main, parse
from orchestrator.cli.app import COMMANDS, application
from orchestrator.cli.log import command_log
from orchestrator.planning.paths import RootPaths
from orchestrator.running.lock import exclusive

SWEEP = """
name: mine
models: [small_cnn]
datasets: [mnist5k]
train_sizes: [20, 40]
test_size: 20
image_size: 28
recipe: smoke
"""


PREDICT = ("predict", "smoke", "--model", "x", "--d-data", "9", "--label-sharpness", "1")


@pytest.fixture
def run(capsys, root):
    """Run a command in this process; returns its exit code, stdout and stderr with line breaks folded."""

    def go(*arguments: str, at: str | None = None):
        try:
            code = main([*arguments, "--root", at or root])
        except SystemExit as stop:  # argparse
            code = stop.code
        out, err = capsys.readouterr()
        return code, out, re.sub(r"\s+", " ", err)

    return go


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["run", "dmo"], 2, "Unknown preset; found: 'dmo'; did you mean 'demo'?"),
        (["plan", "./absent.yaml"], 2, "The sweep file must exist; found: absent.yaml"),
        (["status"], 2, "the following arguments are required: PRESET"),
        (["frobnicate"], 2, "invalid choice: 'frobnicate'"),
        (["datasets", "mnst"], 2, "Unknown dataset; found: 'mnst'; did you mean 'mnist'?"),
        (["prepare", "mnst"], 2, "Unknown dataset; found: 'mnst'"),
        (["run", "smoke", "--raw", "mnist"], 2, "--raw must be NAME=DIR; found: mnist"),
        (["run", "smoke", "--num-cpus", "0"], 2, "must be at least 1, got 0"),
        (["run", "smoke", "--mlflow-uri", "./mlruns"], 2, "The MLflow URI must be a database or server"),
        (["run", "smoke", "--mlflow-uri", "http://127.0.0.1:9"], 3, "The MLflow store must answer"),
        (["run", "smoke", "--no-tracking", "--address", "127.0.0.1:9"], 3, "The Ray address must answer"),
        (["run", "smoke", "--no-tracking", "--address", "ray://x:1"], 2, "--address must be host:port"),
        (
            ["results", "smoke", "--from-store"],
            2,
            "Sweep 'smoke' has no results yet; run it: isweep run smoke",
        ),
        (["fit", "smoke", "--from-store"], 2, "has no results yet"),
        (["report", "smoke", "--from-store"], 2, "has no results yet"),
        (
            ["measure", "absent"],
            2,
            "The source must be a folder, a file or the name of a dataset; found: absent",
        ),
        (["measure", "digits", "--class-pair", "3"], 2, "argument --class-pair: expected 2 arguments"),
        (["measure", "digits", "--class-pair", "3", "3"], 2, "--class-pair must name two different classes"),
        (["measure", "digits", "--class-pair", "3", "x"], 2, "found: 3 x; classes: 0, 1, 2, 3"),
        (["measure", "digits", "--image-size", "2"], 2, "must be from 4 to 1024 pixels, got 2"),
        (["measure", "digits", "--seed", "-1"], 2, "must be at least 0"),
        (["measure", "digits", "--num-workers", "abc"], 2, "must be a whole number, got 'abc'"),
        (["measure", "digits", "--device", "foo"], 2, "--device must be a torch device of this machine"),
        (["measure", "digits", "--device", "cuda"], 2, "--device must be a torch device of this machine"),
        (["run", "smoke", "--no-tracking", "--raw", "nosuch=/tmp"], 2, "Unknown dataset of this sweep"),
        (["plan", "smoke", "--storage", "foo://x"], 2, "--storage must be a URL that fsspec can open"),
        (["results", "smoke", "--mlflow-uri", "foo://x"], 3, "The MLflow store must answer"),
        (["predict", "smoke", "--model", "x", "--d-data", "9"], 2, "required: --label-sharpness"),
        (["frobnicate", "--help"], 2, "invalid choice: 'frobnicate'; did you mean 'locate'? commands: run, plan, status"),
        (["pln", "smoke"], 2, "did you mean 'plan'? commands: run"),
        (["plan", "a", "b"], 2, "isweep: unrecognized arguments: b; see: isweep plan --help."),
        (["plan", "smoke", "--rot", "x"], 2, "unrecognized arguments: --rot (did you mean --root?)"),
        (["plan", "smoke", "-j"], 2, "unrecognized arguments: -j;"),
        (["plan", "smoke", "--storage"], 2, "argument --storage: expected one argument"),
        (["plan", "smoke", "--preset", "x"], 2, "unrecognized arguments: --preset"),
        (["plan", ""], 2, "Unknown preset; found: ''; known presets: demo"),
        (["plan", "mine.yml"], 2, "The sweep file must exist; found: mine.yml; presets are: demo"),
        (["plan", "/"], 2, "A sweep file must be a file; found: / is a folder"),
        (["run"], 2, "the following arguments are required: PRESET; see: isweep run --help"),
        (
            ["run", "smoke", "--device", "tpu"],
            2,
            "--device: invalid choice: 'tpu' (choose from auto, cpu, gpu)",
        ),
        (["run", "smoke", "--num-cpus", "1.5"], 2, "argument --num-cpus: must be a whole number, got '1.5'"),
        (["run", "smoke", "--num-cpus", "-1"], 2, "argument --num-cpus: must be at least 1, got -1"),
        (["run", "smoke", "--max-skipped-share", "2"], 2, "must be between 0 and 1, got 2"),
        (["run", "smoke", "--max-skipped-share", "nan"], 2, "must be a finite number, got nan"),
        (["run", "smoke", "--max-skipped-share", "x"], 2, "must be a number, got 'x'"),
        (["run", "smoke", "--raw"], 2, "argument --raw: expected"),
        (["run", "smoke", "--raw", "=x"], 2, "--raw must be NAME=DIR; found: =x"),
        (
            ["predict", "smoke"],
            2,
            "required: --model, --d-data, --label-sharpness; see: isweep predict --help",
        ),
        ([*PREDICT], 2, "one of the arguments --train-size --target-loss is required"),
        (
            [*PREDICT, "--train-size", "3", "--target-loss", "2"],
            2,
            "argument --target-loss: not allowed with argument --train-size",
        ),
        ([*PREDICT, "--train-size", "0"], 2, "argument --train-size: must be at least 1, got 0"),
        ([*PREDICT, "--target-loss", "inf"], 2, "argument --target-loss: must be a finite number"),
        (
            [*PREDICT, "--train-size", "9", "--domain", "x"],
            2,
            "invalid choice: 'x' (choose from natural, med",
        ),
        ([*PREDICT, "--train-size", "9"], 2, "Sweep 'smoke' has no results yet"),
        (["measure"], 2, "the following arguments are required: SOURCE"),
        (["measure", "digits", "--class-pair", "3", "4", "5"], 2, "unrecognized arguments: 5"),
        (["measure", "digits", "--train-sizes"], 2, "argument --train-sizes: expected at least one argument"),
        (
            ["measure", "digits", "--train-sizes", "9", "a"],
            2,
            "--train-sizes: must be a whole number, got 'a'",
        ),
        (["measure", "digits", "--train-sizes", "0"], 2, "argument --train-sizes: must be at least 1, got 0"),
        (["measure", "digits", "--pixel-range", "0"], 2, "argument --pixel-range: expected 2 arguments"),
        (["measure", "digits", "--pixel-range", "0", "x"], 2, "--pixel-range: must be a number, got 'x'"),
        (["measure", "digits", "--channels", "2"], 2, "--channels: invalid choice: '2' (choose from 1, 3)"),
        (["measure", "digits", "--dtype", "float16"], 2, "invalid choice: 'float16' (choose from float32"),
        (["measure", "digits", "--seed", str(2**63)], 2, "--seed: must be at least 0 and below 2^63"),
        (["measure", "digits", "--seed", "1e3"], 2, "argument --seed: must be a whole number, got '1e3'"),
        (["measure", "digits", "--num-neighbors", "2"], 2, "--num-neighbors: must be at least 3, got 2"),
        (["measure", "digits", "--sharpness-sample", "1"], 2, "--sharpness-sample must be at least 2, or 0"),
        (["measure", "digits", "--image-size", "1025"], 2, "must be from 4 to 1024 pixels, got 1025"),
        (["locate", "abc"], 2, "the following arguments are required: --raw"),
        (["locate", "abc", "--raw", "absent"], 2, "--raw must be the folder that was read; found: absent"),
        (["locate", "abc", "--raw", "."], 2, "The root must hold the key by which the hash was made"),
        (["prepare", "mnist", "--preset", "papr"], 2, "Unknown preset; found: 'papr'; did you mean 'paper'"),
        (["datasets", "mnist", "brats"], 2, "unrecognized arguments: brats"),
        (["doctor", "x"], 2, "unrecognized arguments: x"),
        (["results", "smoke", "--csv"], 2, "argument --csv: expected one argument"),
        (["plan", "smoke", "--storage", "foo://me:secret@x"], 2, "found: foo://…@x/smoke"),
    ],
)
def test_mistakes(run, arguments, code, message):
    found, out, err = run(*arguments)
    assert (found, out) == (code, "")
    assert message in err
    assert "Traceback" not in err
    assert "\u2500" not in err, "a box of the library that parses"
    assert "secret" not in err


def test_no_words_are_a_mistake_too(capsys):
    assert main([]) == 2
    assert "the following arguments are required: COMMAND; see: isweep --help" in capsys.readouterr().err


def test_options_stand_after_the_command(capsys):
    assert main(["--root", "x", "plan", "smoke"]) == 2
    assert "unrecognized arguments: --root; options stand after the command" in capsys.readouterr().err


def test_the_last_of_a_repeated_option_holds(run, root):
    code, _, err = run("results", "smoke", "--from-store", "--root", "elsewhere")
    assert code == 2
    assert f"run it: isweep run smoke --root {root}; there is no root {root} yet" in err


@pytest.mark.parametrize(
    "arguments",
    [
        ["plan", "smoke"],
        ["status", "smoke"],
        ["results", "smoke"],
        ["fit", "smoke"],
        ["report", "smoke", "--from-store"],
        [*PREDICT, "--train-size", "100"],
        ["datasets"],
        ["datasets", "mnist"],
        ["locate", "0" * 16, "--raw", "."],
        ["measure", "absent.npz"],
        ["run", "dmo"],
        ["reconcile", "dmo"],
    ],
    ids=" ".join,
)
def test_a_command_that_only_reads_or_cannot_start_makes_no_root(run, root, arguments):
    run(*arguments)
    assert not os.path.exists(root)


def test_status_says_that_there_is_no_root(run, tmp_path):
    missing = str(tmp_path / "my root")
    code, out, err = run("status", "smoke", "--json", at=missing)
    assert (code, json.loads(out)["pending"]) == (0, 8)
    assert f"There is no root {missing} yet; start with: isweep run smoke --root '{missing}'" in err


def test_hints_are_commands_with_the_options_given(run, tmp_path):
    place = str(tmp_path / "my root")
    preset = tmp_path / "my sweep.yaml"
    preset.write_text(SWEEP, encoding="utf-8")
    storage = f"file://{tmp_path}/store"
    _, _, err = run("fit", str(preset), "--from-store", "--storage", storage, at=place)
    hint = re.search(r"run it: (isweep .*?); there is no", err)[1]
    assert shlex.split(hint) == ["isweep", "run", str(preset), "--root", place, "--storage", storage]
    assert parse(shlex.split(hint)[1:]).root == place


def test_help_and_version_load_nothing_heavy():
    code = (
        "import sys\nfrom orchestrator.cli import main\ncode = main(sys.argv[1:])\n"
        "print(code, *sorted({'torch', 'ray', 'mlflow', 'pandas', 'numpy'} & set(sys.modules)))"
    )
    for words in (["--help"], ["--version"], ["run", "--help"], ["measure", "x", "--seed", "x"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *words], capture_output=True, text=True, check=True
        )
        assert done.stdout.splitlines()[-1] == ("2" if "x" in words else "0")


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.split() == ["isweep", metadata.version("isweep")]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_names_every_command(shell):
    script = application().generate_completion(shell=shell)
    for functions in COMMANDS.values():
        for function in functions:
            assert function.__name__ in script


class TestLog:
    def read(self, root: str) -> str:
        return (Path(root) / "isweep.log").read_text(encoding="utf-8")

    def test_start_and_end_of_each_command(self, run, root):
        os.mkdir(root)
        run("plan", "smoke")
        run("fit", "smoke", "--from-store")
        starts = re.findall(r"isweep (\S+) starts: (.*)", self.read(root))
        assert starts == [
            (metadata.version("isweep"), f"isweep plan smoke --root {root}"),
            (metadata.version("isweep"), f"isweep fit smoke --from-store --root {root}"),
        ]
        assert re.findall(r"ends with exit code (\d)", self.read(root)) == ["0", "2"]

    def test_warnings_go_there_and_not_to_the_terminal(self, run, root, monkeypatch):
        os.mkdir(root)
        monkeypatch.setattr(
            "orchestrator.running.catalogue.dataset_rows", lambda *_: warnings.warn("odd", stacklevel=1) or []
        )
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            code, _, err = run("datasets")
        assert (code, err) == (0, "")
        assert re.search(r"WARNING py\.warnings: .*UserWarning: odd", self.read(root))

    def test_what_was_logged_before_the_root_was_made_is_kept(self, root):
        with command_log(root, ["run", "x"]) as ending:
            logging.getLogger("early").info("first words")
            RootPaths.create(root)
            ending.exit_code = 0
        assert re.search(r"(?s)starts: isweep run x.*early: first words.*exit code 0", self.read(root))

    def test_a_bug_leaves_its_traceback(self, root):
        os.mkdir(root)
        with pytest.raises(ZeroDivisionError, match="by zero"), command_log(root, ["run", "x"]):
            _ = 1 / 0
        assert "ends with a bug" in self.read(root)
        assert "ZeroDivisionError" in self.read(root)

    def test_no_secret_is_in_it(self, run, root):
        os.mkdir(root)
        run("plan", "smoke", "--storage", "foo://me:hush@host/x?sig=hush")
        assert "foo://…@host/x?…" in self.read(root)
        assert "hush" not in self.read(root)

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
    def test_a_root_of_somebody_else_can_be_read(self, run, root):
        os.mkdir(root, mode=0o555)
        code, out, err = run("plan", "smoke", "--json")
        assert (code, err, os.listdir(root)) == (0, "", [])
        assert json.loads(out)["sweep"] == "smoke"

    def test_logging_is_as_before_afterwards(self, run, root):
        before = (list(logging.getLogger().handlers), logging.getLogger().level, warnings.showwarning)
        run("plan", "smoke")
        assert (list(logging.getLogger().handlers), logging.getLogger().level, warnings.showwarning) == before


def test_a_root_that_cannot_be_made(run, tmp_path):
    (tmp_path / "file").touch()
    code, _, err = run("status", "smoke", at=str(tmp_path / "file" / "root"))
    assert code == 3
    assert "The root must be a folder that can be written" in err
    assert "choose another with --root or ISWEEP_ROOT" in err


def test_a_second_run_on_one_root_says_who_holds_it(run, root):
    with exclusive(RootPaths.create(root).lock, "isweep run other"):
        code, _, err = run("run", "smoke", "--no-tracking")
    assert code == 3
    assert "Only one isweep command may work on a root at a time" in err
    assert f"process {os.getpid()} (isweep run other, since" in err
    # The lock went with its holder.
    with exclusive(RootPaths.create(root).lock, "again"):
        pass


def test_plan_and_status_of_a_sweep_that_never_ran(run):
    code, out, _ = run("plan", "smoke", "--json")
    plan = json.loads(out)
    assert code == 0
    assert {row["status"] for row in plan["trials"]} == {"pending"}
    assert [item["dataset"] for item in plan["not_prepared"]] == ["manifold_d4", "manifold_d12"]
    assert plan["estimate"]["trials_left"] == 8
    assert plan["estimate"]["gpu_hours"] > 0
    code, out, _ = run("status", "smoke", "--json")
    assert json.loads(out)["pending"] == 8


def test_plan_of_the_paper_works_without_data_and_names_what_is_missing(run):
    code, out, _ = run("plan", "paper", "--json")
    plan = json.loads(out)
    assert code == 0
    assert len(plan["trials"]) == 972
    assert len(plan["not_prepared"]) == 11
    _, out, _ = run("plan", "paper")
    assert "not prepared: brats (see: isweep datasets brats)" in out


def test_tables_for_people(run):
    code, out, _ = run("plan", "smoke")
    assert code == 0
    assert "8 trials: 0 done; 2 measures: 0 done" in out
    code, out, _ = run("datasets")
    assert code == 0
    for name in ("mnist5k", "brats", "prostate"):
        assert name in out
    code, out, _ = run("datasets", "brats", "--json")
    assert json.loads(out)[0]["status"] == "not prepared"


def test_output_into_a_closed_pipe_is_no_error(root):
    command = f"{sys.executable} -m orchestrator.cli plan paper --root {root} --json | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    assert done.stdout == "{\n"
    assert done.stderr == ""


class TestMeasure:
    @pytest.fixture
    def arrays(self, tmp_path) -> Path:
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (60, 12, 12), np.uint8)
        path = tmp_path / "own.npz"
        np.savez(path, images=images, labels=np.arange(60) % 3)
        return path

    def test_arrays(self, run, arrays):
        code, out, _ = run("measure", str(arrays), "--json", "--train-sizes", "30", "60")
        measured = json.loads(out)
        assert code == 0
        assert measured["num_images"] == 60
        assert [size["train_size"] for size in measured["by_train_size"]] == [30, 60]
        assert measured["d_data"]["mle"]["num_neighbors"] == 20
        assert measured["label_sharpness"]["pixel_range"] == [0, 255]
        assert len(measured["published"]) == 11

    def test_label_sharpness_is_that_of_all_pairs(self, run, arrays):
        with np.load(arrays) as archive:
            flat, labels = archive["images"].reshape(60, -1).astype(float), archive["labels"]
        distances = np.linalg.norm(flat[:, None] - flat[None], axis=2)
        largest = 1 / distances[labels[:, None] != labels[None]].min()
        _, out, _ = run("measure", str(arrays), "--json")
        assert json.loads(out)["label_sharpness"]["value"] == pytest.approx(largest, rel=1e-6)

    def test_the_pair_can_be_looked_at(self, run, arrays, tmp_path):
        from PIL import Image

        code, out, err = run(
            "measure", str(arrays), "--class-pair", "0", "2", "--show-pair", str(tmp_path / "pair.png")
        )
        assert code == 0
        assert "Intrinsic dimension" in out
        assert "higher than" in out
        assert "wrote" in err
        with Image.open(tmp_path / "pair.png") as image:
            assert image.size[0] > image.size[1]

    def test_a_pair_names_classes_not_places(self, run, tmp_path):
        """Labels 1, 2, 3 have the places 0, 1, 2: a pair 1 2 means the labels."""
        rng = np.random.default_rng(1)
        images, labels = rng.integers(0, 256, (90, 6, 6), np.uint8), np.arange(90) % 3 + 1
        np.savez(tmp_path / "all.npz", images=images, labels=labels)
        np.savez(tmp_path / "two.npz", images=images[labels != 3], labels=labels[labels != 3])
        _, chosen, _ = run("measure", str(tmp_path / "all.npz"), "--class-pair", "1", "2", "--json")
        _, alone, _ = run("measure", str(tmp_path / "two.npz"), "--json")
        chosen, alone = json.loads(chosen), json.loads(alone)
        assert chosen["label_sharpness"]["value"] == alone["label_sharpness"]["value"]
        assert chosen["num_images"] == 60

    def test_one_bad_file_can_be_found_and_allowed(self, run, tmp_path):
        from PIL import Image

        rng = np.random.default_rng(0)
        for index in range(60):
            folder = tmp_path / "own" / ("a" if index % 2 else "b")
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)).save(folder / f"{index}.png")
        (tmp_path / "own" / "a" / "broken.png").write_bytes(b"no image")
        code, _, err = run("measure", str(tmp_path / "own"), "--image-size", "8")
        assert code == 2
        digest = re.search(r"\b[0-9a-f]{16}\b", err)
        code, out, _ = run("locate", digest[0], "--raw", str(tmp_path / "own"))
        assert (code, out) == (0, "a/broken.png\n")
        code, out, _ = run(
            "measure", str(tmp_path / "own"), "--image-size", "8", "--max-skipped-share", "0.1", "--json"
        )
        assert json.loads(out)["num_images"] == 60

    def test_features_without_labels(self, run, tmp_path):
        np.save(tmp_path / "features.npy", np.random.default_rng(0).normal(size=(80, 5)))
        code, out, _ = run("measure", str(tmp_path / "features.npy"), "--json")
        measured = json.loads(out)
        assert code == 0
        assert measured["label_sharpness"] is None
        assert 3 < measured["d_data"]["mle"]["value"] < 7

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda p: np.save(p, np.array([{}], object), allow_pickle=True), "one plain numeric array"),
            (lambda p: p.write_bytes(b"no array"), "one plain numeric array"),
            (lambda p: np.save(p, np.full((30, 4, 4), np.nan)), "must be finite"),
            (lambda p: np.save(p, np.zeros((0, 4, 4))), "image"),
        ],
    )
    def test_arrays_that_cannot_be_measured(self, run, tmp_path, make, message):
        path = tmp_path / "bad.npy"
        make(path)
        code, out, err = run("measure", str(path))
        assert code == 2, err
        assert out == ""
        assert message in err

    def test_a_folder_of_images(self, run, tmp_path):
        from PIL import Image

        rng = np.random.default_rng(0)
        for label in ("benign", "malignant"):
            (tmp_path / "own" / label).mkdir(parents=True)
            for index in range(30):
                Image.fromarray(rng.integers(0, 256, (20, 20), np.uint8)).save(
                    tmp_path / "own" / label / f"{index}.png"
                )
        code, out, _ = run("measure", str(tmp_path / "own"), "--image-size", "16", "--json")
        measured = json.loads(out)
        assert code == 0
        assert measured["label_names"] == ["benign", "malignant"]
        assert measured["label_sharpness"]["side"] == [16, 16]
        assert measured["label_sharpness"]["num_pairs"] == 900
        assert os.listdir(tmp_path / "root" / "prepared") == [".hash_key"]


@pytest.mark.parametrize("option", ["--csv", "--parquet"])
def test_a_table_that_cannot_be_written_is_a_clear_message(run, tmp_path, monkeypatch, option):
    import pandas as pd

    from orchestrator.cli import results

    monkeypatch.setattr(
        results, "read_table", lambda *_, **__: pd.DataFrame({"model": ["m"], "test_loss": [0.5]})
    )
    code, out, err = run("results", "smoke", option, str(tmp_path / "absent" / "table"))
    assert (code, out) == (2, "")
    assert "The file must be one that can be written; found:" in err
