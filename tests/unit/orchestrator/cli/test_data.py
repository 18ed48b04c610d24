"""Test commands about data: `isweep measure`, `prepare` and `locate`."""

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


def random_images(num: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (num, *(shape or (12, 12))), np.uint8)


@pytest.fixture
def write_npz(tmp_path):
    """Write images (random by default), labels and further arrays into ``own.npz``."""

    def write(labels, images=None, **more) -> str:
        stored = random_images(len(labels)) if images is None else images
        np.savez(tmp_path / "own.npz", images=stored, labels=labels, **more)
        return str(tmp_path / "own.npz")

    return write


@pytest.fixture
def write_pictures(tmp_path):
    """Write one random picture into each of the named folders below ``raw``."""

    def write(folders) -> str:
        for number, folder in enumerate(folders):
            path = tmp_path / "raw" / folder / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random_images(len(folders))[number]).save(path)
        return str(tmp_path / "raw")

    return write


@pytest.fixture
def write_npy(tmp_path):
    """Write an array and its labels as .npy, and return the words of a command line for them."""

    def write(images, labels) -> tuple[str, ...]:
        np.save(tmp_path / "own.npy", images)
        np.save(tmp_path / "labels.npy", labels)
        return str(tmp_path / "own.npy"), "--labels", str(tmp_path / "labels.npy")

    return write


@pytest.fixture
def measure(run):
    return partial(run, "measure")


@pytest.fixture
def measure_json(measure):
    """Run `isweep measure --json` and return its document."""

    def run_measure(*words: str):
        code, out, err = measure(*words, "--json")
        assert code == 0, err
        return json.loads(out)

    return run_measure


def test_arrays_of_npz_and_hdf5_give_the_largest_ratio_of_all_pairs(
    measure_json, write_npz, tmp_path
):
    import h5py

    labels = PLACES % 3
    flat = random_images(60).reshape(60, -1).astype(float)
    distances = np.linalg.norm(flat[:, None] - flat[None], axis=2)
    record = measure_json(write_npz(labels), "--train-sizes", "30", "60")
    assert record["num_images"] == 60
    assert [size["train_size"] for size in record["by_train_size"]] == [30, 60]
    assert record["d_data"]["mle"]["num_neighbors"] == 20
    assert record["label_sharpness"]["pixel_range"] == [0, 255]
    largest = 1 / distances[labels[:, None] != labels[None]].min()
    assert record["label_sharpness"]["value"] == pytest.approx(largest, rel=1e-6)
    assert len(record["published"]) == 11
    with h5py.File(tmp_path / "own.h5", "w") as file:
        file.update({"images": random_images(60), "labels": labels})
    of_hdf5 = measure_json(str(tmp_path / "own.h5"))
    of_npz = measure_json(write_npz(labels))
    assert of_hdf5["label_sharpness"] == of_npz["label_sharpness"]


SPLITS = {
    "test_images": random_images(40),
    "test_labels": PLACES[:40] % 2,
    "patient_id": PLACES[:40],
    "val_images": random_images(40),
    "val_labels": PLACES[:40] % 2,
}


@pytest.mark.parametrize(
    ("arrays", "words", "lines"),
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
            {
                "images": random_images(40, 12, 10),
                "labels": PLACES[:40] % 2,
                "groups": PLACES[:40] // 4,
            },
            "",
            [
                "40 images, 2 classes, 10 groups",
                "class 1: 20 images, 10 groups",
                "12x10, uint8: measured as stored",
            ],
        ),
        (
            {"images": random_images(60) * (PLACES != 3)[:, None, None], "labels": PLACES % 2},
            "",
            ["doubtful: images of one value, 1"],
        ),
        (
            {"images": random_images(60), "labels": PLACES % 2},
            "--pixel-range 0 254",
            ["doubtful: values outside pixel_range clipped, "],
        ),
    ],
)
def test_a_summary_of_the_data_is_shown(measure, tmp_path, arrays, words, lines):
    """Classes, left-out images and doubtful images are printed, and are in the JSON document."""
    np.savez(tmp_path / "own.npz", **arrays)
    code, out, _ = measure(str(tmp_path / "own.npz"), *words.split())
    assert code == 0
    assert [line for line in lines if line not in out] == []
    record = json.loads(measure(str(tmp_path / "own.npz"), *words.split(), "--json")[1])
    summary = "\n".join(record["taken"])
    missing_lines = [line for line in lines if line not in summary]
    assert missing_lines == [] or record["preparation"]["excluded"]


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


@pytest.mark.parametrize(
    ("num_deep", "words"),
    [
        (0, "pixel values of 8 bits as stored\n"),
        (30, "images with more than 8 bits and DICOM files scaled by own maximum (a CT after"),
        (60, "1 channel; each image scaled by own maximum (a CT after adding 1024 to its"),
    ],
)
def test_the_line_on_pixel_values_fits_the_images(measure, write_pictures, num_deep, words):
    raw = Path(write_pictures([("cat", "dog")[number % 2] for number in range(60)]))
    for path in sorted(raw.rglob("*.png"))[:num_deep]:
        values = np.asarray(Image.open(path)).astype(np.uint16)
        Image.fromarray(values * 100).save(path)
    code, out, err = measure(str(raw), "--image-size", "12")
    assert code == 0, err
    assert words in out


def test_a_missing_pixel_range_can_be_given_as_the_message_says(measure, write_npz):
    """One value is slightly above 1: the message shows it, and its hint works."""
    images = random_images(40) / 255
    images[3, 2, 2] = 1.0000002
    source = write_npz(PLACES[:40] % 2, images)
    options = ("--pixel-range", "0", "1", "--num-neighbors", "3")
    code, _, err = measure(source)
    assert (code, "1.0000002" in err, "--pixel-range" in err) == (2, True, True)
    assert "12x12, float64 in [" in measure(source, *options)[1]
    for size in ([], ["--image-size", "12"]):
        assert "[0, 1] (pixel_range) to [0, 255], clipped" in measure(source, *options, *size)[1]


def test_floats_have_one_scale_with_and_without_a_size(measure_json, write_npz):
    labels = PLACES % 2
    record_of_integers = measure_json(write_npz(labels), "--num-neighbors", "3")
    source = write_npz(labels, random_images(60) / 255)
    for size in ([], ["--image-size", "12"]):
        record = measure_json(source, "--num-neighbors", "3", *size)
        assert record["label_sharpness"]["pixel_range"] == [0, 255]
        expected = record_of_integers["label_sharpness"]["value"]
        assert record["label_sharpness"]["value"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--labels y.npy", "--labels is only for .npy files, but own.npz has another type. Remove"),
        ("--raw x", "--raw is only for known datasets, but own.npz is a file or folder. Remove"),
        ("--channels 3", "--channels cannot be used, because the images of own.npz are measured"),
    ],
)
def test_an_option_that_would_not_be_used_is_refused(measure, write_npz, words, message):
    code, _, err = measure(write_npz(PLACES % 3), *words.split())
    assert (code, message in err) == (2, True)


def test_features_without_labels_have_no_sharpness_and_few_have_no_correction(
    measure, measure_json, write_npy
):
    features = np.random.default_rng(0).normal(size=(80, 5))
    record = measure_json(write_npy(features, [])[0])
    assert record["label_sharpness"] is None
    assert 3 < record["d_data"]["mle"]["value"] < 7
    code, out, _ = measure(write_npy(random_images(40), [])[0], "--calibrate")
    assert code == 0
    assert "Label sharpness is not measured, because the images have no labels" in out
    reason = "undefined: the correction needs at least 80 distinct points, but there are 40"
    assert reason in " ".join(out.split())


def test_a_text_file_has_one_label_of_several_words_a_line(measure, write_npy, tmp_path):
    source = write_npy(random_images(40), [])[0]
    lines = ["no tumour", "tumour"] * 20
    (tmp_path / "labels.txt").write_text("\n".join(lines) + "\n")
    code, out, _ = measure(source, "--labels", str(tmp_path / "labels.txt"))
    assert (code, "40 images, 2 classes, 40 groups" in out) == (0, True)
    assert "class no tumour: 20 images" in out
    lines[6] = ""  # a missing label: the labels after it must keep their images
    lines[7] = "tumour  tumour"
    (tmp_path / "labels.txt").write_text("\n".join(lines))
    code, _, err = measure(source, "--labels", str(tmp_path / "labels.txt"))
    assert (code, "the label is missing for 1 image: row " in err) == (2, True)


def test_the_layout_of_your_data_can_be_given_as_the_message_says(measure, write_pictures):
    source = write_pictures([f"p{number % 2}/{'ab'[number // 2 % 2]}" for number in range(40)])
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


def test_the_pair_that_decides_label_sharpness_can_be_drawn(measure, write_npz, tmp_path):
    figure = tmp_path / "pair.png"
    code, out, err = measure(
        write_npz(PLACES % 3), "--class-pair", "0", "2", "--show-pair", str(figure)
    )
    assert (code, f"wrote {figure}" in err) == (0, True)
    assert "The intrinsic dimension" in out
    assert "Published datasets with a lower intrinsic dimension: " in " ".join(out.split())
    with Image.open(figure) as image:
        assert image.size[0] > image.size[1]


def test_a_class_pair_names_labels_not_indices(measure_json, write_npz):
    """Labels 1, 2, 3 have the indices 0, 1, 2: the pair 1 2 means the labels."""
    labels = np.arange(90) % 3 + 1
    chosen = measure_json(write_npz(labels, random_images(90)), "--class-pair", "1", "2")
    is_of_pair = labels != 3
    two_classes = measure_json(write_npz(labels[is_of_pair], random_images(90)[is_of_pair]))
    assert chosen["label_sharpness"]["value"] == two_classes["label_sharpness"]["value"]
    assert chosen["num_images"] == 60


def test_unreadable_pictures_of_class_folders_can_be_located_and_skipped(
    run, measure_json, write_pictures
):
    source = write_pictures([("benign", "malignant")[place % 2] for place in PLACES])
    for name in ("broken.png", "torn.png"):
        with open(f"{source}/benign/{name}", "wb") as file:
            file.write(b"no image")
    code, _, err = run("measure", source, "--image-size", "12")
    assert code == 2
    digest = re.search(r"\b[0-9a-f]{16}\b", err)
    assert run("locate", digest[0], "--raw", source)[:2] == (0, "benign/broken.png\n")
    words = (source, "--image-size", "12", "--max-skipped-share", "10%")
    output = run("measure", *words)[1]
    assert "skipped: not an image, 2" in output
    assert (
        "groups, one for each image (docs/datasets.md explains how to group by patient)" in output
    )
    assert "isweep locate HASH" in output
    record = measure_json(*words)
    assert record["label_names"] == ["benign", "malignant"]
    assert record["label_sharpness"]["side"] == [12, 12]
    assert record["label_sharpness"]["num_pairs"] == 900
    assert record["preparation"]["domain"] is None  # the command line has no domain
    assert os.listdir(f"{source}/../root/prepared") == [".hash_key"]


@pytest.mark.parametrize(
    ("write_bad_file", "message"),
    [
        (
            lambda path: np.save(path, np.array([{}], object), allow_pickle=True),
            "cannot be read as one numeric array",
        ),
        (lambda path: path.write_bytes(b"no array"), "cannot be read as one numeric array"),
        (
            lambda path: np.save(path, np.full((30, 4, 4), np.nan)),
            "30 of 30 rows have values that are NaN or infinite",
        ),
        (lambda path: np.save(path, np.zeros((0, 4, 4))), "image"),
    ],
)
def test_arrays_that_cannot_be_measured_are_refused(measure, tmp_path, write_bad_file, message):
    write_bad_file(tmp_path / "bad.npy")
    code, out, err = measure(str(tmp_path / "bad.npy"))
    assert (code, out) == (2, ""), err
    assert message in err


@pytest.mark.parametrize("file_type", ["csv", "npz", "npy"])
def test_a_label_map_merges_labels(
    measure_json, write_npz, write_npy, write_pictures, tmp_path, file_type
):
    labels = np.array(["cat", "CAT", "dog"])[PLACES % 3]
    words = (write_npz(labels),) if file_type == "npz" else write_npy(random_images(60), labels)
    if file_type == "csv":
        table = Path(write_pictures([""] * 60), "own.csv")
        rows = [f"{number}.png,{label}" for number, label in enumerate(labels)]
        table.write_text("\n".join(("path,label", *rows)))
        words = (str(table), "--image-size", "12")
    record = measure_json(*words, "--label-map", "CAT=cat")
    assert record["label_names"] == ["cat", "dog"]
    assert record["label_sharpness"]["num_pairs"] == 40 * 20


def test_labels_that_are_negative_numbers_can_be_mapped(measure_json, write_npz):
    record = measure_json(
        write_npz(PLACES % 3 - 1), "--label-map", "0=a", "1=b", "--label-map=-1=unsure"
    )
    assert record["label_names"] == ["a", "b", "unsure"]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["cat", "CAT", "dog"], "these class names differ only in spelling: 'CAT' / 'cat'"),
        (
            ["caf\u00e9", "cafe\u0301", "dog"],
            r"differ in their Unicode characters: 'cafe\u0301' / 'caf\xe9'. Rename",
        ),
        ([0.0, float("nan"), 1.0], "the label is missing for 20 images: row "),
        ([-1, 0, 1], "If the label is a class, add --label-map=-1=NAME"),
        (
            [[0], [1], [1]],
            "must contain one label per image, but contains an array of type int64 and shape",
        ),
    ],
)
def test_labels_that_are_no_classes_are_refused(measure, write_npy, labels, message):
    code, _, err = measure(*write_npy(random_images(60, 8, 8), np.array(labels)[PLACES % 3]))
    assert (code, message in err) == (2, True), err


def test_prepare_reads_your_data_from_a_sweep_file(run, write_npz, tmp_path, monkeypatch):
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
    source = write_npz(np.array(["cat", "CAT", "dog"])[PLACES % 3])
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
            Image.fromarray(random_images(1)[0] + np.uint8(number)).save(path)
    for number in (3, 4):
        (tmp_path / "set" / "cat" / f"{number}.png").write_bytes(b"no picture")
    source = str(tmp_path / "set")
    code, _, err = run("measure", source, "--image-size", "8")
    assert code == 2
    assert ".png" not in err
    (file_hash, *_) = HASH_PATTERN.findall(err)
    message_with_names = with_file_names(err, [source], Place(root=root))
    assert re.search(rf"{file_hash} \(cat/[34]\.png\)", message_with_names)
    assert with_file_names(err, [source], Place(root=str(tmp_path / "another root"))) == err


def test_each_column_of_label_sharpness_has_one_definition_at_every_size(
    measure, measure_json, write_npz
):
    source = write_npz(np.arange(1100) % 2, random_images(1100, 4, 4))
    code, out, _ = measure(source, "--train-sizes", "50", "--estimators", "mle")
    assert code == 0
    sizes = measure_json(source, "--train-sizes", "50", "--estimators", "mle")["by_train_size"]
    rows = [line.split() for line in out.splitlines() if " mle " in line]
    expected = []
    for size in sizes:
        k_f = size["label_sharpness"]
        expected.append((str(size["train_size"]), k_f["pair_value"], k_f["value"]))
    printed = [(row[0], float(row[5]), float(row[6])) for row in rows]
    assert printed == [
        (size, pytest.approx(all_pairs, rel=1e-2), pytest.approx(samples, rel=1e-2))
        for size, all_pairs, samples in expected
    ]
    assert rows[0][5] == rows[0][6]
    assert float(rows[1][5]) > float(rows[1][6])
    text = " ".join(out.split())
    assert "K_F of samples contains the mean of the maxima in samples of 1,000 images" in text
    assert "in samples of" not in measure(source, "--sharpness-sample", "0")[1]


def test_a_class_too_rare_for_samples_leaves_the_column_of_all_pairs(
    measure, measure_json, write_npz
):
    source = write_npz(np.eye(300, dtype=int)[7], random_images(300, 4, 4))
    options = ("--sharpness-sample", "100", "--estimators", "mle")
    code, out, _ = measure(source, *options)
    (size,) = measure_json(source, *options)["by_train_size"]
    assert code == 0
    assert size["label_sharpness"]["value"] is None
    text = " ".join(out.split())
    (row,) = [line.split() for line in out.splitlines() if " mle " in line]
    assert float(row[5]) == pytest.approx(size["label_sharpness"]["pair_value"], rel=1e-2)
    assert row[6] == "undefined:"
    assert "K_F of samples contains the mean of the maxima in samples of 100 images" in text


def test_the_table_shows_how_many_neighbors_each_estimator_uses(measure, write_npz):
    code, out, _ = measure(write_npz(PLACES % 2), "--num-neighbors", "9")
    assert code == 0
    num_neighbors = re.findall(r"^.*\b(mle|twonn|gride) +(\d+) ", out, re.MULTILINE)
    assert num_neighbors == [("mle", "9"), ("twonn", "2"), ("gride", "8")]


def test_few_images_get_a_line_with_the_number_that_suffices(measure, write_npz):
    _, out, err = measure(write_npz(np.arange(6) % 2))
    line = "Estimates from only 6 images are not reliable. Measure at least 60 images."
    assert line in " ".join(out.split()), err


def test_a_folder_above_the_class_folders_gets_the_right_folder_as_a_hint(measure, write_pictures):
    source = write_pictures(["set/inner/a", "set/inner/b"] * 10)
    for typed in (source, f"{source}/set"):
        code, _, err = measure(typed, "--image-size", "12")
        assert code == 2
        assert f"{typed}: the folder has 1 class folder with images" in err
        assert f"Try the folder {source}/set/inner, which has one subfolder per class." in err
