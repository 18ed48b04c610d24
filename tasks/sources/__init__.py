"""Sources: one module per raw layout, found by name; which of them reads a path, and what a message tells of.

Another package registers its own with an entry point in the group ``isweep.sources`` that names a class
following :class:`tasks.sources.base.Source`. Messages and records name a file by its keyed hash, and a row of
a table, which is no secret, by its number.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path, PurePath

from search_spaces.datasets import own_dataset_spec
from search_spaces.errors import ConfigError, SweepError, unknown_name
from search_spaces.specs import DatasetSpec, PreparedSpec
from search_spaces.sweeps import OwnSourceSpec
from tasks.sources.arrays import ArrayFile, Hdf5File, NpzFile, row_locator
from tasks.sources.base import (
    Item,
    Listing,
    RawRequest,
    Reader,
    Sample,
    SkipItem,
    Source,
    hash_key,
    keyed_hash,
    spell,
)
from tasks.sources.dicom import is_single_image_name
from tasks.sources.manifest import table_paths
from tasks.sources.own import COLUMNS, split_of
from tasks.sources.parquet import num_rows
from tasks.sources.raw import (
    MARK,
    MAX_DEPTH,
    PACKED_TARS,
    RefusedArchive,
    is_archive_name,
    open_archive,
    walk,
)
from tasks.sources.tables import MANIFESTS, column_key, jsonl_header

__all__ = [
    "ENTRY_POINT_GROUP",
    "FROM_RAW",
    "HASH",
    "OLD_KINDS",
    "OWN_KINDS",
    "SOURCES",
    "Item",
    "Listing",
    "RawRequest",
    "Reader",
    "Sample",
    "SkipItem",
    "Source",
    "check_own_kind",
    "check_own_options",
    "locate",
    "own_kind_of",
    "source_for",
]

ENTRY_POINT_GROUP = "isweep.sources"

SOURCES: dict[str, str] = {
    "brats": "tasks.sources.brats:Brats",
    "chexpert": "tasks.sources.radiographs:CheXpert",
    "cifar10": "tasks.sources.natural:cifar10",
    "generated": "tasks.sources.made:Generated",
    "hdf5": "tasks.sources.arrays:hdf5",
    "webdataset": "tasks.sources.webdataset:WebDataset",
    "dbc": "tasks.sources.tcia:DukeBreast",
    "digits_even_odd": "tasks.sources.demo:DigitsEvenOdd",
    "folder": "tasks.sources.folder:Folder",
    "idx": "tasks.sources.natural:IdxFiles",
    "imagenet": "tasks.sources.natural:ImageNet",
    "lesions": "tasks.sources.demo:Lesions",
    "manifold": "tasks.sources.made:Manifold",
    "mura": "tasks.sources.radiographs:Mura",
    "npz": "tasks.sources.arrays:npz",
    "oai": "tasks.sources.oai:Oai",
    "packaged": "tasks.sources.demo:Packaged",
    "prostate": "tasks.sources.tcia:Prostate",
    "rsna": "tasks.sources.radiographs:Rsna",
    "svhn": "tasks.sources.natural:svhn",
    "table": "tasks.sources.manifest:Table",
}
"""Source name -> ``module:class``, imported only when used."""
FROM_RAW = frozenset({"brats", "chexpert", "dbc", "imagenet", "mura", "oai", "prostate", "rsna"})
"""Those that have nothing to read without a raw download: not even one that they could fetch."""


def check_own_kind(kind: str) -> None:
    """Check that ``kind`` can read your own data, without importing any source.

    Raises:
        ConfigError: for an unknown kind, with our own and all that installed packages register.
    """
    if kind not in OWN_KINDS and kind not in OLD_KINDS:
        registered = {point.name for point in entry_points(group=ENTRY_POINT_GROUP)}
        if kind not in registered:
            raise unknown_name("kind", kind, {*OWN_KINDS, *registered})


def source_for(name: str) -> Source:
    """Return a new source of the given name, ours or one that an installed package registers.

    Raises:
        ConfigError: for an unknown name, with all known ones.
    """
    name = OLD_KINDS.get(name, name)
    if name in SOURCES:
        module, _, attribute = SOURCES[name].partition(":")
        made: Source = getattr(import_module(module), attribute)()
        return made
    registered = {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}
    if name not in registered:
        raise unknown_name("source", name, {*SOURCES, *registered})
    found: Source = registered[name].load()()
    return found


TABLE_ENDINGS = (".csv", ".tsv", ".xlsx", ".jsonl", ".parquet")
SNIFFED_BYTES = 1 << 16

OWN_KINDS = {
    "folder": "a folder (or a .zip or .tar of one) with one subfolder of images per class",
    "hdf5": "an .h5 or .hdf5 file with arrays images and labels",
    "npz": "an .npz with arrays images and labels, x and y, or MedMNIST's",
    "table": "a table (.csv, .tsv, .xlsx, .jsonl, .parquet) with path and label of pictures, DICOM files or "
    "NIfTI volumes; or .parquet files with the images in them (Hugging Face datasets)",
    "webdataset": "a .tar, or a folder of them, with <key>.jpg and <key>.cls",
}
"""Kind -> what its path is. The module of that name in ``SOURCES`` reads it."""
OLD_KINDS = dict.fromkeys(("csv", "dicom_csv", "nifti_csv", "parquet"), "table")
"""What kinds were called before -> the kind that reads them."""
OPTIONS = {
    "label_columns": ("table",),
    "layout": ("folder",),
    "pixel_range": ("npz", "hdf5"),
}
"""What may be said of own data -> the kinds that ask for it."""


def check_own_options(dataset: DatasetSpec) -> None:
    """Check that what is said of own data is something that their kind asks for, and so no word is lost.

    Raises:
        ConfigError: for another kind of ours.
    """
    kind = OLD_KINDS.get(dataset.source, dataset.source)
    for option, kinds in OPTIONS.items():
        if getattr(dataset, option) and kind in OWN_KINDS and kind not in kinds:
            rule = f"{dataset.name}: {option} is for kind {' or '.join(kinds)}"
            raise ConfigError(rule, f"kind {kind}", "leave it out")


def own_kind_of(path: Path) -> str | None:
    """Return the kind of your own data at a path, by endings and the first line of a table; None if unclear.

    Nothing is decoded, and what is no plain file or folder is not opened.
    """
    if path.is_dir():
        return _folder_kind(path)
    if not path.is_file():
        return None
    name = path.name.lower()
    if name.endswith(TABLE_ENDINGS):
        return "table"
    if name.endswith((".h5", ".hdf5")):
        return "hdf5"
    if name.endswith(".npz"):
        return "npz"
    if is_archive_name(name):
        return "webdataset" if _has_classes_beside_images(path) else "folder"
    return None


def _folder_kind(path: Path) -> str:
    try:
        names = [entry.name.lower() for entry in path.iterdir() if entry.is_file()]
        folders = [entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith(".")]
        inner = [entry for folder in folders[:20] for entry in folder.iterdir()]
    except OSError:
        return "folder"
    tables = [path / name for name in MANIFESTS if name in names]
    if tables and (not folders or _lists_images(tables[0])):
        return "table"
    of_splits = [entry for entry in inner if entry.name in MANIFESTS and split_of(entry.parent.name) != ""]
    if of_splits and _lists_images(of_splits[0]):
        return "table"
    below = [entry.name.lower() for entry in inner]
    if any(name.endswith(".parquet") for name in names + below) or _holds_configs(inner):
        return "table"
    shards = below if any(split_of(folder.name) != "" for folder in folders) else []
    if any(name.endswith((".tar", *PACKED_TARS)) for name in (shards if folders else names)):
        return "webdataset"
    return "folder"


def _holds_configs(folders: list[Path]) -> bool:
    """Tell whether folders two deep are splits of Parquet files: ``<config>/train/0000.parquet``."""
    splits = [folder for folder in folders if split_of(folder.name) != "" and folder.is_dir()]
    return any(next(folder.glob("*.parquet"), None) is not None for folder in splits)


def _lists_images(table: Path) -> bool:
    """Tell whether a table in a folder is one of paths and labels, and no by-product beside class folders."""
    header = {column_key(name) for name in _header(table)}
    known = ({column_key(name) for name in (ours, *COLUMNS[ours])} for ours in ("path", "label"))
    return all(header & names for names in known)


def _header(table: Path) -> list[str]:
    """Return the names of a table's columns, of its first line alone."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if table.suffix.lower() == ".parquet":
            return [str(name) for name in pq.read_schema(table).names]
        with table.open("rb") as file:
            line = file.readline(SNIFFED_BYTES)
    except (OSError, pa.ArrowException, ValueError):
        return []
    if table.suffix.lower() == ".jsonl":
        return jsonl_header(line)
    text = line.decode("utf-8-sig", "replace").translate(str.maketrans(";\t|", ",,,"))
    return [cell.strip().strip('"') for cell in text.split(",")]


def _has_classes_beside_images(path: Path) -> bool:
    """Tell whether an archive holds ``.cls`` or ``.json`` files beside its images."""
    try:
        members = open_archive(path).members()
    except RefusedArchive:
        return False
    keys = {name.partition(".")[0] for name in members if name.lower().endswith((".cls", ".json"))}
    images = {name.partition(".")[0] for name in members if is_single_image_name(name)}
    return bool(keys & images) and path.suffix != ".zip"


HASH = re.compile(r"\b[0-9a-f]{16}\b")
ROW = re.compile(r"(?:(\w+) )?row (?:(\w+)/)?(\d+)|(\d+)")
ARRAY_FILES: dict[str, Callable[[RawRequest], ArrayFile]] = {
    ".npz": NpzFile,
    ".h5": Hdf5File,
    ".hdf5": Hdf5File,
}


def locate(raw: Path, key_folder: Path, said: str) -> str | None:
    """Return the file, archive member or row below ``raw`` that a message or record tells of.

    Args:
        raw: Raw folder or file, or a table.
        key_folder: Folder with the prepared datasets, where the key lies.
        said: What was printed: 16 hex digits, ``row 12``, ``train row 12``, ``row 3 of`` a hash, or a line
            with one of these in it.
    """
    row = ROW.search(HASH.sub("", said)) if "row" in said or said.strip().isdigit() else None
    found = HASH.search(said)
    name = _hashed(raw, key_folder, found[0]) if found else None
    if row is None or (found is not None and name is None):
        return name
    folder, array, number = row[1] or "", row[2], row[3] or row[4]
    if name is not None:
        return f"{name}{MARK}{number}"
    if raw.suffix.lower() in ARRAY_FILES:
        return row_locator(array or "images", int(number))
    return table_paths(_request(raw), folder).get(int(number))


def _hashed(raw: Path, key_folder: Path, hashed: str) -> str | None:
    key = hash_key(key_folder)
    return next((name for name in _locators(raw) if spell(keyed_hash(key, name)) == hashed), None)


def _request(raw: Path) -> RawRequest:
    own = own_dataset_spec("own", OwnSourceSpec(kind="folder", path=str(raw), domain=None))
    return RawRequest(own, PreparedSpec(dataset="own", image_size=8, channels=1), raw)


def _locators(raw: Path) -> Iterator[str]:
    """Yield all that items of any source may be called: files, members of archives, rows."""
    suffix = raw.suffix.lower()
    alone = raw.is_file() and (suffix in (*ARRAY_FILES, ".parquet") or is_archive_name(raw.name))
    base = raw if raw.is_dir() else raw.parent
    for name in [raw.name] if alone else walk(base, _request(base), strict=False):
        yield name
        ending = PurePath(name).suffix.lower()
        if is_archive_name(name):
            yield from _members(base / name, name, ())
        elif ending == ".parquet":
            yield from (f"{name}{MARK}{row}" for row in range(num_rows(base / name)))
        elif ending in ARRAY_FILES:
            yield from _array_rows(base / name)


def _members(path: Path, name: str, inner: tuple[str, ...]) -> Iterator[str]:
    try:
        members = open_archive(path, inner).members()
    except RefusedArchive:  # it is named itself
        return
    for member in members:
        yield MARK.join((name, *inner, member))
        if is_archive_name(member) and len(inner) + 1 < MAX_DEPTH:
            yield from _members(path, name, (*inner, member))


def _array_rows(path: Path) -> Iterator[str]:
    try:
        file = ARRAY_FILES[path.suffix.lower()](_request(path))
        shapes = {array: file.header(array).shape for array in file.names()}
    except SweepError:
        return
    for array, shape in shapes.items():
        yield from (row_locator(array, row) for row in range(shape[0] if len(shape) > 2 else 0))
