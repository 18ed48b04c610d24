"""A first sweep file for one's own images: what ``isweep init`` writes.

The data are listed, not read (but for one image), and the sizes are those that they can give: it runs so.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.planning.checks import Counted, counted
from orchestrator.planning.sweep_file import parse_sweep, preset_names
from search_spaces.datasets import DATASETS, own_dataset_spec
from search_spaces.errors import ConfigError, DataError
from search_spaces.models import as_name
from search_spaces.specs import PreparedSpec, SubsetSpec
from search_spaces.sweeps import OwnSourceSpec
from tasks.prepared.prepare import list_raw
from tasks.prepared.subsets import make_subset
from tasks.sources import OWN_KINDS, own_kind_of, source_for
from tasks.sources.base import Listing, RawRequest, SkipItem

TEST_SHARES = (0.25, 0.15, 0.08, 0.04)
"""Of the images, the largest that groups and given splits allow."""
MOST_NAMED = 8
"""Classes that a comment names."""
PEEKED = 20
"""Images that are tried until one can be read: colour or grey?"""
LEAST_TRAINED = 8


@dataclass(frozen=True)
class Size:
    """What a machine can train in reasonable time."""

    models: str
    recipe: str
    side: int
    most_trained: int
    most_tested: int
    resources: str


ON_CPU = Size("[small_cnn, resnet_tiny]", "demo", 32, 1000, 400, "{num_cpus: 1}")
ON_GPU = Size("[resnet18, resnet34]", "paper", 224, 1750, 750, "{num_cpus: 2}")


@dataclass(frozen=True)
class _Data:
    """The entry of the data in the file, and what is known of them.

    Attributes:
        lines: Of YAML, below ``datasets:``.
        channels: Of the images.
        sizes: Train sizes.
        test_size: Test images.
    """

    lines: tuple[str, ...]
    channels: int
    sizes: tuple[int, ...]
    test_size: int


def draft_sweep(
    source: Path | None,
    to: Path,
    *,
    name: str | None = None,
    domain: str | None = None,
    gpu: bool = False,
    said: Mapping[str, Any] | None = None,
) -> str:
    """Return the text of a sweep file.

    Args:
        source: One's own images; None takes digits that a package ships, as an example.
        to: The file that will hold the text: its name is the sweep's, paths start at its folder.
        name: Of the sweep; None for the file's.
        domain: ``natural`` or ``medical``; None guesses by the kind of the files.
        gpu: Whether trainings run on a GPU: larger networks and images then.
        said: What own data leave open, by the names of a sweep file's ``own``.

    Raises:
        SweepError: for data that cannot be read or are too few, as ``isweep run`` would say it.
    """
    size = ON_GPU if gpu else ON_CPU
    stem = as_name(name or to.stem)
    data = _example(size) if source is None else _own(source, to, size, domain, said or {})
    text = "\n".join(
        [
            f"# Written by `isweep init{f' {source}' if source else ''}`. Change what you like:",
            f"# `isweep plan {to}` says what is wrong, `isweep run {to}` does what is left.",
            f"name: {f'my-{stem}'[:64] if stem in preset_names() else stem}",
            f"models: {size.models}  # isweep models",
            "datasets:  # add others to compare with: isweep datasets",
            *data.lines,
            f"train_sizes: {list(data.sizes)}  # every smaller set is part of the larger",
            f"test_size: {data.test_size}  # images that nobody trains on; whole groups (patients)",
            f"image_size: {size.side}  # side in pixels",
            f"channels: {data.channels}  # equal for all datasets, so that K_F can be compared",
            "seeds: [0]  # more seeds, narrower intervals",
            f"recipe: {size.recipe}  # isweep recipes",
            "attacks: {methods: [fgsm], epsilons: [1, 2, 4, 8]}  # in 1/255 of the pixel range; also: pgd",
            f"resources: {size.resources}  # of one training",
            "",
        ]
    )
    parse_sweep(text, origin=str(to), folder=to.parent)
    return text


def _example(size: Size) -> _Data:
    lines = (
        "  - name: digits  # scans of handwritten digits; ships with scikit-learn",
        "    class_pairs: [['3', '8']]",
        "  # - name: my_images",
        "  #   own: {kind: folder, path: ./my-images, domain: medical, channels: 1}",
    )
    return _Data(lines, 1, (60, 120, 240), 100)


def _own(source: Path, to: Path, size: Size, domain: str | None, said: Mapping[str, Any]) -> _Data:
    kind = _kind(source)
    stem = as_name(source.absolute().name.split(".")[0])
    name = f"my_{stem}"[:64] if stem in DATASETS else stem
    own = OwnSourceSpec(kind=kind, path=str(source), domain=None, **said)
    spec = PreparedSpec(dataset=name, image_size=size.side, channels=1)
    request = RawRequest(own_dataset_spec(name, own), spec, source)
    listing = list_raw(request)
    found = counted(listing)
    traits = _look(request, listing)
    guessed = domain or ("medical" if traits.medical else "natural")
    why = "" if domain else "  # natural or medical? guessed"
    path = os.path.relpath(source.absolute(), to.absolute().parent)
    path = path if path.startswith("..") else f"./{path}"
    sizes, test_size = _sizes(found, spec, size)
    extra = "".join(f", {key}: {_flow(value)}" for key, value in said.items())
    lines = [f"  - name: {name}", *(f"    # {text}" for text in _described(found))]
    entry = f"kind: {kind}, path: {_flow(path)}, domain: {guessed}, channels: {traits.channels}{extra}"
    lines.append(f"    own: {{{entry}}}{why}")
    if found is not None and len(found.label_names) > 2:
        pair = ", ".join(_flow(label) for label in found.label_names[:2])
        lines.append(f"    # class_pairs: [[{pair}]]  # two classes only; all at once without it")
    return _Data(tuple(lines), traits.channels, sizes, test_size)


def _kind(source: Path) -> str:
    if not source.exists():
        raise ConfigError("The images must exist", str(source), "give a folder, a table or a file of arrays")
    kind = own_kind_of(source)
    if kind is None:
        what = "; ".join(f"{kind}: {what}" for kind, what in OWN_KINDS.items())
        raise ConfigError("The images must be of a known kind", str(source), what)
    return kind


@dataclass(frozen=True)
class _Traits:
    channels: int
    medical: bool


def _look(request: RawRequest, listing: Listing) -> _Traits:
    """Read images until one can be read: grey or colour, and of which kind of file."""
    items, read = listing.items, source_for(request.dataset.source).reader(request)
    for item in islice(items, PEEKED):
        medical = item.locator.lower().endswith((".dcm", ".dicom", ".ima", ".nii", ".nii.gz"))
        try:
            pixels = next(iter(read(item))).pixels
        except (SkipItem, StopIteration):
            continue
        colour = pixels.ndim == 3 and bool((pixels[..., :1] != pixels).any())
        return _Traits(3 if colour else 1, medical)
    raise DataError(
        f"{request.dataset.name}: images must be readable", f"none of the first {min(len(items), PEEKED)} is"
    )


def _described(found: Counted | None) -> list[str]:
    if found is None:
        return ["how many images there are is known when they are prepared: isweep run says so"]
    counts = np.bincount(found.labels, minlength=len(found.label_names)).tolist()
    named = [f"{name} {count:,}" for name, count in zip(found.label_names, counts, strict=True)]
    more = f" and {len(named) - MOST_NAMED} more classes" if len(named) > MOST_NAMED else ""
    groups = len(np.unique(found.groups))
    said = "every image is its own group" if groups == len(found.labels) else f"{groups:,} groups (patients)"
    return [f"{len(found.labels):,} images, {said}: {', '.join(named[:MOST_NAMED])}{more}"]


def _sizes(found: Counted | None, spec: PreparedSpec, size: Size) -> tuple[tuple[int, ...], int]:
    """Return train sizes that the data can give, each half of the next, and the size of the test set."""
    if found is None:
        return (60, 120, 240), 100
    for share in TEST_SHARES:
        asked = max(min(size.most_tested, round(share * len(found.labels))), 2)
        try:
            order = make_subset(found.labels, found.groups, _subset(spec, asked), found.splits).train_order
            break
        except DataError as error:
            problem = error
    else:
        raise problem
    largest = _rounded(min(size.most_trained, len(order)))
    if largest < LEAST_TRAINED:
        raise DataError(
            f"{spec.dataset}: a sweep needs more images",
            f"{len(found.labels)}, of which {len(order)} are left to train on",
            "a group (patient) stays on one side of the split; add images or groups",
        )
    sizes = {_rounded(largest // part) for part in (4, 2, 1)}
    return tuple(sorted(one for one in sizes if one >= min(largest, LEAST_TRAINED))), asked


def _subset(spec: PreparedSpec, test_size: int) -> SubsetSpec:
    return SubsetSpec(prepared=spec, class_pair=None, test_size=test_size)


def _rounded(number: int) -> int:
    """Round down to a number that is easy to read, and even, as two equal classes need it."""
    unit = 100 if number >= 1000 else 10 if number >= 40 else 2
    return max(number // unit * unit, 2)


def _flow(value: object) -> str:
    """Spell a value for YAML on one line; JSON is YAML, and quotes what could be read as something else."""
    return json.dumps(value, ensure_ascii=False)
