"""Test what planning refuses about your own data, from the paths and names of their files alone."""

import os
import shutil

import numpy as np
import pytest

from orchestrator.planning.checks import (
    changed_own_data,
    check_feasible,
    learning_rate_notes,
    num_sizes_notes,
    small_size_notes,
)
from orchestrator.planning.workspace import Workspace
from search_spaces.datasets import DATASETS
from search_spaces.errors import DataError, SweepError
from search_spaces.specs import PreparedSpec
from search_spaces.sweeps import UserSourceSpec
from tasks.prepared.prepare import prepare_dataset
from tasks.remote import InlineExecutor
from tasks.sources import source_for
from tasks.sources.base import RawRequest
from tests.small_sweep import small_sweep
from tests.unit.tasks.sources.conftest import picture, png

SWEEP = """
name: counted
models: [small_cnn]
datasets:
  - {name: mine, own: {kind: folder, path: images, domain: medical, channels: 1}%s}
train_sizes: [%d]
test_size: 10
image_size: 16
channels: 1
recipe: smoke
"""


@pytest.fixture
def open_sweep(tmp_path):
    """Return a function that opens a sweep of three classes of 30 empty image files."""
    for name in ("1", "11", "21"):
        folder = tmp_path / "images" / name
        folder.mkdir(parents=True)
        for place in range(30):
            (folder / f"{place}.png").touch()

    def open_with(pairs: str = "", train_size: int = 20) -> Workspace:
        path = tmp_path / "sweep.yaml"
        class_pairs = f", class_pairs: {pairs}" if pairs else ""
        path.write_text(SWEEP % (class_pairs, train_size), encoding="utf-8")
        return Workspace.open(str(path), tmp_path / "root")

    return open_with


@pytest.mark.parametrize(
    ("pairs", "train_size", "message"),
    [
        (
            "",
            81,
            "^mine: .*81.* 10 test images.* 80",
        ),
        (
            "[['1', '11']]",
            51,
            r"large: with 10 test images, at most 50 images are left for training \(class 1: 25, class",
        ),
        (
            "[[1, 11]]",
            20,
            "mine.class_pairs` has the numbers 1 and 11. .* numbers as names: 1, 11, 21. Write class names in quotes",
        ),
    ],
)
def test_train_sizes_beyond_the_files_and_ambiguous_pairs_are_refused(
    open_sweep, pairs, train_size, message
):
    with pytest.raises(DataError, match=message):
        check_feasible(open_sweep(pairs, train_size))


def test_class_names_that_the_data_do_not_have_are_refused(open_sweep, tmp_path):
    open_sweep()
    path = tmp_path / "sweep.yaml"
    text = path.read_text(encoding="utf-8").replace(
        "channels: 1}", "channels: 1, class_names: ['1', '21']}"
    )
    path.write_text(text, encoding="utf-8")
    with pytest.raises(
        DataError, match=r"class_names` lists 1, 21, but the data have the classes 1, 11, 21\. Rem"
    ):
        check_feasible(Workspace.open(str(path), tmp_path / "root"))


def test_an_index_that_no_class_has_is_refused(open_sweep, tmp_path):
    for name, new_name in (("1", "ant"), ("11", "bee"), ("21", "cat")):
        (tmp_path / "images" / name).rename(tmp_path / "images" / new_name)
    with pytest.raises(DataError, match=r"mine 0-7: .*class 7"):
        check_feasible(open_sweep("[[0, 7]]"))


def test_a_folder_without_classes_is_refused_with_one_message(open_sweep, tmp_path):
    workspace = open_sweep()
    (tmp_path / "other").mkdir()
    with pytest.raises(
        SweepError,
        match="folders with images and 0 images outside class folders, but two classes are needed",
    ) as caught:
        check_feasible(workspace, {"mine": tmp_path / "other"})
    assert str(caught.value).count("two classes are needed") == 1


def test_arrays_with_groups_in_training_and_test_are_refused(open_sweep, tmp_path):
    rows = np.arange(40)
    arrays = {"labels": rows % 2, "groups": rows // 4, "splits": np.array(["train", "test"] * 20)}
    np.savez(tmp_path / "x.npz", images=np.zeros((40, 8, 8), np.uint8), **arrays)
    open_sweep()
    text = SWEEP.replace("folder, path: images", "npz, path: x.npz") % ("", 20)
    (tmp_path / "sweep.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(
        DataError, match="training and test share 10 groups, for example the group of row 0"
    ):
        check_feasible(Workspace.open(str(tmp_path / "sweep.yaml"), tmp_path / "root"))
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize("data", ["folder", "volumes"])
def test_a_stated_split_that_the_released_code_ignores_is_refused(tmp_path, data):
    own = {"kind": "folder", "path": str(tmp_path / "images"), "domain": "medical"}
    for split in ("train", "test"):
        for name in ("ant", "bee"):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for place in range(30):
                (folder / f"{place}.png").touch()
    if data == "volumes":  # the number of their slices is unknown before the files are read
        own = {"kind": "table", "path": str(tmp_path / "scans.csv"), "domain": "medical"}
        rows = ["path,label,split"]
        for name in ("a", "b", "c", "d"):
            (tmp_path / f"{name}.nii").touch()
            rows.append(f"{name}.nii,{name in 'ab'},{'train' if name in 'ac' else 'test'}")
        (tmp_path / "scans.csv").write_text("\n".join(rows), encoding="utf-8")
    sweep = {
        "name": "released",
        "models": ["small_cnn"],
        "datasets": [{"name": "mine", "own": own}],
        "train_sizes": [10, 20],
        "test_size": 10,
        "image_size": 16,
        "recipe": "smoke",
        "data_mode": "as_released",
    }

    with pytest.raises(
        DataError,
        match=r"^mine: the data state which images are for training .*\. `data_mode: as_released` "
        "would ignore this split. Set `data_mode: corrected`, or remove the split from the data",
    ):
        check_feasible(Workspace.open(sweep, tmp_path / "root"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"test_size": 100_000},
            r"^digits, classes 3 and 8: .*50,000 test images.*\b183\b",
        ),
        (
            {"train_sizes": [60, 99_999]},
            r"^digits, classes 3 and 8: .*99,?999.* at most 2",
        ),
    ],
)
def test_sizes_beyond_a_packaged_dataset_are_refused_before_it_is_prepared(
    tmp_path, changes, message
):
    sweep = {
        "name": "mine",
        "models": ["small_cnn"],
        "datasets": [{"name": "digits", "class_pairs": [["3", "8"]]}],
        "train_sizes": [60],
        "test_size": 100,
        "image_size": 16,
        "recipe": "smoke",
        **changes,
    }
    with pytest.raises(DataError, match=message):
        check_feasible(Workspace.open(sweep, tmp_path / "root"))


PACKAGED = [row for row in DATASETS.values() if row.images_per_class]


@pytest.mark.parametrize("dataset", PACKAGED, ids=lambda dataset: dataset.name)
def test_a_packaged_dataset_has_the_number_of_images_of_its_row(dataset, tmp_path):
    spec = PreparedSpec(dataset=dataset.name, image_size=16, channels=1)
    listing = source_for(dataset.source).list_items(RawRequest(dataset, spec, tmp_path))
    images_per_class = np.bincount([item.label for item in listing.items])
    assert images_per_class.tolist() == list(dataset.images_per_class)


@pytest.fixture
def open_prepared(tmp_path):
    """Return a function that opens a sweep of the prepared table of a folder, which may change."""
    source = UserSourceSpec(kind="folder", path=str(tmp_path / "raw"), domain="medical")
    for number in range(60):
        path = tmp_path / "raw" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(picture(number, (16, 16))))
    datasets = [{"name": "mine", "own": source.model_dump(exclude_defaults=True)}]
    sweep = small_sweep("changed", datasets=datasets, train_sizes=[20], test_size=10)

    def open_again() -> Workspace:
        return Workspace.open(sweep, str(tmp_path / "root"))

    workspace = open_again()
    for spec in workspace.plan.prepared:
        prepare_dataset(
            spec,
            workspace.plan.datasets["mine"],
            raw=tmp_path / "raw",
            destination=workspace.paths.prepared(spec),
            executor=InlineExecutor(),
        )
    return open_again


def test_unchanged_files_of_a_prepared_dataset_are_planned_without_a_note(open_prepared):
    workspace = open_prepared()
    assert check_feasible(workspace) == {}
    assert changed_own_data(workspace) == {}


def test_other_data_under_the_name_of_a_prepared_dataset_are_refused(open_prepared, tmp_path):
    (tmp_path / "raw" / "b").rename(tmp_path / "raw" / "c")
    message = r"changed .*the files have the classes a, c, but the prepared dataset has the classes a, b\)"
    with pytest.raises(DataError, match=message):
        check_feasible(open_prepared())


def test_fewer_files_than_prepared_images_are_refused(open_prepared, tmp_path):
    (tmp_path / "raw" / "b" / "1.png").unlink()
    message = (
        r"\(the class b has 29 files, but .* 30 images of this class\)\. Restore .*another name"
    )
    with pytest.raises(DataError, match=message):
        check_feasible(open_prepared())


def test_files_that_cannot_be_listed_are_refused_although_the_name_is_prepared(
    open_prepared, tmp_path
):
    shutil.rmtree(tmp_path / "raw" / "b")
    with pytest.raises(DataError, match="mine: "):
        check_feasible(open_prepared())


def test_files_with_other_times_are_counted_for_a_note(open_prepared, tmp_path):
    os.utime(tmp_path / "raw" / "b" / "1.png", (1, 1))
    workspace = open_prepared()
    assert check_feasible(workspace) == {}
    (listing,) = changed_own_data(workspace).values()
    assert len(listing.items) == 60


@pytest.mark.parametrize(
    ("changes", "notes"),
    [
        ({"test_size": 4}, ["With `test_size: 4`, the standard error of an accuracy can be 0.25."]),
        ({"test_size": 25}, []),
        (
            {"test_size": 25, "recipe": {"from": "smoke", "batch_size": 4096}},
            ["The batch size (4,096) is larger than the largest train size (20)"],
        ),
    ],
)
def test_a_small_test_set_and_a_large_batch_are_noted(tmp_path, changes, notes):
    sweep = small_sweep("small", train_sizes=[20], **changes)
    lines = list(small_size_notes(Workspace.open(sweep, str(tmp_path)).plan))
    assert [line[: len(note)] for line, note in zip(lines, notes, strict=True)] == notes


@pytest.mark.parametrize(
    ("train_sizes", "notes"),
    [
        ([20], ["With only 1 train size, there is no learning curve, and `isweep predict` cannot"]),
        ([20, 30], ["With only 2 train sizes, isweep cannot check whether a learning curve bends"]),
        ([20, 30, 40], []),
    ],
)
def test_too_few_train_sizes_for_a_learning_curve_are_noted(tmp_path, train_sizes, notes):
    sweep = small_sweep("few", train_sizes=train_sizes)
    lines = list(num_sizes_notes(Workspace.open(sweep, str(tmp_path)).plan))
    assert [line[: len(note)] for line, note in zip(lines, notes, strict=True)] == notes
    assert all(line.endswith("Use at least 3 `train_sizes`.") for line in lines)


def test_sweeps_of_several_class_pairs_need_no_learning_curve(tmp_path):
    plan = Workspace.open("digits-demo", str(tmp_path)).plan
    assert plan.sweep.train_sizes == (240,)
    assert list(num_sizes_notes(plan)) == []


@pytest.mark.parametrize(
    ("recipe", "num_notes"),
    [
        ({"learning_rate": 1.0}, 1),
        ({"learning_rate": 10.0, "optimizer": "adamw"}, 1),
        ({"learning_rate": 0.1}, 0),
        ({"learning_rate": 1.0, "optimizer": "sgd"}, 0),
    ],
)
def test_a_learning_rate_of_one_or_more_with_adam_is_noted(tmp_path, recipe, num_notes):
    sweep = small_sweep("fast", recipe={"from": "demo", **recipe})
    notes = list(learning_rate_notes(Workspace.open(sweep, str(tmp_path)).plan))
    assert len(notes) == num_notes
    assert all("is very high for Adam" in note for note in notes)
