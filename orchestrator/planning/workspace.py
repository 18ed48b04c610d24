"""One sweep below one root: its plan, its paths, its prepared data."""

from __future__ import annotations

from dataclasses import dataclass, field

from orchestrator.planning.paths import RootPaths, SweepPaths
from orchestrator.planning.plan import SweepPlan, plan_sweep
from orchestrator.planning.sweep_file import load_sweep
from search_spaces.errors import CorruptStoreError
from search_spaces.specs import PreparedSpec
from tasks.prepared.dataset import PreparedDataset


@dataclass
class Workspace:
    """A plan and the places that belong to it.

    Attributes:
        plan: The whole grid.
        paths: What lies below the root.
        storage: fsspec URL below which results are kept; None keeps them below the root.
    """

    plan: SweepPlan
    paths: RootPaths
    storage: str | None = None
    _prepared: dict[str, PreparedDataset] | None = field(default=None, init=False, repr=False)

    @classmethod
    def open(cls, preset: str, root: str | None = None, storage: str | None = None) -> Workspace:
        """Read ``preset`` and find its place below ``root``.

        Args:
            preset: A preset's name or a sweep file's path.
            root: See :meth:`RootPaths.at`; it need not exist, and is not made.
            storage: See :class:`Workspace`.

        Raises:
            SweepError: for whatever is wrong with the preset or the root.
        """
        return cls(plan_sweep(load_sweep(preset)), RootPaths.at(root), storage)

    @property
    def sweep_paths(self) -> SweepPaths:
        """Paths of this sweep."""
        return self.paths.sweep(self.plan.sweep.name)

    @property
    def results_url(self) -> str:
        """Where the sweep's results are kept: a folder or an fsspec URL."""
        if self.storage:
            return f"{self.storage.rstrip('/')}/{self.plan.sweep.name}"
        return str(self.sweep_paths.folder)

    @property
    def prepared(self) -> dict[str, PreparedDataset]:
        """Prepared datasets that are whole, by prepared id; looked for once, see :meth:`look_again`."""
        if self._prepared is None:
            found = {spec.prepared_id: open_prepared(self.paths, spec) for spec in self.plan.prepared}
            self._prepared = {name: data for name, data in found.items() if data is not None}
        return self._prepared

    def look_again(self) -> None:
        """Forget which datasets are prepared: some were prepared since."""
        self._prepared = None


def open_prepared(paths: RootPaths, spec: PreparedSpec) -> PreparedDataset | None:
    """Open a prepared dataset; None when it is missing or not whole."""
    folder = paths.prepared(spec)
    if not folder.exists():
        return None
    try:
        return PreparedDataset.open(folder)
    except CorruptStoreError:
        return None
