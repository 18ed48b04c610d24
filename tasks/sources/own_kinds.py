"""The kinds of your own data: one row each, and how a path shows which one it is."""

from __future__ import annotations

from pathlib import Path

from search_spaces.errors import ConfigError
from search_spaces.specs import DatasetSpec

TABLE_ENDINGS = (".csv", ".tsv", ".xlsx", ".jsonl")
SNIFFED_BYTES = 1 << 16

OWN_KINDS = {
    "csv": "a table (.csv, .tsv, .xlsx, .jsonl, .parquet) with path and label of pictures or DICOM files",
    "dicom_csv": "the same; only files named .dcm, .dicom or .ima are looked for",
    "folder": "a folder (or a .zip or .tar of one) with one subfolder of images per class",
    "hdf5": "an .h5 or .hdf5 file with arrays images and labels",
    "nifti_csv": "a table with path and label of .nii or .nii.gz volumes",
    "npz": "an .npz with arrays images and labels, x and y, or MedMNIST's",
    "parquet": "a .parquet file, or a folder of them, with image bytes and labels (Hugging Face datasets)",
    "webdataset": "a .tar, or a folder of them, with <key>.jpg and <key>.cls",
}
"""Kind -> what its path is. The module of that name in ``SOURCES`` reads it."""
OPTIONS = {
    "label_columns": ("csv", "dicom_csv", "nifti_csv", "parquet"),
    "layout": ("folder",),
    "pixel_range": ("npz", "hdf5"),
}
"""What may be said of own data -> the kinds that ask for it."""


def check_own_options(dataset: DatasetSpec) -> None:
    """Check that what is said of own data is something that their kind asks for, and so no word is lost.

    Raises:
        ConfigError: for another kind of ours.
    """
    for option, kinds in OPTIONS.items():
        if getattr(dataset, option) and dataset.source in OWN_KINDS and dataset.source not in kinds:
            rule = f"{dataset.name}: {option} is for kind {' or '.join(kinds)}"
            raise ConfigError(rule, f"kind {dataset.source}", "leave it out")


def own_kind_of(path: Path) -> str | None:
    """Return the kind of your own data at a path, by endings and the first lines of a table; None if unclear.

    Nothing is decoded, and what is no plain file or folder is not opened.
    """
    if path.is_dir():
        return _folder_kind(path)
    if not path.is_file():
        return None
    name = path.name.lower()
    if name.endswith(TABLE_ENDINGS):
        return _table_kind(path)
    if name.endswith((".h5", ".hdf5")):
        return "hdf5"
    if name.endswith(".npz"):
        return "npz"
    if name.endswith(".parquet"):
        return "csv" if _has_columns(path, "path") else "parquet"
    if _is_archive(name):
        return "webdataset" if _has_classes_beside_images(path) else "folder"
    return None


def _folder_kind(path: Path) -> str:
    from tasks.sources.manifest import MANIFESTS
    from tasks.sources.own import split_of
    from tasks.sources.raw import PACKED_TARS

    try:
        names = [entry.name.lower() for entry in path.iterdir() if entry.is_file()]
        folders = [entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith(".")]
        inner = [entry for folder in folders[:20] for entry in folder.iterdir()]
    except OSError:
        return "folder"
    tables = [path / name for name in MANIFESTS if name in names]
    if tables and (not folders or _has_columns(tables[0], "path", "label")):
        return _table_kind(tables[0])
    of_splits = [entry for entry in inner if entry.name in MANIFESTS and split_of(entry.parent.name) != ""]
    if of_splits and _has_columns(of_splits[0], "path", "label"):
        return _table_kind(of_splits[0])
    below = [entry.name.lower() for entry in inner]
    if any(name.endswith(".parquet") for name in names + below) or _holds_configs(inner):
        return "parquet"
    shards = below if any(split_of(folder.name) != "" for folder in folders) else []
    if any(name.endswith((".tar", *PACKED_TARS)) for name in (shards if folders else names)):
        return "webdataset"
    return "folder"


def _holds_configs(folders: list[Path]) -> bool:
    """Tell whether folders two deep are splits of Parquet files: ``<config>/train/0000.parquet``."""
    from tasks.sources.own import split_of

    splits = [folder for folder in folders if split_of(folder.name) != "" and folder.is_dir()]
    return any(next(folder.glob("*.parquet"), None) is not None for folder in splits)


def _has_columns(table: Path, *wanted: str) -> bool:
    """Tell whether a table in a folder is one of paths and labels, and no by-product beside class folders."""
    from tasks.sources.manifest import ALIASES
    from tasks.sources.tables import column_key

    header = {column_key(name) for name in _header(table)}
    known = ({column_key(name) for name in (ours, *ALIASES[ours])} for ours in wanted)
    return all(header & names for names in known)


def _header(table: Path) -> list[str]:
    """Return the names of a table's columns, those of Parquet only where they can hold text or numbers."""
    from tasks.sources.tables import jsonl_header, parquet_header

    try:
        if table.suffix.lower() == ".parquet":
            return parquet_header(table)
        with table.open("rb") as file:
            line = file.readline(SNIFFED_BYTES)
    except OSError:
        return []
    if table.suffix.lower() == ".jsonl":
        return jsonl_header(line)
    return [cell.strip().strip('"') for cell in _split_cells(line.decode("utf-8-sig", "replace"))]


def _table_kind(path: Path) -> str:
    """Tell by the names in a table's first lines what it lists."""
    from tasks.sources.nifti import is_nifti_name

    if path.suffix.lower() == ".parquet":
        return "csv"
    try:
        with path.open("rb") as file:
            text = file.read(SNIFFED_BYTES).decode("utf-8", "replace")
    except OSError:
        return "csv"
    cells = [cell.strip().strip('"') for line in text.splitlines()[1:50] for cell in _split_cells(line)]
    return "nifti_csv" if any(map(is_nifti_name, cells)) else "csv"


def _split_cells(line: str) -> list[str]:
    for delimiter in ";\t|":
        line = line.replace(delimiter, ",")
    return line.split(",")


def _is_archive(name: str) -> bool:
    from tasks.sources.raw import is_archive_name

    return is_archive_name(name)


def _has_classes_beside_images(path: Path) -> bool:
    """Tell whether an archive holds ``.cls`` or ``.json`` files beside its images."""
    from tasks.sources.manifest import is_single_image_name
    from tasks.sources.raw import RefusedArchive, open_archive

    try:
        members = open_archive(path).members()
    except RefusedArchive:
        return False
    keys = {name.partition(".")[0] for name in members if name.lower().endswith((".cls", ".json"))}
    images = {name.partition(".")[0] for name in members if is_single_image_name(name)}
    return bool(keys & images) and path.suffix != ".zip"
