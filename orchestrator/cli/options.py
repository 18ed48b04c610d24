"""Options that several commands share, and the numbers that options take."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_origin

from cyclopts import Group, Parameter, Token

from orchestrator.planning.paths import holds_password, without_secrets
from search_spaces.errors import ConfigError

if TYPE_CHECKING:
    from orchestrator.running.cluster import RunOptions

Number = int | float


def whole(least: int, below: int = 2**63, rule: str = "") -> Parameter:
    """Return how to read whole numbers from ``least`` to ``below``; ``rule`` words what is allowed."""

    def check(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise ValueError(f"must be a whole number, got {text!r}") from None
        if not least <= value < below:
            limits = f"at least {least}" + (" and below 2^63" if value >= below else "")
            raise ValueError(f"must be {rule or limits}, got {value}")
        return value

    return Parameter(converter=_each(check))


def real(least: float = -math.inf, most: float = math.inf, *, share: bool = False) -> Parameter:
    """Return how to read finite numbers from ``least`` to ``most``; a share may be written as ``1%``."""

    def check(text: str) -> float:
        try:
            percent = share and text.endswith("%")
            value = float(text.removesuffix("%")) / 100 if percent else float(text)
        except ValueError:
            raise ValueError(f"must be a number, got {text!r}") from None
        if not math.isfinite(value):
            raise ValueError(f"must be a finite number, got {text}")
        if not least <= value <= most:
            raise ValueError(f"must be between {least:g} and {most:g}, got {value:g}")
        return value

    return Parameter(converter=_each(check))


def _each(check: Callable[[str], object]) -> Callable[[object, Sequence[Token]], object]:
    def convert(hint: object, tokens: Sequence[Token]) -> object:
        """Apply ``check`` to one value, or to each of an option that takes several."""
        values = tuple(check(token.value) for token in tokens)
        return values if get_origin(hint) is tuple else values[0]

    return convert


Positive = Annotated[int, whole(1)]
Sweep = Annotated[str, Parameter(name="SWEEP")]
"""Name of a preset or of a sweep of the root, or path of a sweep file."""


def _named(text: str) -> str:
    # A shell's variable that is not set: what it should have said is not the default.
    if not text.strip():
        raise ValueError("must not be empty; leave the option out to take its default")
    return text


NAMED = Parameter(converter=_each(_named))
"""How to read the name of a place."""


def _named_openly(text: str) -> str:
    # Every user of the machine can read command lines.
    if holds_password(_named(text)):
        raise ValueError(
            "must hold no password, since every user of the machine can read a command line; "
            "export MLFLOW_TRACKING_URI=URI instead"
        )
    return text


NAMED_OPENLY = Parameter(converter=_each(_named_openly))
"""How to read the name of a place that may hold a password."""

PLACES = Group("Places", sort_key=8)
OUTPUT = Group("Output", sort_key=9)
CLUSTER = Group("Cluster", sort_key=7)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Place:
    """Where everything lies, and how to print: taken by every command.

    Attributes:
        root: Folder of everything (default: $ISWEEP_ROOT or ./isweep-root).
        storage: folder or URL of the result store (default: below the root).
        mlflow_uri: MLflow store (default: $MLFLOW_TRACKING_URI, then SQLite below the root).
        json: Print data as JSON on stdout.
    """

    root: Annotated[str | None, NAMED, Parameter(group=PLACES, metavar="DIR")] = None
    storage: Annotated[str | None, NAMED, Parameter(group=PLACES, metavar="URL")] = None
    mlflow_uri: Annotated[str | None, NAMED_OPENLY, Parameter(group=PLACES, metavar="URI")] = None
    json: Annotated[bool, Parameter(group=OUTPUT)] = False

    def hint(self, command: str, *words: str) -> str:
        """Spell a command to type next, for the same places, quoted for a shell; without passwords."""
        options = {"--root": self.root, "--storage": self.storage, "--mlflow-uri": self.mlflow_uri}
        given = [word for flag, value in options.items() if value for word in (flag, value)]
        return without_secrets(shlex.join(["isweep", command, *words, *given]))


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class ClusterOptions:
    """Where and with what to compute.

    Attributes:
        address: HOST:PORT of a running Ray cluster, or 'auto' on its head.
        num_cpus: CPUs of the private Ray cluster.
        device: auto uses GPUs when the cluster has some now; gpu waits for an autoscaled one.
        dashboard: Serve the private cluster's Ray dashboard.
        tracking: Use MLflow.
        quiet: Show no progress.
    """

    address: Annotated[str | None, NAMED, Parameter(group=CLUSTER, metavar="HOST:PORT")] = None
    num_cpus: Annotated[int | None, whole(1), Parameter(group=CLUSTER, metavar="N")] = None
    device: Annotated[Literal["auto", "cpu", "gpu"], Parameter(group=CLUSTER)] = "auto"
    dashboard: Annotated[bool, Parameter(group=CLUSTER, negative="--no-dashboard")] = True
    tracking: Annotated[bool, Parameter(group=PLACES, negative="--no-tracking")] = True
    quiet: Annotated[bool, Parameter(group=OUTPUT)] = False


Changes = Annotated[tuple[str, ...], Parameter(name="--set", metavar="KEY=VALUE")]
"""Values of a sweep that hold for this run over what its file says."""

RawFolders = Annotated[tuple[str, ...], Parameter(metavar="NAME=DIR")]
"""Where the raw downloads of datasets lie."""


def raw_folders(values: Sequence[str]) -> dict[str, Path]:
    """Return dataset -> folder of its raw download.

    Raises:
        ConfigError: for what is no NAME=DIR, or two folders for one dataset.
    """
    folders: dict[str, Path] = {}
    for value in values:
        name, equals, folder = value.partition("=")
        if not equals or not name or not folder:
            raise ConfigError("--raw must be NAME=DIR", value, "e.g. --raw mnist=/data/mnist")
        if folders.setdefault(name, Path(folder)) != Path(folder):
            raise ConfigError("--raw must name one folder per dataset", f"{name}={folders[name]} and {value}")
    return folders


LabelMap = Annotated[
    tuple[str, ...], Parameter(name="--label-map", consume_multiple=(1, None), metavar="WRITTEN=CLASS...")
]
"""Labels as own data spell them, and the classes that they mean."""


def label_map(pairs: Sequence[str]) -> dict[str, str]:
    """Return label as written -> class.

    Raises:
        ConfigError: for what is no pair, a blank side, or two classes for one label.
    """
    found: dict[str, str] = {}
    for pair in pairs:
        written, mark, meant = (part.strip() for part in pair.partition("="))
        if not (written and mark and meant):
            raise ConfigError("--label-map takes WRITTEN=CLASS", repr(pair), "e.g. --label-map CAT=cat 0.0=0")
        if found.setdefault(written, meant) != meant:
            raise ConfigError(
                "--label-map must give a label one class", f"{written}={found[written]} and {pair}"
            )
    return found


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class OwnOptions:
    """What own data leave open.

    Attributes:
        label_map: Classes that labels as written stand for, e.g. CAT=cat.
        label_columns: A table's column of labels, or one of 0 and 1 for each class.
        layout: What is on top of class folders in patients' folders, or of these in those.
    """

    label_map: LabelMap = ()
    label_columns: Annotated[tuple[str, ...], Parameter(consume_multiple=(1, None), metavar="NAME...")] = ()
    layout: Literal["class/group", "group/class"] | None = None

    def said(self) -> dict[str, Any]:
        """Return what was said, by the names of a sweep file's ``own``."""
        found = {
            "label_map": label_map(self.label_map),
            "label_columns": self.label_columns,
            "layout": self.layout,
        }
        return {name: value for name, value in found.items() if value}


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class ReadingOptions:
    """How to read raw files.

    Attributes:
        max_skipped_share: Largest share of a dataset's files that may be unusable, as 0.01 or 1%; one file
            may always be, unless it is 0 (default 0.1%).
    """

    max_skipped_share: Annotated[float, real(0, 1, share=True), Parameter(metavar="SHARE")] = 0.001


def run_options(
    place: Place, cluster: ClusterOptions, reading: ReadingOptions, raw: dict[str, Path]
) -> RunOptions:
    """Return what the options say about where and how to run."""
    from orchestrator.running.cluster import RunOptions

    return RunOptions(
        root=place.root,
        storage=place.storage,
        address=cluster.address,
        num_cpus=cluster.num_cpus,
        device=cluster.device,
        dashboard=cluster.dashboard,
        mlflow_uri=place.mlflow_uri,
        tracking=cluster.tracking,
        raw=raw,
        max_skipped_share=reading.max_skipped_share,
    )
