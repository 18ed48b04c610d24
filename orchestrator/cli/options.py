"""Options that several commands share, and how words of a command line are read."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_origin

from cyclopts import Group, Parameter, Token

from orchestrator.planning.paths import RootPaths
from orchestrator.planning.redaction import PASSWORD, without_secrets
from search_spaces.errors import ConfigError
from tasks.atomic import without_waiting

if TYPE_CHECKING:
    from orchestrator.machine.cluster import RunOptions
    from orchestrator.planning.workspace import Workspace


def whole(least: int, below: int = 2**63) -> Parameter:
    """Return how to read whole numbers from ``least`` to ``below``."""

    def check(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            parted = "; put blanks, not commas, between numbers" if "," in text else ""
            raise ValueError(f"must be a whole number, got {text!r}{parted}") from None
        if not least <= value < below:
            limits = f"at least {least}" if value < least else f"at most {below - 1:,}"
            raise ValueError(f"must be {limits}, got {value}")
        return value

    return _each(check)


def real(least: float = -math.inf, most: float = math.inf, *, share: bool = False) -> Parameter:
    """Return how to read finite numbers from ``least`` to ``most``; a share may be written as
    ``1%``.
    """

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

    return _each(check)


def ending(*endings: str) -> Parameter:
    """Return how to read the path of a file to write: a slip may not write over a file of another
    kind.
    """

    def check(word: str) -> Path:
        if not word.endswith(endings):
            raise ValueError(f"must be a file that ends with {' or '.join(endings)}, got {word!r}")
        return writable(Path(word))

    return _each(check, metavar="FILE")


def writable(path: Path, *, into_new: bool = False) -> Path:
    """Return the path of a file that can be written, in a new folder if asked; checked before any
    work.
    """
    try:
        if into_new:
            path.parent.mkdir(parents=True, exist_ok=True)
        with (
            open(path, "ab", opener=without_waiting)
            if path.exists()
            else TemporaryFile(dir=path.parent)
        ):
            return path
    except OSError as error:
        why = f"{path}: {error.strerror}"
        raise ConfigError(
            "The file must be one that can be written", why, "name one elsewhere"
        ) from None


def _each(check: Callable[[str], object], **more: Any) -> Parameter:
    """Return how to read an option by applying ``check`` to its value, or to each of several."""

    def convert(hint: object, tokens: Sequence[Token]) -> object:
        values = tuple(check(token.value) for token in tokens)
        return values if get_origin(hint) is tuple else values[0]

    return Parameter(converter=convert, **more)


def _named(text: str) -> str:
    if (
        not text.strip()
    ):  # a shell's variable that is not set: what it should have said is not the default
        raise ValueError("must not be empty; leave the option out to take its default")
    return text


def _named_openly(text: str) -> str:
    if PASSWORD.search(_named(text)):
        raise ValueError(
            "must hold no password, since every user of the machine can read a command line; "
            "export MLFLOW_TRACKING_URI=URI instead"
        )
    return text


NAMED, NAMED_OPENLY = _each(_named), _each(_named_openly)
CLUSTER, PLACES = Group("Cluster", sort_key=7), Group("Places", sort_key=8)
OUTPUT = Group("Output", sort_key=9)

Positive = Annotated[int, whole(1)]
File = Annotated[Path | None, _each(lambda text: Path(_named(text)), metavar="FILE")]
Png = Annotated[Path | None, ending(".png")]
Names = Annotated[tuple[str, ...], Parameter(consume_multiple=(1, None), metavar="NAME...")]
Sizes = Annotated[tuple[int, ...], whole(1), Parameter(consume_multiple=(1, None), metavar="N...")]
_SWEEP = "Name of a preset or of a sweep of the root (as it last ran), or path of a sweep file."
Sweep = Annotated[str, Parameter(name="SWEEP", help=_SWEEP)]
FromStore = Annotated[bool, Parameter(help="Do not compare with MLflow.")]
Address = Annotated[str | None, NAMED, Parameter(group=CLUSTER, metavar="HOST:PORT")]
_CHANGE = "Change one value for this command, e.g. recipe.epochs=3; may be given for several."
Changes = Annotated[tuple[str, ...], Parameter(name="--set", metavar="KEY=VALUE", help=_CHANGE)]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Place:
    """Where everything lies, and how to print: taken by every command.

    Attributes:
        root: Folder of everything (default: $ISWEEP_ROOT or ./isweep-root).
        storage: Folder or URL of the result store (default: below the root).
        mlflow_uri: MLflow store (default: $MLFLOW_TRACKING_URI, then SQLite below the root).
        json: Print data as JSON on stdout.
    """

    root: Annotated[str | None, NAMED, Parameter(group=PLACES, metavar="DIR")] = None
    storage: Annotated[str | None, NAMED, Parameter(group=PLACES, metavar="URL")] = None
    mlflow_uri: Annotated[str | None, NAMED_OPENLY, Parameter(group=PLACES, metavar="URI")] = None
    json: Annotated[bool, Parameter(group=OUTPUT)] = False

    @property
    def paths(self) -> RootPaths:
        """What lies below the root."""
        return RootPaths.at(self.root)

    def open(
        self, sweep: str, *, as_run: bool = True, changes: Mapping[str, object] | None = None
    ) -> Workspace:
        """Open a sweep; of a name that is both, the one that ran rather than the preset, if
        ``as_run``.
        """
        from orchestrator.planning.workspace import Workspace

        return Workspace.open(sweep, self.root, self.storage, as_run=as_run, changes=changes)

    def hint(self, command: str, *words: str) -> str:
        """Spell a command to type next, for the same places, quoted for a shell; without
        passwords.
        """
        options = {"--root": self.root, "--storage": self.storage, "--mlflow-uri": self.mlflow_uri}
        given = [word for flag, value in options.items() if value for word in (flag, value)]
        return without_secrets(shlex.join(["isweep", command, *words, *given]))


def pairs(flag: str, values: Sequence[str], form: str, example: str) -> dict[str, str]:
    """Read words of the form ``NAME=VALUE``; refuses blank sides, and a name with two values."""
    found: dict[str, str] = {}
    for value in values:
        name, mark, meant = (part.strip() for part in value.partition("="))
        if not (name and mark and meant):
            raise ConfigError(f"{flag} must be {form}", value, f"e.g. {flag} {example}")
        if found.setdefault(name, meant) != meant:
            raise ConfigError(
                f"{flag} must give {name} one value", f"{name}={found[name]} and {value}"
            )
    return found


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class OwnOptions:
    """What own data leave open.

    Attributes:
        label_map: Classes that labels as written stand for, e.g. CAT=cat; of a negative
            number: --label-map=-1=NAME.
        label_columns: A table's column of labels, or one of 0 and 1 for each class.
        layout: What is on top of class folders in patients' folders, or of these in those.
    """

    label_map: Annotated[Names, Parameter(metavar="WRITTEN=CLASS...")] = ()
    label_columns: Names = ()
    layout: Literal["class/group", "group/class"] | None = None

    def said(self) -> dict[str, Any]:
        """Return what was said, by the names of a sweep file's ``own``."""
        label_map = pairs("--label-map", self.label_map, "WRITTEN=CLASS", "CAT=cat 0.0=0")
        found = {**vars(self), "label_map": label_map}
        return {name: value for name, value in found.items() if value}


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class ReadingOptions:
    """How to read raw files.

    Attributes:
        max_skipped_share: Largest share of a dataset's files that may be unusable, or equal one
            with another label, as 0.01 or 1%; one file may always be unusable, unless it is 0
            (default 0.1%).
    """

    max_skipped_share: Annotated[float, real(0, 1, share=True), Parameter(metavar="SHARE")] = 0.001


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Work(ReadingOptions, Place):
    """What commands take that read raw files, compute on a cluster and store results.

    Attributes:
        address: HOST:PORT of a running Ray cluster, or 'auto' on its head.
        num_cpus: CPUs of the private Ray cluster.
        device: auto uses GPUs when the cluster has some now; gpu waits for an autoscaled one.
        dashboard: Serve the private cluster's Ray dashboard.
        tracking: Use MLflow.
        quiet: Show no progress.
    """

    address: Address = None
    num_cpus: Annotated[int | None, whole(1), Parameter(group=CLUSTER, metavar="N")] = None
    device: Annotated[Literal["auto", "cpu", "gpu"], Parameter(group=CLUSTER)] = "auto"
    dashboard: Annotated[bool, Parameter(group=CLUSTER, negative="--no-dashboard")] = True
    tracking: Annotated[bool, Parameter(group=PLACES, negative="--no-tracking")] = True
    quiet: Annotated[bool, Parameter(group=OUTPUT)] = False

    def options(self, raw: Mapping[str, str | Path]) -> RunOptions:
        """Return where and how to run, with the folders of raw downloads by dataset."""
        from orchestrator.machine.cluster import RunOptions

        given = vars(self) | {"raw": {name: Path(folder) for name, folder in raw.items()}}
        return RunOptions(**{name: given[name] for name in RunOptions.__dataclass_fields__})


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class SweepWork(Work):
    """What commands take that do what is left of a sweep.

    Attributes:
        raw: Raw download of a dataset; may be given for several.
    """

    raw: Annotated[tuple[str, ...], Parameter(metavar="NAME=DIR")] = ()
    changes: Changes = ()

    @property
    def run_options(self) -> RunOptions:
        """Where and how to run."""
        return self.options(pairs("--raw", self.raw, "NAME=DIR", "mnist=/data/mnist"))

    def again(self, command: str, sweep: str) -> str:
        """Spell the command that goes on where this one was stopped."""
        return self.hint(
            command, sweep, *(word for change in self.changes for word in ("--set", change))
        )
