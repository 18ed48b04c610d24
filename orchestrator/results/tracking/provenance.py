"""Where a result came from: code, versions, never a host name or a path."""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
from functools import lru_cache
from importlib import metadata
from pathlib import Path

import orchestrator
from orchestrator.results.records import Provenance

PACKAGES = ("torch", "torchvision", "timm", "numpy", "scipy", "scikit-learn", "ray", "mlflow", "zarr")


SOURCES = ("search_spaces", "tasks", "orchestrator")
_PACKAGE = Path(orchestrator.__file__).resolve().parent
_hashed: dict[tuple[tuple[str, int, int], ...], str] = {}


def code_fingerprint() -> str:
    """Return a hash of our source as it lies on this machine now; a checkout and a wheel of it give the same.

    Files are read again only when one has changed.
    """
    root = _PACKAGE.parent
    files = [path for name in SOURCES for path in sorted((root / name).rglob("*.py"))]
    about = [path.stat() for path in files]
    stamps = tuple((str(p), a.st_size, a.st_mtime_ns) for p, a in zip(files, about, strict=True))
    if stamps not in _hashed:
        found = hashlib.sha256()
        for path in files:
            found.update(f"{path.relative_to(root).as_posix()}\0".encode() + path.read_bytes())
        _hashed.clear()
        _hashed[stamps] = found.hexdigest()[:16]
    return _hashed[stamps]


@lru_cache(maxsize=1)
def provenance() -> Provenance:
    """Return the code version, whether the checkout had uncommitted changes, and package versions."""
    commit, dirty = _commit()
    release = _version("isweep")
    return Provenance(
        code_version=f"{release}+{commit[:12]}{'.dirty' if dirty else ''}" if commit else release,
        commit=commit,
        dirty=dirty,
        code=code_fingerprint(),
        python=platform.python_version(),
        machine=platform.machine(),
        packages={name: _version(name) for name in PACKAGES},
    )


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"


def _commit() -> tuple[str, bool]:
    """Return the commit of the checkout, or the one baked into the installed wheel."""
    baked = _PACKAGE / "commit.json"
    if baked.exists():
        made = json.loads(baked.read_text(encoding="utf-8"))
        return str(made["commit"]), bool(made["dirty"])
    folder = _PACKAGE.parent
    if not (folder / ".git").exists():
        return "", False
    try:
        head = _git(folder, "rev-parse", "HEAD")
        return head, bool(_git(folder, "status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):
        return "", False


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=True
    )
    return done.stdout.strip()
