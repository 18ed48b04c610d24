"""Test the commands for a start: lists of names, a first sweep file, and the content of a root."""

import json
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from orchestrator.machine.locks import lock_file
from orchestrator.planning.checks import check_feasible
from orchestrator.planning.sweep_file import load_sweep
from orchestrator.planning.workspace import Workspace
from orchestrator.planning.written_files import preset_names
from search_spaces.models import MODELS
from search_spaces.recipes import RECIPES
from tasks.sources.detect import detect_own_kind
from tasks.sources.own.listing import HIDDEN
from tests.raw_trees.dicoms import make_dicom, save_dicom
from tests.raw_trees.own import OWN_WRITERS

ADVICE = Path(__file__).parents[4] / "docs" / "sweep-of-my-data.md"


@pytest.fixture
def working_folder(tmp_path, monkeypatch):
    """Change into an empty folder."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def write_arrays(path: Path, labels, **more) -> Path:
    images = np.random.default_rng(0).integers(0, 256, (len(labels), 12, 12), np.uint8)
    np.savez(path, images=images, labels=labels, **more)
    return path


class TestInit:
    @pytest.mark.parametrize("kind", OWN_WRITERS)
    def test_the_draft_of_every_kind_can_run(self, run, working_folder, tmp_path, kind):
        source = OWN_WRITERS[kind](tmp_path / "raw" / "skin")
        code, out, message = run("init", str(source), "--out", "mine.yaml", "--json")
        assert code == 0, message
        sweep = load_sweep(working_folder / "mine.yaml")
        assert sweep.datasets[0].user_source.kind == detect_own_kind(source)
        assert Path(sweep.datasets[0].user_source.path).resolve() == source.resolve()
        check_feasible(Workspace.open("./mine.yaml", str(tmp_path / "root")))
        plan_text = " ".join(run("plan", "./mine.yaml")[1].split())
        to_check = r"To check the files before the run, use `isweep measure \S+`"
        assert re.search(rf"so `isweep run` first opens \d+ files\. {to_check}", plan_text)
        assert json.loads(out)["sweep_file"] == "mine.yaml"

    def test_a_file_with_the_name_of_an_image_does_not_count_as_one(
        self, run, working_folder, tmp_path
    ):
        raw = OWN_WRITERS["folder"](tmp_path / "raw" / "skin")
        folders = sorted(path for path in raw.iterdir() if path.is_dir())
        num_images = sum(path.is_file() for path in raw.rglob("*.png"))
        (folders[0] / "x.png").write_text("text", encoding="utf-8")
        assert run("init", str(raw))[0] == 0
        text = (working_folder / "skin.yaml").read_text(encoding="utf-8")
        assert f"# {num_images} images, " in text
        comment = (
            "# 1 file has the name of an image, but is not in an image format; `isweep measure"
        )
        assert comment in text
        (folders[1] / "y.png").write_text("text", encoding="utf-8")
        run("init", str(raw), "--out", "two.yaml")
        text = (working_folder / "two.yaml").read_text(encoding="utf-8")
        assert f"# {num_images} images, " in text
        assert "# 2 files have names of images, but are not in an image format;" in text

    def test_plan_and_measure_name_left_out_files_and_empty_classes(
        self, run, working_folder, tmp_path
    ):
        raw = OWN_WRITERS["folder"](tmp_path / "raw" / "skin")
        (raw / "horse").mkdir()
        (raw / "benign" / "._0.png").write_bytes(b"x")
        assert run("init", str(raw), "--out", "mine.yaml")[0] == 0
        remarks = {
            f"  left out: {HIDDEN}, 1",
            "  doubtful: class folder without an image: horse, 1",
        }
        for words in (("plan", "./mine.yaml"), ("measure", str(raw), "--num-neighbors", "3")):
            lines = run(*words)[1].splitlines()
            assert remarks <= set(lines), words
        item = json.loads(run("plan", "./mine.yaml", "--json")[1])["not_prepared"][0]
        assert item["left_out"] == {HIDDEN: 1}
        assert item["doubtful"] == {"class folder without an image: horse": 1}

    def test_without_a_source_the_draft_is_an_example_that_can_be_planned(
        self, run, working_folder
    ):
        assert run("init")[0] == 0
        assert run("plan", "./first.yaml")[0] == 0

    def test_the_draft_has_the_seeds_and_sizes_that_the_documents_advise(self, run, working_folder):
        advice = ADVICE.read_text(encoding="utf-8")
        seeds = json.loads(re.search(r"`seeds: (\[.*?\])`", advice)[1])
        sizes = re.search(r"for example ((?:\d+, )+\d+)", advice)[1].split(", ")
        write_arrays(working_folder / "scans.npz", np.arange(1200) % 2)
        for words in ((), ("scans.npz",)):
            assert run("init", *words)[0] == 0
        for name in ("first", "scans"):
            sweep = load_sweep(working_folder / f"{name}.yaml")
            assert list(sweep.seeds) == seeds
            assert len(sweep.train_sizes) == len(sizes)
            for smaller, larger in pairwise(sweep.train_sizes):
                assert larger / smaller == pytest.approx(2, abs=0.15)

    def test_train_sizes_fit_the_images_that_groups_leave(self, run, working_folder):
        """Twenty patients have images of both classes: the test set has complete patients only.

        No image is counted for training and for testing.
        """
        write_arrays(working_folder / "scans.npz", np.arange(400) % 2, groups=np.arange(400) // 20)
        assert run("init", "scans.npz")[0] == 0
        sweep = load_sweep(working_folder / "scans.yaml")
        check_feasible(Workspace.open("./scans.yaml"))
        assert sweep.test_size == 100
        assert 200 <= max(sweep.train_sizes) <= 300
        text = (working_folder / "scans.yaml").read_text()
        assert "400 images, 20 groups (patients): 0 200, 1 200" in text
        assert "domain: medical" in text
        assert "# isweep guessed the domain from the patients; if the guess is wrong, write" in text

    @pytest.mark.parametrize("kind", ["table", "folder"])
    def test_proposed_groups_are_the_patients_of_dicom_headers(self, run, working_folder, kind):
        for number in range(80):
            folder = working_folder / "scans" / ("ab"[number % 2] if kind == "folder" else "")
            values = np.random.default_rng(number).integers(0, 256, (12, 12), np.uint8)
            ending = ".dcm" if number % 3 or kind == "table" else ""
            image = make_dicom(values, bits=8, patient=f"P{number // 8}")
            save_dicom(folder / f"{number}{ending}", image)
        lines = ["path,label"]
        lines += [f"{number}.dcm,{'ab'[number % 2]}" for number in range(80)]
        if kind == "table":
            (working_folder / "scans" / "manifest.csv").write_text("\n".join(lines))
        code, _, message = run("init", "scans")
        assert code == 0, message
        groups = "groups are the patients in the DICOM headers"
        assert f"80 images, 10 groups (patients): a 40, b 40; {groups}" in message
        sweep = load_sweep(working_folder / "scans.yaml")
        # Medical, although the first file has no ending.
        assert sweep.datasets[0].user_source.domain == "medical"
        assert sweep.test_size == 20  # of at least three patients, who have 24 images
        assert max(sweep.train_sizes) <= 80 - 24

    def test_options_are_in_the_draft_and_a_gpu_gets_the_recipe_and_size_of_the_study(
        self, run, working_folder
    ):
        write_arrays(working_folder / "scans.npz", np.array(["CAT", "cat", "dog", "dog"] * 100))
        options = ("--device", "gpu", "--domain", "medical")
        assert "--label-map" in run("init", "scans.npz", *options)[2]
        assert run("init", "scans.npz", *options, "--label-map", "CAT=cat")[0] == 0
        sweep = load_sweep(working_folder / "scans.yaml")
        assert (sweep.image_size, sweep.recipe.from_) == (224, "paper")
        user_source = sweep.datasets[0].user_source
        assert (user_source.domain, user_source.label_map) == ("medical", {"CAT": "cat"})

    def test_folders_with_special_letters_and_spaces_get_valid_sweep_names(
        self, run, working_folder
    ):
        for folder, name in (("ä ö", "a_o"), ("ü", "u"), ("My Images (1)", "my_images_1")):
            (working_folder / folder).mkdir()
            write_arrays(working_folder / folder / "x.npz", np.arange(400) % 2)
            code, _, message = run("init", f"{folder}/x.npz", "--out", f"{folder}.yaml")
            assert code == 0, message
            assert load_sweep(working_folder / f"{folder}.yaml").name == name
        text = (working_folder / "My Images (1).yaml").read_text()
        assert "# `isweep plan 'My Images (1).yaml'` checks" in text
        message = run("init", "ü/x.npz", "--out", "図.yaml")[2]
        assert "Choose another file name with `--out`" in message

    def test_an_existing_file_is_never_overwritten(self, run, working_folder):
        (working_folder / "first.yaml").write_text("mine", encoding="utf-8")
        code, _, message = run("init")
        assert (code, (working_folder / "first.yaml").read_text()) == (2, "mine")
        assert "first.yaml already exists" in message

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (("absent",), "absent does not exist. Give a folder, a table or a file of arrays"),
            (("fw.npz",), "ean {here}/few.npz?"),
            (
                ("train.npz",),
                "train: Class cat needs 1 test image, but 0 of its images may be used for testing",
            ),
            (("train.npz",), "Move some groups to your test split, or remove the split"),
            (
                ("few.npz", "--out", ""),
                "--out is '', but the name of the file must end with .yaml or .yml",
            ),
            (
                ("cut",),
                (
                    "cut: isweep tried to read 2 images and could read none (not an image: 2). "
                    "Repair the images, or convert"
                ),
            ),
            (("few.npz",), "few has 8 images. isweep can use only 6 of these images for"),
            (
                ("few.npz", "--out", "few.txt"),
                "--out is 'few.txt', but the name of the file must end with .yaml or .yml",
            ),
        ],
    )
    def test_mistakes_are_refused_and_write_no_sweep_file(
        self, run, working_folder, words, message
    ):
        write_arrays(working_folder / "few.npz", np.arange(8) % 2)
        write_arrays(
            working_folder / "train.npz", np.array(["cat", "dog"] * 20), splits=["train"] * 40
        )
        for name in "ab":
            (working_folder / "cut" / name).mkdir(parents=True)
            (working_folder / "cut" / name / "0.png").write_bytes(name.encode() * 99)
        code, _, stderr = run("init", *words)
        assert code == 2
        assert message.format(here=working_folder) in stderr
        assert not list(working_folder.glob("*.yaml"))

    def test_a_file_that_a_message_names_is_located_by_the_key_of_the_root(
        self, run, working_folder, tmp_path
    ):
        """``init`` names a file by its hash, like ``measure`` and ``plan``, with a hint."""
        OWN_WRITERS["folder"](tmp_path / "raw")
        link = next((tmp_path / "raw").rglob("*.png")).with_name("lost.png")
        link.symlink_to(working_folder / "nothing")
        (tmp_path / "root").mkdir(exist_ok=True)
        message = run("init", str(tmp_path / "raw"))[2]
        assert "To find the file of a hash, run `isweep locate HASH --raw DIR`" in message
        digest = re.search(r"\b[0-9a-f]{16}\b", message)
        code, out, message = run("locate", digest[0], "--raw", str(tmp_path / "raw"))
        assert (code, out) == (0, f"{link.relative_to(tmp_path / 'raw')}\n"), message


@pytest.mark.parametrize(
    ("command", "names"), [("models", MODELS), ("recipes", RECIPES), ("presets", preset_names())]
)
def test_a_list_has_every_name_with_its_description(run, command, names):
    code, out, _ = run(command, "--json")
    rows = json.loads(out)
    text = run(command)[1]
    assert (code, [row[command[:-1]] for row in rows]) == (0, list(names))
    assert all(row["about"] for row in rows)
    assert all(name in text for name in names)


class TestRoot:
    @pytest.fixture
    def filled_root(self, root):
        """Write files with the names of a sweep and of prepared data into the root."""
        for path in (
            "sweeps/mine/sweep.yaml",
            "sweeps/mine/trials/a/result.json",
            "prepared/digits-1/x",
        ):
            (Path(root) / path).parent.mkdir(parents=True, exist_ok=True)
            (Path(root) / path).write_text("12345", encoding="utf-8")
        return Path(root)

    def test_ls_lists_the_content_of_a_root_and_makes_no_root(self, run, filled_root, tmp_path):
        code, out, _ = run("ls", "--json")
        rows = [(row["what"], row["name"], row["bytes"]) for row in json.loads(out)]
        assert code == 0
        assert rows[:2] == [("sweep", "mine", 10), ("prepared data", "digits-1", 5)]
        assert "1 result " in run("ls")[1]
        code, out, _ = run("ls", at=str(tmp_path / "none"))
        assert (code, (tmp_path / "none").exists()) == (0, False)
        assert "Start with `isweep run demo" in out

    @pytest.mark.parametrize(
        ("name", "removed_folder"), [("mine", "sweeps/mine"), ("digits-1", "prepared/digits-1")]
    )
    def test_rm_removes_the_named_item_and_nothing_else(
        self, run, filled_root, name, removed_folder
    ):
        assert run("rm", name, "--yes")[0] == 0
        assert not (filled_root / removed_folder).exists()
        assert len([*filled_root.glob("sweeps/*"), *filled_root.glob("prepared/*")]) == 1

    def test_rm_needs_a_confirmation_an_exact_name_and_a_root_that_is_not_in_use(
        self, run, filled_root
    ):
        code, _, message = run("rm", "mine")
        assert code == 2
        reason = "because the command does not run in a terminal. Add --yes to remove mine without"
        assert reason in message
        for name in ("min", "../prepared/digits-1", "", "."):
            code, _, message = run("rm", name, "--yes")
            assert (code, "Choose one of mine, digits-1" in message) == (2, True), message
        with lock_file(filled_root / "driver.lock", "isweep run mine"):
            code, _, message = run("rm", "mine", "--yes")
        assert (code, f"{filled_root} is in use by" in message) == (3, True), message
        assert (filled_root / "sweeps" / "mine").exists()

    def test_ui_of_an_unknown_sweep_is_refused(self, run, filled_root):
        (filled_root / "mlflow.db").touch()
        code, _, message = run("ui", "mien")
        assert (code, "'mien'" in message) == (2, True)
