"""A figure of any table that was fitted within and between its groups."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from orchestrator.analysis.figures.style import BLACK, VERMILLION, panels, styled
from orchestrator.analysis.grouped_tables.design import LEVELS
from orchestrator.analysis.grouped_tables.fit import GroupedFit

MAX_VECTOR_POINTS = 2_000
"""More points than this are drawn as a picture inside the figure."""


def draw_groups(table: pd.DataFrame, fit: GroupedFit) -> Figure:
    """Draw the response over each column: rows colored by group, and both slopes.

    Args:
        table: The rows that were fitted.
        fit: Their fit.
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
            columns = pd.DataFrame({"x": table[name], "y": table[design.response]})
            _draw_slopes(axes, columns, codes, fit, name)
            axes.set(xlabel=name, ylabel=design.response)
            axes.legend(fontsize=7)
    return figure


def _draw_slopes(
    axes: Axes, columns: pd.DataFrame, codes: pd.Series, fit: GroupedFit, name: str
) -> None:
    """Draw the means of groups, the slope within each of them, and the slope between them."""
    by_group = columns.groupby(codes)
    means = by_group.mean()
    axes.plot(means["x"], means["y"], "s", color=BLACK, markersize=4, label="mean of a group")
    within, between = (fit.find(level, name) for level in LEVELS)
    if within.value is not None:
        ends = np.array([by_group["x"].min(), by_group["x"].max()])
        heights = means["y"].to_numpy() + within.value * (ends - means["x"].to_numpy())
        lines = axes.plot(ends, heights, color=BLACK, lw=0.8)
        lines[0].set_label("slope within groups")
    if between.value is not None:
        ends = np.array([columns["x"].min(), columns["x"].max()])
        heights = means["y"].mean() + between.value * (ends - means["x"].mean())
        axes.plot(ends, heights, "--", color=VERMILLION, label="slope between groups")
