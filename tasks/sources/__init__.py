"""The table of dataset sources, and checks that do not import any source.

To add a source, write a module with a :class:`tasks.sources.base.Source` and add a row to
:data:`SOURCES`. The row contains the module and the name of the ``Source`` in it. To offer a
source from another package, register an entry point in the group ``isweep.sources`` there. The
entry point refers to a ``Source``, or to any object or class with the same two attributes.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Literal

from search_spaces.datasets import DATASETS
from search_spaces.errors import ConfigError, unknown_name
from search_spaces.specs import DatasetSpec
from tasks.sources.base import RawRequest, Source
from tasks.table_rows import load_target

ENTRY_POINT_GROUP = "isweep.sources"


@dataclass(frozen=True)
class OwnKind:
    """A kind of user data: one of the ways in which users store images.

    Attributes:
        path: Description of the file or folder that the user must give, for messages.
        extensions: File extensions by which the kind is recognized, in lower case.
        options: Options of :data:`OWN_OPTIONS` that this kind uses.
        former_names: Names of this kind in older sweep files.
    """

    path: str
    extensions: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    former_names: tuple[str, ...] = ()


@dataclass(frozen=True)
class SourceRow:
    """One row of the table of sources.

    Attributes:
        target: ``module:attribute`` of the :class:`Source`. The module is imported on first
            use.
        download: ``required`` if the user must give the path of a raw download; ``fetched`` if
            the source can also download it; ``none`` if the source reads no download.
        own_kind: The kind of user data that the source reads; None if it reads no user data.
    """

    target: str
    download: Literal["required", "fetched", "none"] = "required"
    own_kind: OwnKind | None = None


SOURCES: dict[str, SourceRow] = {
    "brats": SourceRow("tasks.sources.brats:brats"),
    "chexpert": SourceRow("tasks.sources.radiographs:chexpert"),
    "cifar10": SourceRow("tasks.sources.natural:cifar10", "fetched"),
    "dbc": SourceRow("tasks.sources.tcia:dbc"),
    "digits_even_odd": SourceRow("tasks.sources.demo:digits_even_odd", "none"),
    "folder": SourceRow(
        "tasks.sources.class_folders.listing:FOLDER_SOURCE",
        own_kind=OwnKind(
            "a folder (or a .zip or .tar of one) with one subfolder of images per class",
            options=("layout",),
        ),
    ),
    "generated": SourceRow("tasks.sources.generated:generated", "none"),
    "hdf5": SourceRow(
        "tasks.sources.arrays.listing:hdf5",
        own_kind=OwnKind(
            "an .h5 or .hdf5 file with arrays images and labels",
            extensions=(".h5", ".hdf5"),
            options=("pixel_range",),
        ),
    ),
    "idx": SourceRow("tasks.sources.natural:idx", "fetched"),
    "imagenet": SourceRow("tasks.sources.natural:imagenet"),
    "lesions": SourceRow("tasks.sources.demo:lesions", "none"),
    "manifold": SourceRow("tasks.sources.generated:manifold", "none"),
    "mura": SourceRow("tasks.sources.radiographs:mura"),
    "npz": SourceRow(
        "tasks.sources.arrays.listing:npz",
        own_kind=OwnKind(
            "an .npz file with the arrays images and labels, or x and y, or a file of MedMNIST",
            extensions=(".npz",),
            options=("pixel_range",),
        ),
    ),
    "oai": SourceRow("tasks.sources.oai:oai"),
    "packaged": SourceRow("tasks.sources.demo:packaged", "none"),
    "pictures": SourceRow("tasks.sources.demo:pictures", "none"),
    "prostate": SourceRow("tasks.sources.tcia:prostate"),
    "rsna": SourceRow("tasks.sources.radiographs:rsna"),
    "svhn": SourceRow("tasks.sources.natural:svhn", "fetched"),
    "table": SourceRow(
        "tasks.sources.manifest:table_source",
        own_kind=OwnKind(
            "a table (.csv, .tsv, .xlsx, .jsonl, .parquet) with path and label of pictures, "
            "DICOM files or NIfTI volumes; or .parquet files with the images in them (Hugging "
            "Face datasets)",
            extensions=(".csv", ".tsv", ".xlsx", ".jsonl", ".ndjson", ".json", ".parquet"),
            options=("label_columns",),
            former_names=("csv", "dicom_csv", "nifti_csv", "parquet"),
        ),
    ),
    "webdataset": SourceRow(
        "tasks.sources.webdataset:webdataset",
        own_kind=OwnKind("a .tar, or a folder of them, with <key>.jpg and <key>.cls"),
    ),
}

OWN_KINDS: dict[str, OwnKind] = {
    name: row.own_kind for name, row in SOURCES.items() if row.own_kind
}
"""Kinds of user data, by name."""
OWN_OPTIONS = ("label_columns", "layout", "pixel_range")
"""Fields of :class:`DatasetSpec` that only some kinds of user data use."""


def current_name(name: str) -> str:
    """Return the current name of a source or kind. An older sweep file may have a former name."""
    for kind, facts in OWN_KINDS.items():
        if name in facts.former_names:
            return kind
    return name


def check_own_kind(kind: str) -> None:
    """Check that a kind of user data exists, without importing any source.

    Raises:
        ConfigError: The kind does not exist. The message lists all kinds.
    """
    if current_name(kind) in OWN_KINDS:
        return
    registered = _registered()
    if kind not in registered:
        raise unknown_name("kind", kind, {*OWN_KINDS, *registered})


def check_own_options(dataset: DatasetSpec) -> None:
    """Check that the kind of user data uses every option that the user set.

    Raises:
        ConfigError: The kind does not use an option. Without this error, isweep would silently
            ignore the option.
    """
    kind = current_name(dataset.source)
    if kind not in OWN_KINDS:
        return
    for option in OWN_OPTIONS:
        if getattr(dataset, option) and option not in OWN_KINDS[kind].options:
            kinds = [name for name, facts in OWN_KINDS.items() if option in facts.options]
            raise ConfigError(
                f"{dataset.name}: {option} applies only to data of kind {' or '.join(kinds)}, "
                f"not to kind {kind}",
                hint=f"Remove {option}, or choose another kind",
            )


def source_for(name: str) -> Source:
    """Return the source with this name, from the table or from another package.

    Raises:
        ConfigError: No source has this name. The message lists all names.
    """
    name = current_name(name)
    if name in SOURCES:
        row = f"tasks/sources/__init__.py, SOURCES, row {name!r}: `target`"
        loaded = load_target(SOURCES[name].target, row)
    else:
        registered = _registered()
        if name not in registered:
            raise unknown_name("source", name, {*SOURCES, *registered})
        loaded = registered[name].load()
    if isinstance(loaded, type):
        loaded = loaded()
    source: Source = loaded
    return source


def needs_download(dataset: DatasetSpec) -> bool:
    """Return whether a dataset can be read only if ``--raw`` has the path of its download.

    The result is False for user data, because their path is in the sweep file.
    """
    row = SOURCES.get(dataset.source)
    return row is not None and row.download == "required" and dataset.name in DATASETS


def check_raw_folder(request: RawRequest, *, needed: bool = False) -> None:
    """Check that the raw download exists, and that the dataset needs a download.

    Args:
        request: The dataset and the path of its raw download.
        needed: True to raise an error if the user gave no path.

    Raises:
        DataError: The download does not exist.
        ConfigError: The user gave the path of a download, but the dataset needs no download.
    """
    if request.raw is None and not needed:
        return
    request.root()
    row = SOURCES.get(request.dataset.source)
    if row is not None and row.download == "none":
        raise ConfigError(
            f"{request.dataset.name} needs no raw download, but --raw is {request.raw}",
            hint="Remove --raw",
        )


def _registered() -> dict[str, EntryPoint]:
    """Return the sources of other packages: name -> entry point."""
    return {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}
