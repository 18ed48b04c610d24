"""``isweep init``: a first sweep file for a set of images, which runs as it is."""

from __future__ import annotations

import json
import os
import shlex
import unicodedata
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from orchestrator.planning.checks import Counted, about_subset, counted, names_key
from orchestrator.planning.sweep_file import parse_sweep
from orchestrator.planning.written_files import preset_names
from search_spaces.datasets import DATASETS, own_dataset_spec
from search_spaces.errors import ConfigError, DataError, nearest_path, plural
from search_spaces.models import as_name
from search_spaces.specs import PreparedSpec, SubsetSpec
from search_spaces.sweeps import OwnSourceSpec
from tasks.prepared.listings import list_raw
from tasks.prepared.subsets import make_subset
from tasks.sources import own_kinds_text, source_for
from tasks.sources.base import Listing, RawRequest, SkipItem
from tasks.sources.detect import detect_own_kind
from tasks.sources.dicom import is_dicom_name, read_header
from tasks.sources.own import plain_id
from tasks.sources.pictures import is_image_name

if TYPE_CHECKING:
    pass


# A first sweep file for one's own images, which runs: what ``isweep init`` writes.

TEST_SHARES = (0.25, 0.15, 0.08, 0.04)
"""Of the images, the largest that groups and given splits allow."""
MOST_NAMED, PEEKED, LEAST_TRAINED = 8, 20, 8
"""Classes that a comment names; images that are tried until one can be read; and the fewest to
train on."""
MOST_HEADERS = 2_000
"""DICOM files whose patients are looked at for a draft: about ten seconds."""
Sizes = tuple[tuple[int, ...], int]
"""Train sizes, and the size of the test set."""
UNKNOWN_SIZES: Sizes = ((60, 120, 240), 100)


class Size(NamedTuple):
    """What a machine can train in reasonable time."""

    models: str
    recipe: str
    side: int
    most_trained: int
    most_tested: int
    resources: str


ON_CPU = Size("[small_cnn, resnet_tiny]", "demo", 32, 1000, 400, "{num_cpus: 1}")
ON_GPU = Size("[resnet18, resnet34]", "paper", 224, 1750, 750, "{num_cpus: 2}")
EXAMPLE: tuple[str, ...] = (
    "  - name: digits  # scans of handwritten digits; ships with scikit-learn",
    "    class_pairs: [['3', '8']]",
    "  # - name: my_images",
    "  #   own: {kind: folder, path: ./my-images, domain: medical, channels: 1}",
)


def draft_sweep(
    source: Path | None,
    to: Path,
    *,
    domain: str | None = None,
    gpu: bool = False,
    said: Mapping[str, Any] | None = None,
    root: Path | None = None,
) -> str:
    """Return the text of a sweep file of one's own images, of which only one is read, or of digits
    for None.

    Args:
        source: One's own images.
        to: The file that will hold the text: its name is the sweep's, paths start at its folder.
        domain: ``natural`` or ``medical``; None guesses by the files' kind and patients.
        gpu: Whether to write larger networks and images.
        said: What own data leave open, by the names of a sweep file's ``own``.
        root: Whose key hides names in messages; None uses none.
    """
    size = ON_GPU if gpu else ON_CPU
    stem = as_name(_ascii(to.stem))
    if not _ascii(to.stem):
        rule = "A sweep file's name, which is the sweep's, needs a letter of a to z or a digit"
        raise ConfigError(rule, str(to), "name another with --out")
    lines, channels, (train_sizes, test_size) = EXAMPLE, 1, UNKNOWN_SIZES
    if source is not None:
        lines, channels, (train_sizes, test_size) = _own(
            source, to, size, domain, said or {}, names_key(root)
        )
    text = "\n".join(
        [
            (
                f"# Written by `isweep init{f' {_typed(source)}' if source else ''}`. Change what "
                "you "
                "like:"
            ),
            (
                f"# `isweep plan {_typed(to)}` says what is wrong, `isweep run {_typed(to)}` does "
                "what "
                "is left."
            ),
            f"name: {f'my-{stem}'[:64] if stem in preset_names() else stem}",
            f"models: {size.models}  # isweep models",
            "datasets:  # add others to compare with: isweep datasets",
            *lines,
            f"train_sizes: {list(train_sizes)}  # every smaller set is part of the larger",
            f"test_size: {test_size}  # images that nobody trains on; whole groups (patients)",
            f"image_size: {size.side}  # side in pixels",
            f"channels: {channels}  # equal for all datasets, so that K_F can be compared",
            "seeds: [0]  # more seeds, narrower intervals",
            f"recipe: {size.recipe}  # isweep recipes",
            (
                "attacks: {methods: [fgsm], epsilons: [1, 2, 4, 8]}  # in 1/255 of the pixel "
                "range; "
                "also: pgd"
            ),
            f"resources: {size.resources}  # of one training",
            "",
        ]
    )
    parse_sweep(text, origin=str(to), folder=to.parent)
    return text


def _own(
    source: Path, to: Path, size: Size, domain: str | None, said: Mapping[str, Any], key: str
) -> tuple[tuple[str, ...], int, Sizes]:
    """Return the lines of one's own data below ``datasets:``, their channels and sizes."""
    if not source.exists():
        hint = f"give a folder, a table or a file of arrays; {nearest_path(source)}".rstrip("; ")
        raise ConfigError("The images must exist", str(source), hint)
    kind = detect_own_kind(source)
    if kind is None:
        raise ConfigError("The images must be of a known kind", str(source), own_kinds_text())
    stem = as_name(_ascii(source.absolute().name.split(".")[0]) or "images")
    name = f"my_{stem}"[:64] if stem in DATASETS else stem
    own = OwnSourceSpec(kind=kind, path=str(source), domain=None, **said)
    spec = PreparedSpec(dataset=name, image_size=size.side, channels=1)
    request = RawRequest(own_dataset_spec(name, own), spec, source, key)
    listing = list_raw(request)
    listed, (channels, is_medical) = counted(listing), _look(request, listing)
    found = None if listed is None else _with_patients(listed, request, listing)
    path = os.path.relpath(source.absolute(), to.absolute().parent)
    medical = (
        "kind of its files"
        if is_medical
        else "patients" * any(item.group for item in listing.items)
    )
    fields = {
        "kind": kind,
        "path": _flow(path if path.startswith("..") else f"./{path}"),
        "domain": domain or ("medical" if medical else "natural"),
        "channels": channels,
        **{key: _flow(value) for key, value in said.items()},
    }
    entry = ", ".join(f"{key}: {value}" for key, value in fields.items())
    about = (
        "how many images and groups there are is known when they are prepared: isweep run says so"
    )
    guessed = f"  # natural or medical? guessed{f' by the {medical}' if medical else ''}"
    lines = [f"    own: {{{entry}}}{'' if domain else guessed}"]
    if found is not None:
        about = _described(found) + (
            "" if found is listed else ", by the patients of the DICOM headers"
        )
        if len(found.label_names) > 2:
            pair = ", ".join(_flow(label) for label in found.label_names[:2])
            lines.append(
                f"    # class_pairs: [[{pair}]]  # two classes only; all at once without it"
            )
    sizes = UNKNOWN_SIZES if found is None else _sizes(found, spec, size)
    return (f"  - name: {name}", f"    # {about}", *lines), channels, sizes


def _with_patients(found: Counted, request: RawRequest, listing: Listing) -> Counted | None:
    """Return it with the patients of DICOM headers as groups, as reading does; None for too many
    files.
    """
    groups, ids = found.groups.copy(), dict[str, int]()
    in_folder = request.dataset.source == "folder"  # where files without an ending are DICOM
    files = {
        row: item.locator
        for row, item in enumerate(listing.items)
        if not item.group
        and (is_dicom_name(item.locator) or (in_folder and not is_image_name(item.locator)))
    }
    if len(files) > MOST_HEADERS:
        return None
    for row, locator in files.items():
        header = read_header(request.base(), locator)
        if header and (patient := plain_id(header.known_patient())):
            groups[row] = ids.setdefault(patient, int(groups[row]))
    return replace(found, groups=groups) if ids else found


def _look(request: RawRequest, listing: Listing) -> tuple[int, bool]:
    """Read images until one can be read; returns its channels, and whether its file is of a medical
    kind.
    """
    items, read = listing.items, source_for(request.dataset.source).reader(request)
    reasons: Counter[str] = Counter()
    for item in islice(items, PEEKED):
        try:
            pixels = next(iter(read(item))).pixels
        except (SkipItem, StopIteration) as none:
            reasons[none.reason if isinstance(none, SkipItem) else "no image"] += 1
            continue
        colour = pixels.ndim == 3 and bool((pixels[..., :1] != pixels).any())
        medical = item.locator.lower().endswith((".dcm", ".dicom", ".ima", ".nii", ".nii.gz"))
        medical |= request.dataset.source == "folder" and not is_image_name(
            item.locator
        )  # DICOM, too
        return 3 if colour else 1, medical
    rule, tried = f"{request.dataset.name}: images must be readable", min(len(items), PEEKED)
    why = ", ".join(f"{reason}: {count}" for reason, count in reasons.items())
    raise DataError(rule, f"none of the first {tried} is ({why})", "mend or convert them")


def _described(found: Counted) -> str:
    counts = np.bincount(found.labels, minlength=len(found.label_names)).tolist()
    named = [f"{name} {count:,}" for name, count in zip(found.label_names, counts, strict=True)]
    more = f" and {len(named) - MOST_NAMED} more classes" if len(named) > MOST_NAMED else ""
    groups, images = len(np.unique(found.groups)), len(found.labels)
    said = (
        "every image is its own group"
        if groups == images
        else f"{plural(groups, 'group')} (patients)"
    )
    return f"{plural(images, 'image')}, {said}: {', '.join(named[:MOST_NAMED])}{more}"


def _sizes(found: Counted, spec: PreparedSpec, size: Size) -> Sizes:
    """Return what the data can give, each train size half of the next."""
    for share in TEST_SHARES:
        asked = max(min(size.most_tested, round(share * len(found.labels))), 2)
        subset = SubsetSpec(prepared=spec, class_pair=None, test_size=asked)
        try:
            given = found.labels, found.groups, subset, found.splits
            order = make_subset(*given, label_names=found.label_names).train_order
            break
        except DataError as error:
            problem = about_subset(subset, found.label_names, error)
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


def _rounded(number: int) -> int:
    """Round down to a number that is easy to read, and even, as two equal classes need it."""
    unit = 100 if number >= 1000 else 10 if number >= 40 else 2
    return max(number // unit * unit, 2)


def _ascii(text: str) -> str:
    """Return text without accents; empty where no letter of a to z and no digit is left."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return plain if any(map(str.isalnum, plain)) else ""


def _typed(path: Path) -> str:
    """Spell a path as it is typed, on one line."""
    return shlex.quote("".join(letter if letter.isprintable() else "?" for letter in str(path)))


_flow = partial(json.dumps, ensure_ascii=False)
"""Spells a value for YAML on one line; JSON is YAML, and quotes what could be read as something
else."""
