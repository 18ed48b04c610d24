"""Sources: one module per raw layout, found by name.

Another package registers its own with an entry point in the group ``isweep.sources`` that names a class
following :class:`tasks.sources.base.Source`.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points

from search_spaces.errors import unknown_name
from tasks.sources.base import Item, Listing, RawRequest, Reader, Sample, SkipItem, Source
from tasks.sources.own_kinds import OLD_KINDS, OWN_KINDS, check_own_options, own_kind_of

__all__ = [
    "ENTRY_POINT_GROUP",
    "FROM_RAW",
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
    "own_kind_of",
    "source_for",
]

ENTRY_POINT_GROUP = "isweep.sources"

SOURCES: dict[str, str] = {
    "brats": "tasks.sources.brats:Brats",
    "chexpert": "tasks.sources.radiographs:CheXpert",
    "cifar10": "tasks.sources.natural:Cifar10",
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
    "rsna": "tasks.sources.rsna:Rsna",
    "svhn": "tasks.sources.natural:Svhn",
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
