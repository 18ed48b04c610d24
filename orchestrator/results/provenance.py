"""Provenance: versions of the code and packages that compute the results of this process."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from pathlib import Path

from orchestrator.results.records import Provenance

PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "numpy",
    "scipy",
    "scikit-learn",
    "ray",
    "mlflow",
    "zarr",
)
"""Packages whose version can change the numbers of a result. Each result contains these
versions."""
SOURCES = ("search_spaces", "tasks", "orchestrator")
"""Packages of isweep whose source files are hashed."""
GIT_TIMEOUT_S = 10
"""Time limit of one Git command, seconds. A checkout on a network drive may be slow."""
_PACKAGE = Path(__file__).resolve().parents[1]
_ROOT = _PACKAGE.parent


@dataclass(frozen=True)
class _SourceFile:
    """A source file, with its size and its time of change.

    Both show whether the file was edited.
    """

    path: Path
    num_bytes: int
    modified_ns: int


def code_fingerprint() -> str:
    """Return a hash of isweep's source files. The files are read from the disk now.

    A checkout and a wheel of the same source have the same hash.
    """
    files = []
    for package in SOURCES:
        for path in sorted((_ROOT / package).rglob("*.py")):
            status = path.stat()
            files.append(_SourceFile(path, status.st_size, status.st_mtime_ns))
    return _hash_files(tuple(files))


@lru_cache(maxsize=1)
def _hash_files(files: tuple[_SourceFile, ...]) -> str:
    source_hash = hashlib.sha256()
    for file in files:
        name = file.path.relative_to(_ROOT).as_posix()
        source_hash.update(f"{name}\0".encode() + file.path.read_bytes())
    return source_hash.hexdigest()[:16]


@lru_cache(maxsize=1)
def provenance() -> Provenance:
    """Return the version of the code, its commit and the versions of packages.

    The commit is the commit of the checkout, or the commit that is stored in an installed
    wheel.
    """
    checkout = _checkout()
    release = _package_version("isweep")
    code_version = release
    if checkout.commit:
        code_version = f"{release}+{checkout.commit[:12]}"
        if checkout.dirty:
            code_version += ".dirty"
    return Provenance(
        code_version=code_version,
        commit=checkout.commit,
        dirty=checkout.dirty,
        code=code_fingerprint(),
        python=platform.python_version(),
        machine=platform.machine(),
        packages={name: _package_version(name) for name in PACKAGES},
    )


@dataclass(frozen=True)
class _Checkout:
    """Git commit of the checkout, and whether files differ from it. An unknown commit is empty."""

    commit: str = ""
    dirty: bool = False


def _checkout() -> _Checkout:
    stored = _PACKAGE / "commit.json"
    if stored.exists():
        fields = json.loads(stored.read_text(encoding="utf-8"))
        return _Checkout(str(fields["commit"]), bool(fields["dirty"]))
    if not (_ROOT / ".git").exists():
        return _Checkout()
    try:
        changes = _git("status", "--porcelain", "--untracked-files=no")
        return _Checkout(_git("rev-parse", "HEAD"), bool(changes))
    except (OSError, subprocess.SubprocessError):
        return _Checkout()


def _git(*arguments: str) -> str:
    """Return the output of a Git command in the checkout of isweep."""
    # If a Git hook runs isweep, Git has set GIT_DIR and similar variables. These variables
    # would select another repository, so they are removed. The variables GIT_CONFIG_* stay,
    # because they contain settings such as safe.directory, which containers need.
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("GIT_") or name.startswith("GIT_CONFIG_")
    }
    finished = subprocess.run(
        ["git", "-C", str(_ROOT), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=GIT_TIMEOUT_S,
        check=True,
    )
    return finished.stdout.strip()


def _package_version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"
