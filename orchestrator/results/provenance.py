"""Provenance: which code and packages make the results of this process."""

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
"""Packages whose versions are stored with a result, because they can change its numbers."""
SOURCES = ("search_spaces", "tasks", "orchestrator")
"""Packages of this program whose source is hashed."""
GIT_TIMEOUT_S = 10
"""Seconds for one Git command; a checkout on a slow network disk needs some."""
_PACKAGE = Path(__file__).resolve().parents[1]
_ROOT = _PACKAGE.parent


@dataclass(frozen=True)
class _SourceFile:
    """A source file, and what changes when it is edited."""

    path: Path
    num_bytes: int
    modified_ns: int


def code_fingerprint() -> str:
    """Return a hash of this program's source as it is on the disk now.

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

    The commit is the checkout's, or the one that was stored in the installed wheel.
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
    """The commit of the code, empty if unknown, and whether files differ from it."""

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
    """Return what a Git command prints about the checkout of this program."""
    # GIT_DIR and the like, which Git sets for hooks, would name another repository. Settings such
    # as safe.directory come in GIT_CONFIG_*, and are needed in containers.
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
