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

    The folder may not exist yet. The user may delete it: isweep can compute its content again.
    """
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    except RuntimeError:  # the user has no home folder
        base = Path(tempfile.gettempdir())
    return base / "isweep" / name


class _Below:
    """A path with a fixed name below a root, or below the folder of a sweep."""

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
    """State of the driver. It is current only while a driver has locked the root."""
    sweep_file = _Below("sweep.yaml")
    """The sweep as it was last run."""
    index = _Below("index.sqlite")
    """Summaries of the sweep's results. The file may be deleted."""
    run_pages = _Below("run-pages.json")
    """URLs of the trials' pages in MLflow at the last run. The file may be deleted."""
    code = _Below("code")
    """Source code of your own networks at the last run. Commands import it if they get the
    sweep by its name."""
    report = _Below("report")
    """Folder of the report."""
    report_hash = _Below("report.sha256")
    """Hash of the report's inputs and files. If it is unchanged, the report is not built
    again."""
    search_report = _Below("search/report")
    """Folder of a search's report."""


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
    """Ray Tune's own files. isweep never reads them."""
    log = _Below("isweep.log")
    recipes = _Below("recipes")
    """Recipes that searches wrote. Sweeps below this root may refer to them by name."""

    @classmethod
    def at(cls, root: str | Path | None = None) -> RootPaths:
        """Return the paths of a root without creating anything.

        Args:
            root: The root. None means ``$ISWEEP_ROOT``, or ``./isweep-root`` if the variable is not
                set.

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
        """Check that a run could create the root or write to it, without creating anything.

        Raises:
            SetupError: The root, or the folder in which it would be created, cannot be
                written.
        """
        existing = _existing_folder(self.root)
        if not os.access(existing, os.W_OK | os.X_OK):
            error = PermissionError(errno.EACCES, f"{existing} cannot be written")
            raise _unusable_root(self.root, error)

    def make(self) -> RootPaths:
        """Create the root with access for this user only, and return these paths.

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
        # A broken link is a damaged sweep, not a sweep that was never run.
        return sorted(folder.name for folder in folders if os.path.lexists(folder / "sweep.yaml"))

    def sweep(self, name: str) -> SweepPaths:
        """Return the paths of one sweep."""
        return SweepPaths(self.root / "sweeps" / name)


def _existing_folder(path: Path) -> Path:
    """Return a path if it exists, or else the innermost folder above it that exists."""
    return next(folder for folder in (path, *path.parents) if folder.exists())


def _unusable_root(path: Path, error: Exception) -> SweepError:
    """Return an error that a path cannot be the root, with the reason."""
    reason: object = error
    if isinstance(error, OSError) and error.strerror:
        reason = error.strerror
    if isinstance(error, UnicodeEncodeError):
        reason = "its name is not UTF-8 text"
    if isinstance(error, FileNotFoundError):  # a folder of the system, such as /proc
        reason = f"no folder can be created in {path.parent}"
    # A file in its place is a mistake of the user, not a fault of the machine.
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
                "folder. Commands of `ray job submit --working-dir` start in the session "
                "folder, so a relative path would lie in this folder too",
            )
