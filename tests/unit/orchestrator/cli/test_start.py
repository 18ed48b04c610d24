"""What begins with: lists of what can be named, a first sweep file, what lies in a root."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from orchestrator.machine.locks import exclusive
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


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder to work in."""
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
    def test_the_draft_of_every_kind_can_run(self, run, here, tmp_path, kind):
        source = OWN_WRITERS[kind](tmp_path / "raw" / "skin")
        code, out, said = run("init", str(source), "--out", "mine.yaml", "--json")
        assert code == 0, said
        sweep = load_sweep(here / "mine.yaml")
        assert sweep.datasets[0].user_source.kind == detect_own_kind(source)
        assert Path(sweep.datasets[0].user_source.path).resolve() == source.resolve()
        check_feasible(Workspace.open("./mine.yaml", str(tmp_path / "root")))
        planned = " ".join(run("plan", "./mine.yaml")[1].split())
        to_check = r"To check the files before, run `isweep measure \S+`"
        assert re.search(rf"`isweep run` opens its \d+ files\. {to_check}", planned)
        assert json.loads(out)["sweep_file"] == "mine.yaml"

    def test_plan_and_measure_tell_what_is_passed_over_and_which_class_is_empty(
        self, run, here, tmp_path
    ):
        raw = OWN_WRITERS["folder"](tmp_path / "raw" / "skin")
        (raw / "horse").mkdir()
        (raw / "benign" / "._0.png").write_bytes(b"x")
        assert run("init", str(raw), "--out", "mine.yaml")[0] == 0
        told = f"  left out: {HIDDEN}, 1", "  doubtful: class folder without an image: horse, 1"
        for words in (("plan", "./mine.yaml"), ("measure", str(raw), "--num-neighbors", "3")):
            said = run(*words)[1].splitlines()
            assert set(told) <= set(said), words
        item = json.loads(run("plan", "./mine.yaml", "--json")[1])["not_prepared"][0]
        assert (item["left_out"], item["doubtful"]) == (
            {HIDDEN: 1},
            {"class folder without an image: horse": 1},
        )

    def test_without_a_source_it_is_an_example_that_can_be_planned(self, run, here):
        assert run("init")[0] == 0
        assert run("plan", "./first.yaml")[0] == 0

    def test_sizes_are_what_groups_leave(self, run, here):
        """Twenty patients of both classes: a test set of whole patients, and no image is promised
        twice."""
        write_arrays(here / "scans.npz", np.arange(400) % 2, groups=np.arange(400) // 20)
        assert run("init", "scans.npz")[0] == 0
        sweep = load_sweep(here / "scans.yaml")
        check_feasible(Workspace.open("./scans.yaml"))
        assert sweep.test_size == 100
        assert 200 <= max(sweep.train_sizes) <= 300
        assert "400 images, 20 groups (patients): 0 200, 1 200" in (
            text := (here / "scans.yaml").read_text()
        )
        assert "domain: medical" in text
        assert "# domain is a guess from the patients: natural or medical" in text

    @pytest.mark.parametrize("kind", ["table", "folder"])
    def test_patients_of_dicom_headers_are_the_groups_that_are_proposed(self, run, here, kind):
        for number in range(80):
            folder = here / "scans" / ("ab"[number % 2] if kind == "folder" else "")
            values = np.random.default_rng(number).integers(0, 256, (12, 12), np.uint8)
            ending = ".dcm" if number % 3 or kind == "table" else ""
            save_dicom(
                folder / f"{number}{ending}", make_dicom(values, bits=8, patient=f"P{number // 8}")
            )
        lines = ["path,label", *(f"{number}.dcm,{'ab'[number % 2]}" for number in range(80))]
        if kind == "table":
            (here / "scans" / "manifest.csv").write_text("\n".join(lines))
        code, _, said = run("init", "scans")
        assert code == 0, said
        assert (
            "80 images, 10 groups (patients): a 40, b 40; groups are the patients in the DICOM headers"
            in said
        )
        sweep = load_sweep(here / "scans.yaml")
        assert (
            sweep.datasets[0].user_source.domain == "medical"
        )  # though the first file has no ending
        assert sweep.test_size == 20  # of three patients at least, who have 24
        assert max(sweep.train_sizes) <= 80 - 24

    def test_what_is_said_is_kept_and_a_gpu_gets_the_studys_networks_and_side(self, run, here):
        write_arrays(here / "scans.npz", np.array(["CAT", "cat", "dog", "dog"] * 100))
        said = ("--device", "gpu", "--domain", "medical")
        assert "--label-map" in run("init", "scans.npz", *said)[2]
        assert run("init", "scans.npz", *said, "--label-map", "CAT=cat")[0] == 0
        sweep = load_sweep(here / "scans.yaml")
        assert (sweep.image_size, sweep.recipe.from_) == (224, "paper")
        own = sweep.datasets[0].user_source
        assert (own.domain, own.label_map) == ("medical", {"CAT": "cat"})

    def test_folders_with_other_letters_and_blanks_have_sweeps_of_their_own(self, run, here):
        for folder, name in (("ä ö", "a_o"), ("ü", "u"), ("My Images (1)", "my_images_1")):
            (here / folder).mkdir()
            write_arrays(here / folder / "x.npz", np.arange(400) % 2)
            code, _, said = run("init", f"{folder}/x.npz", "--out", f"{folder}.yaml")
            assert code == 0, said
            assert load_sweep(here / f"{folder}.yaml").name == name
        assert (
            "# `isweep plan 'My Images (1).yaml'` checks"
            in (here / "My Images (1).yaml").read_text()
        )
        assert (
            "Choose another file name with --out" in run("init", "ü/x.npz", "--out", "図.yaml")[2]
        )

    def test_a_file_is_never_written_over(self, run, here):
        (here / "first.yaml").write_text("mine", encoding="utf-8")
        code, _, said = run("init")
        assert (code, (here / "first.yaml").read_text()) == (2, "mine")
        assert "first.yaml exists already" in said

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
                "--out is '', but must be a file that ends with .yaml or .yml",
            ),
            (
                ("cut",),
                (
                    "cut: none of the 2 images that were tried can be read (not an image: 2). "
                    "Repair or convert"
                ),
            ),
            (("few.npz",), "few has 8 images. Only 6 of them can be used for training"),
            (
                ("few.npz", "--out", "few.txt"),
                "--out is 'few.txt', but must be a file that ends with .yaml or .yml",
            ),
        ],
    )
    def test_mistakes(self, run, here, words, message):
        write_arrays(here / "few.npz", np.arange(8) % 2)
        write_arrays(here / "train.npz", np.array(["cat", "dog"] * 20), splits=["train"] * 40)
        for name in "ab":
            (here / "cut" / name).mkdir(parents=True)
            (here / "cut" / name / "0.png").write_bytes(name.encode() * 99)
        code, _, said = run("init", *words)
        assert code == 2
        assert message.format(here=here) in said
        assert not list(here.glob("*.yaml"))

    def test_what_a_message_names_is_located_by_the_key_of_the_root(self, run, here, tmp_path):
        """``init`` names a file as ``measure`` and ``plan`` do, and says how it is found."""
        OWN_WRITERS["folder"](tmp_path / "raw")
        link = next((tmp_path / "raw").rglob("*.png")).with_name("lost.png")
        link.symlink_to(here / "nothing")
        (tmp_path / "root").mkdir(exist_ok=True)
        said = run("init", str(tmp_path / "raw"))[2]
        assert "To find the file of a hash, run `isweep locate HASH --raw DIR`" in said
        digest = re.search(r"\b[0-9a-f]{16}\b", said)
        code, out, said = run("locate", digest[0], "--raw", str(tmp_path / "raw"))
        assert (code, out) == (0, f"{link.relative_to(tmp_path / 'raw')}\n"), said


@pytest.mark.parametrize(
    ("command", "names"), [("models", MODELS), ("recipes", RECIPES), ("presets", preset_names())]
)
def test_lists_name_all_that_can_be_named(run, command, names):
    code, out, _ = run(command, "--json")
    rows, shown = json.loads(out), run(command)[1]
    assert (code, [row[command[:-1]] for row in rows]) == (0, list(names))
    assert all(row["about"] for row in rows)
    assert all(name in shown for name in names)


class TestRoot:
    @pytest.fixture
    def two(self, root):
        """A sweep and prepared data, as far as names go."""
        for path in (
            "sweeps/mine/sweep.yaml",
            "sweeps/mine/trials/a/result.json",
            "prepared/digits-1/x",
        ):
            (Path(root) / path).parent.mkdir(parents=True, exist_ok=True)
            (Path(root) / path).write_text("12345", encoding="utf-8")
        return Path(root)

    def test_ls_lists_what_is_there_and_makes_no_root(self, run, two, tmp_path):
        code, out, _ = run("ls", "--json")
        found = [(row["what"], row["name"], row["bytes"]) for row in json.loads(out)]
        assert (code, found[:2]) == (0, [("sweep", "mine", 10), ("prepared data", "digits-1", 5)])
        assert "1 result " in run("ls")[1]
        code, out, _ = run("ls", at=str(tmp_path / "none"))
        assert (code, (tmp_path / "none").exists()) == (0, False)
        assert "Start with `isweep run demo" in out

    @pytest.mark.parametrize(
        ("name", "gone"), [("mine", "sweeps/mine"), ("digits-1", "prepared/digits-1")]
    )
    def test_rm_removes_that_and_nothing_else(self, run, two, name, gone):
        assert run("rm", name, "--yes")[0] == 0
        assert not (two / gone).exists()
        assert len([*two.glob("sweeps/*"), *two.glob("prepared/*")]) == 1

    def test_rm_asks_a_person_takes_names_alone_and_leaves_a_root_that_is_in_use(self, run, two):
        code, _, said = run("rm", "mine")
        assert code == 2
        assert (
            "isweep cannot ask before it removes mine, because there is no terminal. Add --yes"
            in said
        )
        for name in ("min", "../prepared/digits-1", "", "."):
            code, _, said = run("rm", name, "--yes")
            assert (code, "Choose one of mine, digits-1" in said) == (2, True), said
        with exclusive(two / "driver.lock", "isweep run mine"):
            code, _, said = run("rm", "mine", "--yes")
        assert (code, f"{two} is in use by" in said) == (3, True), said
        assert (two / "sweeps" / "mine").exists()

    def test_ui_of_an_unknown_sweep_names_the_roots(self, run, two):
        (two / "mlflow.db").touch()
        code, _, said = run("ui", "mien")
        assert (code, "'mien'" in said) == (2, True)
