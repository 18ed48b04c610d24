"""What limits a table: losses at guessing, where guessing holds losses down, too few datasets.

A network that learned nothing has the loss of guessing, whatever N, d and K_F are: there curves are
flat and slopes too small, by an unknown amount. Over-fitted networks pass that loss freely.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from orchestrator.analysis import table as t
from orchestrator.results import columns as c

#: A loss lies at guessing from this share of guessing's own, ln of the number of classes, on.
AT_GUESSING = 0.8
#: Where more than this share of points lie there and fewer lie well beyond (5 %), guessing holds
#: losses down.
MOST_THERE, WELL_BEYOND = 0.10, 1.05
#: A curve whose geometric mean is below this share of guessing is clear of it: a loss that bends
#: towards guessing as x → tanh x, or 1 − exp(−x), has lost 7 or 19 % of its slope there.
CLEAR = 1 / 3
#: With fewer datasets than this in a domain, a trend over its datasets is a remark, not a finding.
MIN_CONVINCING_DATASETS = 5


def is_guessing(loss: float, num_classes: float | None = None) -> bool:
    """Tell whether a test loss (nat) lies at guessing between so many classes (not told: two), or
    beyond.
    """
    return bool(
        loss >= AT_GUESSING * np.log(2 if pd.isna(num_classes) or not num_classes else num_classes)
    )


def at_guessing(shares: pd.Series, share: float = AT_GUESSING) -> pd.Series:
    """Tell which logarithms of shares of guessing's loss lie at ``share`` or beyond; missing ones
    do not.
    """
    return pd.Series(shares >= np.log(share))


def holds_down(rows: pd.DataFrame) -> bool:
    """Tell whether so many points pile up at guessing that it holds the others down."""
    known = rows[rows[t.LOG_LOSS].notna()]
    weights, losses = known[t.WEIGHT], known[t.OF_GUESSING]
    there, beyond = (
        float(weights[at_guessing(losses, share)].sum()) for share in (AT_GUESSING, WELL_BEYOND)
    )
    return there - beyond > MOST_THERE * float(weights.sum()) and 2 * beyond < there


def flattened(rows: pd.DataFrame) -> str:
    """Return why slopes over these points would be too small, or an empty text."""
    if not holds_down(rows):
        return ""
    num, of = at_guessing(rows[t.OF_GUESSING]).sum(), t.plural(rows[t.LOG_LOSS].count(), "point")
    return (
        f"the losses of {num} of {of} lie at guessing, which flattens slopes by an unknown amount"
    )


def unvaried(rows: pd.DataFrame, within: str = "") -> str:
    """Return that losses are the same everywhere, or in every group ``within``; else an empty
    text.
    """
    values = rows[t.LOG_LOSS]
    around = values.groupby(rows[within]).transform("mean") if within else values.mean()
    if not (values - around).abs().max() <= 1e-12 * values.abs().max():
        return ""
    return "the losses are the same " + ("at every N" if within else "everywhere")


def clear_of_guessing(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the points of curves that are clear of guessing where it holds losses down, else all.
    Curves are chosen by their mean over N, which says nothing of errors in their slope, past their
    last N at guessing.
    """
    if not holds_down(rows):
        return rows
    means = rows[t.OF_GUESSING].groupby(rows[t.CURVE]).transform("mean")
    last = (
        rows[c.TRAIN_SIZE]
        .where(at_guessing(rows[t.OF_GUESSING]))
        .groupby(rows[t.CURVE])
        .transform("max")
    )
    clear: pd.DataFrame = rows[(means < np.log(CLEAR)) & ~(rows[c.TRAIN_SIZE] <= last)]
    return clear


def past_guessing(points: pd.DataFrame, full: pd.DataFrame) -> pd.DataFrame:
    """Leave out, of every dataset and class pair, all N up to the last at which its models guess on
    the whole, and of every curve all N up to the last diverged trial: a loss cannot stay far above
    guessing, so a curve starts flat there. Whole N go, by means over models: dropping single high
    losses flattens the rest.
    """
    means = points.groupby([*t.SUBSET, c.TRAIN_SIZE])[t.OF_GUESSING].transform("mean")
    last = (
        points[c.TRAIN_SIZE].where(at_guessing(means)).groupby([points[name] for name in t.SUBSET])
    )
    curve = [c.MODEL, *t.SUBSET]
    diverged = full[full[c.STATUS] != c.DONE].groupby(curve)[c.TRAIN_SIZE].max()
    lost = diverged.reindex(pd.MultiIndex.from_frame(points[curve])).to_numpy(dtype=float)
    return points[
        ~(points[c.TRAIN_SIZE] <= last.transform("max")) & ~(points[c.TRAIN_SIZE] <= lost)
    ]


def few_of_domain(domain: str, number: int) -> str:
    """Say that so many datasets of a domain are too few to conclude from."""
    return (
        f"{t.plural(number, f'{domain} dataset')}: a trend from one {domain} dataset to the next, "
        "unlike "
        f"one over N within them, cannot be told from the peculiarities of "
        f"{'that one' if number == 1 else 'these'}; at least {MIN_CONVINCING_DATASETS} are needed."
    )


def limits_of(full: pd.DataFrame, points: pd.DataFrame) -> tuple[str, ...]:
    """Return what cannot be concluded from a table, in sentences."""
    found = []
    there = at_guessing(points[t.OF_GUESSING])
    if num := int(there.sum()):
        counts = there[points[t.LOG_LOSS].notna()].groupby(points[c.DATASET]).agg(["sum", "size"])
        where = [
            f"{name} {row['sum']} of {row['size']}" for name, row in counts.iterrows() if row["sum"]
        ]
        named = "" if len(where) > 4 else f": {t.listing(where)}"
        classes = points.loc[there, c.NUM_CLASSES].fillna(2.0)
        between, of = (
            ("two classes", "2") if (classes == 2).all() else ("their classes", "of their number")
        )
        blank = there & (points[c.CLASS_PAIR] == "") & points[c.NUM_CLASSES].isna()
        more = "; of more classes guessing costs more" * bool(blank.any())
        found.append(
            f"{num} of {t.plural(points[t.LOG_LOSS].count(), 'point')} lie at guessing between "
            f"{between} "
            f"(a loss from {AT_GUESSING:g} ln {of} on{more}){named}."
        )
    compares_datasets = full[c.DATASET].nunique() != 1
    numbers = points.groupby(c.DOMAIN)[c.DATASET].nunique()
    found += [
        few_of_domain(str(d), int(n))
        for d, n in numbers.items()
        if compares_datasets and n < MIN_CONVINCING_DATASETS
    ]
    absent = [
        f"No {domain} dataset"
        for domain in c.DOMAINS
        if compares_datasets and domain not in numbers
    ]
    found += [f"{none}: nothing can be said about differences between domains." for none in absent]
    modes = sorted(full[c.DATA_MODE].unique())
    if len(modes) > 1:
        found.append(f"Trials of several data modes ({t.listing(modes)}) are fitted together.")
    if conflicts := sorted(full.loc[full[c.NUM_CONFLICTS] > 0, c.DATASET].unique()):
        named = t.listing(conflicts)
        found.append(
            f"Identical images with different labels in {named}: there K_F has no finite value."
        )
    few = {"model": points[c.MODEL].nunique(), "seed": full[c.SEED].nunique()}
    if lone := [name for name, num in few.items() if num == 1]:
        found.append(f"One {t.listing(lone)} alone: nothing tells what another would have changed.")
    return tuple(found)
