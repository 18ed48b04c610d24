"""The command line in this process: users' mistakes end in one message, an exit code, and nothing lost."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from orchestrator.cli.app import main
from orchestrator.planning.paths import RootPaths
from orchestrator.running.lock import exclusive


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
    ],
)
def test_mistakes(run, arguments, code, message):
    found, out, err = run(*arguments)
    assert (found, out) == (code, "")
    assert message in err
    assert "Traceback" not in err


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
