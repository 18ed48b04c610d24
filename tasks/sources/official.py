"""What readers of official downloads share: find the folder, read one image or slice, map names to files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from search_spaces.errors import DataError
from tasks.sources.base import RawRequest, Sample
from tasks.sources.dicom import Dicom, frames_to_pixels
from tasks.sources.files import walk


def find_folder(request: RawRequest, names: Sequence[str], holding: str) -> str:
    """Return which of the folders ``names`` (relative, ``""`` = the raw folder) holds ``holding``.

    Raises:
        DataError: when none does, with the expected layout.
    """
    root = request.root()
    for name in names:
        if (root / name / holding).exists():
            return name
    rule = f"{request.dataset.name} needs {holding}"
    raise DataError(rule, "it is not there", f"expected: {request.dataset.raw_layout}")


def find_file(request: RawRequest, stems: Sequence[str], endings: Sequence[str]) -> Path:
    """Return the first file below the raw folder whose name is one of the stems with one of the endings.

    Raises:
        DataError: when there is none.
    """
    root = request.root()
    wanted = {(stem + ending).lower() for stem in stems for ending in endings}
    for depth in ("*", "*/*", "*/*/*"):
        for path in sorted(root.glob(depth)):
            if path.name.lower() in wanted and path.is_file():
                return path
    rule = f"{request.dataset.name} needs {stems[0]}{' or '.join(endings)}"
    raise DataError(rule, "it is not there", f"expected: {request.dataset.raw_layout}")


def join(folder: str, name: str) -> str:
    """Join relative names; an empty folder is the raw root."""
    return f"{folder}/{name}" if folder else name


def dicom_samples(
    dicom: Dicom, *, frames: slice = slice(None), group: str = "", extra: Iterable[str] = ()
) -> Iterator[Sample]:
    """Yield frames as samples."""
    chosen = Dicom(**{**dicom.__dict__, "values": dicom.values[frames]})
    for pixels, notes, flags in frames_to_pixels(chosen):
        yield Sample(pixels, group=group, conversions=(*notes, *extra), flags=flags)


def is_square(spacing: tuple[float, float] | None) -> bool:
    """Tell whether pixels are square; the study leaves others out."""
    return spacing is not None and abs(spacing[0] - spacing[1]) < 1e-6 * max(spacing)


class FileIndex:
    """All files below the raw folder, found by name without regard to case; walked once, in the driver."""

    def __init__(self, request: RawRequest) -> None:
        self._by_name = {name.casefold(): name for name in walk(request.root(), request)}

    def __iter__(self) -> Iterator[str]:
        """Yield all names, sorted."""
        return iter(self._by_name.values())

    def get(self, name: str) -> str | None:
        """Return the stored spelling of a name, or None."""
        return self._by_name.get(name.casefold())
