"""What one's data can give: checked before anything is prepared."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from orchestrator.planning.workspace import Workspace
from search_spaces.errors import ConfigError, DataError, SweepError, collect, nearest_path
from search_spaces.specs import SubsetSpec
from tasks.prepared.parts import SPLIT_CODES
from tasks.prepared.store import PreparedDataset
from tasks.prepared.subsets import make_subset
from tasks.sources.base import UNKEYED, Listing, RawRequest, hash_key


@dataclass(frozen=True)
class Counted:
    """Labels, groups and splits of images, each ``(num_images,)``, and the names of the classes."""

    labels: NDArray[np.int64]
    groups: NDArray[np.int64]
    splits: NDArray[np.int8]
    label_names: tuple[str, ...]


def counted(listing: Listing) -> Counted | None:
    """Return what own files say by their places and names; None where only reading them tells."""
    if not listing.one_image_per_item or any(item.label is None for item in listing.items):
        return None
    ids: dict[str, int] = {}
    groups = [
        ids.setdefault(item.group or f"\0{place}", len(ids))
        for place, item in enumerate(listing.items)
    ]
    return Counted(
        np.array([item.label for item in listing.items], np.int64),
        np.array(groups, np.int64),
        np.array([SPLIT_CODES[item.split] for item in listing.items], np.int8),
        listing.label_names,
    )


def check_feasible(
    workspace: Workspace, raw: Mapping[str, Path] | None = None
) -> dict[str, Listing]:
    """Find every own source that is not there or contradicts itself, and every subset that data
    cannot give.

    Own data that are not prepared yet are listed, in the folder that ``raw`` names or else the
    sweep, which finds what is wrong with labels, groups, splits and names of files. Returns what
    was listed of them, and not opened, by prepared id.
    """
    plan, own = workspace.plan, _own_data(workspace, raw or {})
    problems: list[SweepError] = []
    images: dict[str, PreparedDataset | Counted | None] = {}
    unopened: dict[str, Listing] = {}
    for spec in plan.prepared:
        dataset = plan.datasets[spec.dataset]
        there: PreparedDataset | Counted | None = workspace.prepared.get(spec.prepared_id)
        if there is None and dataset.images_per_class and not spec.dials:
            # A set that a package ships: at best each image is its own group.
            labels = np.repeat(np.arange(len(dataset.label_names)), dataset.images_per_class)
            splits = np.zeros(len(labels), np.int8)
            there = Counted(labels, np.arange(len(labels)), splits, dataset.label_names)
        if there is None and spec.dataset in own:
            key = names_key(workspace.paths.root)
            try:
                listing = workspace.listings.of(RawRequest(dataset, spec, own[spec.dataset], key))
                unopened[spec.prepared_id] = listing
                there = counted(listing)
            except SweepError as error:
                problems.append(error)
        images[spec.prepared_id], names = there, dataset.label_names
        if there is not None and spec.dataset in own and names not in ((), there.label_names):
            rule = (
                f"datasets.{spec.dataset}.own.class_names must be the classes of the data, in "
                "their order"
            )
            found = f"{', '.join(names)}; classes: {', '.join(there.label_names[:20])}"
            problems.append(DataError(rule, found, "leave it out"))
    for measure in plan.measures:
        subset = measure.subset
        there = images[subset.prepared.prepared_id]
        if there is None:
            continue
        try:
            size, names = max(measure.train_sizes), there.label_names
            # Where the names were known when the sweep was planned, pairs were named; by numbers
            # that are names of other classes they could be read in two ways.
            unnamed = (
                subset.class_pair is not None and not plan.datasets[subset.dataset].label_names
            )
            strange = names != tuple(map(str, range(len(names))))
            if unnamed and strange and all(name.lstrip("-").isdigit() for name in names):
                rule = (
                    "class_pairs number classes by place, from 0; these have other numbers as names"
                )
                known = f"places 0 to {len(names) - 1} are classes {', '.join(names[:20])}"
                hint = f"name them as text, e.g. class_pairs: [['{names[0]}', '{names[1]}']]"
                raise DataError(rule, f"{subset.dataset}: {known}", hint)
            given = there.labels, there.groups, subset, there.splits
            make_subset(*given, max_train_size=size, label_names=names)
        except SweepError as error:
            problems.append(about_subset(subset, there.label_names, error))
    collect(problems, DataError)
    return unopened


def _own_data(workspace: Workspace, raw: Mapping[str, Path]) -> dict[str, Path]:
    """Return where own data lie, by dataset; refuses those that lie nowhere."""
    problems: list[SweepError] = []
    own: dict[str, Path] = {}
    for choice in workspace.plan.sweep.datasets:
        if choice.own is not None:
            own[choice.name] = raw.get(choice.name) or Path(choice.own.path)
            if choice.name not in raw and not own[choice.name].exists():
                near = nearest_path(own[choice.name])
                hint = f"a relative path starts at the sweep file; {near}" if near else ""
                rule = f"datasets.{choice.name}.own.path must exist"
                problems.append(ConfigError(rule, choice.own.path, hint))
    collect(problems, ConfigError)
    return own


def names_key(root: Path | None) -> str:
    """Return the root's key, by which isweep locate finds what a message names; without a root,
    none.
    """
    return hash_key(root / "prepared") if root is not None and os.access(root, os.W_OK) else UNKEYED


def about_subset(subset: SubsetSpec, names: tuple[str, ...], error: SweepError) -> SweepError:
    """Say of which dataset and classes a problem is: a sweep has several."""
    about = subset.dataset
    if error.rule.startswith((f"{about}:", f"{about} ")) or error.value.startswith(f"{about}:"):
        return error
    if subset.class_pair is not None:
        named = (names[label] if label < len(names) else str(label) for label in subset.class_pair)
        about += ", classes " + " and ".join(named)
    return DataError(f"{about}: {error.rule}", error.value, error.hint)
