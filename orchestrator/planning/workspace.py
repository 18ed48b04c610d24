"""Find a sweep by its name or file, and the folders of its prepared data and results."""

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
from search_spaces.errors import ConfigError, CorruptStoreError, SweepError, did_you_mean
from search_spaces.sweeps import SweepSpec
from search_spaces.user_code import source_texts
from tasks.atomic import write_atomic
from tasks.prepared.listings import Listings
from tasks.prepared.store import PreparedDataset

URL_WITHOUT_HOST = re.compile(r"\w*:(/*|/?[^/].*)")
"""Pattern of a storage URL without a bucket or host. isweep refuses such a URL. The reason:
isweep appends the name of the sweep to the URL, and the storage would take this name for the
bucket."""


@dataclass
class Workspace:
    """A plan and its folders.

    Attributes:
        plan: The plan.
        paths: Paths below the root.
        storage: Folder or URL in which results are stored. None means the root.
        listings: Cache of the listings of raw data. Because of it, a command lists each
            dataset only once.
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
        prefer_root: bool = False,
    ) -> Workspace:
        """Read a sweep. Create no file or folder.

        Args:
            source: The sweep, see :func:`orchestrator.planning.sweep_file.load_sweep`, or the
                name of a sweep that was run below the root.
            root: The root, see :meth:`RootPaths.at`.
            storage: Folder or URL in which results are stored. None means the root.
            changes: New values by dotted key. They replace values of the sweep.
            prefer_root: If True, choose the sweep that was run below the root, even if a
                preset has the same name.

        Raises:
            SweepError: The sweep or one of the arguments is not valid.
        """
        if not isinstance(source, (str, Path, Mapping, SweepSpec)):
            raise ConfigError(
                f"The sweep is of type {type(source).__name__}, but should be a name, a path, "
                "the content of a sweep file or a SweepSpec",
                hint="Use, for example, 'demo' or './mine.yaml'",
            )
        if not isinstance(changes, (Mapping, NoneType)):
            raise ConfigError(
                f"changes is of type {type(changes).__name__}, but should be a mapping",
                hint="Use, for example, changes={'recipe.epochs': 3}",
            )
        _check_storage(storage)
        paths = RootPaths.at(root)
        listings = Listings()
        load = partial(load_sweep, changes=changes, recipes=paths.recipes, listings=listings)
        sweep = _find(source, paths, load, changes=changes or {}, prefer_root=prefer_root)
        return cls(plan_sweep(sweep), paths, storage, listings)

    def make(self) -> None:
        """Create the root, see :meth:`RootPaths.make`.

        Raises:
            SweepError: The root or the result store cannot be used, or Ray would delete one of
                them.
        """
        folder = re.sub(r"^(file|local)://", "", self.storage or "")
        if folder and "://" not in folder:
            check_outlasts_ray(Path(folder).expanduser().absolute(), "result store", "--storage")
        self.paths.make()

    def write_sweep_file(self) -> None:
        """Write the sweep file into the root, so that commands can load the sweep by its name."""
        self.sweep_paths.folder.mkdir(parents=True, exist_ok=True)
        write_atomic(self.sweep_paths.sweep_file, sweep_text(self.plan.sweep).encode())
        references: set[str] = set()
        for trial in self.plan.trials:
            if trial.network.model.library == "own":
                references.add(trial.network.model.architecture)
        for reference in sorted(references):
            for relative, text in source_texts(reference).items():
                path = self.sweep_paths.code / relative
                path.parent.mkdir(parents=True, exist_ok=True)
                write_atomic(path, text.encode())

    @contextmanager
    def write_sweep_file_if_valid(self) -> Iterator[None]:
        """Write the sweep file into the root, unless the ``with`` block raises an error.

        The file of a new sweep is written before the block, so that other commands can load
        the sweep during the block. If the block raises an error, this file is deleted. The
        file of a sweep that was run before is replaced only after the block.
        """
        is_new = not os.path.lexists(self.sweep_paths.sweep_file)
        if is_new:
            self.write_sweep_file()
        try:
            yield
        except BaseException:
            if is_new:
                self.sweep_paths.sweep_file.unlink(missing_ok=True)
            raise
        self.write_sweep_file()

    def stored_plan(self) -> SweepPlan | None:
        """Return the plan of the sweep with this name that was run last below the root.

        Return None if no such sweep was run, or if its stored file cannot be read.
        """
        if not os.path.lexists(self.sweep_paths.sweep_file):
            return None
        try:
            return Workspace.open(self.plan.sweep.name, str(self.paths.root), prefer_root=True).plan
        except SweepError:
            return None

    @property
    def sweep_paths(self) -> SweepPaths:
        """Paths in the folder of this sweep."""
        return self.paths.sweep(self.plan.sweep.name)

    @property
    def results_url(self) -> str:
        """Folder or object-store URL of the sweep's results."""
        if self.storage:
            return f"{self.storage.rstrip('/')}/{self.plan.sweep.name}"
        return str(self.sweep_paths.folder)

    @property
    def search_url(self) -> str:
        """Folder or object-store URL of the trials of the sweep's search."""
        return f"{self.results_url}/search"

    @cached_property
    def prepared(self) -> dict[str, PreparedDataset]:
        """Undamaged prepared datasets by prepared id.

        They are searched at the first use of this property.
        """
        datasets: dict[str, PreparedDataset] = {}
        for spec in self.plan.prepared:
            folder = self.paths.prepared(spec)
            if folder.exists():
                with suppress(CorruptStoreError):
                    datasets[spec.prepared_id] = PreparedDataset.open(folder)
        return datasets

    def forget_prepared(self) -> None:
        """Forget :attr:`prepared`. Its next use also finds datasets that were prepared since."""
        self.__dict__.pop("prepared", None)


def _check_storage(storage: object) -> None:
    """Raise an error if ``storage`` is not a place where isweep can store results."""
    if storage is None:
        return
    if not isinstance(storage, str):
        raise ConfigError(
            f"`storage` is {storage!r}, which is not text",
            hint="Give a folder or a URL as text, for example 's3://bucket/results'",
        )
    if URL_WITHOUT_HOST.fullmatch(storage):
        raise ConfigError(
            f"`--storage {storage}` has no bucket or host",
            hint="Write, for example, s3://bucket/results",
        )
    if storage and os.path.isfile(os.path.expanduser(storage)):
        raise ConfigError(
            f"`--storage {storage}` is a file, but isweep stores results in a folder",
            hint="Choose a folder",
        )


def _find(
    source: SweepSource,
    paths: RootPaths,
    load: Callable[[SweepSource], SweepSpec],
    *,
    changes: Mapping[str, object],
    prefer_root: bool,
) -> SweepSpec:
    """Return a sweep by its name: a preset, a sweep below the root, or a sweep file.

    Args:
        source: The name, or the sweep itself.
        paths: Paths below the root.
        load: Function that reads the sweep.
        changes: New values that ``load`` sets. A mistake may be in one of them.
        prefer_root: If True, choose the sweep that was run below the root, even if a preset
            has the same name.
    """
    if not isinstance(source, str) or "/" in source:
        return load(source)
    presets = preset_names()
    sweep_file = paths.sweep(source).sweep_file
    is_in_root = os.path.lexists(sweep_file)
    if is_in_root and (prefer_root or source not in presets):
        return _load_from_root(source, paths, load, changes=changes)
    if source in presets:
        return load(source)
    is_file = source.endswith((".yaml", ".yml")) or os.path.exists(source)
    if is_file:
        return load(Path(source))
    names = {*presets, *paths.sweep_names()}
    if paths.root.exists():
        problem = f"{source!r} is not a preset, and not a sweep in the root {paths.root}"
    else:
        problem = f"{source!r} is not a preset, and the root {paths.root} does not exist"
    if os.path.isfile(f"{source}.yaml"):
        hint = f"To use the file {source}.yaml, give its path: ./{source}.yaml"
        raise ConfigError(problem, hint=hint)
    raise ConfigError(
        problem,
        hint=f"{did_you_mean(source, names)}`isweep presets` lists the presets, and `isweep ls` "
        "lists the sweeps of a root",
    )


def _load_from_root(
    name: str,
    paths: RootPaths,
    load: Callable[[SweepSource], SweepSpec],
    *,
    changes: Mapping[str, object],
) -> SweepSpec:
    """Return a sweep that was run below the root, as it was at its last run."""
    path = paths.sweep(name).sweep_file
    find_modules_in(paths.sweep(name).code)
    try:
        sweep = load(path)
    except ConfigError as error:
        if changes:
            raise
        raise ConfigError(
            f"The stored file of the sweep {name!r} cannot be read: {error.problem}",
            hint=f"Delete {path}, and run your sweep file again. All results are kept",
        ) from None
    if sweep.name != name and "name" not in changes:
        raise ConfigError(
            f"The stored file of the sweep {name!r} contains the name {sweep.name!r}: {path}",
            hint="If you renamed the folder or edited the stored file, undo the change. If you "
            f"copied a folder, move the copy out of the root. To run a variant of {sweep.name!r}, "
            "copy your own sweep file, and change the name in the copy",
        )
    return sweep
