"""The table of dataset sources, and the checks that need only its rows.

A new source is one module with a :class:`tasks.sources.base.Source` and one row of :data:`SOURCES`.
The constant of the ``Source`` has the lower-case name of the source, by which the row finds it.
Another package registers a source by an entry point in the group ``isweep.sources``. The entry
point names a ``Source``, or any object or class with the same two attributes.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Literal

from search_spaces.datasets import DATASETS
from search_spaces.errors import ConfigError, unknown_name
from search_spaces.specs import DatasetSpec
from tasks.sources.base import RawRequest, Source

ENTRY_POINT_GROUP = "isweep.sources"


@dataclass(frozen=True)
class OwnKind:
    """A kind of a user's own data: a way to store images that a source reads.

    Attributes:
        path: The file or folder that the user names as its path, in words for messages.
        endings: Endings of file names, lower case, by which a file is recognized as this kind.
        options: Those of :data:`OWN_OPTIONS` that this kind has.
        former_names: Names of this kind in older sweep files.
    """

    path: str
    endings: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    former_names: tuple[str, ...] = ()


@dataclass(frozen=True)
class SourceRow:
    """One row of the table of sources.

    Attributes:
        target: ``module:attribute`` of the :class:`Source`; imported only when it is used.
        download: ``required`` if the user must name a raw download; ``fetched`` if the source can
            also fetch it; ``none`` if it reads no download.
        own_kind: The kind, if the source also reads a user's own data; else None.
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
        "tasks.sources.folder:folder",
        own_kind=OwnKind(
            "a folder (or a .zip or .tar of one) with one subfolder of images per class",
            options=("layout",),
        ),
    ),
    "generated": SourceRow("tasks.sources.made:generated", "none"),
    "hdf5": SourceRow(
        "tasks.sources.arrays:hdf5",
        own_kind=OwnKind(
            "an .h5 or .hdf5 file with arrays images and labels",
            endings=(".h5", ".hdf5"),
            options=("pixel_range",),
        ),
    ),
    "idx": SourceRow("tasks.sources.natural:idx", "fetched"),
    "imagenet": SourceRow("tasks.sources.natural:imagenet"),
    "lesions": SourceRow("tasks.sources.demo:lesions", "none"),
    "manifold": SourceRow("tasks.sources.made:manifold", "none"),
    "mura": SourceRow("tasks.sources.radiographs:mura"),
    "npz": SourceRow(
        "tasks.sources.arrays:npz",
        own_kind=OwnKind(
            "an .npz with arrays images and labels, x and y, or MedMNIST's",
            endings=(".npz",),
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
        "tasks.sources.manifest:table",
        own_kind=OwnKind(
            "a table (.csv, .tsv, .xlsx, .jsonl, .parquet) with path and label of pictures, DICOM "
            "files or NIfTI volumes; or .parquet files with the images in them (Hugging Face "
            "datasets)",
            endings=(".csv", ".tsv", ".xlsx", ".jsonl", ".ndjson", ".json", ".parquet"),
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
"""Kinds of a user's own data, by name."""
OWN_OPTIONS = ("label_columns", "layout", "pixel_range")
"""Fields of :class:`DatasetSpec` that only some kinds of own data have."""


def current_name(name: str) -> str:
    """Return today's name of a source or kind, given a name that an older sweep file may use."""
    for kind, facts in OWN_KINDS.items():
        if name in facts.former_names:
            return kind
    return name


def own_kinds_text() -> str:
    """Return the kinds of own data and their paths in one line, for messages."""
    return "; ".join(f"{name}: {kind.path}" for name, kind in OWN_KINDS.items())


def check_own_kind(kind: str) -> None:
    """Check that some source reads own data of this kind, without importing any source.

    Raises:
        ConfigError: No source does; all known kinds are named.
    """
    if current_name(kind) in OWN_KINDS:
        return
    registered = _registered()
    if kind not in registered:
        raise unknown_name("kind", kind, {*OWN_KINDS, *registered})


def check_own_options(dataset: DatasetSpec) -> None:
    """Check that the kind of own data uses every option that the user set.

    Raises:
        ConfigError: An option would be ignored silently.
    """
    kind = current_name(dataset.source)
    if kind not in OWN_KINDS:
        return
    for option in OWN_OPTIONS:
        if getattr(dataset, option) and option not in OWN_KINDS[kind].options:
            kinds = [name for name, facts in OWN_KINDS.items() if option in facts.options]
            raise ConfigError(
                f"{dataset.name}: {option} is an option of kind {' or '.join(kinds)}, not of kind "
                f"{kind}",
                hint=f"Leave {option} out",
            )


def source_for(name: str) -> Source:
    """Return the source of that name: a row of the table, or one that another package registers.

    Raises:
        ConfigError: There is none; all known names are given.
    """
    name = current_name(name)
    if name in SOURCES:
        module, _, attribute = SOURCES[name].target.partition(":")
        loaded = getattr(import_module(module), attribute)
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
    """Return whether a dataset of the table has nothing to read unless ``--raw`` names a download.

    Own data have the path of their sweep file instead.
    """
    row = SOURCES.get(dataset.source)
    return row is not None and row.download == "required" and dataset.name in DATASETS


def check_raw_folder(request: RawRequest, *, needed: bool = False) -> None:
    """Check that a named or needed raw download exists, and that the source reads one.

    Raises:
        DataError: The download is not there.
        ConfigError: One was named for a dataset that reads none.
    """
    if request.raw is None and not needed:
        return
    request.root()
    row = SOURCES.get(request.dataset.source)
    if row is not None and row.download == "none":
        raise ConfigError(
            f"{request.dataset.name} reads no raw download, but --raw names {request.raw}",
            hint="Leave --raw out",
        )


def _registered() -> dict[str, EntryPoint]:
    """Return the entry points of other packages by the name of their source."""
    return {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}
