"""Options that several commands have, and the parsers of the options' values."""

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
    """Return a parser of whole numbers that are at least ``least`` and less than ``below``."""

    def check(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            hint = ""
            if "," in text:
                hint = ". Separate numbers by spaces, for example 500 1000"
            raise ValueError(f"is {text!r}, which is not a whole number{hint}") from None
        if value < least:
            raise ValueError(f"is {value}, but must be at least {least}")
        if value >= below:
            raise ValueError(f"is {value}, but must be at most {below - 1:,}")
        return value

    return _each(check)


def real(least: float = -math.inf, most: float = math.inf, *, share: bool = False) -> Parameter:
    """Return a parser of finite numbers from ``least`` to ``most``.

    If ``share`` is True, users may also write the number in percent, for example ``1%``.
    """

    def check(text: str) -> float:
        try:
            if share and text.endswith("%"):
                value = float(text.removesuffix("%")) / 100
            else:
                value = float(text)
        except ValueError:
            raise ValueError(f"is {text!r}, which is not a number") from None
        if not math.isfinite(value):
            raise ValueError(f"is {text}, which is not a finite number")
        if not least <= value <= most:
            percent = ""
            if share and 1 < value <= 100:
                percent = f". Write {value:g}% for {value:g} percent"
            raise ValueError(f"is {value:g}, but must be between {least:g} and {most:g}{percent}")
        return value

    return _each(check)


def ending(*endings: str) -> Parameter:
    """Return a parser for the path of a file to write. The path must have one of these endings.

    Without this check, isweep could overwrite a file of another kind after a typing error.
    """

    def check(word: str) -> Path:
        if not word.endswith(endings):
            raise ValueError(
                f"is {word!r}, but the name of the file must end with {' or '.join(endings)}"
            )
        return writable(Path(word))

    return _each(check, metavar="FILE")


def writable(path: Path, *, into_new: bool = False) -> Path:
    """Check that a file can be written, and return its path.

    Args:
        path: File to write later.
        into_new: If True, create the folder of the file if the folder does not exist.

    Raises:
        ConfigError: The file cannot be written.
    """
    try:
        if into_new:
            path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            open(path, "ab", opener=without_waiting).close()
        else:
            TemporaryFile(dir=path.parent).close()
    except OSError as error:
        reason = error.strerror
        if not path.parent.exists():
            reason = f"the folder {path.parent} does not exist"
        elif isinstance(error, FileNotFoundError):  # a folder of the system, such as /proc
            reason = f"no file can be created in the folder {path.parent}"
        raise ConfigError(
            f"{path} cannot be written: {reason}",
            hint="Choose a file in a folder in which you can write",
        ) from None
    return path


def _each(check: Callable[[str], object], **more: Any) -> Parameter:
    """Return a parser that applies ``check`` to each value of an option."""

    def convert(hint: object, tokens: Sequence[Token]) -> object:
        values = tuple(check(token.value) for token in tokens)
        if get_origin(hint) is tuple:
            return values
        return values[0]

    return Parameter(converter=convert, **more)


def _named(text: str) -> str:
    # An empty value usually comes from a shell variable that is not set. The user does not
    # mean the default value.
    if not text.strip():
        raise ValueError("is empty. Give a value, or remove the option")
    return text


def _named_openly(text: str) -> str:
    if PASSWORD.search(_named(text)):
        raise ValueError(
            "contains a password, but every user of the machine can read command lines. Remove "
            "the option, and set the environment variable MLFLOW_TRACKING_URI instead"
        )
    return text


NAMED = _each(_named)
NAMED_OPENLY = _each(_named_openly)
CLUSTER = Group("Cluster", sort_key=7)
PLACES = Group("Places", sort_key=8)
OUTPUT = Group("Output", sort_key=9)

Positive = Annotated[int, whole(1)]
File = Annotated[Path | None, _each(lambda text: Path(_named(text)), metavar="FILE")]
Png = Annotated[Path | None, ending(".png")]
Names = Annotated[tuple[str, ...], Parameter(consume_multiple=(1, None), metavar="NAME...")]
Sizes = Annotated[tuple[int, ...], whole(1), Parameter(consume_multiple=(1, None), metavar="N...")]
_SWEEP = (
    "Name of a preset, path of a sweep file, or name of a sweep in the root. For a name, "
    "isweep uses the settings of the sweep's last run."
)
Sweep = Annotated[str, Parameter(name="SWEEP", help=_SWEEP)]
FromStore = Annotated[bool, Parameter(help="Do not compare the results with MLflow.")]
Address = Annotated[str | None, NAMED, Parameter(group=CLUSTER, metavar="HOST:PORT")]
_CHANGE = (
    "Change one value of the sweep for this command, e.g. recipe.epochs=3. To change several "
    "values, repeat the option."
)
Changes = Annotated[tuple[str, ...], Parameter(name="--set", metavar="KEY=VALUE", help=_CHANGE)]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Place:
    """Options that every command has, for the root, the result store, MLflow and the output.

    Attributes:
        root: Folder of all data and results (default: $ISWEEP_ROOT or ./isweep-root).
        storage: Folder or URL of the result store (default: below the root).
        mlflow_uri: Address of MLflow's store (default: $MLFLOW_TRACKING_URI; if this variable is
            not set, an SQLite file below the root).
        json: Print data as JSON on stdout.
    """

    root: Annotated[str | None, NAMED, Parameter(group=PLACES, metavar="DIR")] = None
    storage: Annotated[str | None, NAMED, Parameter(group=PLACES, metavar="URL")] = None
    mlflow_uri: Annotated[str | None, NAMED_OPENLY, Parameter(group=PLACES, metavar="URI")] = None
    json: Annotated[bool, Parameter(group=OUTPUT)] = False

    @property
    def paths(self) -> RootPaths:
        """Paths below the root."""
        return RootPaths.at(self.root)

    def open(
        self, sweep: str, *, prefer_root: bool = True, changes: Mapping[str, object] | None = None
    ) -> Workspace:
        """Open a sweep.

        Args:
            sweep: Name or path of the sweep.
            prefer_root: If True, and a preset has run in the root, open the preset as it last
                ran.
            changes: New values by dotted key. They replace values of the sweep.
        """
        from orchestrator.planning.workspace import Workspace

        return Workspace.open(
            sweep, self.root, self.storage, prefer_root=prefer_root, changes=changes
        )

    def hint(self, command: str, *words: str) -> str:
        """Return a command line with the same root, result store and MLflow, quoted for a shell.

        The command line contains no passwords.
        """
        options = {"--root": self.root, "--storage": self.storage, "--mlflow-uri": self.mlflow_uri}
        line = ["isweep", command, *words]
        for flag, value in options.items():
            if value:
                line += [flag, value]
        return without_secrets(shlex.join(line))


def pairs(flag: str, values: Sequence[str], form: str, example: str) -> dict[str, str]:
    """Return a dictionary of words of the form ``NAME=VALUE``.

    Args:
        flag: Name of the option, for messages.
        values: The words.
        form: The expected form, for messages.
        example: A valid word, for messages.

    Raises:
        ConfigError: A name or a value is blank, or a name has two values.
    """
    value_by_name: dict[str, str] = {}
    for word in values:
        name, equals_sign, value = (part.strip() for part in word.partition("="))
        if not (name and equals_sign and value):
            raise ConfigError(
                f"{flag} {word} does not have the form {form}",
                hint=f"Write, for example, {flag} {example}",
            )
        if value_by_name.setdefault(name, value) != value:
            raise ConfigError(
                f"{name} has two values in {flag}: {name}={value_by_name[name]} and {word}",
                hint=f"Give only one value for {name}",
            )
    return value_by_name


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class OwnOptions:
    """Options for the labels and folders of your images.

    Attributes:
        label_map: Class of each label in your files, e.g. CAT=cat. If a label is a negative
            number, write, e.g., --label-map=-1=cat.
        label_columns: The column of the table that contains the labels, or one column of 0 and
            1 for each class.
        layout: Order of class folders and patient (group) folders, outermost first.
    """

    label_map: Annotated[Names, Parameter(metavar="WRITTEN=CLASS...")] = ()
    label_columns: Names = ()
    layout: Literal["class/group", "group/class"] | None = None

    def by_key(self) -> dict[str, Any]:
        """Return the options that the user gave, by their key in ``own`` of a sweep file."""
        label_map = pairs("--label-map", self.label_map, "WRITTEN=CLASS", "CAT=cat 0.0=0")
        answers = {**vars(self), "label_map": label_map}
        return {name: value for name, value in answers.items() if value}


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class ReadingOptions:
    """Options of commands that read raw files.

    Attributes:
        max_skipped_share: Largest share of a dataset's files that isweep may leave out, such
            as 0.01 or 1% (default 0.1%). isweep leaves out unusable files, and images that
            equal an image with another label. If the share is above 0, isweep may always leave
            out one unusable file.
    """

    max_skipped_share: Annotated[float, real(0, 1, share=True), Parameter(metavar="SHARE")] = 0.001


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Work(ReadingOptions, Place):
    """Options of commands that read raw files, compute on a cluster and store results.

    Attributes:
        address: HOST:PORT of a running Ray cluster, or auto on the head node of the cluster
            (default: a private cluster on this machine).
        num_cpus: Number of CPUs of the private Ray cluster (default: all CPUs of this
            machine).
        device: Device for training: auto (default), gpu or cpu. With auto, isweep trains on GPUs
            if the cluster has GPUs now, otherwise on CPUs. With gpu, isweep waits until the
            cluster has a GPU.
        dashboard: Serve the Ray dashboard of the private cluster (default: yes).
        tracking: Send results to MLflow (default: yes).
        quiet: Do not show the progress.
    """

    address: Address = None
    num_cpus: Annotated[int | None, whole(1), Parameter(group=CLUSTER, metavar="N")] = None
    device: Annotated[Literal["auto", "cpu", "gpu"], Parameter(group=CLUSTER)] = "auto"
    dashboard: Annotated[bool, Parameter(group=CLUSTER, negative="--no-dashboard")] = True
    tracking: Annotated[bool, Parameter(group=PLACES, negative="--no-tracking")] = True
    quiet: Annotated[bool, Parameter(group=OUTPUT)] = False

    def options(self, raw: Mapping[str, str | Path]) -> RunOptions:
        """Return the options of a run. They contain the folder of each dataset's raw download."""
        from orchestrator.machine.cluster import RunOptions

        folders = {name: Path(folder) for name, folder in raw.items()}
        values = vars(self) | {"raw": folders}
        return RunOptions(**{name: values[name] for name in RunOptions.__dataclass_fields__})


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class SweepWork(Work):
    """Options of commands that run a sweep's remaining trials.

    Attributes:
        raw: Folder of the raw download of a dataset. Repeat the option for several datasets.
    """

    raw: Annotated[tuple[str, ...], Parameter(metavar="NAME=DIR")] = ()
    changes: Changes = ()

    @property
    def run_options(self) -> RunOptions:
        """Options of the run, for example its folders, cluster and device."""
        return self.options(pairs("--raw", self.raw, "NAME=DIR", "mnist=/data/mnist"))

    def again(self, command: str, sweep: str) -> str:
        """Return the command line that continues this command after a stop."""
        words = [sweep]
        for change in self.changes:
            words += ["--set", change]
        return self.hint(command, *words)
