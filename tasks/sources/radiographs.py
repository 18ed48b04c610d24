"""Sources of CheXpert, MURA and RSNA, whose images are listed in a table.

**CheXpert** has one of two layouts:

- The layout of the competition's page: ``CheXpert-v1.0[-small]/train.csv``, and images in
  ``train/patient<id>/study<n>/view<k>_<side>.jpg`` in the same folder.
- The layout of AIMI: ``CheXpert-v1.0 batch 1 (validate & csv)/train.csv``, and images in
  ``batch 2 (train 1)/patient<id>/...`` to batch 4.

The column of a finding gives the label. The label is 1 if the cell is 1. It is 0 if the cell
is -1 (uncertain) or blank. As in the study, rows with an explicit 0 are left out. Label 0
therefore means "uncertain or not mentioned", not "healthy".

**MURA** has the layout of the competition's page: a folder ``MURA-v1.1/`` with
``train_image_paths.csv``. This table has no header. The label of a study is in the name of its
folder and in ``train_labeled_studies.csv``. Both labels must agree.

**RSNA 2019, stage 2**, has the layout of the Kaggle competition's data page. The name of a
slice's file is the slice's id. The file may be in any folder of the training split. The SOP
instance UID in its header must be the same id. The label ``any`` must be the largest of the
labels of the five subtypes. The group is the patient id in the DICOM header. In corrected
data, stored values are converted to Hounsfield units plus 1024, and each slice is scaled by
its own maximum. With the fault ``wrapped_pixel_cast``, the stored values are scaled and cast
as in the released code (F16): negative values wrap around to arbitrary gray.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np

from search_spaces.errors import plural
from tasks.sources.base import Item, Listing, RawRequest, Sample, SkipItem
from tasks.sources.dicom import NO_PATIENT, Dicom, decode_dicom, frame_samples
from tasks.sources.official import (
    FILE_MISSING,
    OWN_MAXIMUM,
    download,
    find_named,
    find_table,
    incomplete_download,
    read_picture,
    repeated_rows,
)
from tasks.sources.pictures import to_prepared
from tasks.sources.raw import RawTree
from tasks.sources.tables import first_hashed, read_table, read_table_rows

CHEXPERT_TABLE = "train.csv"
FINDINGS = {"default": "Pleural Effusion", "edema": "Edema"}
"""Task of CheXpert -> column of its finding."""
FINDING_LABELS = {"1": 1, "-1": 0, "": 0, "0": None}
"""Cell in the column of a finding -> label. A row with the label None is left out."""
CHEXPERT_IMAGE = re.compile(
    r"(?P<patient>patient\d+)/study\d+/[^/]+(?=\.(?:jpe?g|png)$)", re.IGNORECASE
)
OTHER_SPLITS = re.compile(r"(?:^|/)(?:valid|test)/", re.IGNORECASE)
MURA_TABLE = "train_image_paths.csv"
MURA_STUDIES = "train_labeled_studies.csv"
MURA_IMAGE = re.compile(
    r"(?<![^/])(?P<study>train/XR_\w+/(?P<patient>patient\d+)/study\d+_(?P<label>positive|negative))/[^/]+$"
)
MURA_STUDY = re.compile(r"(?:^|/)(train/XR_\w+/patient\d+/study\d+_(?:positive|negative))/?$")
RSNA_TABLE = "stage_2_train"
SUBTYPES = {"default": "any", "subarachnoid": "subarachnoid"}
"""Task of RSNA -> subtype whose label is used."""
RSNA_IMAGE = re.compile(r"(?:^|/)(ID_[0-9a-f]+)\.dcm$", re.IGNORECASE)
RSNA_ROW = re.compile(r"(ID_[0-9a-fA-F]+)_([a-z]+)")
TEST_FOLDER = re.compile(r"(?:^|[/_ -])test", re.IGNORECASE)
TABLE_AGAIN = "Download the table again"


class _ListedImages:
    """The images that the table of a download lists.

    A row lists an image if a pattern matches the same text in the row and in the image's path.
    If a row matches several images, an image below the table's folder is preferred, because a
    download may contain several releases.
    """

    def __init__(self, tree: RawTree, table: str, pattern: re.Pattern[str]) -> None:
        folder, _, self._table = table.rpartition("/")
        self._tree = tree
        self._names: dict[str, str] = {}
        self._items: dict[str, Item] = {}
        self._labels: list[tuple[str, int | None]] = []
        self._missing: list[tuple[str, str]] = []
        self._excluded = Counter[str]()
        prefix = f"{folder}/" if folder else ""
        # False comes before True, so names below the table's folder come first.
        for name in sorted(tree, key=lambda name: not name.startswith(prefix)):
            match = pattern.search(name)
            if match and not OTHER_SPLITS.search(name[: match.start()]):
                self._names.setdefault(match[0].casefold(), name)

    def add(self, match: re.Match[str], label: int | None) -> None:
        """Add the image of a row, or count the reason for leaving it out.

        Args:
            match: The match of the pattern with the path in the row.
            label: Label of the row; None leaves the image out.
        """
        image = match[0]
        self._labels.append((image, label))
        name = self._names.get(image.casefold())
        if label is None:
            self._excluded["explicitly negative"] += 1
        elif image.rpartition("/")[2].startswith("."):
            self._excluded["hidden file"] += 1
        elif name is None:
            self._missing.append((match.string, FILE_MISSING))
        else:
            item = Item(self._tree.locator(name), label, match["patient"])
            self._items.setdefault(name, item)

    def listing(self, request: RawRequest, flags: dict[str, int]) -> Listing:
        """Return the listing of the added images, in the order of their rows.

        Raises:
            DataError: An image has two labels.
        """
        return Listing(
            list(self._items.values()),
            request.dataset.label_names,
            excluded=dict(self._excluded) | repeated_rows(self._table, self._labels, request),
            skipped=self._missing,
            intensity=OWN_MAXIMUM,
            flags=flags,
        )


def list_chexpert(tree: RawTree, request: RawRequest) -> Listing:
    """List the images of ``train.csv`` that have a label, in the order of the rows.

    Raises:
        DataError: The table is missing, or has rows that cannot be used.
    """
    tables = find_named(tree, CHEXPERT_TABLE)
    if not tables:
        raise incomplete_download(request, CHEXPERT_TABLE, tree)
    table = min(tables, key=lambda name: (name.count("/"), "small" in name, name))
    finding = FINDINGS[request.spec.task]
    images = _ListedImages(tree, table, CHEXPERT_IMAGE)
    num_invalid = 0
    for row in read_table(tree.locator(table), request, ("Path", finding)):
        cell = row[finding].removesuffix(".0")
        match = CHEXPERT_IMAGE.search(row["Path"].replace("\\", "/"))
        if match is None or cell not in FINDING_LABELS:
            num_invalid += 1
        else:
            images.add(match, FINDING_LABELS[cell])
    if num_invalid:
        rows = plural(num_invalid, "row")
        raise request.error(
            f"in {rows} of {CHEXPERT_TABLE}, the label is not 1, 0, -1 or blank, or the path "
            "contains no patient<id>",
            hint=TABLE_AGAIN,
        )
    return images.listing(request, {})


chexpert = download(list_chexpert, read_picture)


def list_mura(tree: RawTree, request: RawRequest) -> Listing:
    """List the images of the table, in the order of its lines. Hidden files are left out.

    Raises:
        DataError: The table is missing, has lines that cannot be used, or contradicts the
            table of studies.
    """
    tables = find_named(tree, MURA_TABLE)
    if not tables:
        raise incomplete_download(request, MURA_TABLE, tree)
    images = _ListedImages(tree, tables[0], MURA_IMAGE)
    labels: dict[str, int] = {}
    num_invalid = 0
    for cells in read_table_rows(tree.locator(tables[0]), request).rows:
        match = MURA_IMAGE.search(cells[0].strip().replace("\\", "/"))
        if match is None:
            num_invalid += 1
            continue
        label = int(match["label"] == "positive")
        labels[match["study"]] = label
        images.add(match, label)
    if num_invalid:
        lines = plural(num_invalid, "line")
        raise request.error(
            f"in {lines} of {MURA_TABLE}, the path is not "
            ".../train/XR_<PART>/patient<id>/study<n>_<label>/<image>",
            hint=TABLE_AGAIN,
        )
    # The names of the two tables may differ in letter case, which find_named ignores.
    studies_table = tables[0][: -len(MURA_TABLE)] + MURA_STUDIES
    same_names = [name for name in tree if name.casefold() == studies_table.casefold()]
    flags = {}
    if same_names:
        _check_studies(tree.locator(same_names[0]), labels, request)
    else:
        flags[f"labels from folder names only: no {MURA_STUDIES}"] = len(labels)
    return images.listing(request, flags)


def _check_studies(table: str, labels: Mapping[str, int], request: RawRequest) -> None:
    """Check that each study has the same label in the table of studies as in its folder's name.

    Raises:
        DataError: The label of a study differs or is missing, or a line cannot be read.
    """
    table_labels: dict[str, int] = {}
    num_invalid = 0
    for cells in read_table_rows(table, request).rows:
        match = MURA_STUDY.search(cells[0].strip())
        label = cells[1].strip() if len(cells) == 2 else ""
        if match is None or label not in ("0", "1"):
            num_invalid += 1
        else:
            table_labels[match[1]] = int(label)
    differing = [study for study, label in labels.items() if table_labels.get(study) != label]
    if num_invalid or differing:
        raise request.error(
            f"{MURA_STUDIES} contradicts the names of the study folders. Number of lines that "
            f"cannot be read: {num_invalid}. Number of studies whose label differs or is missing: "
            f"{first_hashed(request, differing)}",
            hint="Download MURA again",
        )


mura = download(list_mura, read_picture)

SliceLabels = dict[str, int]
"""The labels of a slice: subtype -> 0 or 1."""


def list_rsna(tree: RawTree, request: RawRequest) -> Listing:
    """List the slices of the table, in the order of the rows.

    Raises:
        DataError: The table is missing, or has rows that cannot be used.
    """
    table = find_table(tree, request, RSNA_TABLE, ("ID", "Label"), only_named=True)
    slices, repeats = _read_slices(table, request)
    files: dict[str, str] = {}
    for name in tree:
        match = RSNA_IMAGE.search(name)
        if match and not TEST_FOLDER.search(name[: match.start()]):
            files.setdefault(match[1].casefold(), name)
    subtype = SUBTYPES[request.spec.task]
    items: list[Item] = []
    missing: list[tuple[str, str]] = []
    for slice_id, labels in slices.items():
        if subtype not in labels:
            continue
        file = files.pop(slice_id.casefold(), None)
        if file is None:
            missing.append((f"{RSNA_TABLE}/{slice_id}.dcm", FILE_MISSING))
        else:
            locator = tree.locator(file)
            items.append(Item(locator, labels[subtype], details=(slice_id,)))
    return Listing(
        items,
        request.dataset.label_names,
        excluded={"repeated row": repeats[subtype], "slice without a row in the table": len(files)},
        skipped=missing,
        intensity="CT: Hounsfield units + 1024, clipped at 0, by own maximum",
    )


def _read_slices(table: str, request: RawRequest) -> tuple[dict[str, SliceLabels], Counter[str]]:
    """Return the labels of each slice, and the number of repeated rows by subtype.

    Args:
        table: Locator of the table.
        request: The dataset and its download.

    Raises:
        DataError: A row has an unexpected form, or the labels of a slice contradict each
        other.
    """
    slices: defaultdict[str, SliceLabels] = defaultdict(dict)
    repeats = Counter[str]()
    num_invalid = 0
    for row in read_table(table, request, ("ID", "Label")):
        match = RSNA_ROW.fullmatch(row["ID"])
        if match is None or row["Label"] not in ("0", "1"):
            num_invalid += 1
            continue
        slice_id, subtype = match.groups()
        label = int(row["Label"])
        if subtype in slices[slice_id]:
            repeats[subtype] += 1
        if slices[slice_id].setdefault(subtype, label) != label:
            num_invalid += 1
    if num_invalid:
        rows = plural(num_invalid, "row")
        raise request.error(
            f"in {rows} of the table {RSNA_TABLE}, the ID is not ID_<hex>_<subtype>, the "
            "label is not 0 or 1, or a slice has two labels for one subtype",
            hint=TABLE_AGAIN,
        )
    differing = [slice_id for slice_id, labels in slices.items() if _contradicts_itself(labels)]
    if differing:
        raise request.error(
            "for some slices, the label 'any' is not the largest label of the subtypes. "
            f"Number of these slices: {first_hashed(request, differing)}",
            hint=TABLE_AGAIN,
        )
    return slices, repeats


def _contradicts_itself(labels: SliceLabels) -> bool:
    """Return whether the label ``any`` is not the largest label of the subtypes."""
    subtypes = [label for subtype, label in labels.items() if subtype != "any"]
    return bool(subtypes) and labels.get("any", max(subtypes)) != max(subtypes)


def read_slice(body: bytes, item: Item, request: RawRequest) -> Iterator[Sample]:
    """Yield a slice of RSNA. As in the study, only slices with square pixels are used.

    Raises:
        SkipItem: The file contains another slice, or its pixels are not square.
    """
    dicom = decode_dicom(body, frames=1)
    instance = dicom.instance.casefold()
    if instance.startswith("id_") and instance != str(item.details[0]).casefold():
        raise SkipItem("another slice in the header than in the file's name")
    if not dicom.is_square():
        raise SkipItem("pixels not square")
    if request.has_fault("wrapped_pixel_cast"):
        sample = _wrapped_sample(dicom, request.spec.image_size)
    else:
        (sample,) = frame_samples(dicom)
    patient = dicom.known_patient()
    if not patient:
        sample = replace(sample, flags=(*sample.flags, NO_PATIENT))
    yield replace(sample, group=patient)


def _wrapped_sample(dicom: Dicom, image_size: int) -> Sample:
    """Scale stored values by their maximum, resize, and cast to 8 bits with wrap-around (F16)."""
    values = dicom.values[0].astype(np.float32)
    maximum = float(values.max())
    if maximum <= 0:
        raise SkipItem("constant image")
    resized = to_prepared(
        values * (255 / maximum), image_size=image_size, channels=1, dtype="float32"
    )[0]
    pixels = resized.astype(np.int64).astype(np.uint8)
    if dicom.inverted:
        pixels = 255 - pixels
    return Sample(pixels, conversions=("negative values wrapped (F16)",))


rsna = download(list_rsna, read_slice)
