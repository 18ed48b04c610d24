"""A plan with its folders: where its prepared data and results are."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from types import NoneType

from orchestrator.planning.paths import RootPaths, SweepPaths, check_outlasts_ray
from orchestrator.planning.plan import SweepPlan, plan_sweep
from orchestrator.planning.sweep_file import SweepSource, find_modules_in, load_sweep, sweep_text
from orchestrator.planning.written_files import preset_names
from search_spaces.errors import ConfigError, CorruptStoreError, unknown_name
from search_spaces.models import source_texts
from search_spaces.sweeps import SweepSpec
from tasks.atomic import write_atomic
from tasks.prepared.listings import Listings
from tasks.prepared.store import PreparedDataset


@dataclass
class Workspace:
    """A plan and the places that belong to it; results are kept below ``storage``, or else below
    the root.
    """

    plan: SweepPlan
    paths: RootPaths
    storage: str | None = None
    listings: Listings = field(default_factory=Listings)

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
        """Read a sweep, see :func:`load_sweep`, or one that ran below ``root``, which is not made.

        A name of both a preset and such a sweep is the latter ``as_run``.
        """
        if not isinstance(source, (str, Path, Mapping, SweepSpec)):
            rule = "A sweep must be a name, a path, the content of a sweep file or a SweepSpec"
            raise ConfigError(rule, type(source).__name__, "e.g. 'demo' or './mine.yaml'")
        if not isinstance(changes, (Mapping, NoneType)):
            hint = "e.g. changes={'recipe.epochs': 3}"
            raise ConfigError("changes must be a mapping", type(changes).__name__, hint)
        if not isinstance(storage, (str, NoneType)):
            raise ConfigError("storage must be text: a folder or a URL", repr(storage))
        paths = RootPaths.at(root)
        if storage and re.fullmatch(r"\w*:(/*|/?[^/].*)", storage):
            # A sweep's name put behind it would be taken for the bucket, or for a folder here.
            raise ConfigError(
                "--storage must name a bucket or host", storage, "e.g. s3://bucket/results"
            )
        if storage and os.path.isfile(os.path.expanduser(storage)):
            raise ConfigError("--storage must be a folder", f"{storage} is a file", "name another")
        listings = Listings()
        load = partial(load_sweep, changes=changes, recipes=paths.recipes, listings=listings)
        sweep = _find(source, paths, load, has_changes=bool(changes), as_run=as_run)
        return cls(plan_sweep(sweep), paths, storage, listings)

    def make(self) -> None:
        """Make the root, see :meth:`RootPaths.make`; refuse a result store that would go with a
        cluster.
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

    @contextmanager
    def recorded_while_checked(self) -> Iterator[None]:
        """Keep a new sweep at once, others when the block ends; one that is refused in it leaves no
        trace.
        """
        is_new = not os.path.lexists(self.sweep_paths.sweep_file)
        if is_new:
            self.record()
        try:
            yield
        except BaseException:
            if is_new:
                self.sweep_paths.sweep_file.unlink(missing_ok=True)
            raise
        self.record()

    @property
    def sweep_paths(self) -> SweepPaths:
        """Paths of this sweep."""
        return self.paths.sweep(self.plan.sweep.name)

    @property
    def results_url(self) -> str:
        """Where the sweep's results are kept: a folder or the URL of an object store."""
        if self.storage:
            return f"{self.storage.rstrip('/')}/{self.plan.sweep.name}"
        return str(self.sweep_paths.folder)

    @property
    def search_url(self) -> str:
        """Where the trials of the sweep's search are kept, likewise."""
        return f"{self.results_url}/search"

    @cached_property
    def prepared(self) -> dict[str, PreparedDataset]:
        """Prepared datasets that are whole, by prepared id; looked for once, see
        :meth:`look_again`.
        """
        found: dict[str, PreparedDataset] = {}
        for spec in self.plan.prepared:
            folder = self.paths.prepared(spec)
            with suppress(CorruptStoreError):
                found |= {spec.prepared_id: PreparedDataset.open(folder)} if folder.exists() else {}
        return found

    def look_again(self) -> None:
        """Forget which datasets are prepared: some were prepared since."""
        self.__dict__.pop("prepared", None)


def _find(
    source: SweepSource,
    paths: RootPaths,
    load: Callable[[SweepSource], SweepSpec],
    *,
    has_changes: bool,
    as_run: bool,
) -> SweepSpec:
    if not isinstance(source, str) or "/" in source:
        return load(source)
    path, known = paths.sweep(source).sweep_file, {*preset_names(), *paths.sweep_names()}
    if not os.path.lexists(path) or (source in preset_names() and not as_run):
        if (
            source not in known
            and not source.endswith((".yaml", ".yml"))
            and not os.path.exists(source)
        ):
            if os.path.isfile(f"{source}.yaml"):
                raise ConfigError("A sweep file has an ending", source, f"write ./{source}.yaml")
            raise unknown_name(f"preset or sweep of {paths.root}", source, known)
        return load(source if source in known else Path(source))
    find_modules_in(paths.sweep(source).code)
    try:
        return load(path)
    except ConfigError as error:
        if has_changes:
            raise
        raise ConfigError(
            f"The sweep {source!r} as it was last run must be whole in {path}",
            str(error).rstrip("."),
            "remove what is there and run the sweep file that it came from: all results stay",
        ) from None
