"""Which code and packages made a result; never a host name or a path."""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
from contextlib import suppress
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

from orchestrator.results.records import Provenance

# Where a result came from: code, versions, never a host name or a path.

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

SOURCES = ("search_spaces", "tasks", "orchestrator")

_PACKAGE = Path(__file__).resolve().parents[1]


def code_fingerprint() -> str:
    """Return a hash of our source as it lies here now, the same of a checkout and a wheel of it."""
    files = [path for name in SOURCES for path in sorted((_PACKAGE.parent / name).rglob("*.py"))]
    stats = [path.stat() for path in files]
    return _hash_of(
        tuple((path, s.st_size, s.st_mtime_ns) for path, s in zip(files, stats, strict=True))
    )


@lru_cache(maxsize=1)
def _hash_of(stamped: tuple[tuple[Path, int, int], ...]) -> str:
    found = hashlib.sha256()
    for path, *_ in stamped:
        found.update(
            f"{path.relative_to(_PACKAGE.parent).as_posix()}\0".encode() + path.read_bytes()
        )
    return found.hexdigest()[:16]


@lru_cache(maxsize=1)
def provenance() -> Provenance:
    """Return the code version, whether the checkout had uncommitted changes, and package versions.

    The commit is the checkout's, or the one baked into the installed wheel.
    """

    def version(package: str) -> str:
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            return "absent"

    def git(*words: str) -> str:
        command = ["git", "-C", str(folder), *words]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()

    baked, folder = _PACKAGE / "commit.json", _PACKAGE.parent
    made: dict[str, Any] = {"commit": "", "dirty": False}
    if baked.exists():
        made = json.loads(baked.read_text(encoding="utf-8"))
    elif (folder / ".git").exists():
        with suppress(OSError, subprocess.SubprocessError):
            changes = git("status", "--porcelain", "--untracked-files=no")
            made = {"commit": git("rev-parse", "HEAD"), "dirty": bool(changes)}
    commit, dirty, release = str(made["commit"]), bool(made["dirty"]), version("isweep")
    return Provenance(
        code_version=f"{release}+{commit[:12]}{'.dirty' if dirty else ''}" if commit else release,
        commit=commit,
        dirty=dirty,
        code=code_fingerprint(),
        python=platform.python_version(),
        machine=platform.machine(),
        packages={name: version(name) for name in PACKAGES},
    )
