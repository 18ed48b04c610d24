"""A user's own data of every kind with any columns: one writer per form of file.

Each writer uses the library of its format."""

from __future__ import annotations

import csv
import functools
import io
import json
import math
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from tests.raw_trees.dicoms import make_dicom, save_dicom
from tests.raw_trees.pictures import png, save_nifti, save_xlsx

Columns = Mapping[str, Sequence[object]]
"""Name -> one value per image: text, numbers, truth values, None or NaN."""
NAMES = ("benign", "malignant")
COUNT = 12


@functools.cache
def pictures(count: int = COUNT, seed: int = 0) -> np.ndarray:
    """Return different images of noise, ``(count, 8, 8)`` uint8."""
    return np.random.default_rng(seed).integers(0, 256, (count, 8, 8)).astype(np.uint8)


def count_of(columns: Columns) -> int:
    return len(next(iter(columns.values())))


def _records(columns: Columns) -> list[dict[str, object]]:
    return [
        dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)
    ]


def _with_files(folder: Path, columns: Columns, ending: str = "png") -> list[dict[str, object]]:
    """Write a file per image, and return the rows of a table with the files' paths.

    The group of a DICOM file is in its header.
    """
    folder.mkdir(parents=True, exist_ok=True)
    records = []
    for number, (pixels, record) in enumerate(
        zip(pictures(count_of(columns)), _records(columns), strict=True)
    ):
        path = folder / f"{number}.{ending}"
        if ending == "dcm":
            save_dicom(path, make_dicom(pixels.astype(np.uint16), patient=str(record.pop("group"))))
        elif ending == "nii.gz":
            save_nifti(path, np.stack([pixels, pixels[::-1], pixels.T], axis=2).astype(np.int16))
        else:
            path.write_bytes(png(pixels))
        records.append({"path": path.name, **record})
    return records


def write_text(
    folder: Path, columns: Columns, *, ending: str = "csv", separator: str = ",", files: str = "png"
) -> Path:
    """Write a table of text. None and NaN become blank cells, as pandas writes them."""
    records = _with_files(folder, columns, files)
    with (folder / f"table.{ending}").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, records[0], delimiter=separator)
        writer.writeheader()
        writer.writerows(
            [{key: "" if is_nan(cell) else cell for key, cell in row.items()} for row in records]
        )
    return folder / f"table.{ending}"


def write_xlsx(folder: Path, columns: Columns) -> Path:
    records = _with_files(folder, columns)
    rows = [
        list(records[0]),
        *([None if is_nan(value) else value for value in row.values()] for row in records),
    ]
    save_xlsx(folder / "table.xlsx", rows)
    return folder / "table.xlsx"


def write_jsonl(folder: Path, columns: Columns) -> Path:
    lines = [json.dumps(record) for record in _with_files(folder, columns)]
    (folder / "table.jsonl").write_text("\n".join(lines))
    return folder / "table.jsonl"


def write_parquet_of_paths(folder: Path, columns: Columns) -> Path:
    paths = [record["path"] for record in _with_files(folder, columns)]
    return save_parquet(folder / "table.parquet", {"path": paths} | dict(columns))


def image_cells(count: int = COUNT) -> list[object]:
    """Return the images as the library ``datasets`` stores them in a row."""
    return [
        {"bytes": png(pixels), "path": f"{row}.png"} for row, pixels in enumerate(pictures(count))
    ]


def write_parquet(folder: Path, columns: Columns) -> Path:
    return save_parquet(
        folder / "own.parquet", {"image": image_cells(count_of(columns))} | dict(columns)
    )


def save_parquet(path: Path, columns: Columns, names: Sequence[str] | None = None) -> Path:
    """Write a Parquet file in groups of five rows.

    Args:
        path: The file.
        columns: Its columns.
        names: Class names of a ``ClassLabel`` feature, if there is one.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({name: list(values) for name, values in columns.items()})
    if names:
        features = {
            "label": {"names": list(names), "_type": "ClassLabel"},
            "image": {"_type": "Image"},
        }
        table = table.replace_schema_metadata(
            {"huggingface": json.dumps({"info": {"features": features}})}
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=5)
    return path


def save_tar(path: Path, members: Sequence[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as archive:
        for name, body in members:
            member = tarfile.TarInfo(name)
            member.size = len(body)
            archive.addfile(member, io.BytesIO(body))
    return path


def write_webdataset(
    folder: Path, columns: Columns, *, name: str = "own.tar", first: int = 0
) -> Path:
    """Write a shard. Labels alone are ``.cls`` members, other columns are ``.json`` members."""
    members = []
    images = pictures(first + count_of(columns))[first:]
    for number, (pixels, record) in enumerate(zip(images, _records(columns), strict=True), first):
        is_lone_label = list(record) == ["label"] and isinstance(record["label"], str)
        body = str(record["label"]) if is_lone_label else json.dumps(record)
        members += [(f"{number:06d}.{'cls' if is_lone_label else 'json'}", body.encode())]
        members += [(f"{number:06d}.png", png(pixels))]
    return save_tar(folder / name, members)


def _array(values: Sequence[object]) -> np.ndarray:
    """Return the array that numpy makes of cells.

    Blank cells become NaN among numbers, and empty text among text.
    """
    is_blank = [value is None or is_nan(value) for value in values]
    if any(is_blank):
        is_text = any(isinstance(value, str) for value in values)
        blank: object = "" if is_text or all(is_blank) else math.nan
        values = [
            blank if missing else value for value, missing in zip(values, is_blank, strict=True)
        ]
    return np.array(values)


def as_arrays(columns: Columns) -> dict[str, np.ndarray]:
    arrays = {name: _array(values) for name, values in columns.items()}
    return {"images": pictures(count_of(columns)), "labels": arrays.pop("label")} | arrays


def write_npz(folder: Path, columns: Columns) -> Path:
    return save_arrays(folder / "own", "npz", **as_arrays(columns))


def write_hdf5(folder: Path, columns: Columns) -> Path:
    return save_arrays(folder / "own", "hdf5", **as_arrays(columns))


def save_arrays(stem: Path, kind: str, **arrays: np.ndarray) -> Path:
    path = stem.with_suffix(".npz" if kind == "npz" else ".h5")
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "npz":
        np.savez(path, **arrays)
        return path
    import h5py

    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            text = values.dtype.kind == "U"
            file[name] = [str(value).encode() for value in values] if text else values
    return path


def write_folder(folder: Path, columns: Columns) -> Path:
    """Write ``<split>/<label>/<group>/<n>.png``, without the folders of missing columns."""
    for number, (pixels, record) in enumerate(
        zip(pictures(count_of(columns)), _records(columns), strict=True)
    ):
        image_folder = folder.joinpath(
            *(str(record[name]) for name in ("split", "label", "group") if name in record)
        )
        image_folder.mkdir(parents=True, exist_ok=True)
        (image_folder / f"{number}.png").write_bytes(png(pixels))
    return folder


def is_nan(value: object) -> bool:
    return isinstance(value, float) and math.isnan(value)


FORMS: dict[str, tuple[str, Callable[[Path, Columns], Path]]] = {
    "csv": ("table", write_text),
    "tsv": ("table", functools.partial(write_text, ending="tsv", separator="\t")),
    "semicolons": ("table", functools.partial(write_text, separator=";")),
    "xlsx": ("table", write_xlsx),
    "jsonl": ("table", write_jsonl),
    "parquet of paths": ("table", write_parquet_of_paths),
    "parquet": ("table", write_parquet),
    "webdataset": ("webdataset", write_webdataset),
    "npz": ("npz", write_npz),
    "hdf5": ("hdf5", write_hdf5),
    "folder": ("folder", write_folder),
}
"""Form of file -> its kind, and a function that writes columns into a folder and returns the path
that a user gives."""


def write_kind(kind: str, folder: Path) -> Path:
    """Write ten images of two classes. Tables have five patients with an image of each class."""
    columns = {"label": [NAMES[row % 2] for row in range(10)]}
    if kind.endswith("csv") or kind == "table":
        columns["group"] = [f"P{row // 2}" for row in range(10)]
    files = {"dicom_csv": "dcm", "nifti_csv": "nii.gz"}.get(kind, "png")
    if "group" in columns:
        return write_text(folder, columns, files=files)
    _, write = FORMS[kind]
    return write(folder, columns)


OWN_WRITERS: dict[str, Callable[[Path], Path]] = {
    kind: functools.partial(write_kind, kind)
    for kind in (
        "folder",
        "hdf5",
        "npz",
        "webdataset",
        "table",
        "csv",
        "dicom_csv",
        "nifti_csv",
        "parquet",
    )
}
"""Kind, or an old name of a kind -> function that writes a small dataset of it and returns the path
that a user gives."""
