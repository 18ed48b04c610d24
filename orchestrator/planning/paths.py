"""Paths of the files and folders that isweep writes below a root and in the user's cache."""

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
"""The root if neither ``--root`` nor ``ISWEEP_ROOT`` is set. It is relative to the working
directory."""


def user_cache(name: str) -> Path:
    """Return one of this user's cache folders.

    The folder may not exist yet. The user may delete the folder, because isweep can compute
    its content again.
    """
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    except RuntimeError:  # the user has no home folder
        base = Path(tempfile.gettempdir())
    return base / "isweep" / name


class _Below:
    """A path with a fixed name in a root, or in the folder of a sweep."""

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
    """File with the state of the driver. The file is up to date only while a driver has locked
    the root."""
    sweep_file = _Below("sweep.yaml")
    """Sweep file with the sweep as it was last run."""
    index = _Below("index.sqlite")
    """Index with the outlines of the sweep's results. The user may delete the file."""
    run_pages = _Below("run-pages.json")
    """File with the URLs of the trials' pages in MLflow, as of the last run. The user may
    delete the file."""
    code = _Below("code")
    """Folder with the source code of your own networks, as of the last run. If a command gets
    the sweep by its name, it imports this code."""
    report = _Below("report")
    """Folder of the report."""
    report_hash = _Below("report.sha256")
    """File with the hash of the report's inputs and files. If the hash is unchanged, isweep
    does not build the report again."""
    search_report = _Below("search/report")
    """Folder of the report of the sweep's search."""


@dataclass(frozen=True)
class RootPaths:
    """Paths below one root: prepared data, sweeps and the MLflow database."""

    root: Path

    lock = _Below("driver.lock")
    """Lock file of the driver that uses the root."""
    identity = _Below("driver.id")
    """Random id of this root. It distinguishes roots that share one object store."""
    token = _Below("ray-token")
    """Access token for the dashboard of the private Ray cluster that is running."""
    mlflow_database = _Below("mlflow.db")
    mlflow_artifacts = _Below("mlflow-artifacts")
    tune = _Below("tune")
    """Folder with files that Ray Tune writes. isweep never reads them."""
    log = _Below("isweep.log")
    recipes = _Below("recipes")
    """Folder with recipes that searches wrote. Sweeps of this root may refer to them by
    name."""

    @classmethod
    def at(cls, root: str | Path | None = None) -> RootPaths:
        """Return the paths of a root without creating anything.

        Args:
            root: The root. None means ``$ISWEEP_ROOT``, or ``./isweep-root`` if the variable
                is not set.

        Raises:
            ConfigError: The root is a file, or a link to a missing folder.
            SetupError: The path cannot be a folder, or cannot be read.
        """
        path = Path(root or os.environ.get("ISWEEP_ROOT") or DEFAULT_ROOT)
        try:
            path = path.expanduser().absolute()
            if path.is_symlink() and not path.exists():
                raise NotADirectoryError(errno.ENOTDIR, "it is a link to a missing folder")
            os.fspath(path).encode()  # Ray and MLflow read the path as UTF-8
            existing = _existing_folder(path)
            if not existing.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, f"{existing} is a file")
            if not os.access(existing, os.R_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        except (OSError, RuntimeError, ValueError) as error:
            raise _unusable_root(path, error) from None
        return cls(path)

    def check_writable(self) -> None:
        """Check that a run could create the root or write to it. Create nothing.

        Raises:
            SetupError: The root, or the folder in which it would be created, cannot be
                written.
        """
        existing = _existing_folder(self.root)
        if not os.access(existing, os.W_OK | os.X_OK):
            error = PermissionError(errno.EACCES, f"{existing} cannot be written")
            raise _unusable_root(self.root, error)

    def make(self) -> RootPaths:
        """Create the root so that only this user can access it, and return its paths.

        Raises:
            ConfigError: The root is a file, or Ray would delete it with its cluster.
            SetupError: The root cannot be created or written.
        """
        check_outlasts_ray(self.root, "root", "--root")
        try:
            # Prepared images may show patients. Users who share a root must create it
            # themselves first, with the file modes that they need.
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
        """Return the safetensors file of pretrained weights, which is downloaded once."""
        return self.root / "pretrained" / f"{key}.safetensors"

    def tuned_recipe(self, sweep: str) -> Path:
        """Return the recipe file that the search of a sweep writes."""
        return self.recipes / f"tuned-{sweep}.yaml"

    def sweep_names(self) -> list[str]:
        """Return the names of the sweeps that were run below this root."""
        folders = (self.root / "sweeps").glob("*")
        # A broken link also counts, because it is a damaged sweep, not a sweep that was never
        # run.
        return sorted(folder.name for folder in folders if os.path.lexists(folder / "sweep.yaml"))

    def sweep(self, name: str) -> SweepPaths:
        """Return the paths of one sweep."""
        return SweepPaths(self.root / "sweeps" / name)


def _existing_folder(path: Path) -> Path:
    """Return a path if it exists. Otherwise return the innermost existing folder above it."""
    return next(folder for folder in (path, *path.parents) if folder.exists())


def _unusable_root(path: Path, error: Exception) -> SweepError:
    """Return an error which says why a path cannot be the root."""
    reason: object = error
    if isinstance(error, OSError) and error.strerror:
        reason = error.strerror
    if isinstance(error, UnicodeEncodeError):
        reason = "its name is not UTF-8 text"
    if isinstance(error, FileNotFoundError):  # a folder of the system, such as /proc
        reason = f"no folder can be created in {path.parent}"
    # If a file has this path, the user made a mistake. Otherwise the machine is at fault.
    kind = ConfigError if isinstance(error, NotADirectoryError) else SetupError
    return kind(
        f"{os.fsencode(path).decode(errors='replace')} cannot be used as the root: {reason}",
        hint="Choose another folder with --root or ISWEEP_ROOT",
    )


def check_outlasts_ray(path: Path, kind: str, option: str) -> None:
    """Raise an error if a path is in a folder that Ray deletes with its cluster.

    Args:
        path: The path. Links are resolved.
        kind: Word for the path in messages.
        option: Command-line option that sets another path.

    Raises:
        ConfigError: The path is in a session folder of Ray.
    """
    target = path.resolve()
    for folder in (target, *target.parents):
        if folder.name.startswith("session_") and (folder.parent / "session_latest").is_symlink():
            raise ConfigError(
                f"{path} cannot be the {kind}: it is in a session folder of Ray. Ray deletes "
                "this folder when the cluster ends",
                hint=f"With {option}, give the absolute path of a folder outside the session "
                "folder. `ray job submit --working-dir` starts commands in the session folder, so "
                "a relative path would also be in this folder",
            )
