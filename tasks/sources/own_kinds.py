"""The kinds of your own data: one row each, and how a path shows which one it is."""

from __future__ import annotations

from pathlib import Path

TABLE_ENDINGS = (".csv", ".tsv", ".xlsx")
SNIFFED_BYTES = 1 << 16

OWN_KINDS = {
    "csv": "a table (.csv, .tsv, .xlsx) with path and label of pictures or DICOM files",
    "dicom_csv": "the same; only files named .dcm, .dicom or .ima are looked for",
    "folder": "a folder (or .zip, .tar, .tar.gz of one) with one subfolder of images per class",
    "hdf5": "an .h5 or .hdf5 file with arrays images and labels",
    "nifti_csv": "a table with path and label of .nii or .nii.gz volumes",
    "npz": "an .npz with arrays images and labels, x and y, or MedMNIST's",
    "parquet": "a .parquet file, or a folder of them, with image bytes and labels (Hugging Face datasets)",
    "webdataset": "a .tar, or a folder of them, with <key>.jpg and <key>.cls",
}
"""Kind -> what its path is. The module of that name in ``SOURCES`` reads it."""


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
        return "parquet"
    if name.endswith((".zip", ".tar", ".tar.gz", ".tgz")):
        return "webdataset" if _has_classes_beside_images(path) else "folder"
    return None


def _folder_kind(path: Path) -> str:
    from tasks.sources.manifest import MANIFESTS
    from tasks.sources.splits import split_of

    try:
        names = [entry.name.lower() for entry in path.iterdir() if entry.is_file()]
        folders = [entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith(".")]
        inner = [entry for folder in folders[:20] for entry in folder.iterdir()]
    except OSError:
        return "folder"
    tables = [path / name for name in MANIFESTS if name in names]
    if tables and (not folders or _has_columns(tables[0])):
        return _table_kind(tables[0])
    below = [entry.name.lower() for entry in inner]
    if any(name.endswith(".parquet") for name in names + below) or _holds_configs(inner):
        return "parquet"
    shards = below if any(split_of(folder.name) != "" for folder in folders) else []
    if any(name.endswith((".tar", ".tar.gz")) for name in (shards if folders else names)):
        return "webdataset"
    return "folder"


def _holds_configs(folders: list[Path]) -> bool:
    """Tell whether folders two deep are splits of Parquet files: ``<config>/train/0000.parquet``."""
    from tasks.sources.splits import split_of

    splits = [folder for folder in folders if split_of(folder.name) != "" and folder.is_dir()]
    return any(next(folder.glob("*.parquet"), None) is not None for folder in splits)


def _has_columns(table: Path) -> bool:
    """Tell whether a table in a folder is one of paths and labels, and no by-product beside class folders."""
    from tasks.sources.label_tables import column_key
    from tasks.sources.manifest import ALIASES

    try:
        with table.open("rb") as file:
            line = file.readline(SNIFFED_BYTES).decode("utf-8-sig", "replace")
    except OSError:
        return False
    header = {column_key(cell.strip().strip('"')) for cell in _split_cells(line)}
    known = ({column_key(name) for name in (ours, *ALIASES[ours])} for ours in ("path", "label"))
    return all(header & names for names in known)


def _table_kind(path: Path) -> str:
    """Tell by the names in a table's first lines what it lists."""
    from tasks.sources.nifti_manifest import is_nifti_name

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


def _has_classes_beside_images(path: Path) -> bool:
    """Tell whether an archive holds ``.cls`` or ``.json`` files beside its images."""
    from tasks.sources.archives import RefusedArchive, open_archive
    from tasks.sources.one_image import is_single_image_name

    try:
        members = open_archive(path).members()
    except RefusedArchive:
        return False
    keys = {name.partition(".")[0] for name in members if name.lower().endswith((".cls", ".json"))}
    images = {name.partition(".")[0] for name in members if is_single_image_name(name)}
    return bool(keys & images) and path.suffix != ".zip"
