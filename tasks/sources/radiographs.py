"""CheXpert, MURA and RSNA: a table of images, and where these lie in the releases of years.

CheXpert. Layouts: ``CheXpert-v1.0[-small]/train.csv`` with
``train/patient<id>/study<n>/view<k>_<side>.jpg`` beside it (the competition's page); AIMI's
``CheXpert-v1.0 batch 1 (validate & csv)/train.csv`` and ``batch 2 (train 1)/patient<id>/...`` to
batch 4. Label 1 = the finding is 1; label 0 = -1 (uncertain) or blank. Rows with an explicit 0 are
left out, as in the study, so label 0 is "uncertain or not mentioned", not "healthy".

MURA. Layout: ``MURA-v1.1/`` with ``train_image_paths.csv``, which has no header (the competition's
page). The release says every study's label twice, in the folder's name and in
``train_labeled_studies.csv``; both must agree.

RSNA 2019, stage 2. Layout: the Kaggle competition's data page. A slice is the file of its id,
wherever the train split lies; its header repeats the id as SOP instance UID. ``any`` must be the
largest of the five subtypes. The group is the patient id in the DICOM header. Corrected: Hounsfield
units plus 1024 by the slice's own maximum. With ``wrapped_pixel_cast`` the stored values are scaled
and cast as the released extractor did (F16): negative ones wrap around to arbitrary grey.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from tasks.sources.base import Item, Listing, RawRequest, Sample, SkipItem
from tasks.sources.dicom import NO_PATIENT, decode_dicom, frame_samples
from tasks.sources.official import (
    FILE_MISSING,
    OWN_MAXIMUM,
    download,
    find_named,
    find_table,
    not_there,
    read_picture,
    repeated_rows,
)
from tasks.sources.pictures import to_prepared
from tasks.sources.raw import RawTree
from tasks.sources.tables import first_hashed, read_lines, read_table

FINDINGS = {"default": "Pleural Effusion", "edema": "Edema"}
VALUES = {"1": 1, "-1": 0, "": 0, "0": None}
CHEXPERT_IMAGE = re.compile(
    r"(?P<patient>patient\d+)/study\d+/[^/]+(?=\.(?:jpe?g|png)$)", re.IGNORECASE
)
OTHER_SPLITS = re.compile(r"(?:^|/)(?:valid|test)/", re.IGNORECASE)
CHEXPERT_TABLE = "train.csv"
MURA_TABLE, STUDIES = "train_image_paths.csv", "train_labeled_studies.csv"
MURA_IMAGE = re.compile(
    r"(?<![^/])(?P<study>train/XR_\w+/(?P<patient>patient\d+)/study\d+_(?P<label>positive|negative))/[^/]+$"
)
STUDY = re.compile(r"(?:^|/)(train/XR_\w+/patient\d+/study\d+_(?:positive|negative))/?$")
RSNA_TABLE = "stage_2_train"
SUBTYPES = {"default": "any", "subarachnoid": "subarachnoid"}
RSNA_IMAGE = re.compile(r"(?:^|/)(ID_[0-9a-f]+)\.dcm$", re.IGNORECASE)
ROW = re.compile(r"(ID_[0-9a-fA-F]+)_([a-z]+)")
TEST_FOLDER = re.compile(r"(?:^|[/_ -])test", re.IGNORECASE)


class _Images:
    """Images of a tree by a pattern's match, those beside the table first: releases may lie side by
    side.
    """

    def __init__(self, tree: RawTree, table: str, pattern: re.Pattern[str]) -> None:
        self._tree, self._table, self._found = tree, table.rpartition("/")[2], dict[str, str]()
        beside = table[: table.rfind("/") + 1]
        for name in sorted(tree, key=lambda name: not name.startswith(beside)):
            match = pattern.search(name)
            if match and not OTHER_SPLITS.search(name[: match.start()]):
                self._found.setdefault(match[0].casefold(), name)
        self._items: dict[str, Item] = {}
        self._labels: list[tuple[str, int | None]] = []
        self._missing: list[tuple[str, str]] = []
        self._excluded = Counter[str]()

    def add(self, match: re.Match[str], label: int | None) -> None:
        """Take the image that a row names, or note why not."""
        self._labels.append((match[0], label))
        name = self._found.get(match[0].casefold())
        if label is None:
            self._excluded["explicitly negative"] += 1
        elif match[0].rpartition("/")[2].startswith("."):
            self._excluded["hidden file"] += 1
        elif name is None:
            self._missing.append((match.string, FILE_MISSING))
        else:
            self._items.setdefault(name, Item(self._tree.locator(name), label, match["patient"]))

    def listing(self, request: RawRequest, flags: dict[str, int]) -> Listing:
        """Return what was taken, in the order of the rows."""
        return Listing(
            list(self._items.values()),
            request.dataset.label_names,
            excluded=dict(self._excluded) | repeated_rows(self._table, self._labels, request),
            skipped=self._missing,
            intensity=OWN_MAXIMUM,
            flags=flags,
        )


def list_chexpert(tree: RawTree, request: RawRequest) -> Listing:
    """Return one item per row of ``train.csv`` that has a label, in their order."""
    tables = find_named(tree, CHEXPERT_TABLE)
    if not tables:
        raise not_there(request, CHEXPERT_TABLE, tree)
    table = min(tables, key=lambda name: (name.count("/"), "small" in name, name))
    finding, odd, images = FINDINGS[request.spec.task], 0, _Images(tree, table, CHEXPERT_IMAGE)
    for row in read_table(tree.locator(table), request, ("Path", finding)):
        value = row[finding].removesuffix(".0")
        match = CHEXPERT_IMAGE.search(row["Path"].replace("\\", "/"))
        if match is None or value not in VALUES:
            odd += 1
        else:
            images.add(match, VALUES[value])
    if odd:
        rule = f"{CHEXPERT_TABLE} must hold 1, 0, -1 or blank, paths patient<id>"
        raise request.error(rule, f"{odd} other rows", "download the table again")
    return images.listing(request, {})


chexpert = download(list_chexpert, read_picture)


def list_mura(tree: RawTree, request: RawRequest) -> Listing:
    """Return one item per line of the table, in their order; hidden files that it names are left
    out.
    """
    tables = find_named(tree, MURA_TABLE)
    if not tables:
        raise not_there(request, MURA_TABLE, tree)
    images = _Images(tree, tables[0], MURA_IMAGE)
    odd, studies = 0, dict[str, int]()
    for path, *_ in read_lines(tree.locator(tables[0]), request).rows:
        match = MURA_IMAGE.search(path.strip().replace("\\", "/"))
        if match is None:
            odd += 1
        else:
            studies[match["study"]] = int(match["label"] == "positive")
            images.add(match, studies[match["study"]])
    if odd:
        rule = (
            f"lines of {MURA_TABLE} must be "
            ".../train/XR_<PART>/patient<id>/study<n>_<label>/<image>"
        )
        raise request.error(rule, f"{odd} other lines")
    second = tables[0][: -len(MURA_TABLE)] + STUDIES
    beside = next(
        (tree.locator(name) for name in tree if name.casefold() == second.casefold()), None
    )
    flags = {f"labels from folder names only: no {STUDIES}": len(studies)} if beside is None else {}
    if beside is not None:
        said, odd = dict[str, int](), 0
        for line in read_lines(beside, request).rows:
            match = STUDY.search(line[0].strip()) if len(line) == 2 else None
            if match is None or line[1].strip() not in ("0", "1"):
                odd += 1
            else:
                said[match[1]] = int(line[1])
        wrong = [study for study, label in studies.items() if said.get(study) != label]
        if odd or wrong:
            found = f"{odd} odd lines; unlike or absent: {first_hashed(request, wrong)}"
            rule = f"{STUDIES} and the names of the study folders must agree"
            raise request.error(rule, found, "download MURA again")
    return images.listing(request, flags)


mura = download(list_mura, read_picture)


def list_rsna(tree: RawTree, request: RawRequest) -> Listing:
    """Return one item per slice of the table, in their order; a few rows of it repeat others."""
    table = find_table(tree, request, RSNA_TABLE, ("ID", "Label"), only_named=True)
    if table is None:
        raise not_there(request, f"{RSNA_TABLE}.csv", tree)
    subtype, odd, repeats = SUBTYPES[request.spec.task], 0, Counter[str]()
    said: defaultdict[str, dict[str, int]] = defaultdict(dict)
    for row in read_table(table, request, ("ID", "Label")):
        match = ROW.fullmatch(row["ID"])
        if match is None or row["Label"] not in ("0", "1"):
            odd += 1
            continue
        label, kinds = int(row["Label"]), said[match[1]]
        repeats[match[2]] += match[2] in kinds
        odd += kinds.setdefault(match[2], label) != label
    if odd:
        rule = "rows must be ID_<hex>_<subtype> with one label 0 or 1"
        raise request.error(rule, f"{odd} other rows", "download the table again")
    if unlike := [
        name
        for name, kinds in said.items()
        if "any" in kinds and len(kinds) > 1 and kinds["any"] != max({**kinds, "any": 0}.values())
    ]:
        rule = "any must be the largest of a slice's subtypes"
        raise request.error(
            rule, f"unlike: {first_hashed(request, unlike)}", "download the table again"
        )
    files: dict[str, str] = {}
    for name in tree:
        match = RSNA_IMAGE.search(name)
        if match and not TEST_FOLDER.search(name[: match.start()]):
            files.setdefault(match[1].casefold(), name)
    items, missing = [], []
    for name, kinds in said.items():
        if subtype not in kinds:
            continue
        file = files.pop(name.casefold(), None)
        if file is None:
            missing.append((f"{RSNA_TABLE}/{name}.dcm", FILE_MISSING))
        else:
            items.append(Item(tree.locator(file), kinds[subtype], details=(name,)))
    return Listing(
        items,
        request.dataset.label_names,
        excluded={"repeated row": repeats[subtype], "slice without a row in the table": len(files)},
        skipped=missing,
        intensity="CT: Hounsfield units + 1024, clipped at 0, by own maximum",
    )


def read_slice(body: bytes, item: Item, request: RawRequest) -> Iterator[Sample]:
    """Yield a slice; one without square pixels is left out, as in the study."""
    dicom = decode_dicom(body, frames=1)
    told = dicom.instance.casefold()
    if told.startswith("id_") and told != str(item.details[0]).casefold():
        raise SkipItem("another slice in the header than in the file's name")
    if not dicom.is_square():
        raise SkipItem("pixels not square")
    patient = dicom.known_patient()
    if not request.has_fault("wrapped_pixel_cast"):
        (sample,) = frame_samples(dicom)
    else:
        # Scale stored values by their maximum, resize, then let the cast to 8 bits wrap negative
        # ones (F16).
        values, side = dicom.values[0].astype(np.float32), request.spec.image_size
        top = float(values.max())
        if top <= 0:
            raise SkipItem("constant image")
        scaled = to_prepared(values * (255 / top), image_size=side, channels=1, dtype="float32")[0]
        pixels = scaled.astype(np.int64).astype(np.uint8)
        pixels = 255 - pixels if dicom.inverted else pixels
        sample = Sample(pixels, conversions=("negative values wrapped (F16)",))
    yield replace(sample, group=patient, flags=(*sample.flags, *(() if patient else (NO_PATIENT,))))


rsna = download(list_rsna, read_slice)
