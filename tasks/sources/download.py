"""Downloads that torchvision offers, as the last resort when no raw folder is given."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from search_spaces.errors import DataError
from tasks.sources.base import RawRequest

TORCHVISION = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST", "cifar10": "CIFAR10", "svhn": "SVHN"}
CACHE_VARIABLE = "ISWEEP_DOWNLOADS"


def download_folder(name: str) -> Path:
    """Return where downloads of ``name`` go: below ``ISWEEP_DOWNLOADS`` or the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get(CACHE_VARIABLE) or Path(cache) / "isweep" / "raw") / name


def download(request: RawRequest) -> Path:
    """Return the folder of the torchvision download, fetched now if need be.

    Raises:
        DataError: when it cannot be fetched, with what to do on a machine without network.
    """
    name = request.dataset.name
    folder = download_folder(name)
    from torchvision import datasets

    fetch = getattr(datasets, TORCHVISION[name])
    try:
        if name == "svhn":
            fetch(str(folder), split="train", download=True)
        else:
            fetch(str(folder), train=True, download=True)
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"{name} needs its raw files, or a network to download them",
            f"no --raw folder, and the download failed ({type(error).__name__})",
            f"download it elsewhere and pass --raw DIR; expected: {request.dataset.raw_layout}",
        ) from None
    return folder


def with_raw(request: RawRequest) -> RawRequest:
    """Return the request with the download as its raw folder when none was given."""
    return request if request.raw is not None else replace(request, raw=download(request))
