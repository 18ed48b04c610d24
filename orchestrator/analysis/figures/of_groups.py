"""The figure of a user's table that was fitted within and between its groups."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from orchestrator.analysis.figures.style import BLACK, VERMILLION, panels, styled
from orchestrator.analysis.grouped_tables.design import LEVELS
from orchestrator.analysis.grouped_tables.fit import GroupedFit

MAX_VECTOR_POINTS = 2_000
"""Largest number of points that are drawn as vectors. If there are more, the points are drawn
as a bitmap."""


def draw_groups(table: pd.DataFrame, fit: GroupedFit) -> Figure:
    """Draw the response against each column, with rows colored by group and with both slopes.

    Args:
        table: The fitted rows.
        fit: The fit of these rows.
    """
    design = fit.design
    codes = table.groupby(list(design.groups)).ngroup()
    with styled():
        figure, axes_of_columns = panels(len(design.on), width=4.0, height=3.4)
        for axes, name in zip(axes_of_columns, design.on, strict=True):
            axes.scatter(
                table[name],
                table[design.response],
                c=codes,
                cmap="viridis",
                s=8,
                alpha=0.5,
                linewidths=0,
                rasterized=len(table) > MAX_VECTOR_POINTS,
            )
            axes.set(xlabel=name, ylabel=design.response)
            rows = pd.DataFrame({"x": table[name], "y": table[design.response]})
            _draw_slopes(axes, rows, codes, fit, name)
            axes.legend(fontsize=7)
    return figure


def _draw_slopes(
    axes: Axes, rows: pd.DataFrame, codes: pd.Series, fit: GroupedFit, name: str
) -> None:
    """Draw the means of groups, the slope within each group, and the slope between groups.

    Args:
        axes: The panel.
        rows: The fitted rows, with the column as ``x`` and the response as ``y``.
        codes: Number of the group of each row.
        fit: The fit of these rows.
        name: Name of the column.
    """
    by_group = rows.groupby(codes)
    means = by_group.mean()
    axes.plot(means["x"], means["y"], "s", color=BLACK, markersize=4, label="mean of a group")
    within, between = (fit.find(level, name) for level in LEVELS)
    if within.value is not None:
        lowest = by_group["x"].min()
        highest = by_group["x"].max()
        ends = np.array([lowest, highest])
        mean_x = means["x"].to_numpy()
        mean_y = means["y"].to_numpy()
        distances = ends - mean_x
        heights = mean_y + within.value * distances
        lines = axes.plot(ends, heights, color=BLACK, lw=0.8)
        lines[0].set_label("slope within groups")
    if between.value is not None:
        lowest_of_all = rows["x"].min()
        highest_of_all = rows["x"].max()
        ends = np.array([lowest_of_all, highest_of_all])
        middle = means.mean()
        distances = ends - middle["x"]
        heights = middle["y"] + between.value * distances
        axes.plot(ends, heights, "--", color=VERMILLION, label="slope between groups")
