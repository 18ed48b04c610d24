"""Measuring one's own images: arrays, folders and files give the same record."""

from __future__ import annotations

import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.figure import Figure
from pydantic import TypeAdapter, ValidationError

from orchestrator.analysis import figures as p
from orchestrator.analysis.laws import PREDICTED_FORM
from orchestrator.commands import draw_pair
from orchestrator.running.measuring import Measured
from search_spaces.errors import ConfigError, DataError, invalid, unknown_name
from tasks.measures.records import MeasureResult, MeasureSettings, as_sizes

if TYPE_CHECKING:
    from orchestrator import RunOptions
    from orchestrator.running.progress import Progress


# Figures for notebooks: small matplotlib figures that a cell shows as they are returned.


class CellFigure(Figure):
    """A figure that a cell shows by itself: IPython draws bare ones only once pyplot was imported."""

    def _repr_png_(self) -> bytes:
        with io.BytesIO() as file:
            self.savefig(file, format="png")
            return file.getvalue()


def measured_sizes(rows: pd.DataFrame) -> Figure:
    """Draw d_data with its standard error, one line per estimator, and K_F, against the train size."""
    with_sharpness = bool(rows["label_sharpness"].notna().any())
    with p.styled():
        figure = CellFigure(figsize=(4.6 * (1 + with_sharpness), 3.2), layout="constrained")
        axes = figure.subplots(1, 1 + with_sharpness, squeeze=False)[0]
        for k, (name, group) in enumerate(rows.dropna(subset=["d_data"]).groupby("estimator", sort=False)):
            axes[0].errorbar(
                group["train_size"],
                group["d_data"],
                yerr=group["std_error"].fillna(0),
                color=p.MODEL_COLOURS[k % len(p.MODEL_COLOURS)],
                marker="o",
                markersize=4,
                capsize=2,
                label=str(name),
            )
        axes[0].set_ylabel("intrinsic dimension d_data")
        axes[0].legend(fontsize=8)
        if with_sharpness:
            sizes = rows.drop_duplicates("train_size")
            axes[1].plot(
                sizes["train_size"], sizes["label_sharpness"], color=p.BLACK, marker="o", markersize=4
            )
            axes[1].set_ylabel("label sharpness K_F (1 / L2 pixel distance)")
        for one in axes:
            one.set_xlabel("images N")
    return figure


def closest_pair(measured: Measured) -> Figure:
    """Draw the two differently labelled images that are closest."""
    with p.styled():
        figure = CellFigure(figsize=(5, 2.8), layout="constrained")
        draw_pair(figure, measured)
    return figure


def coefficients(rows: pd.DataFrame) -> Figure:
    """Draw the coefficients of the predicted form: a point each, and its 95 % interval where there is one."""
    form = rows[(rows["law"] == PREDICTED_FORM.name) & rows["coefficient"].notna()]
    names = [name for name in form["coefficient"].unique() if name in PREDICTED_FORM.regressors]
    if not names:
        raise DataError("There is no fit of the predicted form to draw", way_out="see sweep.fits.records")
    with p.styled():
        labels = [
            f"{row.model}, {row.subset}" for row in form.drop_duplicates(["model", "subset"]).itertuples()
        ]
        figure = CellFigure(figsize=(3.6 * len(names), 1.2 + 0.3 * len(labels)), layout="constrained")
        for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
            part = form[form["coefficient"] == name]
            places = [labels.index(f"{row.model}, {row.subset}") for row in part.itertuples()]
            axes.plot(part["value"], places, "o", color=p.BLUE)
            for place, low, high in zip(places, part["low"], part["high"], strict=True):
                if pd.notna(low) and pd.notna(high):
                    axes.plot([low, high], [place, place], color=p.BLUE)
            # Theory: both are 1.
            axes.axvline(1, color=p.GREY, linestyle="--", linewidth=1)
            axes.set_yticks(range(len(labels)), labels)
            axes.invert_yaxis()
            axes.set_title(name)
    return figure


# Keyword arguments of the front's functions, checked as the command line checks its options.


def run_options(root: str | Path | None, options: Mapping[str, Any]) -> RunOptions:
    """Return the options that a caller names by keyword.

    Raises:
        ConfigError: for a name that is none, with the nearest one, and a value that the option cannot have.
    """
    from orchestrator import RunOptions

    known = set(RunOptions.__dataclass_fields__) - {"root"}
    for name in options:
        if name not in known:
            raise unknown_name("option", name, known)
    given = {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}
    try:
        return TypeAdapter(RunOptions).validate_python({**given, "root": root_text(root)})
    except ValidationError as error:
        raise invalid(error) from None


def root_text(root: object) -> str | None:
    """Return a root as text, or None for the default one.

    Raises:
        ConfigError: when it is no path.
    """
    if root is not None and (not isinstance(root, (str, Path)) or not str(root).strip()):
        raise ConfigError("root must be the path of a folder", repr(root), "e.g. './isweep-root'")
    return None if root is None else str(root)


def shown_progress(progress: object) -> Progress:
    """Return what shows how far a run is, or what shows nothing.

    Raises:
        ConfigError: when ``progress`` is no truth value.
    """
    from rich.console import Console

    from orchestrator.running.progress import Progress

    if not isinstance(progress, bool):
        raise ConfigError("progress must be True or False", repr(progress), "leave it out to see it")
    return Progress(console=Console() if progress else None)


@dataclass(frozen=True)
class Measurement:
    """What was measured of a set of images.

    Attributes:
        measured: Every number with its uncertainty and conventions, and the pair that attains K_F.
    """

    measured: Measured = field(repr=False)

    @property
    def result(self) -> MeasureResult:
        """Every number with its uncertainty and conventions."""
        return self.measured.record

    @property
    def label_names(self) -> tuple[str, ...]:
        """The classes that were measured, in their order; empty without labels."""
        return self.measured.label_names

    @property
    def pair_images(self) -> tuple[npt.NDArray[Any], npt.NDArray[Any]] | None:
        """The two differently labelled images that are closest."""
        return self.measured.pair_images

    @property
    def num_images(self) -> int:
        """Images measured, duplicates included."""
        return self.result.sizes[-1].train_size

    @property
    def d_data(self) -> float | None:
        """Intrinsic dimension by maximum likelihood, of all images."""
        estimate = self.result.d_data.get("mle")
        return None if estimate is None else estimate.value

    @property
    def label_sharpness(self) -> float | None:
        """K_F of all images; None without labels."""
        sharpness = self.result.label_sharpness
        return None if sharpness is None else sharpness.value

    def to_frame(self) -> pd.DataFrame:
        """Return one row per train size and estimator of d_data, with K_F beside."""
        rows = []
        for size in self.result.sizes:
            sharpness = size.label_sharpness
            for name, estimate in size.d_data.items():
                rows.append(
                    {
                        "train_size": size.train_size,
                        "estimator": name,
                        "d_data": estimate.value,
                        "std_error": estimate.error,
                        "label_sharpness": None if sharpness is None else sharpness.value,
                        "num_duplicates": size.num_duplicates,
                    }
                )
        return pd.DataFrame(rows)

    def to_json(self) -> dict[str, Any]:
        """Return the numbers as plain JSON: what ``isweep measure --json`` prints of them."""
        return self.result.to_json()

    def plot(self) -> Figure:
        """Draw d_data by estimator, and K_F, against the train size."""
        return measured_sizes(self.to_frame())

    def plot_pair(self) -> Figure:
        """Draw the two differently labelled images that attain K_F. It shows your images.

        Raises:
            DataError: when there are none.
        """
        return closest_pair(self.measured)

    def __repr__(self) -> str:
        parts = [f"{self.num_images:,} images", *self._classes(), *self._numbers()]
        if self.result.sizes[-1].num_duplicates:
            parts.append(f"{self.result.sizes[-1].num_duplicates} duplicates left out")
        return "Measurement: " + ", ".join(parts)

    def _repr_html_(self) -> str:
        notes = "".join(f"<li>{html.escape(note)}</li>" for note in self.result.notes)
        table = self.to_frame().to_html(index=False, float_format="{:.4g}".format, na_rep="")
        return f"<p>{html.escape(repr(self))}</p>{table}<ul>{notes}</ul>"

    def _classes(self) -> list[str]:
        count = len(self.label_names)
        return [f"{count} class{'' if count == 1 else 'es'}"] if count else []

    def _numbers(self) -> list[str]:
        estimate, sharpness = self.result.d_data.get("mle"), self.result.label_sharpness
        numbers = []
        if estimate is not None and estimate.value is not None:
            error = "" if estimate.error is None else f" ± {estimate.error:.2g}"
            numbers.append(f"d_data {estimate.value:.3g}{error}")
        elif estimate is not None:
            numbers.append(f"d_data undefined ({estimate.reason})")
        if sharpness is not None:
            numbers.append(
                f"K_F undefined ({sharpness.reason})"
                if sharpness.value is None
                else f"K_F {sharpness.value:.3g}"
            )
        return numbers


def measure(
    images: npt.ArrayLike | str | Path,
    labels: npt.ArrayLike | None = None,
    *,
    train_sizes: Sequence[int] = (),
    class_pair: tuple[str, str] | None = None,
    image_size: int | None = None,
    channels: int = 1,
    own: Mapping[str, Any] | None = None,
    root: str | Path | None = None,
    **settings: Any,
) -> Measurement:
    """Measure d_data and label sharpness in this process, without Ray and without training anything.

    Args:
        images: ``(num_images, channels, height, width)``, ``(num_images, height, width[, channels])`` or
            ``(num_images, num_features)``, uint8 or any real dtype; or what ``isweep measure`` takes: a
            folder of class folders, a ``.csv``, ``.npz``, ``.npy``, a prepared folder or a dataset's name.
        labels: ``(num_images,)`` numbers or text, for arrays; None measures d_data only. For a ``.npy`` the
            path of a file of labels.
        train_sizes: Nested, stratified subsets to measure beside all images.
        class_pair: Only these two classes, by name.
        image_size: Resize image files to this side (224 when None); not for arrays.
        channels: 1 or 3, of image files.
        own: What own data leave open, as in a sweep file: ``label_map``, ``label_columns``, ``layout``.
        root: Where prepared datasets are looked for; see :func:`isweep.run`.
        settings: See :class:`tasks.measures.records.MeasureSettings`: ``num_neighbors``, ``seed``, ...

    Raises:
        SweepError: for images, labels or settings that cannot be used.
    """
    from orchestrator.planning.paths import RootPaths
    from orchestrator.running.measuring import MeasureRequest, measure_arrays, measure_source
    from tasks.remote import InlineExecutor

    given, of_files = _settings(settings), isinstance(images, (str, Path))
    asked = MeasureRequest(str(images) if of_files else "", settings=given)
    asked = replace(asked, train_sizes=as_sizes(train_sizes), class_pair=_two_names(class_pair))
    if of_files:
        if not isinstance(own, (Mapping, NoneType)):
            raise ConfigError("own must be a mapping", repr(own), "e.g. {'label_map': {'CAT': 'cat'}}")
        if labels is not None and not isinstance(labels, (str, Path)):
            rule = "Labels of a file of images must be a file too"
            raise ConfigError(rule, type(labels).__name__, "give its path")
        asked = replace(asked, labels=None if labels is None else Path(labels), said=dict(own or {}))
        asked = replace(asked, image_size=image_size, channels=channels)
        return Measurement(measure_source(asked, InlineExecutor(), RootPaths.at(root_text(root))))
    if own:
        raise ConfigError("own is for files", repr(own), "map the labels of an array before")
    if image_size is not None:
        raise ConfigError("image_size is for image files", str(image_size), "resize the array before")
    array = _array("Images", images)
    names, codes = ((), None) if labels is None else _classes(_array("Labels", labels), len(array))
    return Measurement(measure_arrays(array, codes, names, asked, InlineExecutor()))


def _classes(labels: npt.NDArray[Any], num_images: int) -> tuple[tuple[str, ...], npt.NDArray[np.int64]]:
    from orchestrator.running.measuring import name_labels

    if labels.shape != (num_images,):
        raise DataError("There must be one label per image", f"{labels.shape} labels, {num_images} images")
    return name_labels(labels.tolist())


def _two_names(class_pair: object) -> tuple[str, str] | None:
    """Return a class pair as two names; of labels that are numbers these may be numbers too."""
    if class_pair is None:
        return None
    names = class_pair if isinstance(class_pair, (tuple, list)) else ()
    if len(names) != 2 or not all(isinstance(name, (str, Integral)) for name in names):
        raise ConfigError("class_pair must be two classes", repr(class_pair), "e.g. ('cat', 'dog')")
    return str(names[0]), str(names[1])


def _array(what: str, given: Any) -> npt.NDArray[Any]:
    try:
        return np.asarray(given)
    except ValueError as error:
        raise DataError(f"{what} must make one array", str(error), "give all of them one shape") from None


def _settings(given: dict[str, Any]) -> MeasureSettings:
    from search_spaces.errors import unknown_name

    known = MeasureSettings.__dataclass_fields__
    for name in given:
        if name not in known:
            raise unknown_name("setting", name, known)
    return MeasureSettings(**given)
