"""Writing of figures to files and into a page.

The same figure always gives the same bytes.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup
from matplotlib.figure import Figure

from orchestrator.analysis.figures.of_sweeps import DRAWINGS
from orchestrator.analysis.figures.style import styled
from orchestrator.analysis.fits import ScalingFits
from tasks.atomic import write_atomic

MAX_SVG_POINTS = 2000
"""Largest number of points of an SVG figure. An SVG figure with more points loads slowly, so a
PNG image is used instead."""
PNG_DPI = 150
"""Resolution of a PNG figure, in dots per inch."""
FORMER_DRAWINGS = ("d_repr_on_d_data",)
"""File stems of figures that earlier versions of isweep wrote. These files are deleted."""
NO_METADATA: dict[str, dict[str, None]] = {
    "png": dict.fromkeys(("Software",)),
    "pdf": dict.fromkeys(("CreationDate", "Producer", "Creator")),
    "svg": dict.fromkeys(("Date", "Creator", "Format", "Type")),
}
"""Metadata that is left out of files, by format. With dates and versions, equal figures would
have different bytes."""
SVG_ID = re.compile(r'(id=")(figure|axes|patch|line2d|text|matplotlib|xtick|ytick)')
"""Pattern of the ids that matplotlib writes. In each figure, matplotlib numbers them from
1."""


def write_figures(
    points: pd.DataFrame, fits: ScalingFits, folder: Path, formats: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Draw every figure for which there are data. Delete files of figures without data.

    Args:
        points: The fitted points, with one row per point.
        fits: The fits to these points.
        folder: Folder of the files.
        formats: File formats to write in addition to the format in the page.

    Returns:
        File name, caption and drawing of each figure, for a page.
    """
    folder.mkdir(parents=True, exist_ok=True)
    embedded = "svg" if len(points) <= MAX_SVG_POINTS else "png"
    embedded_figures: list[dict[str, Any]] = []
    written = set()
    with styled():
        for name, draw in DRAWINGS.items():
            drawing_with_caption = draw(points, fits)
            if drawing_with_caption is None:
                continue
            data_of = {}
            for kind in dict.fromkeys((embedded, *formats)):
                path = folder / f"{name}.{kind}"
                data_of[kind] = rendered(drawing_with_caption.figure, kind)
                write_atomic(path, data_of[kind], durable=False)
                written.add(path.name)
            embedded_figures.append(
                {
                    "file": f"{name}.{embedded}",
                    "caption": drawing_with_caption.caption,
                    "drawing": _embedded(data_of[embedded], embedded, name),
                }
            )
    for path in folder.iterdir():
        is_a_drawing = path.stem in DRAWINGS or path.stem in FORMER_DRAWINGS
        if is_a_drawing and path.name not in written:
            path.unlink()
    return embedded_figures


def rendered(figure: Figure, kind: str) -> bytes:
    """Return the bytes of a figure in a file format: png, pdf or svg."""
    # The layout is computed once here. Otherwise savefig would compute it again, with the same
    # result.
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)
    figure.set_layout_engine(None)
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=PNG_DPI, metadata=NO_METADATA[kind])
    return buffer.getvalue()


def _embedded(data: bytes, kind: str, name: str) -> Markup:
    """Return the figure as HTML: as SVG with a link for each point, or as a PNG image."""
    if kind == "png":
        encoded = base64.b64encode(data).decode("ascii")
        return Markup(f'<img alt="" src="data:image/png;base64,{encoded}">')
    text = data.decode("utf-8")
    # All figures are in the same page, so the ids of two figures must differ.
    svg = text[text.index("<svg") :]
    return Markup(SVG_ID.sub(rf"\1{name}-\2", svg))
