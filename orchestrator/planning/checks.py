"""What of a plan the data cannot give, found before Ray starts and before anything is prepared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from orchestrator.planning.plan import Workspace
from search_spaces.errors import ConfigError, DataError, SweepError, collect, nearest_path
from search_spaces.specs import PreparedSpec, SubsetSpec
from tasks.prepared.subsets import make_subset
from tasks.sources import OLD_KINDS, source_for
from tasks.sources.base import RawRequest

COUNTED = ("folder", "table", *OLD_KINDS)
"""Kinds of own data whose images are counted before they are prepared: no image need be opened for it."""
SPLITS = {"": 0, "train": 1, "test": 2}


@dataclass(frozen=True)
class Counted:
    """Labels, groups and splits of images, each ``(num_images,)``, and the names of the classes."""

    labels: NDArray[np.int64]
    groups: NDArray[np.int64]
    splits: NDArray[np.int8]
    label_names: tuple[str, ...]


def check_feasible(workspace: Workspace, raw: Mapping[str, Path] | None = None) -> None:
    """Find every own source that is not there, and every subset that the data cannot give.

    Prepared data are known to the image; of own ones that are not prepared yet, the files are counted where
    that opens none of them.

    Args:
        workspace: The sweep.
        raw: Folders that are read in place of those that the sweep names, by dataset.

    Raises:
        SweepError: naming all of them.
    """
    problems: list[SweepError] = []
    own: dict[str, Path] = {}
    for choice in workspace.plan.sweep.datasets:
        given = (raw or {}).get(choice.name)
        if choice.own is not None and given is None and not Path(choice.own.path).exists():
            rule = f"datasets.{choice.name}.own.path must exist"
            near = nearest_path(Path(choice.own.path))
            way_out = f"a relative path starts at the sweep file; {near}" if near else ""
            problems.append(ConfigError(rule, choice.own.path, way_out))
        elif choice.own is not None and choice.own.kind in COUNTED:
            own[choice.name] = given or Path(choice.own.path)
    collect(problems, ConfigError)
    images: dict[str, Counted] = {}
    for spec in workspace.plan.prepared:
        try:
            found = _images(workspace, spec, own.get(spec.dataset))
        except SweepError as error:
            problems.append(error)
        else:
            images |= {spec.prepared_id: found} if found is not None else {}
    for measure in workspace.plan.measures:
        subset = measure.subset
        there = images.get(subset.prepared.prepared_id)
        if there is not None:
            known = workspace.plan.datasets[subset.prepared.dataset].label_names
            size = max(measure.train_sizes)
            try:
                _check_class_numbers(subset, there.label_names, known)
                make_subset(there.labels, there.groups, subset, there.splits, max_train_size=size)
            except SweepError as error:
                problems.append(_of(subset, there.label_names, error))
    collect(problems, DataError)


def _of(subset: SubsetSpec, names: tuple[str, ...], error: SweepError) -> SweepError:
    """Say of which dataset and classes a problem is: a sweep has several."""
    about = subset.prepared.dataset
    if about in f"{error.rule} {error.value}":
        return error
    if subset.class_pair is not None:
        about += ", classes " + " and ".join(_name(names, label) for label in subset.class_pair)
    return DataError(f"{about}: {error.rule}", error.value, error.way_out)


def _name(names: tuple[str, ...], label: int) -> str:
    return names[label] if label < len(names) else str(label)


def _check_class_numbers(subset: SubsetSpec, names: tuple[str, ...], known: tuple[str, ...]) -> None:
    """Refuse pairs that could be read in two ways: names that are numbers, but not their own places.

    Where the names were known when the sweep was planned, pairs were named, and there is only one way.
    """
    if subset.class_pair is None or known or names == tuple(map(str, range(len(names)))):
        return
    if all(name.lstrip("-").isdigit() for name in names):
        raise DataError(
            "class_pairs number classes by place, from 0, and these classes have other numbers as names",
            f"{subset.prepared.dataset}: places 0 to {len(names) - 1} are classes {', '.join(names[:20])}",
            f"name them as text, e.g. class_pairs: [['{names[0]}', '{names[1]}']]",
        )


def _images(workspace: Workspace, spec: PreparedSpec, raw: Path | None) -> Counted | None:
    """Return what is known of a dataset's images; None where that takes their preparation."""
    data = workspace.prepared.get(spec.prepared_id)
    if data is not None:
        return Counted(data.labels, data.groups, data.splits, data.label_names)
    if raw is None:
        return None
    return counted(RawRequest(workspace.plan.datasets[spec.dataset], spec, raw))


def counted(request: RawRequest) -> Counted | None:
    """Return what own files say by their places and names; None where only reading them tells."""
    listing = source_for(request.dataset.source).list_items(request)
    if not listing.one_each or any(item.label is None for item in listing.items):
        return None
    ids: dict[str, int] = {}
    groups = [
        ids.setdefault(item.group or f"\0{place}", len(ids)) for place, item in enumerate(listing.items)
    ]
    return Counted(
        np.array([item.label for item in listing.items], np.int64),
        np.array(groups, np.int64),
        np.array([SPLITS[item.split] for item in listing.items], np.int8),
        listing.label_names,
    )
