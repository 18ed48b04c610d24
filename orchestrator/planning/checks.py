"""What of a plan the data cannot give, found before Ray starts and before anything is prepared."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from orchestrator.planning.plan import Workspace
from search_spaces.errors import ConfigError, DataError, SweepError, collect, nearest_path
from search_spaces.specs import SubsetSpec
from tasks.prepared.parts import SPLIT_CODES
from tasks.prepared.prepare import list_raw
from tasks.prepared.subsets import make_subset
from tasks.sources.base import Listing, RawRequest, hash_key


@dataclass(frozen=True)
class Counted:
    """Labels, groups and splits of images, each ``(num_images,)``, and the names of the classes."""

    labels: NDArray[np.int64]
    groups: NDArray[np.int64]
    splits: NDArray[np.int8]
    label_names: tuple[str, ...]


def check_feasible(workspace: Workspace, raw: Mapping[str, Path] | None = None) -> dict[str, int]:
    """Find every own source that is not there or contradicts itself, and every subset that data cannot give.

    Prepared data are known to the image. Own data that are not prepared yet are listed, which finds what is
    wrong with labels, groups, splits and names of files; no image is opened.

    Args:
        workspace: The sweep.
        raw: Folders that are read in place of those that the sweep names, by dataset.

    Returns:
        How many files of own data (rows, volumes) were listed and not opened, by prepared id.

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
        elif choice.own is not None:
            own[choice.name] = given or Path(choice.own.path)
    collect(problems, ConfigError)
    images: dict[str, Counted] = {}
    unopened: dict[str, int] = {}
    for spec in workspace.plan.prepared:
        found, data = None, workspace.prepared.get(spec.prepared_id)
        try:
            if data is not None:
                found = Counted(data.labels, data.groups, data.splits, data.label_names)
            elif spec.dataset in own:
                # By the root's key, if there is a root, isweep locate finds what a message names.
                keys = workspace.paths.prepared(spec).parent
                key = hash_key(keys) if os.access(workspace.paths.root, os.W_OK) else "unkeyed"
                dataset = workspace.plan.datasets[spec.dataset]
                listing = list_raw(RawRequest(dataset, spec, own[spec.dataset], key))
                unopened[spec.prepared_id] = len(listing.items)
                found = counted(listing)
        except SweepError as error:
            problems.append(error)
        if found is not None:
            images[spec.prepared_id] = found
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
    return unopened


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


def counted(listing: Listing) -> Counted | None:
    """Return what own files say by their places and names; None where only reading them tells."""
    if not listing.one_each or any(item.label is None for item in listing.items):
        return None
    ids: dict[str, int] = {}
    groups = [
        ids.setdefault(item.group or f"\0{place}", len(ids)) for place, item in enumerate(listing.items)
    ]
    return Counted(
        np.array([item.label for item in listing.items], np.int64),
        np.array(groups, np.int64),
        np.array([SPLIT_CODES[item.split] for item in listing.items], np.int8),
        listing.label_names,
    )
