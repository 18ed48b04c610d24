"""Measuring one's own images: arrays, folders and files give the same record."""

from __future__ import annotations

import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from pathlib import Path
from types import NoneType
from typing import Any

import numpy.typing as npt
import pandas as pd
from matplotlib.figure import Figure

from orchestrator.analysis.figures.style import styled
from orchestrator.measuring.arrays import measure_on_scale
from orchestrator.measuring.labels import name_labels
from orchestrator.measuring.pair_figure import draw_pair
from orchestrator.measuring.request import LabeledImages, Measured, MeasureRequest
from orchestrator.measuring.sources import measure_source
from orchestrator.planning.paths import RootPaths
from search_spaces.errors import ConfigError, DataError, plural, unknown_name
from tasks.measures.records import MeasureSettings, as_sizes, one_array
from tasks.remote import InlineExecutor


class Shown:
    """What a notebook shows as its repr and a table below."""

    def shown(self) -> pd.DataFrame | None:
        """Return the table, if there is one."""
        return None

    def _repr_html_(self) -> str:
        head, table = f"<p>{html.escape(repr(self))}</p>", self.shown()
        if table is None:
            return head
        return head + table.to_html(index=False, float_format="{:.4g}".format, na_rep="")


class CellFigure(Figure):
    """A figure that a cell shows by itself: IPython draws bare ones only once pyplot was
    imported.
    """

    def _repr_png_(self) -> bytes:
        with io.BytesIO() as file:
            self.savefig(file, format="png")
            return file.getvalue()


@dataclass(frozen=True, repr=False)
class Measurement(Measured, Shown):
    """The measures of a set of images, to look at in a notebook."""

    @property
    def num_images(self) -> int:
        """Images measured, duplicates included."""
        return self.record.sizes[-1].train_size

    @property
    def d_data(self) -> float | None:
        """Intrinsic dimension by maximum likelihood, of all images."""
        estimate = self.record.d_data.get("mle")
        return None if estimate is None else estimate.value

    @property
    def label_sharpness(self) -> float | None:
        """K_F of all images; None without labels."""
        sharpness = self.record.label_sharpness
        return None if sharpness is None else sharpness.value

    def to_frame(self) -> pd.DataFrame:
        """Return one row per train size and estimator of d_data, with K_F beside."""
        rows = [
            {
                "train_size": size.train_size,
                "estimator": name,
                "d_data": estimate.value,
                "std_error": estimate.reported_std_error,
                "label_sharpness": None
                if size.label_sharpness is None
                else size.label_sharpness.value,
                "num_duplicates": size.num_duplicates,
            }
            for size in self.record.sizes
            for name, estimate in size.d_data.items()
        ]
        return pd.DataFrame(rows)

    shown = to_frame

    def to_json(self) -> dict[str, Any]:
        """Return the numbers as plain JSON: what ``isweep measure --json`` prints of them."""
        return self.record.to_json()

    def plot_pair(self) -> Figure:
        """Draw the two differently labelled images that attain K_F, if any. It shows your
        images.
        """
        with styled():
            figure = CellFigure(figsize=(5, 2.8), layout="constrained")
            draw_pair(figure, self)
        return figure

    def __repr__(self) -> str:
        parts, count = [plural(self.num_images, "image")], len(self.label_names)
        if count:
            parts.append(plural(count, "class"))
        estimate, sharpness = self.record.d_data.get("mle"), self.record.label_sharpness
        error = (
            ""
            if estimate is None or estimate.reported_std_error is None
            else f" ± {estimate.reported_std_error:.2g}"
        )
        for name, one, more in (("d_data", estimate, error), ("K_F", sharpness, "")):
            if one is not None:
                value = (
                    f"undefined ({one.reason})" if one.value is None else f"{one.value:.3g}{more}"
                )
                parts.append(f"{name} {value}")
        if duplicates := self.record.sizes[-1].num_duplicates:
            parts.append(f"{plural(duplicates, 'duplicate')} left out")
        return "Measurement: " + ", ".join(parts)

    def _repr_html_(self) -> str:
        notes = "".join(f"<li>{html.escape(note)}</li>" for note in self.record.notes)
        return f"{super()._repr_html_()}<ul>{notes}</ul>"


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
    """Measure d_data and label sharpness in this process, without Ray and without training
    anything.

    Args:
        images: ``(num_images, channels, height, width)``, ``(num_images, height, width[,
            channels])`` or ``(num_images, num_features)``. Images of floats must lie in [0, 1] or
            [0, 255], or have a ``pixel_range``, and are brought to [0, 255]; or the path or name
            that ``isweep measure`` takes.
        labels: ``(num_images,)`` numbers or text, for arrays; None measures d_data only. For a
            ``.npy`` the path of a file of labels.
        train_sizes: Nested, stratified subsets to measure beside all images.
        class_pair: Only these two classes, by name.
        image_size: Side to which image files are resized (224 when None).
        channels: 1 or 3, of image files.
        own: What own data leave open, as in a sweep file: ``label_map``, ``label_columns``,
            ``layout``.
        root: Where prepared datasets are looked for; see :func:`isweep.run`.
        settings: See :class:`tasks.measures.records.MeasureSettings`: ``num_neighbors``, ``seed``,
            ...
    """
    for name in settings:
        if name not in MeasureSettings.__dataclass_fields__:
            raise unknown_name("setting", name, MeasureSettings.__dataclass_fields__)
    of_files = isinstance(images, (str, Path))
    asked = MeasureRequest(str(images) if of_files else "", settings=MeasureSettings(**settings))
    asked = replace(asked, train_sizes=as_sizes(train_sizes), class_pair=_two_names(class_pair))
    if of_files:
        if not isinstance(own, (Mapping, NoneType)):
            raise ConfigError(
                "own must be a mapping", repr(own), "e.g. {'label_map': {'CAT': 'cat'}}"
            )
        if labels is not None and not isinstance(labels, (str, Path)):
            rule = "Labels of a file of images must be a file too"
            raise ConfigError(rule, type(labels).__name__, "give its path")
        asked = replace(
            asked, labels=None if labels is None else Path(labels), said=dict(own or {})
        )
        asked = replace(asked, image_size=image_size, channels=channels)
        return Measurement(
            **vars(measure_source(asked, InlineExecutor(), RootPaths.at(root_text(root))))
        )
    if own:
        raise ConfigError("own is for files", repr(own), "map the labels of an array before")
    if image_size is not None or channels != 1:
        found = f"image_size {image_size}, channels {channels}"
        raise ConfigError(
            "image_size is for image files, as channels are", found, "change the array before"
        )
    array, written = (
        one_array("Images", images),
        None if labels is None else one_array("Labels", labels),
    )
    if written is not None and written.shape != (len(array),):
        found = f"{written.shape} labels, {len(array)} images"
        raise DataError("There must be one label per image", found)
    data = LabeledImages(array)
    if written is not None:
        named = name_labels(written.tolist())
        data = LabeledImages(array, named.codes, named.names)
    return Measurement(**vars(measure_on_scale(data, asked, InlineExecutor())))


def _two_names(class_pair: object) -> tuple[str, str] | None:
    """Return a class pair as two names; of labels that are numbers these may be numbers too."""
    if class_pair is None:
        return None
    names = class_pair if isinstance(class_pair, (tuple, list)) else ()
    if len(names) != 2 or not all(isinstance(name, (str, Integral)) for name in names):
        raise ConfigError("class_pair must be two classes", repr(class_pair), "e.g. ('cat', 'dog')")
    return str(names[0]), str(names[1])


def root_text(root: object) -> str | None:
    """Return a root as text, or None for the default one; ConfigError when it is no path."""
    if root is not None and (not isinstance(root, (str, Path)) or not str(root).strip()):
        raise ConfigError("root must be the path of a folder", repr(root), "e.g. './isweep-root'")
    return None if root is None else str(root)
