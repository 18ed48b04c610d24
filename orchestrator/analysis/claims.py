"""A ledger of the study's claims: what decides each, what was published, what a sweep finds, and
the verdict.

The claims are those of Konz & Mazurowski (arXiv 2401.08865, 2408.08381). A verdict is
``reproduced`` or ``refuted`` where the sweep's own test establishes that, else ``cannot be told``,
with the table's power or what is missing. p-values are Holm's over all claims that could be tested.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from textwrap import wrap
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd

from orchestrator.analysis import fits as f
from orchestrator.analysis import inference as i
from orchestrator.analysis import table as t
from orchestrator.analysis.class_pairs import DROP_AT_DELTA, LOSS_AT_DELTA, R_HAT_FREE
from orchestrator.analysis.grouped_tables.slopes import Slope
from orchestrator.analysis.interventions import Arm
from orchestrator.analysis.published import Score, score_table, scorecard
from orchestrator.analysis.table import decided, established, interval, number, plural
from orchestrator.analysis.tables import Table, laid_out
from orchestrator.results import columns as c

Verdict = Literal["reproduced", "refuted", "cannot be told"]
NOT_MEASURED = "not measured by a sweep"
PAIRS = "it is asked of several datasets; isweep fit says what the class pairs of this one tell"
SHARED = (
    "its worlds share images, so they are no datasets of their own; isweep fit says what each "
    "arm did"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerEntry:
    """One numbered claim: what the paper says, the number that decides, and the paper's own.

    The claim excludes ``null`` and lies on ``side`` of it; ``p_value`` is of the null, two-sided
    (of a correlation one-sided). ``power``: how often at most a table with this scatter establishes
    ``power_of``. ``hangs_on``: the value without the dataset that moves it most. ``is_share``: the
    value is shown in per cent.
    """

    number: str
    claim: str
    estimand: str
    published: str
    null: float = 0.0
    side: int = 1
    value: float | None = None
    interval: i.Interval | None = None
    p_value: float | None = None
    adjusted_p: float | None = None
    power: float | None = None
    power_of: str = ""
    num_datasets: int = 0
    reason: str = ""
    hangs_on: str = ""
    is_share: bool = False

    @property
    def verdict(self) -> Verdict:
        """What is established, if anything: the value on the claimed side of ``null``, or on the
        other.
        """
        if self.value is None or not established(self.adjusted_p, self.interval, self.null):
            return "cannot be told"
        return "reproduced" if (self.value - self.null) * self.side > 0 else "refuted"

    @property
    def why(self) -> str:
        """What limits the verdict, where it cannot be told."""
        if self.verdict != "cannot be told" or self.reason or self.power is None:
            return self.reason
        return f"power at most {self.power:.0%} for {self.power_of}"

    @property
    def line(self) -> str:
        """Verdict, claim, what was found and what limits it, for a terminal."""
        said = f"{self.verdict.upper()}  {self.number} {self.claim}"
        if self.value is not None:
            numbers = [f"95 % interval {self.shown_interval}"] if self.interval else []
            numbers += [decided(self.p_value, self.adjusted_p, self.interval, self.null)]
            measured = self.estimand.split(";")[0]
            said += (
                f" {measured[:1].upper()}{measured[1:]}: {self.shown_value} ({', '.join(numbers)})."
            )
        for text in (self.why, self.hangs_on):
            said += f" {text[:1].upper()}{text[1:]}." if text else ""
        return said

    @property
    def shown_value(self) -> str:
        """The value as text."""
        if self.value is None or not self.is_share:
            return number(self.value)
        return f"{self.value:.0%}"

    @property
    def shown_interval(self) -> str:
        """The 95 % interval as text."""
        if self.interval is None or not self.is_share:
            return interval(self.interval)
        low, high = self.interval
        return f"{low:.0%} to {high:.0%}"


_LAYERS = f"the dimension of layers before the last is {NOT_MEASURED}"
UNMEASURED = (
    LedgerEntry(
        number="Thm 2",
        claim="A network's sharpness K_f approaches K_F as N grows.",
        estimand="ratio K_f / K_F against N",
        published="proved, never measured",
        reason=f"the Lipschitz constant of a network is {NOT_MEASURED}",
    ),
    LedgerEntry(
        number="2408.08381, 1",
        claim=("Medical networks reach their peak dimension in earlier layers."),
        estimand="depth of the layer of highest d_repr, medical less natural",
        published="relative depth 0.35 against 0.57",
        reason=_LAYERS,
    ),
    LedgerEntry(
        number="2408.08381, 2",
        claim="The peak dimension follows d_data.",
        published="strong",
        estimand="correlation of the peak of d_repr over layers with d_data",
        reason=_LAYERS,
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """All claims, how a sweep agrees with every published quantity, and which cells count for
    nothing.
    """

    sweep: str
    entries: tuple[LedgerEntry, ...]
    scores: tuple[Score, ...]
    left_out: tuple[str, ...]

    def tables(self) -> list[Table]:
        """The claims, and the scorecard where there is one."""
        claims = laid_out(
            "claims",
            f"The study's claims against {self.sweep}",
            "Reproduced or refuted: established by the test, Holm's p at most 0.05 over the "
            "ledger. "
            "Intervals are over datasets. Power: at most, of the claim alone.",
            self.entries,
            {
                "no.": "number",
                "claim": "claim",
                "decided by": "estimand",
                "published": "published",
                "here": lambda e: e.shown_value,
                "95 % interval": lambda e: e.shown_interval if e.value is not None else "",
                "adjusted p": "adjusted_p",
                "datasets": lambda e: str(e.num_datasets or ""),
                "verdict": lambda e: (
                    e.verdict
                    + (f": {e.why}" if e.why else "")
                    + (f"; {e.hangs_on}" if e.hangs_on else "")
                ),
            },
            numeric_from=4,
        )
        return [claims, *([score_table(self.scores)] if self.scores else [])]

    def lines(self) -> Iterator[str]:
        """What a terminal shows: how many claims have which verdict, and a claim at a time."""
        verdicts = Counter(entry.verdict for entry in self.entries)
        counts = ", ".join(f"{verdicts[kind]} {kind}" for kind in get_args(Verdict))
        said = [
            f"{plural(len(self.entries), 'claim')}: {counts}.",
            *(entry.line for entry in self.entries),
        ]
        if (num := sum(entry.adjusted_p is not None for entry in self.entries)) > 1:
            said.append(f"p is adjusted over these {num} claims, in isweep fit over its questions.")
        for text in (*said, *(f"Left out: {text}." for text in self.left_out)):
            yield from wrap(text, 80, subsequent_indent="  ")

    def markdown(self) -> str:
        """The tables as Markdown."""
        parts = []
        for table in self.tables():
            rows = [table.header, ("---",) * len(table.header), *table.rows]
            body = [
                "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows
            ]
            parts.append("\n".join([f"## {table.title}", "", *body, "", table.note]))
        left_out = [f"- Left out: {text}" for text in self.left_out]
        return "\n\n".join([*parts, *(["\n".join(left_out)] if left_out else [])]) + "\n"

    def to_json(self) -> dict[str, Any]:
        """Everything, ready for ``json.dumps(allow_nan=False)``."""
        entries = [
            {**asdict(entry), "verdict": entry.verdict, "why": entry.why} for entry in self.entries
        ]
        return {**asdict(self), "entries": entries}


def ledger(
    table: pd.DataFrame, *, sweep: str, compare: bool = True, arms: Sequence[Arm] = ()
) -> Ledger:
    """Decide every claim from a results table; ``compare`` it with every published quantity too
    (not the published one with itself). Of worlds (``arms``) none is decided. DataError as for the
    fits.
    """
    ready = f.prepare(table, arms=arms)
    fits = f.fits_of(ready)
    found = [
        *_of_heights(ready, fits),
        _of_size("Thm 1", "d_data", "", ready),
        _of_size("Thm 4", "d_repr", c.D_REPR_MLE, ready),
        _of_attacks(fits),
        _of_representations(fits),
    ]
    if fits.class_pairs:
        found = [replace(one, reason=one.reason and PAIRS) for one in found]
        found += [*_of_pairs(fits.class_pairs)]
    if arms:
        untold = {"value": None, "interval": None, "p_value": None, "power": None}
        found = [replace(one, reason=SHARED, num_datasets=0, **untold) for one in found]  # type: ignore[arg-type]
    adjusted = i.holm([entry.p_value for entry in found])
    entries = [replace(entry, adjusted_p=p) for entry, p in zip(found, adjusted, strict=True)]
    scores, left_out = scorecard(table) if compare else (), tuple(map(str, ready.excluded))
    return Ledger(sweep=sweep, entries=(*entries, *UNMEASURED), scores=scores, left_out=left_out)


def _decided(
    entry: LedgerEntry, fit: f.Fit, name: str, degrees: float, effect: float, reason: str = ""
) -> LedgerEntry:
    """Return a claim with the estimate that decides it and the power for ``effect``, or why there
    is none.
    """
    estimate = fit.estimate(name)
    if reason or fit.status != "ok" or estimate is None:
        return replace(entry, reason=reason or fit.reason or NOT_MEASURED)
    if not estimate.is_tested:
        return replace(entry, reason=f"too few datasets for a p-value of {i.LEVEL:g}")
    return replace(
        entry,
        value=estimate.value,
        interval=estimate.interval,
        p_value=estimate.p,
        num_datasets=fit.num_datasets,
        power=f.t_power(effect, estimate.std_error, degrees),
    )


def _of_heights(ready: f.Prepared, fits: f.ScalingFits) -> Iterator[LedgerEntry]:
    """Claims about the height of losses at equal model and train size, and about K_F itself."""
    headline, gap = fits.find("headline"), fits.find("height", t.IS_MEDICAL)
    degrees = headline.num_datasets - len(headline.terms) - 1
    steeper = LedgerEntry(
        number="Fig. 2a",
        claim="Loss rises with d_data.",
        side=-1,
        power_of="a loss twice as high at the highest d_data as at the lowest",
        estimand=(
            f"slope of log loss on 1/d_data{t.given(headline.terms, t.INVERSE_D)}; t "
            "and "
            "permutation"
        ),
        published="rises: 0.25 per unit of d_data (ResNet-34, medical), on the prostate set alone",
    )
    found = _decided(steeper, headline, t.INVERSE_D, degrees, fits.twice_as_high)
    yield replace(found, hangs_on=_hangs_on(ready, headline, t.INVERSE_D) if found.value else "")
    sharper = LedgerEntry(
        number="Eq. 2",
        claim="Loss rises with K_F at equal d_data.",
        estimand=(
            f"slope of log loss on log K_F{t.given(headline.terms, t.LOG_SHARPNESS)}; t "
            "and "
            "permutation"
        ),
        published="1 by the law; K_F and domain not told apart",
        power_of="the law's slope of 1",
    )
    yield _decided(sharper, headline, t.LOG_SHARPNESS, degrees, 1.0, fits.why_no_sharpness)
    offset = LedgerEntry(
        number="Fig. 2b",
        claim="Medical sets have a higher loss than natural ones.",
        estimand="log loss, medical less natural, at equal model and N; t and exact permutation",
        published=("1.1 to 2.0 by network, without the prostate set"),
        power_of="a loss 2.7 times as high",
    )
    yield _decided(offset, gap, t.IS_MEDICAL, gap.num_datasets - 2, 1.0)
    labels = LedgerEntry(
        number="Fig. 1",
        claim="Medical sets have sharper labels.",
        estimand="mean log K_F, medical less natural; t and exact permutation over datasets",
        published="0.90; 0.54 at equal channels",
        power_of="a K_F 1.6 times as high",
    )
    known = ready.full[ready.full[c.LABEL_SHARPNESS] > 0]
    logs = np.log(known[c.LABEL_SHARPNESS]).groupby([known[c.DATASET], known[c.DOMAIN]]).mean()
    medical = np.asarray(logs.index.get_level_values(1) == c.MEDICAL, dtype=np.float64)[:, None]
    reason, estimates = fits.why_no_sharpness, None
    if not reason and (np.ptp(medical) == 0 or len(logs) < i.MIN_DATASETS):
        reason = "it needs datasets of both domains"
    if not reason:
        y, tested = np.asarray(logs, dtype=np.float64), {t.IS_MEDICAL}
        estimates = f.slope_estimates(y, medical, (t.IS_MEDICAL,), [""] * len(logs), tested=tested)
    fit = f.Fit(kind="height", status="ok", estimates=estimates or (), num_datasets=len(logs))
    yield _decided(labels, fit, t.IS_MEDICAL, len(logs) - 2, 0.5, reason)


def _hangs_on(ready: f.Prepared, headline: f.Fit, name: str) -> str:
    """Say what a slope of the headline is without the dataset that moves it most."""
    estimate = headline.estimate(name)
    if estimate is None or estimate.influential is None:
        return ""
    dataset = estimate.influential
    rest = ready.points[ready.points[c.DATASET] != dataset]
    without = f.fit_headline(rest, ready.scale).estimate(name)
    if without is None:
        return ""
    found = f"{number(without.value)} ({interval(without.interval)})"
    return f"without {dataset}, on which it hangs most, it is {found}"


def _of_size(number_: str, name: str, column: str, ready: f.Prepared) -> LedgerEntry:
    """A claim about the fall with N: in units of 1/d, 1 is the bound, and 0 no fall."""
    entry = LedgerEntry(
        number=number_,
        claim=f"Loss falls with N at least as fast as N^(−1/{name}).",
        null=1.0,
        estimand=(
            f"exponent b of N^(−b/{name}) within datasets; jackknife and wild cluster bootstrap"
        ),
        published="not tested",
        power_of="telling no fall at all from the bound",
    )
    if not ready.points[column or c.D_DATA_MLE].notna().any():
        return replace(entry, reason=f"{name} was not measured")
    fit, past = f.fit_exponents(ready, dimension=column)
    found = _decided(entry, fit, "exponent", fit.num_datasets - 1, 1.0)
    if found.value is None:
        return found
    exponent = fit.estimates[0]
    above = i.t_p_values(exponent.value - 1, exponent.std_error or 0.0, fit.num_datasets - 1)
    slower = max(1.0 if p is None else p for p in (fit.bound_p, past.bound_p))
    return replace(found, p_value=slower if exponent.value < 1 else float(above))


def _of_attacks(fits: f.ScalingFits) -> LedgerEntry:
    """Claims about robustness."""
    entry = LedgerEntry(
        number="Thm 3",
        claim="Sharper labels cost robustness: attacks raise the loss more.",
        estimand=(
            "largest r (by max-r permutation) of loss gained with K_F, over attacks and models"
        ),
        published="0.84 (FGSM, eleven datasets)",
        power_of=f"a correlation of {f.STRONG:g}",
    )
    tried = fits.attacks
    best = max(
        (fit for fit in tried if fit.estimates),
        key=lambda fit: fit.estimates[0].value,
        default=None,
    )
    if best is None:
        return replace(entry, reason=tried[0].reason if tried else "no attack was run")
    scale = f" (K_F of {best.variant} alone)" if best.variant else ""
    found = _decided(replace(entry, estimand=f"{entry.estimand}{scale}"), best, "r", 0, 0.0)
    power = f.correlation_power(best.num_datasets, len({d.domain for d in fits.datasets}) - 1)
    return found if found.reason else replace(found, power=power)


ON_PAIRS = {
    LOSS_AT_DELTA: LedgerEntry(
        number="Eq. 2, pairs",
        claim="Between class pairs of equal d_data and δ, loss rises with K_F.",
        estimand=LOSS_AT_DELTA,
        published="1 by the law; not tested",
    ),
    R_HAT_FREE: LedgerEntry(
        number="Thm 3, pairs",
        claim="Between class pairs of equal d_data, sharper labels cost robustness, free of scale.",
        estimand=R_HAT_FREE,
        published="−1 by the law; not tested",
        side=-1,
    ),
    DROP_AT_DELTA: LedgerEntry(
        number="Thm 3, pairs, attacks",
        claim="Between class pairs of equal d_data and δ, attacks cost more where K_F is higher.",
        estimand=DROP_AT_DELTA,
        published="above 0 by the law; not tested",
    ),
}
"""Claims on class pairs, by estimand. δ is the mean distance to the nearest unlike image."""


def _of_pairs(slopes: Sequence[Slope]) -> Iterator[LedgerEntry]:
    """Yield the claims on K_F that the class pairs of one dataset decide, free of scale."""
    for slope in slopes:
        if slope.on not in ON_PAIRS:
            continue
        entry = replace(ON_PAIRS[slope.on], reason=slope.reason)
        if slope.value is None or slope.interval is None:
            yield entry
            continue
        degrees = slope.num_groups - 1
        half_width = (slope.interval[1] - slope.interval[0]) / 2
        power = None
        if slope.on != DROP_AT_DELTA:  # the law gives accuracy lost no rate
            power = f.t_power(1.0, half_width / i.t_quantile(1 - i.LEVEL / 2, degrees), degrees)
        yield replace(
            entry,
            estimand=f"{slope.on}; jackknife over {slope.num_groups} classes",
            value=slope.value,
            interval=slope.interval,
            p_value=slope.p_value,
            power=power,
            power_of="the law's rate of 1",
        )


def _of_representations(fits: f.ScalingFits) -> LedgerEntry:
    """Theorem 5, an approximate bound. What can be tested is that more than half of the points keep
    to it, and the claim says no more than that.
    """
    entry = LedgerEntry(
        number="Thm 5",
        claim="d_repr is at most d_data in more than half of the combinations.",
        null=0.5,
        published="an approximate bound for all",
        is_share=True,
        estimand="share of combinations with d_repr ≤ d_data; datasets count once, t against half",
        power_of="a share of all points",
    )
    fit = fits.find("representation")
    if fit.status != "ok":
        return replace(entry, reason=fit.reason)
    share, num, p, reason = fit.estimates[0], fit.num_datasets, None, ""
    if share.std_error:
        p = float(i.t_p_values(share.value - 0.5, share.std_error, num - 1))
    elif num < i.MIN_DATASETS:
        reason = f"{plural(num, 'dataset')}, too few for an interval"
    return replace(
        entry,
        value=share.value,
        interval=share.interval,
        num_datasets=num,
        p_value=p,
        reason=reason,
        power=f.t_power(0.5, share.std_error, num - 1),
    )
