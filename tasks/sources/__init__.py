"""Sources: one module per raw layout, found by name.

Another package registers its own with an entry point in the group ``isweep.sources`` that names a class
following :class:`tasks.sources.base.Source`.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points

from search_spaces.errors import unknown_name
from tasks.sources.base import Item, Listing, RawRequest, Reader, Sample, SkipItem, Source

__all__ = [
    "ENTRY_POINT_GROUP",
    "SOURCES",
    "Item",
    "Listing",
    "RawRequest",
    "Reader",
    "Sample",
    "SkipItem",
    "Source",
    "source_for",
]

ENTRY_POINT_GROUP = "isweep.sources"

SOURCES: dict[str, str] = {
    "csv": "tasks.sources.manifest:Manifest",
    "digits": "tasks.sources.digits:Digits",
    "folder": "tasks.sources.folder:Folder",
    "idx": "tasks.sources.idx:IdxFiles",
    "manifold": "tasks.sources.manifold:Manifold",
    "mnist5k": "tasks.sources.mnist5k:Mnist5k",
    "mri_lesion": "tasks.sources.mri_lesion:MriLesion",
    "npz": "tasks.sources.npz:Npz",
}
"""Source name -> ``module:class``, imported only when used."""


def source_for(name: str) -> Source:
    """Return a new source of the given name, ours or one that an installed package registers.

    Raises:
        ConfigError: for an unknown name, with all known ones.
    """
    if name in SOURCES:
        module, _, attribute = SOURCES[name].partition(":")
        made: Source = getattr(import_module(module), attribute)()
        return made
    registered = {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}
    if name not in registered:
        raise unknown_name("source", name, {*SOURCES, *registered})
    found: Source = registered[name].load()()
    return found
