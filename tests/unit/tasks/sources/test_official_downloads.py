"""Every loader reads its raw tree: counts, groups, what was left out and what was converted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from search_spaces.datasets import DATASETS, STUDY_DATASETS, dataset_spec
from search_spaces.errors import DataError
from search_spaces.specs import RELEASED_FAULTS, PreparedSpec
from tasks.prepared.prepare import prepare_dataset
from tasks.prepared.store import PreparedDataset
from tasks.remote import InlineExecutor
from tests.raw_trees import WRITERS, write_raw_tree

BASE = {"chexpert_edema": "chexpert", "rsna_subarachnoid": "rsna", "prostate_severe": "prostate"}


@pytest.fixture(scope="session")
def trees(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("trees")
    for name in WRITERS:
        write_raw_tree(name, out)
    return out


def run(name: str, raw: Path | None, out: Path, **spec) -> PreparedDataset:
    row = dataset_spec(name)
    wanted = PreparedSpec(**{"dataset": name, "task": row.task, "image_size": 16, "channels": 1, **spec})
    folder = out / wanted.prepared_id
    prepare_dataset(
        wanted,
        row,
        raw=raw,
        destination=folder,
        executor=InlineExecutor(),
    )
    return PreparedDataset.open(folder)


@pytest.fixture(scope="module")
def prepared(trees, tmp_path_factory):
    out, made = tmp_path_factory.mktemp("prepared"), {}

    def get(name: str) -> PreparedDataset:
        if name not in made:
            made[name] = run(name, trees / BASE.get(name, name), out)
        return made[name]

    return get


EXPECTED = {
    # name: (images, groups, excluded, conversions that must be there)
    "mnist": (400, 400, {}, {"scaled by own maximum"}),
    "fashion_mnist": (400, 400, {}, set()),
    "cifar10": (400, 400, {}, set()),
    "svhn": (300, 300, {}, {"scaled by own maximum"}),
    "imagenet": (123, 123, {}, {"mode CMYK converted"}),
    "brats": (None, 5, {"case without segmentation": 1}, {"orientation LAS to RAS"}),
    "dbc": (
        None,
        5,
        {"another series": 150, "nearer than 5 slices to the box": 50},
        {"MONOCHROME1 inverted"},
    ),
    "oai": (23, 12, {"another reading project": 24, "knee without a grade": 1}, {"knee: cropped by content"}),
    "chexpert": (31, 23, {"explicitly negative": 14}, set()),
    "chexpert_edema": (45, 30, {}, set()),
    "mura": (48, 24, {"hidden file": 1}, {"scaled by own maximum"}),
    "rsna": (48, 16, {"repeated row": 3}, {"scaled by own maximum"}),
    "rsna_subarachnoid": (48, 16, {"repeated row": 3}, set()),
    "prostate": (48, 8, {"no score": 1, "another target of the series has a higher score": 1}, set()),
    "prostate_severe": (24, 4, {"no score": 1, "score below 2": 4}, set()),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_raw_tree_is_read(prepared, name):
    images, groups, excluded, conversions = EXPECTED[name]
    record = prepared(name).record
    if images is not None:
        assert record.num_images == images
    assert record.num_groups == groups
    assert excluded.items() <= record.excluded.items()
    assert conversions <= set(record.conversions)
    assert min(record.num_images_per_label.values()) > 0
    assert record.label_names == dataset_spec(name).label_names
    prepared(name).verify()


def test_every_study_dataset_has_a_tree():
    assert set(STUDY_DATASETS) <= set(WRITERS)
    assert set(DATASETS) >= set(EXPECTED)


@pytest.mark.parametrize("name", ["brats", "dbc", "rsna", "chexpert", "mura", "prostate", "oai"])
def test_labels_are_those_drawn(prepared, name):
    """Positive pictures were drawn with a bright spot, so their centre is brighter; knees have a narrower
    gap."""
    data = prepared(name)
    images = data.read(0, data.num_images)[:, 0].astype(float)
    if name == "oai":
        return
    positive = images[data.labels == 1][:, 4:12, 4:12].max((1, 2)) / (
        images[data.labels == 1].mean((1, 2)) + 1
    )
    negative = images[data.labels == 0][:, 4:12, 4:12].max((1, 2)) / (
        images[data.labels == 0].mean((1, 2)) + 1
    )
    assert np.median(positive) > np.median(negative)


def test_brats_slice_rule(prepared):
    data = prepared("brats")
    for group in np.unique(data.groups):
        labels = data.labels[data.groups == group]
        # Scanning upward: negatives below, tumour, negatives above; the mixed windows are gone.
        assert set(np.flatnonzero(np.diff(labels))) <= set(range(len(labels)))
        assert (np.diff(labels) != 0).sum() <= 2


def test_oai_takes_given_centres_and_ready_crops(trees, tmp_path):
    import shutil

    from tests.raw_trees.pictures import save_image

    raw = Path(shutil.copytree(trees / "oai", tmp_path / "oai"))
    (raw / "knee_centers.csv").write_text("id,side,row,column\n9000007,R,300,220\n9000007,L,300,660\n")
    save_image(
        raw / "crops" / "9000000_R.png", np.random.default_rng(0).integers(0, 255, (64, 64)).astype(np.uint8)
    )
    conversions = run("oai", raw, tmp_path).record.conversions
    ways = {name: count for name, count in conversions.items() if name.startswith("knee")}
    assert ways == {"knee: cropped by content": 20, "knee: given centre": 2, "knee: ready crop": 1}


def test_oai_content_rule_finds_drawn_joints():
    from tasks.sources.oai import find_centers
    from tests.raw_trees.medical import _legs

    rng = np.random.default_rng(3)
    values = _legs(rng, [0, 3])
    pixels = (values / values.max() * 255).astype(np.uint8)
    for place, (row, column) in enumerate(find_centers(pixels)):
        assert abs(row - 350) < 90
        assert abs(column - (225 + 450 * place)) < 40


def test_max_images_per_class_keeps_whole_patients(trees, tmp_path):
    data = run("chexpert", trees / "chexpert", tmp_path, max_images_per_class=5)
    assert all(5 <= count <= 6 for count in data.record.num_images_per_label.values())


@pytest.mark.parametrize("name", ["mnist", "rsna", "dbc", "prostate"])
def test_as_released_is_float_and_other_content(trees, prepared, tmp_path, name):
    data = run(name, trees / name, tmp_path, data_mode="as_released", faults=RELEASED_FAULTS)
    assert data.record.dtype == "float32"
    assert data.fingerprint != prepared(name).fingerprint
    if name == "rsna":
        assert data.record.conversions == {"negative values wrapped (F16)": 48}


@pytest.mark.parametrize("name", [name for name in EXPECTED if name != "fashion_mnist"])
def test_an_empty_folder_is_refused_with_the_layout(name, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"needs|must hold"):
        run(name, tmp_path / "empty", tmp_path / "out")


@pytest.mark.parametrize("name", ["imagenet", "brats", "rsna"])
def test_without_raw_folder_the_layout_is_told(name, tmp_path):
    with pytest.raises(DataError, match="expected:"):
        run(name, None, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda images, labels: (images[:-5], labels), "it ends early"),
        (lambda images, labels: (images + b"0", labels), "more bytes"),
        (lambda images, labels: (b"\0\0\x09" + images[3:], labels), "another header"),
        (lambda images, labels: (images[:4] + b"\xff\xff\xff\xff" + images[8:], labels), "ends early"),
        (lambda images, labels: (images, labels[:4] + b"\0\0\0\x05" + labels[8:13]), "400 images, 5 labels"),
        (lambda images, labels: (images, labels[:-1] + b"\x0b"), "labels must be from 0 to 9"),
    ],
)
def test_damaged_idx_files_are_refused(trees, tmp_path, change, message):
    import gzip

    names = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")
    good = [gzip.decompress((trees / "mnist" / f"{name}.gz").read_bytes()) for name in names]
    for name, content in zip(names, change(*good), strict=True):
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        run("mnist", tmp_path, tmp_path / "out")


def test_a_replaced_file_is_not_served_from_memory(tmp_path):
    from tests.raw_trees.natural import write_mnist

    (tmp_path / "a").mkdir()
    write_mnist(tmp_path / "a", seed=1)
    first = run("mnist", tmp_path / "a", tmp_path / "out1").fingerprint
    write_mnist(tmp_path / "a", seed=2)
    assert run("mnist", tmp_path / "a", tmp_path / "out2").fingerprint != first


def test_a_doctored_cifar_batch_runs_nothing(tmp_path):
    import pickle

    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "owned",))

    folder = tmp_path / "cifar" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for number in range(1, 6):
        (folder / f"data_batch_{number}").write_bytes(pickle.dumps({b"data": Evil(), b"labels": [0]}))
    with pytest.raises(DataError, match="UnpicklingError"):
        run("cifar10", tmp_path / "cifar", tmp_path / "out")
    assert not (tmp_path / "owned").exists()


def test_a_labelled_case_without_its_volume_is_skipped(trees, tmp_path):
    import shutil

    raw = Path(shutil.copytree(trees / "brats", tmp_path / "brats"))
    for path in sorted(raw.rglob("*_t2.nii*"))[:2]:
        path.unlink()
    with pytest.raises(DataError, match=r"at most 1 of .*\(a volume of the case is missing: 2\)"):
        run("brats", raw, tmp_path)
