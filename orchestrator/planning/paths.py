"""Every path of the product; nothing else joins file names."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from search_spaces.errors import SetupError
from search_spaces.specs import PreparedSpec

DEFAULT_ROOT = "isweep-root"


@dataclass(frozen=True)
class RootPaths:
    """What lies below one root: prepared data, sweeps, the MLflow database."""

    root: Path

    @classmethod
    def create(cls, root: str | Path | None = None) -> RootPaths:
        """Make the folder ``root`` (default ``$ISWEEP_ROOT``, then ``./isweep-root``) and return its paths.

        Raises:
            SetupError: when the folder cannot be made or written.
        """
        path = Path(root or os.environ.get("ISWEEP_ROOT") or DEFAULT_ROOT).expanduser().absolute()
        try:
            path.mkdir(parents=True, exist_ok=True)
            probe = path / f".writable-{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise SetupError(
                "The root must be a folder that can be written",
                f"{path}: {error.strerror or error}",
                "choose another with --root or ISWEEP_ROOT",
            ) from None
        return cls(path)

    @property
    def lock(self) -> Path:
        """Held by the one driver that works on this root."""
        return self.root / "driver.lock"

    @property
    def mlflow_database(self) -> Path:
        """SQLite file of the default MLflow store."""
        return self.root / "mlflow.db"

    @property
    def mlflow_artifacts(self) -> Path:
        """Artifacts of the default MLflow store."""
        return self.root / "mlflow-artifacts"

    @property
    def tune(self) -> Path:
        """Ray Tune's own state; scratch, nothing is ever read back from it."""
        return self.root / "tune"

    @property
    def log(self) -> Path:
        """Log of all commands."""
        return self.root / "isweep.log"

    def prepared(self, spec: PreparedSpec) -> Path:
        """Folder of one prepared dataset."""
        return self.root / "prepared" / spec.prepared_id

    def sweep(self, name: str) -> SweepPaths:
        """Paths of one sweep."""
        return SweepPaths(self.root / "sweeps" / name)


@dataclass(frozen=True)
class SweepPaths:
    """What lies in one sweep's folder."""

    folder: Path

    @property
    def progress(self) -> Path:
        """What the driver is doing now; believed only while the root's lock is held."""
        return self.folder / "progress.json"

    @property
    def report(self) -> Path:
        """Folder of the report, its figures and tables."""
        return self.folder / "report"
