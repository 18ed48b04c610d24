"""The kinds of your own data: one row each, and how a path shows which one it is."""

from __future__ import annotations

from pathlib import Path

from search_spaces.errors import ConfigError
from search_spaces.specs import DatasetSpec
from tasks.sources.dicom import is_single_image_name
from tasks.sources.own import COLUMNS, split_of
from tasks.sources.raw import PACKED_TARS, RefusedArchive, is_archive_name, open_archive
from tasks.sources.tables import MANIFESTS, column_key, jsonl_header

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
