"""CheXpert: the original and the small release, and the batches that Stanford AIMI ships today.

Layouts: ``CheXpert-v1.0[-small]/train.csv`` with ``train/patient<id>/study<n>/view<k>_<side>.jpg`` beside
it (the competition's page); ``CheXpert-v1.0 batch 1 (validate & csv)/train.csv`` and ``CheXpert-v1.0 batch
2 (train 1)/patient<id>/...`` to batch 4, as folders or ``.zip`` (AIMI's container as listed by public
download scripts). The table's ``Path`` keeps the original spelling in all of them, so images are found by
patient, study and view.

Label 1 = the finding is 1; label 0 = -1 (uncertain) or blank. Rows with an explicit 0 are left out, as in
the study, so label 0 is "uncertain or not mentioned", not "healthy". The group is the patient in the path.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator

import numpy as np

from search_spaces.errors import DataError
from tasks.sources.base import Item, Listing, RawRequest, Reader, Sample, SkipItem
from tasks.sources.dicom import NO_PATIENT, Dicom, decode_dicom
from tasks.sources.natural import own_maximum_sample
from tasks.sources.official import (
    FILE_MISSING,
    dicom_samples,
    find_named,
    find_table,
    is_square,
    join,
    list_download,
    not_there,
    repeated_rows,
)
from tasks.sources.pictures import decode_image, to_prepared
from tasks.sources.raw import RawTree, read_locator
from tasks.sources.tables import first_hashed, read_lines, read_table

FINDINGS = {"default": "Pleural Effusion", "edema": "Edema"}
VALUES = {"1": 1, "-1": 0, "": 0}
IMAGE = re.compile(r"(patient\d+)/(study\d+)/([^/]+)\.(?:jpe?g|png)$", re.IGNORECASE)
OTHER_SPLITS = ("valid", "test")
TABLE = "train.csv"


class CheXpert:
    """Rows of ``train.csv`` in their order."""

    def list_items(self, request: RawRequest) -> Listing:
        """Return one item per row that has a label.

        Raises:
            DataError: for a missing table, a finding with other values than 1, 0, -1 and blank, or an image
                with two labels.
        """
        return list_download(request, lambda tree: _listing(tree, request))

    def reader(self, request: RawRequest) -> Reader:
        """Return a reader of JPEGs."""
        return image_reader(request)


def _listing(tree: RawTree, request: RawRequest) -> Listing:
    tables = find_named(tree, TABLE)
    if not tables:
        raise not_there(request, TABLE, tree)
    table = min(tables, key=lambda name: (name.count("/"), "small" in name, name))
    finding = FINDINGS[request.spec.task]
    files = _images(tree, table.rpartition("/")[0])
    excluded, odd, missing = Counter[str](), 0, []
    items: dict[str, Item] = {}
    labels: list[tuple[str, int | None]] = []
    for row in read_table(tree.locator(table), request, ("Path", finding)):
        value = row[finding].removesuffix(".0")
        match = IMAGE.search(row["Path"].replace("\\", "/"))
        if match is None or value not in (*VALUES, "0"):
            odd += 1
            continue
        labels.append(("/".join(match.groups()), VALUES.get(value)))
        if value == "0":
            excluded["explicitly negative"] += 1
        elif (name := files.get(match.groups())) is None:
            missing.append((row["Path"], FILE_MISSING))
        else:
            items.setdefault(name, Item(tree.locator(name), VALUES[value], match[1]))
    if odd:
        rule = f"{request.dataset.name}: {TABLE} must hold 1, 0, -1 or blank, and patient<id> in every path"
        raise DataError(rule, f"{odd} other rows", "download the table again")
    return Listing(
        list(items.values()),
        request.dataset.label_names,
        excluded=dict(excluded) | repeated_rows(TABLE, labels, request),
        skipped=missing,
        intensity="each image by its own maximum",
    )


def _images(tree: RawTree, folder: str) -> dict[tuple[str | None, ...], str]:
    """Return (patient, study, view) -> name of the training images, those beside the table first.

    Two releases may lie side by side; patients are numbered alike in them.
    """
    found: dict[tuple[str | None, ...], str] = {}
    names = list(tree)
    if folder:
        beside = [name for name in names if name.startswith(folder + "/")]
        names = beside + [name for name in names if not name.startswith(folder + "/")]
    for name in names:
        match = IMAGE.search(name)
        if match and not set(name[: match.start()].casefold().split("/")) & set(OTHER_SPLITS):
            found.setdefault(match.groups(), name)
    return found


def image_reader(request: RawRequest) -> Reader:
    """Return a reader of image files, each scaled by its own maximum."""
    base = request.base()

    def read(item: Item) -> tuple[Sample]:
        return (own_maximum_sample(decode_image(read_locator(base, item.locator))),)

    return read


# MURA: ``train_image_paths.csv`` without a header and PNGs; the label is in the study folder's name.
#
# Layout: ``MURA-v1.1/`` as the competition's page and public readers give it, unpacked or
# ``MURA-v1.1.zip``. The release says every study's label twice, in the folder's name and in
# ``train_labeled_studies.csv``; both must agree.

MURA_TABLE, STUDIES = "train_image_paths.csv", "train_labeled_studies.csv"
PATH = re.compile(
    r"(?:^|/)(?P<image>(?P<study>train/XR_\w+/(?P<patient>patient\d+)/study\d+_(?P<label>positive|negative))/[^/]+)$"
)
STUDY = re.compile(r"(?:^|/)(train/XR_\w+/patient\d+/study\d+_(?:positive|negative))/?$")


class Mura:
    """Lines of the table in their order."""

    def list_items(self, request: RawRequest) -> Listing:
        """Return one item per line; hidden files that the table names are left out.

        Raises:
            DataError: for a missing table, lines that are no MURA paths, or labels that disagree.
        """
        return list_download(request, lambda tree: _mura_listing(tree, request))

    def reader(self, request: RawRequest) -> Reader:
        """Return a reader of PNGs."""
        return image_reader(request)


def _mura_listing(tree: RawTree, request: RawRequest) -> Listing:
    tables = find_named(tree, MURA_TABLE)
    if not tables:
        raise not_there(request, MURA_TABLE, tree)
    folder = tables[0].rpartition("/")[0]
    files = _mura_images(tree, folder)
    hidden, odd, missing = 0, 0, []
    items: dict[str, Item] = {}
    labels: dict[str, int] = {}
    rows: list[tuple[str, int | None]] = []
    for path, *_ in read_lines(tree.locator(tables[0]), request):
        match = PATH.search(path.strip().replace("\\", "/"))
        if match is None:
            odd += 1
            continue
        label = labels[match["study"]] = int(match["label"] == "positive")
        rows.append((match["image"], label))
        if match["image"].rpartition("/")[2].startswith("."):
            hidden += 1
        elif (name := files.get(match["image"].casefold())) is None:
            missing.append((match["image"], FILE_MISSING))
        else:
            items.setdefault(name, Item(tree.locator(name), label, match["patient"]))
    if odd:
        rule = f"mura: lines of {MURA_TABLE} must be .../train/XR_<PART>/patient<id>/study<n>_<label>/<image>"
        raise DataError(rule, f"{odd} other lines")
    excluded = {"hidden file": hidden} if hidden else {}
    return Listing(
        list(items.values()),
        request.dataset.label_names,
        excluded=excluded | repeated_rows(MURA_TABLE, rows, request),
        skipped=missing,
        intensity="each image by its own maximum",
        flags=_compare(labels, tree, folder, request),
    )


def _mura_images(tree: RawTree, folder: str) -> dict[str, str]:
    """Return path from ``train/`` on -> name, those beside the table first."""
    found: dict[str, str] = {}
    for name in sorted(tree, key=lambda name: not name.startswith(f"{folder}/")):
        match = PATH.search(name)
        if match:
            found.setdefault(match["image"].casefold(), name)
    return found


def _compare(labels: dict[str, int], tree: RawTree, folder: str, request: RawRequest) -> dict[str, int]:
    """Compare the folders' labels with the table of studies; returns a flag when there is no such table."""
    locator = tree.get(join(folder, STUDIES))
    if locator is None:
        return {f"labels from folder names only: no {STUDIES}": len(labels)}
    second: dict[str, int] = {}
    odd = 0
    for line in read_lines(locator, request):
        match = STUDY.search(line[0].strip()) if len(line) == 2 else None
        if match is None or line[1].strip() not in ("0", "1"):
            odd += 1
        else:
            second[match[1]] = int(line[1])
    wrong = [study for study, label in labels.items() if second.get(study) != label]
    if odd or wrong:
        found = f"{odd} odd lines; unlike or absent: {first_hashed(request, wrong)}"
        raise DataError(
            f"mura: {STUDIES} and the names of the study folders must agree", found, "download MURA again"
        )
    return {}


# RSNA 2019 intracranial haemorrhage, stage 2: one DICOM per slice and six label rows per slice.
#
# Layout: the Kaggle competition's data page, unpacked or as the ``.zip`` that Kaggle makes of it. A slice
# is the file of its id, wherever the train split lies; its header repeats the id as SOP instance UID.
# ``any`` must be the largest of the five subtypes. The group is the patient id in the DICOM header.
# Corrected: Hounsfield units plus 1024 by the slice's own maximum. With ``wrapped_pixel_cast`` the stored
# values are scaled and cast as the released extractor did (F16): negative ones wrap around to arbitrary
# grey.

RSNA_TABLE = "stage_2_train"
SUBTYPES = {"default": "any", "subarachnoid": "subarachnoid"}
RSNA_IMAGE = re.compile(r"(?:^|/)(ID_[0-9a-f]+)\.dcm$", re.IGNORECASE)
ROW = re.compile(r"(ID_[0-9a-fA-F]+)_([a-z]+)")
TEST_FOLDER = re.compile(r"(?:^|[/_ -])test", re.IGNORECASE)


class Rsna:
    """Slices in the order of the table."""

    def list_items(self, request: RawRequest) -> Listing:
        """Return one item per slice.

        The official table repeats a few rows; equal repeats are taken once.

        Raises:
            DataError: for a missing table, odd rows, a slice with two different labels, or one whose ``any``
                is not the largest of its subtypes.
        """
        return list_download(request, lambda tree: _rsna_listing(tree, request))

    def reader(self, request: RawRequest) -> Reader:
        """Return a reader of slices; those without square pixels are left out, as in the study."""
        base = request.base()
        wrapped = request.has_fault("wrapped_pixel_cast")

        def read(item: Item) -> Iterator[Sample]:
            dicom = decode_dicom(read_locator(base, item.locator))
            told = dicom.instance.casefold()
            if told.startswith("id_") and told != str(item.details[0]).casefold():
                raise SkipItem("another slice in the header than in the file's name")
            if len(dicom.values) != 1:
                raise SkipItem("several frames")
            if not is_square(dicom.spacing):
                raise SkipItem("pixels not square")
            if wrapped:
                return iter([_wrapped(dicom, request.spec.image_size)])
            patient = dicom.known_patient()
            return dicom_samples(dicom, group=patient, flags=() if patient else (NO_PATIENT,))

        return read


def _rsna_listing(tree: RawTree, request: RawRequest) -> Listing:
    table = find_table(tree, request, RSNA_TABLE, ("ID", "Label"), only_named=True)
    if table is None:
        raise not_there(request, f"{RSNA_TABLE}.csv", tree)
    labels, repeats = _labels(table, request)
    files = _rsna_images(tree)
    items, missing = [], []
    for name, label in labels.items():
        file = files.pop(name.casefold(), None)
        if file is None:
            missing.append((f"{RSNA_TABLE}/{name}.dcm", FILE_MISSING))
        else:
            items.append(Item(tree.locator(file), label, details=(name,)))
    excluded = {"repeated row": repeats, "slice without a row in the table": len(files)}
    return Listing(
        items,
        request.dataset.label_names,
        excluded={reason: count for reason, count in excluded.items() if count},
        skipped=missing,
        intensity="CT: Hounsfield units + 1024, clipped at 0, by own maximum",
    )


def _rsna_images(tree: RawTree) -> dict[str, str]:
    """Return slice id in lower case -> name; what lies in a folder of the test split is none of them."""
    found: dict[str, str] = {}
    for name in tree:
        match = RSNA_IMAGE.search(name)
        if match and not TEST_FOLDER.search(name[: match.start()]):
            found.setdefault(match[1].casefold(), name)
    return found


def _labels(table: str, request: RawRequest) -> tuple[dict[str, int], int]:
    """Return each slice's label in the table's order, and how many rows repeat another."""
    subtype, odd, repeats = SUBTYPES[request.spec.task], 0, Counter[str]()
    found: defaultdict[str, dict[str, int]] = defaultdict(dict)
    for row in read_table(table, request, ("ID", "Label")):
        match = ROW.fullmatch(row["ID"])
        if match is None or row["Label"] not in ("0", "1"):
            odd += 1
            continue
        label, kinds = int(row["Label"]), found[match[1]]
        repeats[match[2]] += match[2] in kinds
        odd += kinds.setdefault(match[2], label) != label
    if odd:
        rule = f"{request.dataset.name}: rows must be ID_<hex>_<subtype> with one label 0 or 1"
        raise DataError(rule, f"{odd} other rows", "download the table again")
    unlike = [
        name
        for name, kinds in found.items()
        if "any" in kinds
        and len(kinds) > 1
        and kinds["any"] != max(label for kind, label in kinds.items() if kind != "any")
    ]
    if unlike:
        rule = f"{request.dataset.name}: any must be the largest of a slice's subtypes"
        raise DataError(rule, f"unlike: {first_hashed(request, unlike)}", "download the table again")
    return {name: kinds[subtype] for name, kinds in found.items() if subtype in kinds}, repeats[subtype]


def _wrapped(dicom: Dicom, image_size: int) -> Sample:
    """Scale stored values by their maximum, resize, then let the cast to 8 bits wrap negative ones (F16)."""
    values = dicom.values[0].astype(np.float32)
    top = float(values.max())
    if top <= 0:
        raise SkipItem("constant image")
    scaled = to_prepared(values * (255 / top), image_size=image_size, channels=1, dtype="float32")[0]
    pixels = scaled.astype(np.int64).astype(np.uint8)
    if dicom.inverted:
        pixels = 255 - pixels
    patient = dicom.known_patient()
    flags = () if patient else (NO_PATIENT,)
    return Sample(pixels, group=patient, conversions=("negative values wrapped (F16)",), flags=flags)
