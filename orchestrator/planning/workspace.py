"""One sweep below one root: its plan, its paths, its prepared data."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType

from orchestrator.planning.paths import RootPaths, SweepPaths, check_outlasts_ray
from orchestrator.planning.plan import SweepPlan, plan_sweep
from orchestrator.planning.sweep_file import (
    SweepSource,
    find_modules_in,
    load_sweep,
    preset_names,
    sweep_text,
)
from search_spaces.errors import ConfigError, CorruptStoreError, unknown_name
from search_spaces.own_code import source_texts
from search_spaces.specs import PreparedSpec
from search_spaces.sweeps import SweepSpec
from tasks.atomic import write_atomic
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
    def open(
        cls,
        source: SweepSource,
        root: str | None = None,
        storage: str | None = None,
        *,
        changes: Mapping[str, object] | None = None,
        as_run: bool = False,
    ) -> Workspace:
        """Read a sweep and find its place below ``root``.

        Args:
            source: See :func:`load_sweep`; also the name of a sweep that ran below the root.
            root: See :meth:`RootPaths.at`; it need not exist, and is not made.
            storage: See :class:`Workspace`.
            changes: See :func:`load_sweep`.
            as_run: Of a name that is both, take the sweep that ran below the root rather than the preset.

        Raises:
            SweepError: for whatever is wrong with the sweep or the root.
        """
        _check_types(source, changes, storage)
        paths = RootPaths.at(root)
        if storage and re.fullmatch(r"\w*:(/*|/?[^/].*)", storage):
            # A sweep's name put behind it would be taken for the bucket, or for a folder here.
            raise ConfigError("--storage must name a bucket or host", storage, "e.g. s3://bucket/results")
        if storage and os.path.isfile(os.path.expanduser(storage)):
            raise ConfigError("--storage must be a folder", f"{storage} is a file", "name another")
        return cls(plan_sweep(_find(source, paths, changes, as_run=as_run)), paths, storage)

    def make(self) -> None:
        """Make the root, see :meth:`RootPaths.make`.

        Raises:
            SweepError: when it cannot be, or results would lie where they go with a cluster.
        """
        folder = re.sub(r"^(file|local)://", "", self.storage or "")
        if folder and "://" not in folder:
            check_outlasts_ray(Path(folder).expanduser().absolute(), "result store", "--storage")
        self.paths.make()

    def record(self) -> None:
        """Keep the sweep below the root, where its name is enough to find it again."""
        self.sweep_paths.folder.mkdir(parents=True, exist_ok=True)
        write_atomic(self.sweep_paths.sweep_file, sweep_text(self.plan.sweep).encode())
        models = {trial.network.model for trial in self.plan.trials}
        for reference in sorted(model.architecture for model in models if model.library == "own"):
            for relative, text in source_texts(reference).items():
                path = self.sweep_paths.code / relative
                path.parent.mkdir(parents=True, exist_ok=True)
                write_atomic(path, text.encode())

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
    def search_url(self) -> str:
        """Where the trials of the sweep's search are kept, likewise."""
        return f"{self.results_url}/search"

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


def _check_types(source: object, changes: object, storage: object) -> None:
    """Answer a caller in Python as a command line would be, which can give nothing else."""
    if not isinstance(source, (str, Path, Mapping, SweepSpec)):
        rule = "A sweep must be a name, a path, the content of a sweep file or a SweepSpec"
        raise ConfigError(rule, type(source).__name__)
    if changes is not None and not isinstance(changes, Mapping):
        raise ConfigError(
            "changes must be a mapping", type(changes).__name__, "e.g. changes={'recipe.epochs': 3}"
        )
    if not isinstance(storage, (str, NoneType)):
        raise ConfigError("storage must be text: a folder or a URL", repr(storage))


def _find(
    source: SweepSource, paths: RootPaths, changes: Mapping[str, object] | None, *, as_run: bool
) -> SweepSpec:
    if isinstance(source, str) and "/" not in source:
        if (as_run or source not in preset_names()) and os.path.lexists(paths.sweep(source).sweep_file):
            return _recorded(source, paths, changes)
        known = {*preset_names(), *paths.sweep_names()}
        if source not in known and not source.endswith((".yaml", ".yml")):
            if os.path.isfile(source):
                return load_sweep(Path(source), changes, recipes=paths.recipes)
            kind = "preset or sweep of this root" if paths.sweep_names() else "preset"
            raise unknown_name(kind, source, known)
    return load_sweep(source, changes, recipes=paths.recipes)


def _recorded(name: str, paths: RootPaths, changes: Mapping[str, object] | None) -> SweepSpec:
    """Read the sweep that ran below the root under this name.

    Raises:
        ConfigError: naming its file, which the user did not, where that is damaged.
    """
    path = paths.sweep(name).sweep_file
    find_modules_in(paths.sweep(name).code)
    try:
        return load_sweep(path, changes, recipes=paths.recipes)
    except ConfigError as error:
        if changes:
            raise
        raise ConfigError(
            f"The sweep {name!r} as it was last run must be whole in {path}",
            str(error).rstrip("."),
            "remove what is there and run the sweep file that it came from: all results stay",
        ) from None
