"""From the results table to the fitted points: checks, exclusions with reasons, averages over seeds."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from orchestrator.results import table as c
from orchestrator.results.table import TEXT_COLUMNS
from search_spaces.errors import DataError
from tasks.trials.records import TrialStatus

# Results as CSV that a spreadsheet can open without running anything.
#
# A text cell that begins with ``=``, ``+``, ``-`` or ``@`` is a formula to a spreadsheet. Such cells get a
# leading apostrophe (OWASP, "CSV Injection"), which reading takes off again, so a round trip loses nothing.

# The apostrophe is escaped too: otherwise a text that really begins with '= would come back without it.
_RISKY = ("=", "+", "-", "@", "\t", "\r", "'")


def escape_cell(value: object) -> object:
    """Return ``value`` made safe for a spreadsheet; anything but risky text is returned as it is."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_RISKY) else value


def unescape_cell(value: object) -> object:
    """Undo :func:`escape_cell`."""
    return (
        value[1:] if isinstance(value, str) and value[:1] == "'" and value[1:].startswith(_RISKY) else value
    )


def csv_text(table: pd.DataFrame) -> str:
    """Return ``table`` as CSV with every number in full precision and every risky text escaped."""
    safe = table.rename(columns=escape_cell)
    for position, dtype in enumerate(safe.dtypes):
        if not pd.api.types.is_numeric_dtype(dtype):
            safe.isetitem(position, [escape_cell(value) for value in safe.iloc[:, position]])
    return str(safe.to_csv(index=False, lineterminator="\n"))


def write_csv(table: pd.DataFrame, path: Path) -> Path:
    """Write ``table`` as :func:`csv_text` has it."""
    path.write_text(csv_text(table), encoding="utf-8", newline="")
    return path


def read_csv(path: Path) -> pd.DataFrame:
    """Read a table that :func:`write_csv` wrote: text columns stay text, empty text stays empty.

    Raises:
        DataError: if the file is missing or holds no table.
    """
    try:
        header = pd.read_csv(path, nrows=0).columns
        text = {name: str for name in header if unescape_cell(name) in TEXT_COLUMNS}
        blank = {name: ["", "nan"] for name in header if name not in text}
        table = pd.read_csv(
            path, dtype=text, na_values=blank, keep_default_na=False, float_precision="round_trip"
        )
    except (OSError, pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError) as error:
        raise DataError(
            "A results file must be a CSV table", f"{path}: {error}", "write it with `isweep results --csv`"
        ) from error
    for name in table.columns:
        if not pd.api.types.is_numeric_dtype(table[name].dtype):
            table[name] = table[name].astype(object).map(unescape_cell)
    return table.rename(columns=unescape_cell)


# Recipes as an axis of the grid: fits never average over them as if they were seeds.

_CELL = [c.MODEL, c.DATASET, c.CLASS_PAIR, c.TRAIN_SIZE, c.SEED, c.DATA_MODE]


def split_by_recipe(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table with models told apart by what their recipes vary: ``vgg13 (learning_rate=0.0003)``.

    Only what varies within one cell is an axis: a recipe that differs between datasets splits no model.
    """
    if c.RECIPE not in table:
        return table
    parts = table[c.RECIPE].fillna("").map(_changes)
    keys = [name for name in _CELL if name in table]
    axes = {
        name
        for _, cell in parts.groupby([table[key].fillna("") for key in keys])
        for name in _varied(list(cell))
    }
    if not axes:
        return table
    labels = parts.map(
        lambda changes: ", ".join(f"{name}={changes.get(name, 'as given')}" for name in sorted(axes))
    )
    return table.assign(**{c.MODEL: table[c.MODEL].astype(str) + " (" + labels + ")"})


def _changes(recipe: str) -> dict[str, str]:
    base, *changes = recipe.split("+")
    return {"recipe": base, **dict(change.split("=", 1) for change in changes if "=" in change)}


def _varied(cell: list[dict[str, str]]) -> set[str]:
    names = {name for changes in cell for name in changes}
    return {name for name in names if len({changes.get(name) for changes in cell}) > 1}


# Sentences about what few datasets cannot show; kept in one place so that every output says the same.

#: With fewer datasets than this in a domain, a trend over its datasets is a remark, not a finding. The
#: study's own medical slope, with seven datasets, rests on one of them.
MIN_CONVINCING_DATASETS = 5


def few_datasets(rows: pd.DataFrame) -> tuple[str, ...]:
    """Return one sentence per domain in ``rows`` that has too few datasets to conclude from."""
    counts = rows.groupby(c.DOMAIN)[c.DATASET].nunique()
    return tuple(
        sentence
        for domain, number in counts.items()
        for sentence in few_domain_datasets(str(domain), int(number))
    )


def few_domain_datasets(domain: str, number: int) -> list[str]:
    """Return a sentence where a domain has too few datasets to conclude from, or nothing."""
    if number >= MIN_CONVINCING_DATASETS:
        return []
    return [
        f"{plural(number, f'{domain} dataset')}: a trend over {domain} datasets cannot be told from the "
        f"peculiarities of {'that one' if number == 1 else 'these'}; "
        f"at least {MIN_CONVINCING_DATASETS} are needed."
    ]


def no_trial(model: str, subset: str) -> str:
    """Say that nothing was there to fit, of which model and domain where it is not all of them."""
    whose = "" if model == "pooled" else f" of {model}"
    where = "" if subset == "all" else f" on a {subset} dataset"
    return f"no usable trial{whose}{where}"


def plural(count: int, noun: str) -> str:
    """Return ``1 dataset``, ``2 datasets``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def listing(names: list[str]) -> str:
    """Return ``a``, ``a and b``, ``a, b and c``."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


# What a results table must be to be analysed at all; what single numbers cannot be is counted elsewhere.

#: MLflow cannot store infinity and keeps 1.797e308 in its place; nothing measured here comes near this bound
#: or its inverse, and products of squares of what lies between them still are numbers.
LARGEST_VALUE = 1e50


def check_table(table: pd.DataFrame) -> None:
    """Refuse a table without its columns, or one that contradicts itself.

    Raises:
        DataError: with what is wrong, in how many rows, and the first of them.
    """
    missing = [name for name in c.REQUIRED if name not in table]
    if missing:
        raise DataError(
            "A results table needs the columns " + ", ".join(c.REQUIRED),
            f"without {', '.join(missing)}",
            "see docs/results-columns.md",
        )
    if not table.columns.is_unique:
        repeated = sorted({str(name) for name in table.columns[table.columns.duplicated()]})
        raise DataError(
            "A results table has every column once", f"{', '.join(repeated)} repeated", "keep one"
        )
    check_values(table)
    twice = table[c.TRIAL_ID][table[c.TRIAL_ID].duplicated()]
    if len(twice):
        raise DataError(
            "A results table has one row per trial",
            f"{len(twice)} repeated, such as {twice.iloc[0]!r}",
            "keep the last attempt of each trial",
        )
    unknown = sorted({str(value) for value in table[c.DOMAIN]} - set(c.DOMAINS))
    if unknown:
        raise DataError(
            "A domain is natural or medical", ", ".join(map(repr, unknown)), "correct the dataset's spec"
        )
    _check_accuracies(table)
    domains = table.groupby(c.DATASET)[c.DOMAIN].nunique()
    if (domains > 1).any():
        raise DataError(
            "A dataset has one domain", f"{domains.idxmax()!r} has two", "correct the dataset's spec"
        )


def check_values(table: pd.DataFrame) -> None:
    """Refuse rows without a name, of a status that is none, or with a part of an image.

    Raises:
        DataError: with what was found.
    """
    nameless = [repr(name) for name in table.columns if not isinstance(name, str)]
    if nameless:
        raise DataError("The columns of a results table have names", ", ".join(nameless[:5]), "name them")
    for name in (c.TRIAL_ID, c.MODEL, c.DATASET):
        blank = sum(map(_is_blank, table[name])) if name in table else 0
        if blank:
            raise DataError(
                f"Every row of a results table has a {name}", f"{plural(blank, 'row')} without", "name them"
            )
    if c.STATUS in table:
        known = [str(status) for status in TrialStatus]
        unknown = sorted({str(value) for value in table[c.STATUS] if not _is_blank(value)} - set(known))
        if unknown:
            raise DataError(
                f"The status of a trial is {' or '.join(known)}", listing([repr(text) for text in unknown]),
                "correct it, or leave it blank for trials that are done",
            )  # fmt: skip
    if c.TRAIN_SIZE in table:
        _check_sizes(table[c.TRAIN_SIZE])


def _check_sizes(sizes: pd.Series) -> None:
    numbers = pd.to_numeric(sizes, errors="coerce").astype(float)
    partial = np.isfinite(numbers) & (numbers != np.floor(numbers))
    wrong = sizes[partial | truth_values(sizes)]
    if len(wrong):
        raise DataError(
            "A train size is a whole number of images",
            f"{wrong.iloc[0]}, {plural(len(wrong), 'row')} in all",
            "count images in ones",
        )


def truth_values(values: pd.Series) -> pd.Series:
    """Tell True and False, which pandas takes for 1 and 0, from numbers."""
    if values.dtype != object and not pd.api.types.is_bool_dtype(values):
        return pd.Series(False, index=values.index)
    return values.map(lambda value: isinstance(value, (bool, np.bool_))).astype(bool)


def _is_blank(value: Any) -> bool:
    return not value.strip() if isinstance(value, str) else bool(pd.isna(value))


def _check_accuracies(table: pd.DataFrame) -> None:
    if c.TEST_ACCURACY not in table:
        return
    shares = pd.to_numeric(table[c.TEST_ACCURACY], errors="coerce")
    wrong = shares[(shares < 0) | ((shares > 1) & (shares < LARGEST_VALUE))]
    if len(wrong):
        raise DataError(
            "An accuracy is a share from 0 to 1",
            f"{wrong.iloc[0]:g} at trial {table.loc[wrong.index, c.TRIAL_ID].iloc[0]!r}, {len(wrong)} in all",
            "divide percentages by 100",
        )


#: Derived columns of the fitted points.
LOG_LOSS = "log_loss"
LOG_TRAIN_SIZE = "log_train_size"
SCALED_LOG_TRAIN_SIZE = "scaled_log_train_size"
LOG_SHARPNESS = "log_sharpness"
IS_MEDICAL = "is_medical"
LOG_ERROR = "log_error"
#: d_data at the largest train size of the dataset and class pair: one number, so that no slope over N
#: mixes with how the estimate itself grows with N.
D_REFERENCE = "d_reference"
TWONN_REFERENCE = "twonn_reference"
#: d_data from fewer neighbours, at the largest train size: column -> number of neighbours.
NEIGHBOR_REFERENCES = {f"d_reference_k{k}": k for k in c.NEIGHBORS_TOO}
#: Rivals of K_F: the mean of local slopes, and K_F over that of the same labels exchanged at random.
LOG_SMOOTHNESS = "log_smoothness"
LOG_RELATIVE_SHARPNESS = "log_relative_sharpness"
INVERSE_D = "inverse_d"
#: What has to be equal for two points to be compared at equal N, and what one curve over N is.
CELL = "cell"
CURVE = "curve"
WEIGHT = "weight"
NUM_SEEDS = "num_seeds"

#: Loss of guessing between two classes, and the share of it above which next to nothing was learned.
CHANCE_LOSS = float(np.log(2))
NEAR_CHANCE = 0.9

#: Measures that are positive by what they mean.
_ABOVE_ZERO = ("d_data_", "label_sharpness")

#: Why a trial that diverged is left out.
DIVERGED = "diverged (loss stopped being a finite number)"
#: Texts that stand for a missing number.
_BLANK = ("", "nan", "none")

_POINT = [c.MODEL, c.DATASET, c.DOMAIN, c.CLASS_PAIR, c.TRAIN_SIZE, c.DATA_MODE]
_CURVE = [c.MODEL, c.DATASET, c.CLASS_PAIR, c.DATA_MODE]
SUBSET = [c.DATASET, c.CLASS_PAIR, c.DATA_MODE]


@dataclass(frozen=True, slots=True)
class Exclusion:
    """How many rows (or stored values) were left out, and why."""

    reason: str
    count: int

    def __str__(self) -> str:
        """Say it in a line."""
        return f"{self.reason}: {self.count:,}"


def normalise(table: pd.DataFrame) -> tuple[pd.DataFrame, tuple[Exclusion, ...]]:
    """Check the table, add the columns it lacks as missing, and make stored infinities missing.

    Returns:
        The table sorted by ``trial_id`` (so that row order never decides a result), and the number of
        unusable values per column.

    Raises:
        DataError: if a required column is absent, a trial appears twice, a name is blank, a status or domain
            is unknown, one dataset is said to be of two domains, an accuracy is no share, or a train size no
            whole number.
    """
    check_table(table)
    full = split_by_recipe(table).copy()
    for column in (*c.COLUMNS,):
        if column.name not in full:
            full[column.name] = "" if column.kind == "text" else np.nan
    texts = [name for name in full.columns if name in c.TEXT_COLUMNS]
    # As objects: a look at one of pandas' own string columns is a call into Arrow, and fits take thousands.
    full[texts] = full[texts].astype(object).where(full[texts].notna(), "").astype(str).astype(object)
    full.loc[full[c.STATUS] == "", c.STATUS] = c.DONE
    full, exclusions = _with_numbers(full)
    return full.sort_values(c.TRIAL_ID, kind="stable").reset_index(drop=True), exclusions


def finished_trials(table: pd.DataFrame) -> tuple[pd.DataFrame, tuple[Exclusion, ...]]:
    """Return the trials that did not diverge, names as they are, with what is no usable number as missing;
    and how many trials and values that left out.

    Raises:
        DataError: if a name is blank, a status unknown, or a train size no whole number.
    """
    check_values(table)
    if c.STATUS not in table:
        return _with_numbers(table.copy())
    done = table[c.STATUS].fillna("").isin([c.DONE, ""])
    kept, unusable = _with_numbers(table[done].copy())
    diverged = int((~done).sum())
    return kept, (*([Exclusion(DIVERGED, diverged)] if diverged else []), *unusable)


def _with_numbers(full: pd.DataFrame) -> tuple[pd.DataFrame, tuple[Exclusion, ...]]:
    """Make every measured column one of numbers, and what is none or stands for none missing and counted."""
    exclusions = []
    for name in [n for n in full.columns if n not in c.TEXT_COLUMNS and _is_measured(n)]:
        values = pd.to_numeric(full[name].mask(truth_values(full[name])), errors="coerce").astype(float)
        lost = (values.isna() & full[name].notna()).to_numpy(copy=True)
        lost[lost] = [str(v).strip().lower() not in _BLANK for v in full[name].to_numpy(dtype=object)[lost]]
        unusable = {
            "not a number": pd.Series(lost, index=values.index),
            "stored infinity": values.abs() >= LARGEST_VALUE,
        }
        if name.startswith(_ABOVE_ZERO) and not name.endswith("_std_error"):
            unusable["not above zero"] = values <= 0
            unusable["next to zero"] = (values > 0) & (values < 1 / LARGEST_VALUE)
        for what, affected in unusable.items():
            if affected.any():
                exclusions.append(Exclusion(f"{name}: {what}, treated as missing", int(affected.sum())))
            values = values.mask(affected)
        full[name] = values
    return full, tuple(exclusions)


def _is_measured(name: str) -> bool:
    return c.describe([name])[0].meaning != "not part of the standard table"


def without_copies(full: pd.DataFrame, names: Collection[str]) -> tuple[pd.DataFrame, tuple[Exclusion, ...]]:
    """Leave out the datasets that are changed copies of others, with their number of trials."""
    copies = full[c.DATASET].isin(list(names))
    if not copies.any():
        return full, ()
    reason = "arm of an intervention, a copy of its world's base: analysed beside it alone"
    return full[~copies].reset_index(drop=True), (Exclusion(reason, int(copies.sum())),)


def usable_trials(
    full: pd.DataFrame, *, leave_out_chance: bool = False
) -> tuple[pd.DataFrame, tuple[Exclusion, ...]]:
    """Return the trials that can enter any fit, with log loss, and how many could not (or have none), by
    reason.

    A loss of zero or less has no logarithm: the trial stays for fits that need no loss, and is counted.
    Replacing the loss by a small floor would put points where the floor, not the data, decides the fit.
    """
    trial_reasons = {
        DIVERGED: full[c.STATUS] != c.DONE,
        "no positive train size": ~(full[c.TRAIN_SIZE] > 0),
    }
    loss_reasons = {
        "no test loss": full[c.TEST_LOSS].isna(),
        "test loss not above zero, so it has no logarithm": full[c.TEST_LOSS] <= 0,
    }
    if leave_out_chance:
        loss_reasons["test loss at or above guessing (ln 2), left out on request"] = (
            full[c.TEST_LOSS] >= CHANCE_LOSS
        )
    keep, counts = _exclude(pd.Series(True, index=full.index), trial_reasons)
    with_loss, loss_counts = _exclude(keep, loss_reasons)
    log_loss = np.log(full[c.TEST_LOSS].where(with_loss))
    return full.assign(**{LOG_LOSS: log_loss})[keep], (*counts, *loss_counts)


def _exclude(keep: pd.Series, reasons: dict[str, pd.Series]) -> tuple[pd.Series, tuple[Exclusion, ...]]:
    """Return ``keep`` without the affected rows; each row counts under its first reason."""
    exclusions = []
    for reason, affected in reasons.items():
        count = int((keep & affected).sum())
        if count:
            exclusions.append(Exclusion(reason, count))
        keep = keep & ~affected
    return keep, tuple(exclusions)


def fitted_points(trials: pd.DataFrame) -> pd.DataFrame:
    """Average trials over seeds and add the regressors: one row per model, dataset, class pair and train
    size.

    Losses are averaged as logarithms (a geometric mean), other quantities as they are. ``weight`` makes the
    class pairs of a dataset count together as one point, so that a dataset with five pairs does not outvote
    one without.
    """
    numbers = [
        name
        for name in trials.columns
        if name not in c.TEXT_COLUMNS and name not in _POINT and pd.api.types.is_numeric_dtype(trials[name])
    ]
    grouped = trials.groupby(_POINT, sort=True)
    points = grouped[numbers].mean().assign(**{NUM_SEEDS: grouped.size()}).reset_index()
    pairs = points.groupby([c.MODEL, c.DATASET, c.TRAIN_SIZE])[c.CLASS_PAIR].transform("size")
    points[WEIGHT] = 1.0 / pairs
    points[c.TEST_LOSS] = np.exp(points[LOG_LOSS])
    points[LOG_TRAIN_SIZE] = np.log(points[c.TRAIN_SIZE].astype(float))
    points[SCALED_LOG_TRAIN_SIZE] = -points[LOG_TRAIN_SIZE] / _positive(points[c.D_DATA_MLE])
    points[LOG_SHARPNESS] = np.log(_positive(points[c.LABEL_SHARPNESS]))
    points[LOG_SMOOTHNESS] = np.log(_positive(points[c.LABEL_SHARPNESS_MEAN]))
    points[LOG_RELATIVE_SHARPNESS] = points[LOG_SHARPNESS] - np.log(
        _positive(points[c.LABEL_SHARPNESS_PERMUTED])
    )
    points[IS_MEDICAL] = (points[c.DOMAIN] == c.MEDICAL).astype(float)
    points[LOG_ERROR] = np.log(_positive(1.0 - points[c.TEST_ACCURACY]))
    points[CELL] = joined(points, [c.MODEL, c.TRAIN_SIZE, c.DATA_MODE])
    points[CURVE] = joined(points, _CURVE)
    others = {name: c.d_data_at(k) for name, k in NEIGHBOR_REFERENCES.items()}
    measures = {D_REFERENCE: c.D_DATA_MLE, TWONN_REFERENCE: c.D_DATA_TWONN, **others}
    for name, measured in measures.items():
        points[name] = _at_largest_size(points, measured)
    points[INVERSE_D] = 1.0 / points[D_REFERENCE]
    # Columns added one by one lie apart in memory, and every selection of rows would pay for it.
    return points.copy()


def joined(points: pd.DataFrame, names: Sequence[str]) -> pd.Series:
    """Join columns into one text, a key for groups."""
    first, *others = (points[name].astype(str) for name in names)
    return first.str.cat(pd.concat(others, axis=1), sep="\x1f") if len(points) and others else first


def _at_largest_size(points: pd.DataFrame, name: str) -> pd.Series:
    """The positive value of a measure at the largest train size that has one, per dataset, pair and data
    mode.
    """
    known = points[points[name] > 0].sort_values(c.TRAIN_SIZE, kind="stable")
    last = known.groupby(SUBSET)[c.TRAIN_SIZE].transform("max") == known[c.TRAIN_SIZE]
    reference = known[last].groupby(SUBSET)[name].mean()
    keys = pd.MultiIndex.from_frame(points[SUBSET])
    return pd.Series(reference.reindex(keys).to_numpy(dtype=float), index=points.index)


def past_guessing(points: pd.DataFrame, full: pd.DataFrame) -> pd.DataFrame:
    """Leave out, of every dataset and class pair, all N up to the last at which its models guess, and of
    every curve all N up to the last at which a trial diverged.

    A loss cannot stay far above guessing, so a curve starts flat there, whatever its law. Whole N go, by
    their mean over models, since dropping single high losses would flatten what is left; and so does losing
    them to divergence.

    Args:
        points: fitted points.
        full: all trials, diverged ones too.
    """
    keys = [*SUBSET, c.TRAIN_SIZE]
    guessing = points.groupby(keys)[LOG_LOSS].transform("mean") >= np.log(NEAR_CHANCE * CHANCE_LOSS)
    last = points[c.TRAIN_SIZE].where(guessing).groupby([points[name] for name in SUBSET]).transform("max")
    diverged = full[full[c.STATUS] != c.DONE].groupby(_CURVE)[c.TRAIN_SIZE].max()
    lost = diverged.reindex(pd.MultiIndex.from_frame(points[_CURVE])).to_numpy(dtype=float)
    return points[~(points[c.TRAIN_SIZE] <= last) & ~(points[c.TRAIN_SIZE] <= lost)]


def _positive(values: pd.Series) -> pd.Series:
    return values.where(values > 0)


def complete(points: pd.DataFrame, names: Sequence[str]) -> tuple[pd.DataFrame, tuple[Exclusion, ...]]:
    """Return the points that have all of ``names``, and how many lack each (first lack counts)."""
    keep = pd.Series(True, index=points.index)
    exclusions = []
    for name in names:
        lacking = keep & points[name].isna()
        if lacking.any():
            exclusions.append(Exclusion(f"no usable {name}", int(lacking.sum())))
        keep &= ~lacking
    return points[keep], tuple(exclusions)
