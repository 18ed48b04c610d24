"""Figures of the test loss: against d_data, against N, and what the fits leave unexplained."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from orchestrator.analysis import palette as p
from orchestrator.analysis import points as t
from orchestrator.analysis.fit_records import Coefficient, LawFit, ScalingFits
from orchestrator.analysis.laws import AT_EQUAL_SIZE, PREDICTED_FORM
from orchestrator.results import columns as c

#: Loss axes span at least this factor, so that scatter of a few per cent does not fill a panel.
SMALLEST_LOSS_RANGE = 4.0


def loss_on_d_data(points: pd.DataFrame, fits: ScalingFits) -> Figure | None:
    """Test loss against d_data, one panel per model, coloured by N, with one line per domain where fitted."""
    rows = points.dropna(subset=[t.LOG_LOSS, c.D_DATA_MLE])
    models = sorted(rows[c.MODEL].unique())[: p.MAX_PANELS]
    if not models:
        return None
    figure, panels = p.panels(len(models))
    low, high = rows[c.TRAIN_SIZE].min(), rows[c.TRAIN_SIZE].max()
    norm = LogNorm(low, high) if high > low else Normalize(low - 1, low + 1)
    for axes, model in zip(panels, models, strict=True):
        part = rows[rows[c.MODEL] == model]
        for domain, group in part.groupby(c.DOMAIN):
            drawn = axes.scatter(
                group[c.D_DATA_MLE],
                group[c.TEST_LOSS],
                c=group[c.TRAIN_SIZE],
                norm=norm,
                cmap="viridis_r",
                marker=_domain_marker(str(domain)),
                s=30,
                edgecolor=p.DOMAIN_COLOURS[str(domain)],
                linewidth=0.9,
            )
            p.tell(drawn, group)
            _domain_line(axes, fits, model, str(domain), group[c.D_DATA_MLE])
        p.log_ticks(axes, "y", rows[c.TEST_LOSS])
        axes.set_title(model)
    p.label_outer(figure, "intrinsic dimension d_data", "test loss (nat)")
    figure.colorbar(
        ScalarMappable(norm, "viridis_r"),
        ax=panels,
        label="train size N (images)",
        fraction=0.05,
        ticks=sorted(rows[c.TRAIN_SIZE].unique())[:: max(1, rows[c.TRAIN_SIZE].nunique() // 6)],
        format="{x:,.0f}",
    ).minorticks_off()
    p.legend(
        figure,
        [
            Line2D([], [], color=colour, marker=_domain_marker(d), markerfacecolor="white", label=d)
            for d, colour in p.DOMAIN_COLOURS.items()
            if d in set(rows[c.DOMAIN])
        ],
    )
    return figure


def _domain_marker(domain: str) -> str:
    return "o" if domain == c.NATURAL else "s"


def _domain_line(axes: Axes, fits: ScalingFits, model: str, domain: str, x: pd.Series) -> None:
    fit = fits.law(AT_EQUAL_SIZE.name, model=model, subset=domain)
    if not _is_shown(fit):
        return
    ends = np.array([x.min(), x.max()])
    intercept, slope = (k.value for k in fit.coefficients)
    axes.plot(ends, np.exp(intercept + slope * ends), color=p.DOMAIN_COLOURS[domain], linewidth=1.4)


def loss_on_train_size(points: pd.DataFrame, fits: ScalingFits) -> Figure | None:
    """Test loss against N, one panel per dataset, one line per model, beside the predicted slope."""
    rows = points.dropna(subset=[t.LOG_LOSS])
    order = rows[[c.DOMAIN, c.DATASET]].drop_duplicates().sort_values([c.DOMAIN, c.DATASET])
    datasets = order[c.DATASET].tolist()[: p.MAX_PANELS]
    if len(datasets) == 0:
        return None
    figure, panels = p.panels(
        len(datasets), width=2.9, height=2.4, most_columns=4 if len(datasets) > 4 else 3, share=False
    )
    models = sorted(rows[c.MODEL].unique())
    marks = p.model_marks(models)
    curves = rows.groupby([c.DATASET, c.MODEL, c.TRAIN_SIZE])[t.LOG_LOSS].mean()
    for axes, dataset in zip(panels, datasets, strict=True):
        part = rows[rows[c.DATASET] == dataset]
        for model in sorted(part[c.MODEL].unique()):
            curve = curves[dataset, model]
            mark = marks[model]
            axes.plot(curve.index, np.exp(curve), color=mark.colour, linewidth=1.1)
            shown = pd.DataFrame({c.TRAIN_SIZE: curve.index, c.TEST_LOSS: np.exp(curve.to_numpy())})
            drawn = axes.scatter(
                shown[c.TRAIN_SIZE], shown[c.TEST_LOSS], color=mark.colour, marker=mark.marker, s=14
            )
            p.tell(drawn, shown.assign(**{c.MODEL: model, c.DATASET: dataset}))
        _predicted_slope(axes, part)
        p.size_ticks(axes, sorted(rows[c.TRAIN_SIZE].unique()))
        p.log_ticks(axes, "y", part[c.TEST_LOSS])
        _at_least(axes, SMALLEST_LOSS_RANGE)
        axes.set_title(str(dataset), color=p.DOMAIN_COLOURS[part[c.DOMAIN].iloc[0]])
    p.label_outer(figure, "train size N (images)", "test loss (nat)")
    lines = [
        Line2D([], [], color=mark.colour, marker=mark.marker, markersize=3.5, label=model)
        for model, mark in marks.items()
    ]
    p.legend(
        figure, [*lines, Line2D([], [], color=p.BLACK, linestyle="--", label="predicted slope\n−1/d_data")]
    )
    return figure


def _at_least(axes: Axes, factor: float) -> None:
    """Widen a logarithmic y axis to a factor, so that a nearly flat curve looks flat."""
    low, high = axes.get_ylim()
    if high / low < factor:
        middle = np.sqrt(low * high)
        axes.set_ylim(middle / np.sqrt(factor), middle * np.sqrt(factor))


def _predicted_slope(axes: Axes, part: pd.DataFrame) -> None:
    d_data = part[t.D_REFERENCE].mean()
    if not d_data > 0:
        return
    sizes = np.array([part[c.TRAIN_SIZE].min(), part[c.TRAIN_SIZE].max()])
    # Only the slope is predicted; the height is set to pass through the middle of the points.
    middle = part[t.LOG_LOSS].mean() + part[t.LOG_TRAIN_SIZE].mean() / d_data
    axes.plot(sizes, np.exp(middle - np.log(sizes) / d_data), color=p.BLACK, linestyle="--", linewidth=1.2)


def residuals(points: pd.DataFrame, fits: ScalingFits) -> Figure | None:
    """Residuals of the predicted form (pooled over models) by dataset: what the law leaves unexplained."""
    fit = fits.law(PREDICTED_FORM.name)
    rows, _ = t.complete(points, (t.LOG_LOSS, *PREDICTED_FORM.regressors))
    if fit.status != "ok":
        return None
    fitted = sum(k.value * rows[k.name] for k in fit.coefficients[1:])
    raw = rows[t.LOG_LOSS] - fitted
    # Each model has its own intercept in the pooled fit; least squares makes it the mean of what is left.
    rest = raw - (raw * rows[t.WEIGHT]).groupby(rows[c.MODEL]).transform("sum") / rows[t.WEIGHT].groupby(
        rows[c.MODEL]
    ).transform("sum")
    order = rest.groupby([rows[c.DOMAIN], rows[c.DATASET]]).mean().sort_index().reset_index()
    figure = Figure(figsize=(6.2, 1.2 + 0.34 * len(order)), layout="constrained")
    axes = figure.subplots()
    jitter = np.random.default_rng(0)
    for place, (domain, dataset, mean) in enumerate(order.itertuples(index=False)):
        values = rest[rows[c.DATASET] == dataset]
        drawn = axes.scatter(
            values,
            place + jitter.uniform(-0.18, 0.18, len(values)),
            s=10,
            alpha=0.6,
            linewidth=0,
            color=p.DOMAIN_COLOURS[domain],
        )
        p.tell(drawn, rows[rows[c.DATASET] == dataset])
        axes.plot([mean, mean], [place - 0.34, place + 0.34], color=p.BLACK, linewidth=2)
    axes.set_yticks(range(len(order)), order[c.DATASET].tolist())
    axes.invert_yaxis()
    axes.axvline(0, color=p.GREY, linewidth=1)
    axes.set_xlabel("log test loss, observed minus fitted (bar: mean of the dataset)")
    return figure


def draws_domain_lines(points: pd.DataFrame, fits: ScalingFits) -> bool:
    """Whether :func:`loss_on_d_data` drew a line."""
    return any(f.law == AT_EQUAL_SIZE.name and f.model in fits.models and _is_shown(f) for f in fits.laws)


def _is_shown(fit: LawFit) -> bool:
    """Whether a line is drawn: a slope without an interval, as of two datasets, is supported by nothing."""
    return fit.status == "ok" and fit.coefficients[1].interval is not None


def draws_predicted_slope(points: pd.DataFrame, fits: ScalingFits) -> bool:
    """Whether :func:`loss_on_train_size` drew the law's slope."""
    rows = points.dropna(subset=[t.LOG_LOSS])
    return bool((rows[t.D_REFERENCE] > 0).any())


def draws_left_out_interval(points: pd.DataFrame, fits: ScalingFits) -> bool:
    """Whether :func:`left_out` drew the interval of any slope."""
    return any(slope.interval is not None for _, slope in _shown_left_out(fits))


def _shown_left_out(fits: ScalingFits) -> list[tuple[str, Coefficient]]:
    return [
        (domain, fit.coefficients[1])
        for domain in c.DOMAINS
        if (fit := fits.law(AT_EQUAL_SIZE.name, subset=domain)).status == "ok"
        and sum(v is not None for v in fit.coefficients[1].left_out.values()) > 1
    ]


def left_out(points: pd.DataFrame, fits: ScalingFits) -> Figure | None:
    """Slope of log loss on d_data (pooled over models) with all datasets and without each, per domain."""
    shown = _shown_left_out(fits)
    if not shown:
        return None
    tallest = max(len(slope.left_out) for _, slope in shown) + 1
    figure = Figure(figsize=(4.2 * len(shown), 1.0 + 0.32 * tallest), layout="constrained")
    for axes, (domain, slope) in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        known = [(f"without {name}", value) for name, value in slope.left_out.items() if value is not None]
        labels, values = zip(("all datasets", slope.value), *known, strict=True)
        axes.axvline(0, color=p.GREY, linewidth=1)
        axes.axvline(slope.value, color=p.DOMAIN_COLOURS[domain], linewidth=1, linestyle=":")
        axes.plot(values, range(len(values)), "o", color=p.DOMAIN_COLOURS[domain], markersize=6)
        if slope.interval is not None:
            axes.plot(slope.interval, [0, 0], color=p.DOMAIN_COLOURS[domain], linewidth=1.6)
        axes.set_yticks(range(len(labels)), labels)
        axes.set_ylim(len(labels) - 0.5, -0.5)
        axes.set_title(domain)
    figure.supxlabel("slope of log test loss per unit of d_data, at equal N", fontsize=9)
    return figure
