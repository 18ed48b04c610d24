"""Where a result came from: code, versions, never a host name or a path."""

from __future__ import annotations

import json
import platform
import subprocess
from functools import lru_cache
from importlib import metadata
from pathlib import Path

from orchestrator.results.records import Provenance

PACKAGES = ("torch", "torchvision", "timm", "numpy", "scipy", "scikit-learn", "ray", "mlflow", "zarr")


@lru_cache(maxsize=1)
def provenance() -> Provenance:
    """Return the code version, whether the checkout had uncommitted changes, and package versions."""
    commit, dirty = _commit()
    release = _version("isweep")
    return Provenance(
        code_version=f"{release}+{commit[:12]}{'.dirty' if dirty else ''}" if commit else release,
        commit=commit,
        dirty=dirty,
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
    package = Path(__file__).resolve().parents[2]
    baked = package / "commit.json"
    if baked.exists():
        made = json.loads(baked.read_text(encoding="utf-8"))
        return str(made["commit"]), bool(made["dirty"])
    folder = package.parent
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
