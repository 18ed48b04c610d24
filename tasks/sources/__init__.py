"""Sources: one module per raw layout, found by name; which of them reads a path, and what a message
tells of.

Another package registers its own with an entry point in the group ``isweep.sources`` that names an
object, or a class of objects, with what :class:`tasks.sources.base.Source` has. Messages and
records name a file by its keyed hash, and a row of a table, which is no secret, by its number.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path, PurePath

from search_spaces.datasets import own_dataset_spec
from search_spaces.errors import ConfigError, SweepError, unknown_name
from search_spaces.specs import DatasetSpec, PreparedSpec
from search_spaces.sweeps import OwnSourceSpec
from tasks.sources.arrays import ArrayFile, Hdf5File, NpzFile, row_locator
from tasks.sources.base import RawRequest, Source, hash_key
from tasks.sources.dicom import is_single_image_name
from tasks.sources.manifest import num_rows, table_paths
from tasks.sources.own import split_of
from tasks.sources.raw import (
    MARK,
    MAX_DEPTH,
    TARS,
    RefusedArchive,
    is_archive_name,
    open_archive,
    walk,
)
from tasks.sources.tables import COLUMNS, MANIFESTS, column_key, holds_images

ENTRY_POINT_GROUP = "isweep.sources"
MODULES = {
    "arrays": ("hdf5", "npz"),
    "brats": ("brats",),
    "demo": ("digits_even_odd", "lesions", "packaged", "pictures"),
    "folder": ("folder",),
    "made": ("generated", "manifold"),
    "manifest": ("table",),
    "natural": ("cifar10", "idx", "imagenet", "svhn"),
    "oai": ("oai",),
    "radiographs": ("chexpert", "mura", "rsna"),
    "tcia": ("dbc", "prostate"),
    "webdataset": ("webdataset",),
}
SOURCES = {
    name: f"{__name__}.{module}:{name}" for module, names in MODULES.items() for name in names
}
"""Source name -> ``module:source``, imported only when used."""
FROM_RAW = frozenset({"brats", "chexpert", "dbc", "imagenet", "mura", "oai", "prostate", "rsna"})
"""Those that have nothing to read without a raw download: not even one that they could fetch."""
WITHOUT_RAW = frozenset((*MODULES["demo"], *MODULES["made"]))
"""Those that read no raw download."""


def _registered() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}


def check_own_kind(kind: str) -> None:
    """Check without importing any source that ``kind`` can read your own data; else all are
    told.
    """
    if kind not in OWN_KINDS and kind not in OLD_KINDS and kind not in (known := _registered()):
        raise unknown_name("kind", kind, {*OWN_KINDS, *known})


def source_for(name: str) -> Source:
    """Return the source of the name, ours or one that an installed package registers; else all are
    told.
    """
    name = OLD_KINDS.get(name, name)
    if name in SOURCES:
        module, _, attribute = SOURCES[name].partition(":")
        found = getattr(import_module(module), attribute)
    elif name in (known := _registered()):
        found = known[name].load()
    else:
        raise unknown_name("source", name, {*SOURCES, *known})
    source: Source = found() if isinstance(found, type) else found
    return source


def check_raw_folder(request: RawRequest, *, needed: bool = False) -> None:
    """Check that a raw download which was named (or is needed) is there, and that it would be
    read.
    """
    if needed or request.raw is not None:
        request.root()
        if request.dataset.source in WITHOUT_RAW:
            rule = f"{request.dataset.name} is read from no raw download"
            raise ConfigError(rule, f"--raw {request.raw}", "leave it out")


ENDINGS = {
    "table": (".csv", ".tsv", ".xlsx", ".jsonl", ".ndjson", ".json", ".parquet"),
    "hdf5": (".h5", ".hdf5"),
    "npz": (".npz",),
}
SNIFFED_BYTES = 1 << 16

OWN_KINDS = {
    "folder": "a folder (or a .zip or .tar of one) with one subfolder of images per class",
    "hdf5": "an .h5 or .hdf5 file with arrays images and labels",
    "npz": "an .npz with arrays images and labels, x and y, or MedMNIST's",
    "table": "a table (.csv, .tsv, .xlsx, .jsonl, .parquet) with path and label of pictures, DICOM "
    "files or "
    "NIfTI volumes; or .parquet files with the images in them (Hugging Face datasets)",
    "webdataset": "a .tar, or a folder of them, with <key>.jpg and <key>.cls",
}
"""Kind -> what its path is. The module of that name in ``SOURCES`` reads it."""
OLD_KINDS = dict.fromkeys(("csv", "dicom_csv", "nifti_csv", "parquet"), "table")
"""What kinds were called before -> the kind that reads them."""
OPTIONS = {"label_columns": ("table",), "layout": ("folder",), "pixel_range": ("npz", "hdf5")}
"""What may be said of own data -> the kinds that ask for it."""


def check_own_options(dataset: DatasetSpec) -> None:
    """Check that what is said of own data is something that their kind asks for: no word is
    lost.
    """
    kind = OLD_KINDS.get(dataset.source, dataset.source)
    for option, kinds in OPTIONS.items():
        if getattr(dataset, option) and kind in OWN_KINDS and kind not in kinds:
            rule = f"{dataset.name}: {option} is for kind {' or '.join(kinds)}"
            raise ConfigError(rule, f"kind {kind}", "leave it out")


def own_kind_of(path: Path) -> str | None:
    """Return the kind of your own data at a path, by endings and a table's first line; None if
    unclear.
    """
    if os.path.isdir(path):  # pathlib's raises where a folder above may not be entered
        return _folder_kind(path)
    if not os.path.exists(path):
        return None
    name = path.name.lower()
    if is_archive_name(name):
        try:
            members = [] if path.suffix == ".zip" else open_archive(path).members()
        except RefusedArchive:
            members = []
        classes = {
            one.partition(".")[0] for one in members if one.lower().endswith((".cls", ".json"))
        }
        images = {one.partition(".")[0] for one in members if is_single_image_name(one)}
        return "webdataset" if classes & images else "folder"
    return next((kind for kind, endings in ENDINGS.items() if name.endswith(endings)), None)


def _folder_kind(path: Path) -> str:
    try:
        names = [entry.name.lower() for entry in path.iterdir() if entry.is_file()]
        folders = [
            entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith(".")
        ]
        inner = [entry for folder in folders[:20] for entry in folder.iterdir()]
    except OSError:
        return "folder"
    tables = [path / name for name in MANIFESTS if name in names]
    of_splits = [
        entry for entry in inner if entry.name in MANIFESTS and split_of(entry.parent.name) != ""
    ]
    if (tables and not folders) or any(map(_lists_images, tables[:1] + of_splits[:1])):
        return "table"
    below = [entry.name.lower() for entry in inner]
    # Parquet files two deep: <config>/train/0000.parquet, label=cat/split=train/0.parquet
    splits = [entry for entry in inner if split_of(entry.name) != "" or "=" in entry.name]
    deep = any(next(entry.glob("*.parquet"), None) for entry in splits)
    if deep or any(name.endswith(".parquet") for name in names + below):
        return "table"
    shards = below if any(split_of(folder.name) != "" for folder in folders) else []
    if any(name.endswith(TARS) for name in (shards if folders else names)):
        return "webdataset"
    return "folder"


def _lists_images(table: Path) -> bool:
    """Tell by its first line whether a table is one of paths and labels, and no by-product beside
    folders.
    """
    import pyarrow.parquet as pq

    try:
        if table.suffix.lower() == ".parquet":
            names = list(pq.read_schema(table).names)
        else:
            with table.open("rb") as file:
                line = file.readline(SNIFFED_BYTES).decode("utf-8-sig", "replace")
            is_text = table.suffix.lower() != ".jsonl"
            names = re.split("[,;\t|]", line) if is_text else list(dict(json.loads(line)))
    except (
        OSError,
        ValueError,
        TypeError,
        RuntimeError,
    ):  # pyarrow's are OSErrors and ValueErrors, too
        return False
    header = {column_key(str(name).strip().strip('"')) for name in names}
    return all(
        header & {column_key(name) for name in (ours, *COLUMNS[ours])} for ours in ("path", "label")
    )


HASH = re.compile(r"\b[0-9a-f]{16}\b")
ROW = re.compile(r"(?:([\w-]+) )?row (?:(\w+)/)?(\d+)")
ARRAY_FILES: dict[str, Callable[[RawRequest], ArrayFile]] = {
    ".npz": NpzFile,
    ".h5": Hdf5File,
    ".hdf5": Hdf5File,
}


def locate(raw: Path, key_folder: Path, said: str) -> str | None:
    """Return the file, archive member or row below ``raw`` that a message or record tells of.

    That is 16 hex digits, ``row 12``, ``train row 12``, ``row 3 of`` a hash, or a line with one of
    these. The key lies in the folder with the prepared datasets.
    """
    row = ROW.search(f"row {said}" if said.strip().isdigit() else HASH.sub("", said))
    found, name = HASH.search(said), None
    key = hash_key(key_folder) if found else "unkeyed"
    own = own_dataset_spec("own", OwnSourceSpec(kind="folder", path=str(raw), domain=None))
    request = RawRequest(own, PreparedSpec(dataset="own", image_size=8, channels=1), raw, key)
    if found:
        name = next(
            (one for one in _locators(raw, request) if request.hashed(one) == found[0]), None
        )
        if row is None or name is None:
            return name
    if row is None:
        return None
    word, array, number = row[1] or "", row[2] or "images", int(row[3])
    if name is not None:
        return f"{name}{MARK}{number}"
    of_arrays = raw.suffix.lower() in ARRAY_FILES
    if of_arrays or raw.suffix.lower() == ".parquet":
        name = row_locator(array, number) if of_arrays else f"{raw.name}{MARK}{number}"
        if of_arrays or holds_images(raw):
            return name if name in _locators(raw, request) else None
    return table_paths(request, word if split_of(word) != "" else "").get(number)


def _locators(raw: Path, request: RawRequest) -> Iterator[str]:
    """Yield all that items of any source may be called: files, members of archives, rows."""
    suffix = raw.suffix.lower()
    alone = raw.is_file() and (suffix in (*ARRAY_FILES, ".parquet") or is_archive_name(raw.name))
    base = raw if raw.is_dir() else raw.parent
    for name in [raw.name] if alone else walk(base, request, strict=False):
        yield name
        ending = PurePath(name).suffix.lower()
        if is_archive_name(name):
            yield from _members(base / name, name, ())
        elif ending == ".parquet":
            yield from (f"{name}{MARK}{row}" for row in range(num_rows(base / name)))
        elif ending in ARRAY_FILES:
            with suppress(SweepError):
                file = ARRAY_FILES[ending](replace(request, raw=base / name))
                for array in file.names():
                    with suppress(SweepError):
                        shape = file.header(array).shape
                        rows = range(shape[0] if len(shape) > 2 else 0)
                        yield from (row_locator(array, row) for row in rows)


def _members(path: Path, name: str, inner: tuple[str, ...]) -> Iterator[str]:
    with suppress(RefusedArchive):  # it is named itself
        for member in open_archive(path, inner).members():
            yield MARK.join((name, *inner, member))
            if is_archive_name(member) and len(inner) + 1 < MAX_DEPTH:
                yield from _members(path, name, (*inner, member))
