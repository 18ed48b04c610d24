"""Paths of the product: no other module joins file names."""

from __future__ import annotations

import errno
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from search_spaces.errors import ConfigError, SetupError, SweepError

if TYPE_CHECKING:
    from search_spaces.specs import PreparedSpec

DEFAULT_ROOT = "isweep-root"
"""Folder below the working directory that is the root if none is named."""


def user_cache(name: str) -> Path:
    """Return this user's folder of what can be computed again.

    It may be deleted at any time, and need not exist.
    """
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    except RuntimeError:  # a user without a home
        base = Path(tempfile.gettempdir())
    return base / "isweep" / name


class _Below:
    """A path of a fixed name below a root, or below the folder of a sweep."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, owner: RootPaths | SweepPaths, kind: type) -> Path:
        base = owner.root if isinstance(owner, RootPaths) else owner.folder
        return base / self._name


@dataclass(frozen=True)
class SweepPaths:
    """Paths in the folder of one sweep."""

    folder: Path

    progress = _Below("progress.json")
    """Present state of the driver; it counts only while the root's lock is held."""
    sweep_file = _Below("sweep.yaml")
    """The sweep as it was last run."""
    index = _Below("index.sqlite")
    """Summaries of the sweep's results; may be deleted."""
    run_pages = _Below("run-pages.json")
    """Addresses of the trials' pages in MLflow, when the sweep last ran; may be deleted."""
    code = _Below("code")
    """Source of your own networks as they were last run, so that the name of the sweep suffices."""
    report = _Below("report")
    """Folder of the report."""
    report_made_of = _Below("report.sha256")
    """Hash of what the report was made of, and its files: an unchanged report is not made again."""
    search_report = _Below("search/report")
    """Folder of a search's report."""


@dataclass(frozen=True)
class RootPaths:
    """Paths below one root: prepared data, sweeps, the database of MLflow."""

    root: Path

    lock = _Below("driver.lock")
    """Lock of the driver that works on the root."""
    identity = _Below("driver.id")
    """Name that tells this root from others on one object store."""
    token = _Below("ray-token")
    """Access token of the private cluster that runs now, for its dashboard."""
    mlflow_database = _Below("mlflow.db")
    mlflow_artifacts = _Below("mlflow-artifacts")
    tune = _Below("tune")
    """Ray Tune's own files; nothing is ever read back from them."""
    log = _Below("isweep.log")
    recipes = _Below("recipes")
    """Recipes that searches wrote; sweeps of this root may name them."""

    @classmethod
    def at(cls, root: str | Path | None = None) -> RootPaths:
        """Return the paths of a root; nothing is created.

        Args:
            root: The root; None for ``$ISWEEP_ROOT``, or else ``./isweep-root``.

        Raises:
            ConfigError: The root is a file.
            SetupError: It cannot be a folder, or cannot be read.
        """
        named = root or os.environ.get("ISWEEP_ROOT") or DEFAULT_ROOT
        try:
            path = Path(named).expanduser().absolute()
            named = path
            existing = next(folder for folder in (path, *path.parents) if folder.exists())
            if not existing.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, f"{existing} is a file")
            if not os.access(existing, os.R_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        except (OSError, RuntimeError, ValueError) as error:
            raise _unusable_root(named, error) from None
        return cls(path)

    def make(self) -> RootPaths:
        """Create the root for this user alone, check that it can be written, and return itself.

        Raises:
            ConfigError: The root is a file, or goes away with a Ray cluster.
            SetupError: It cannot be created or written.
        """
        check_outlasts_ray(self.root, "root", "--root")
        try:
            # Prepared images may be patients'. Users who share a root create it themselves first,
            # with the modes that they need.
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            probe = self.root / f".writable-{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise _unusable_root(self.root, error) from None
        return self

    def prepared(self, spec: PreparedSpec) -> Path:
        """Return the folder of one prepared dataset."""
        return self.root / "prepared" / spec.prepared_id

    def pretrained(self, key: str) -> Path:
        """Return the file of weights that a library trained: safetensors, downloaded once."""
        return self.root / "pretrained" / f"{key}.safetensors"

    def tuned_recipe(self, sweep: str) -> Path:
        """Return the file of the recipe that the search of a sweep writes."""
        return self.recipes / f"tuned-{sweep}.yaml"

    def sweep_names(self) -> list[str]:
        """Return the names of the sweeps that ran below this root."""
        folders = (self.root / "sweeps").glob("*")
        # A link to nothing is a damaged sweep, not one that never ran.
        return sorted(folder.name for folder in folders if os.path.lexists(folder / "sweep.yaml"))

    def sweep(self, name: str) -> SweepPaths:
        """Return the paths of one sweep."""
        return SweepPaths(self.root / "sweeps" / name)


def _unusable_root(path: str | Path, error: Exception) -> SweepError:
    """Return why a path cannot be the root."""
    reason: object = error
    if isinstance(error, OSError) and error.strerror:
        reason = error.strerror
    # A file in its place is the user's slip, not the machine's state.
    kind = ConfigError if isinstance(error, NotADirectoryError) else SetupError
    return kind(
        f"{path} cannot be used as the root: {reason}",
        hint="Choose another folder with --root or ISWEEP_ROOT",
    )


def check_outlasts_ray(path: Path, kind: str, option: str) -> None:
    """Refuse a path below a folder that Ray made for one start of itself.

    Args:
        path: The path; links are followed.
        kind: What messages call it.
        option: The option that names another.

    Raises:
        ConfigError: The path would go away with the cluster.
    """
    target = path.resolve()
    for folder in (target, *target.parents):
        if folder.name.startswith("session_") and (folder.parent / "session_latest").is_symlink():
            raise ConfigError(
                f"{path} cannot be the {kind}: it is in a session folder of Ray, which is deleted "
                "with the cluster",
                hint=f"Choose a folder outside the session folder with {option}, as an absolute "
                "path. `ray job submit --working-dir` starts commands in the session folder",
            )
