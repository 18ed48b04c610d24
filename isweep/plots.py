"""Figures for notebooks: small matplotlib figures that a cell shows as they are returned."""

from __future__ import annotations

import io

import pandas as pd
from matplotlib.figure import Figure

from orchestrator.analysis import palette as p
from orchestrator.analysis.laws import PREDICTED_FORM
from orchestrator.commands import draw_pair
from orchestrator.running.own_data import Measured
from search_spaces.errors import DataError


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
