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


def user_cache(name: str) -> Path:
    """Return this user's folder of what can be found out again; it may be thrown away, or never be
    made.
    """
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    except RuntimeError:  # of a user without a home
        base = Path(tempfile.gettempdir())
    return base / "isweep" / name


class _Below:
    """A path below a root, or the folder of a sweep."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, owner: RootPaths | SweepPaths, kind: type) -> Path:
        return (owner.root if isinstance(owner, RootPaths) else owner.folder) / self._name


@dataclass(frozen=True)
class SweepPaths:
    """What lies in one sweep's folder."""

    folder: Path

    progress = _Below("progress.json")
    """What the driver is doing now; believed only while the root's lock is held."""
    sweep_file = _Below("sweep.yaml")
    index = _Below("index.sqlite")
    """Outlines of the sweep's results; may be thrown away."""
    run_pages = _Below("run-pages.json")
    """Where the tracker showed the trials when the sweep last ran; may be thrown away."""
    code = _Below("code")
    """Source of one's own networks as it was last run: the sweep's name finds it from anywhere."""
    report = _Below("report")
    report_made_of = _Below("report.sha256")
    """What the report was made of, and its files: where nothing changed, a run leaves it as it
    is."""
    search_report = _Below("search/report")


@dataclass(frozen=True)
class RootPaths:
    """What lies below one root: prepared data, sweeps, the MLflow database."""

    root: Path

    lock = _Below("driver.lock")
    identity = _Below("driver.id")
    """What tells this root from others on one object store."""
    token = _Below("ray-token")
    """Access token of the private cluster that runs now, for its dashboard."""
    mlflow_database = _Below("mlflow.db")
    mlflow_artifacts = _Below("mlflow-artifacts")
    tune = _Below("tune")
    """Ray Tune's own state; scratch, nothing is ever read back from it."""
    log = _Below("isweep.log")
    recipes = _Below("recipes")
    """Of searches; sweeps of this root may name them."""

    @classmethod
    def at(cls, root: str | Path | None = None) -> RootPaths:
        """Return the paths of ``root`` (default ``$ISWEEP_ROOT``, then ``./isweep-root``); nothing
        is made.

        ConfigError where ``root`` is a file, SetupError where it can be no folder, or none that can
        be read.
        """
        named = root or os.environ.get("ISWEEP_ROOT") or DEFAULT_ROOT
        try:
            named = path = Path(named).expanduser().absolute()
            base = next(folder for folder in (path, *path.parents) if folder.exists())
            if not base.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, f"{base} is a file")
            if not os.access(base, os.R_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        except (OSError, RuntimeError, ValueError) as error:
            raise _no_root(named, error) from None
        return cls(path)

    def make(self) -> RootPaths:
        """Make the folder, for this user alone, and see that it can be written and will stay;
        returns itself.

        ConfigError where it lies in a session folder of Ray, which goes with the cluster; else
        SetupError.
        """
        check_outlasts_ray(self.root, "root", "--root")
        try:
            # Prepared images are patients'; who shares a root makes it first, with the modes that
            # suit.
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            probe = self.root / f".writable-{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise _no_root(self.root, error) from None
        return self

    def prepared(self, spec: PreparedSpec) -> Path:
        """Folder of one prepared dataset."""
        return self.root / "prepared" / spec.prepared_id

    def pretrained(self, key: str) -> Path:
        """Weights that a library trained, downloaded once: a safetensors file."""
        return self.root / "pretrained" / f"{key}.safetensors"

    def tuned_recipe(self, sweep: str) -> Path:
        """The recipe that the search of a sweep writes."""
        return self.recipes / f"tuned-{sweep}.yaml"

    def sweep_names(self) -> list[str]:
        """Names of the sweeps that ran below this root."""
        folders = (self.root / "sweeps").glob("*")
        # A link that leads nowhere is a damaged sweep, and none that never ran.
        return sorted(folder.name for folder in folders if os.path.lexists(folder / "sweep.yaml"))

    def sweep(self, name: str) -> SweepPaths:
        """Paths of one sweep."""
        return SweepPaths(self.root / "sweeps" / name)


def _no_root(path: str | Path, error: Exception) -> SweepError:
    reason = (error.strerror if isinstance(error, OSError) else None) or error
    # A file in its place is the user's slip, not the machine's state.
    kind = ConfigError if isinstance(error, NotADirectoryError) else SetupError
    hint = "choose another with --root or ISWEEP_ROOT"
    return kind("The root must be a folder that can be written", f"{path}: {reason}", hint)


def check_outlasts_ray(path: Path, what: str, option: str) -> None:
    """Refuse a path, links followed, below a folder that Ray made for one start of itself; says for
    what.
    """
    found = path.resolve()
    for folder in (found, *found.parents):
        if folder.name.startswith("session_") and (folder.parent / "session_latest").is_symlink():
            raise ConfigError(
                f"The {what} must outlive the cluster, and a session folder of Ray does not",
                str(path),
                (
                    f"name another with {option}, absolute; `ray job submit --working-dir` starts "
                    "commands there"
                ),
            )
