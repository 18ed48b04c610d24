"""Commands about data."""

import json
import os
import re
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from orchestrator.cli.file_names import with_file_names
from orchestrator.cli.options import Place
from tasks.sources.base import HASH_PATTERN
from tests.raw_trees.own import OWN_WRITERS

PLACES = np.arange(60)


def pixels(num: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (num, *(shape or (12, 12))), np.uint8)


@pytest.fixture
def own(tmp_path):
    """Write random images, or these, with labels and more into ``own.npz``."""

    def write(labels, images=None, **more) -> str:
        stored = pixels(len(labels)) if images is None else images
        np.savez(tmp_path / "own.npz", images=stored, labels=labels, **more)
        return str(tmp_path / "own.npz")

    return write


@pytest.fixture
def pictures(tmp_path):
    """Write random pictures into these folders below ``raw``."""

    def write(folders) -> str:
        for number, folder in enumerate(folders):
            path = tmp_path / "raw" / folder / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels(len(folders))[number]).save(path)
        return str(tmp_path / "raw")

    return write


@pytest.fixture
def features(tmp_path):
    """Write an array, and labels for it, as .npy; returns their paths."""

    def write(images, labels) -> tuple[str, ...]:
        np.save(tmp_path / "own.npy", images)
        np.save(tmp_path / "labels.npy", labels)
        return str(tmp_path / "own.npy"), "--labels", str(tmp_path / "labels.npy")

    return write


@pytest.fixture
def measure(run):
    return partial(run, "measure")


@pytest.fixture
def measured(measure):
    def go(*words: str):
        code, out, err = measure(*words, "--json")
        assert code == 0, err
        return json.loads(out)

    return go


def test_arrays_in_either_file_give_the_largest_ratio_of_all_pairs(measured, own, tmp_path):
    import h5py

    labels, flat = PLACES % 3, pixels(60).reshape(60, -1).astype(float)
    distances = np.linalg.norm(flat[:, None] - flat[None], axis=2)
    found = measured(own(labels), "--train-sizes", "30", "60")
    assert found["num_images"] == 60
    assert [size["train_size"] for size in found["by_train_size"]] == [30, 60]
    assert found["d_data"]["mle"]["num_neighbors"] == 20
    assert found["label_sharpness"]["pixel_range"] == [0, 255]
    largest = 1 / distances[labels[:, None] != labels[None]].min()
    assert found["label_sharpness"]["value"] == pytest.approx(largest, rel=1e-6)
    assert len(found["published"]) == 11
    with h5py.File(tmp_path / "own.h5", "w") as file:
        file.update({"images": pixels(60), "labels": labels})
    assert (
        measured(str(tmp_path / "own.h5"))["label_sharpness"]
        == measured(own(labels))["label_sharpness"]
    )


SPLITS = {
    "test_images": pixels(40),
    "test_labels": PLACES[:40] % 2,
    "patient_id": PLACES[:40],
    "val_images": pixels(40),
    "val_labels": PLACES[:40] % 2,
}


@pytest.mark.parametrize(
    ("arrays", "words", "shown"),
    [
        *(
            (
                SPLITS,
                words,
                [
                    "40 images, 2 classes",
                    "class 1: 20 images",
                    ("left out: validation split, 40"),
                    "doubtful: column patient_id not used: do its images belong together? call it "
                    "group",
                ],
            )
            for words in ("", "--image-size 12")
        ),
        (
            {"images": pixels(40, 12, 10), "labels": PLACES[:40] % 2, "groups": PLACES[:40] // 4},
            "",
            [
                "40 images, 2 classes, 10 groups",
                "class 1: 20 images, 10 groups",
                "12x10, uint8: measured as stored",
            ],
        ),
        (
            {"images": pixels(60) * (PLACES != 3)[:, None, None], "labels": PLACES % 2},
            "",
            ["doubtful: images of one value, 1"],
        ),
        (
            {"images": pixels(60), "labels": PLACES % 2},
            "--pixel-range 0 254",
            ["doubtful: values outside pixel_range clipped, "],
        ),
    ],
)
def test_what_was_taken_is_shown(measure, tmp_path, arrays, words, shown):
    """Classes, what was left out and what is doubtful, without asking for it; a script is told,
    too."""
    np.savez(tmp_path / "own.npz", **arrays)
    code, out, _ = measure(str(tmp_path / "own.npz"), *words.split())
    assert code == 0
    assert [line for line in shown if line not in out] == []
    found = json.loads(measure(str(tmp_path / "own.npz"), *words.split(), "--json")[1])
    taken = "\n".join(found["taken"])
    assert [line for line in shown if line not in taken] == [] or found["preparation"]["excluded"]


@pytest.mark.parametrize("kind", OWN_WRITERS)
def test_every_kind_shows_classes_groups_size_and_conversion(measure, tmp_path, kind):
    source = OWN_WRITERS[kind](tmp_path / "raw")
    code, out, _ = measure(str(source), "--num-neighbors", "3", "--image-size", "16")
    slices = 3 if kind == "nifti_csv" else 1
    groups = 5 if kind.endswith("csv") or kind == "table" else 10
    assert code == 0
    assert f"{10 * slices} images, 2 classes, {groups} groups" in out
    assert out.count(f": {5 * slices} images, 5 groups") == 2
    assert "prepared: 16x16 pixels, 1 channel; " in out


def test_a_range_that_is_asked_for_can_be_said(measure, own):
    """A float slightly above 1: the message shows it, and its hint works."""
    images = pixels(40) / 255
    images[3, 2, 2] = 1.0000002
    source, given = (
        own(PLACES[:40] % 2, images),
        ("--pixel-range", "0", "1", "--num-neighbors", "3"),
    )
    code, _, err = measure(source)
    assert (code, "1.0000002" in err, "--pixel-range" in err) == (2, True, True)
    assert "12x12, float64 in [" in measure(source, *given)[1]
    for size in ([], ["--image-size", "12"]):
        assert "[0, 1] (pixel_range) to [0, 255], clipped" in measure(source, *given, *size)[1]


def test_floats_have_one_scale_with_and_without_a_size(measured, own):
    labels = PLACES % 2
    stored = measured(own(labels), "--num-neighbors", "3")
    source = own(labels, pixels(60) / 255)
    for size in ([], ["--image-size", "12"]):
        found = measured(source, "--num-neighbors", "3", *size)
        assert found["label_sharpness"]["pixel_range"] == [0, 255]
        assert found["label_sharpness"]["value"] == pytest.approx(
            stored["label_sharpness"]["value"]
        )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--labels y.npy", "--labels is only for .npy files, but own.npz has another type. Remove"),
        ("--raw x", "--raw is only for known datasets, but own.npz is a file or folder. Remove"),
        ("--channels 3", "--channels cannot be used, because the images of own.npz are measured"),
    ],
)
def test_what_would_not_be_used_is_refused(measure, own, words, message):
    code, _, err = measure(own(PLACES % 3), *words.split())
    assert (code, message in err) == (2, True)


def test_features_without_labels_and_a_correction_that_cannot_be_told(measure, measured, features):
    found = measured(features(np.random.default_rng(0).normal(size=(80, 5)), [])[0])
    assert found["label_sharpness"] is None
    assert 3 < found["d_data"]["mle"]["value"] < 7
    code, out, _ = measure(features(pixels(40), [])[0], "--calibrate")
    assert (code, "Label sharpness is not measured, because the images have no labels" in out) == (
        0,
        True,
    )
    assert (
        "undefined: the correction needs at least 80 distinct points, but there are 40"
        in " ".join(out.split())
    )


def test_labels_of_several_words_one_a_line(measure, features, tmp_path):
    source = features(pixels(40), [])[0]
    lines = ["no tumour", "tumour"] * 20
    (tmp_path / "labels.txt").write_text("\n".join(lines) + "\n")
    code, out, _ = measure(source, "--labels", str(tmp_path / "labels.txt"))
    assert (code, "40 images, 2 classes, 40 groups" in out) == (0, True)
    assert "class no tumour: 20 images" in out
    lines[6] = ""  # of 40 lines one has no label: none of the others may move up
    lines[7] = "tumour  tumour"
    (tmp_path / "labels.txt").write_text("\n".join(lines))
    code, _, err = measure(source, "--labels", str(tmp_path / "labels.txt"))
    assert (code, "the label is missing for 1 image: row " in err) == (2, True)


def test_what_own_data_leave_open_can_be_said(measure, pictures):
    source = pictures([f"p{number % 2}/{'ab'[number // 2 % 2]}" for number in range(40)])
    for words, message in (
        ([], "the classes, set `layout: class/group` (--layout)"),
        (["--label-columns", "x"], "label_columns applies only to data of kind table"),
        (
            ["--pixel-range", "0", "1"],
            "pixel_range applies only to data of kind hdf5 or npz, not to kind folder",
        ),
    ):
        code, _, err = measure(source, *words)
        assert (code, message in err) == (2, True), err
    code, out, _ = measure(source, "--layout", "group/class", "--image-size", "12")
    assert (code, "class a: 20 images, 2 groups" in out) == (0, True)


def test_the_pair_can_be_looked_at(measure, own, tmp_path):
    figure = tmp_path / "pair.png"
    code, out, err = measure(own(PLACES % 3), "--class-pair", "0", "2", "--show-pair", str(figure))
    assert (code, f"wrote {figure}" in err) == (0, True)
    assert "The intrinsic dimension" in out
    assert "higher than" in out
    with Image.open(figure) as image:
        assert image.size[0] > image.size[1]


def test_a_pair_names_classes_not_places(measured, own):
    """Labels 1, 2, 3 have the places 0, 1, 2: a pair 1 2 means the labels."""
    labels = np.arange(90) % 3 + 1
    chosen = measured(own(labels, pixels(90)), "--class-pair", "1", "2")
    alone = measured(own(labels[labels != 3], pixels(90)[labels != 3]))
    assert chosen["label_sharpness"]["value"] == alone["label_sharpness"]["value"]
    assert chosen["num_images"] == 60


def test_pictures_of_class_folders_of_which_bad_ones_can_be_found_and_allowed(
    run, measured, pictures
):
    source = pictures([("benign", "malignant")[place % 2] for place in PLACES])
    for name in ("broken.png", "torn.png"):
        with open(f"{source}/benign/{name}", "wb") as file:
            file.write(b"no image")
    code, _, err = run("measure", source, "--image-size", "12")
    assert code == 2
    digest = re.search(r"\b[0-9a-f]{16}\b", err)
    assert run("locate", digest[0], "--raw", source)[:2] == (0, "benign/broken.png\n")
    allowed = (source, "--image-size", "12", "--max-skipped-share", "10%")
    shown = run("measure", *allowed)[1]
    assert "skipped: not an image, 2" in shown
    assert "groups, one for each image (docs/datasets.md explains how to group by patient)" in shown
    assert "isweep locate HASH" in shown
    found = measured(*allowed)
    assert found["label_names"] == ["benign", "malignant"]
    assert found["label_sharpness"]["side"] == [12, 12]
    assert found["label_sharpness"]["num_pairs"] == 900
    assert found["preparation"]["domain"] is None  # nobody said what these images are
    assert os.listdir(f"{source}/../root/prepared") == [".hash_key"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda p: np.save(p, np.array([{}], object), allow_pickle=True),
            "cannot be read as one numeric array",
        ),
        (lambda p: p.write_bytes(b"no array"), "cannot be read as one numeric array"),
        (
            lambda p: np.save(p, np.full((30, 4, 4), np.nan)),
            "30 of 30 rows have values that are NaN or infinite",
        ),
        (lambda p: np.save(p, np.zeros((0, 4, 4))), "image"),
    ],
)
def test_arrays_that_cannot_be_measured(measure, tmp_path, make, message):
    make(tmp_path / "bad.npy")
    code, out, err = measure(str(tmp_path / "bad.npy"))
    assert (code, out) == (2, ""), err
    assert message in err


@pytest.mark.parametrize("form", ["csv", "npz", "npy"])
def test_labels_mean_what_the_map_says(measured, own, features, pictures, tmp_path, form):
    labels = np.array(["cat", "CAT", "dog"])[PLACES % 3]
    words = (own(labels),) if form == "npz" else features(pixels(60), labels)
    if form == "csv":
        table = Path(pictures([""] * 60), "own.csv")
        rows = [f"{number}.png,{label}" for number, label in enumerate(labels)]
        table.write_text("\n".join(("path,label", *rows)))
        words = (str(table), "--image-size", "12")
    found = measured(*words, "--label-map", "CAT=cat")
    assert found["label_names"] == ["cat", "dog"]
    assert found["label_sharpness"]["num_pairs"] == 40 * 20


def test_labels_that_are_negative_numbers_can_be_mapped(measured, own):
    found = measured(own(PLACES % 3 - 1), "--label-map", "0=a", "1=b", "--label-map=-1=unsure")
    assert found["label_names"] == ["a", "b", "unsure"]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["cat", "CAT", "dog"], "these class names differ only in spelling: 'CAT' / 'cat'"),
        ([0.0, float("nan"), 1.0], "the label is missing for 20 images: row "),
        ([-1, 0, 1], "If the label is a class, add --label-map=-1=NAME"),
        ([[0], [1], [1]], "of type int64 and shape (60, 1) instead of one label per image. Save"),
    ],
)
def test_labels_that_are_no_classes(measure, features, labels, message):
    code, _, err = measure(*features(pixels(60, 8, 8), np.array(labels)[PLACES % 3]))
    assert (code, message in err) == (2, True), err


def test_prepare_reads_own_data_of_a_sweep_file(run, own, tmp_path, monkeypatch):
    import tasks.remote
    from orchestrator.machine import cluster

    class Inline(tasks.remote.InlineExecutor):
        driver_node_only = False

        def __init__(self, **_):
            super().__init__()

    monkeypatch.setattr(
        cluster, "connect", lambda *_, **__: nullcontext(SimpleNamespace(is_private=True))
    )
    monkeypatch.setattr(tasks.remote, "RayExecutor", Inline)
    source = own(np.array(["cat", "CAT", "dog"])[PLACES % 3])
    (tmp_path / "skin.yaml").write_text(f"""
name: skin
models: [resnet18]
train_sizes: [30]
image_size: 8
test_size: 20
recipe: paper
datasets: [{{name: skin, own: {{kind: npz, path: {source}, domain: medical}}}}]
""")
    words = ("prepare", "skin", "--sweep", str(tmp_path / "skin.yaml"))
    code, _, err = run(*words)
    assert (code, "these class names differ only in spelling: 'CAT' / 'cat'" in err) == (2, True)
    code, out, err = run(*words, "--label-map", "CAT=cat")
    assert code == 0, err
    assert "class cat: 40 images" in out


def test_a_terminal_shows_the_name_of_a_file_beside_its_hash(run, root, tmp_path):
    for label in ("cat", "dog"):
        for number in range(20):
            path = tmp_path / "set" / label / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels(1)[0] + np.uint8(number)).save(path)
    for number in (3, 4):
        (tmp_path / "set" / "cat" / f"{number}.png").write_bytes(b"no picture")
    source = str(tmp_path / "set")
    code, _, err = run("measure", source, "--image-size", "8")
    assert code == 2
    assert ".png" not in err
    (file_hash, *_) = HASH_PATTERN.findall(err)
    shown = with_file_names(err, [source], Place(root=root))
    assert re.search(rf"{file_hash} \(cat/[34]\.png\)", shown)
    assert with_file_names(err, [source], Place(root=str(tmp_path / "another root"))) == err


def test_each_column_of_label_sharpness_has_one_definition_at_every_size(measure, measured, own):
    source = own(np.arange(1100) % 2, pixels(1100, 4, 4))
    code, out, _ = measure(source, "--train-sizes", "50", "--estimators", "mle")
    assert code == 0
    sizes = measured(source, "--train-sizes", "50", "--estimators", "mle")["by_train_size"]
    rows = [line.split() for line in out.splitlines() if " mle " in line]
    expected = []
    for size in sizes:
        k_f = size["label_sharpness"]
        expected.append((str(size["train_size"]), k_f["pair_value"], k_f["value"]))
    shown = [(row[0], float(row[5]), float(row[6])) for row in rows]
    assert shown == [
        (size, pytest.approx(all_pairs, rel=1e-2), pytest.approx(samples, rel=1e-2))
        for size, all_pairs, samples in expected
    ]
    assert rows[0][5] == rows[0][6]
    assert float(rows[1][5]) > float(rows[1][6])
    text = " ".join(out.split())
    assert "K_F of samples is the mean of the maxima in samples of 1,000 images" in text
    assert "samples of" not in measure(source, "--sharpness-sample", "0")[1]


def test_a_class_too_rare_for_samples_leaves_the_column_of_all_pairs(measure, measured, own):
    source = own(np.eye(300, dtype=int)[7], pixels(300, 4, 4))
    options = ("--sharpness-sample", "100", "--estimators", "mle")
    code, out, _ = measure(source, *options)
    (size,) = measured(source, *options)["by_train_size"]
    assert code == 0
    assert size["label_sharpness"]["value"] is None
    text = " ".join(out.split())
    (row,) = [line.split() for line in out.splitlines() if " mle " in line]
    assert float(row[5]) == pytest.approx(size["label_sharpness"]["pair_value"], rel=1e-2)
    assert row[6] == "undefined:"
    assert "K_F of samples is the mean of the maxima in samples of 100 images" in text


def test_the_table_shows_how_many_neighbors_each_estimator_uses(measure, own):
    code, out, _ = measure(own(PLACES % 2), "--num-neighbors", "9")
    assert code == 0
    shown = re.findall(r"^.*\b(mle|twonn|gride) +(\d+) ", out, re.MULTILINE)
    assert shown == [("mle", "9"), ("twonn", "2"), ("gride", "8")]
