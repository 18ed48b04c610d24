"""Results tables: read, written, checked, and reduced to points; what columns and numbers are
called.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from orchestrator.analysis.inference import LEVEL, Interval, Sums, curve_sums
from orchestrator.results import columns as c
from search_spaces.errors import DataError
from search_spaces.errors import plural as plural
from tasks.trials.records import TrialStatus

LOG_LOSS, LOG_ERROR = "log_loss", "log_error"
#: Logarithm of the share that a loss has of guessing's own, ln of the number of classes (not told:
#: two).
OF_GUESSING = "of_guessing"
LOG_TRAIN_SIZE = "log_train_size"
#: d_data at the largest train size of the dataset and class pair, since the estimate itself grows
#: with N.
D_REFERENCE, INVERSE_D = "d_reference", "inverse_d"
LOG_SHARPNESS = "log_sharpness"
IS_MEDICAL = "is_medical"
#: What has to be equal for two points to be compared at equal N, and what one curve over N is:
#: codes.
CELL, CURVE = "cell", "curve"
WEIGHT, SEED_STD = "weight", "seed_std"

WORDS = {
    c.MODEL: "model",
    c.RECIPE: "recipe",
    c.DATASET: "dataset",
    c.CLASS_PAIR: "pair",
    c.STATUS: "status",
    c.TRAIN_SIZE: "N",
    c.SEED: "seed",
    c.TEST_LOSS: "test loss",
    c.TEST_ACCURACY: "accuracy",
    c.AUC: "AUC",
    SEED_STD: "seed spread",
    c.D_DATA_MLE: "d_data",
    c.LABEL_SHARPNESS: "K_F",
    c.WALL_TIME_S: "time (s)",
    D_REFERENCE: "d_data",
    INVERSE_D: "1/d",
    LOG_SHARPNESS: "log K_F",
    IS_MEDICAL: "the domain label",
}
#: All models together, each with its own intercept; both domains together.
POOLED, ALL = "pooled", "all"

#: MLflow keeps 1.797e308 for infinity; nothing measured comes near this bound, whose square is a
#: number.
LARGEST_VALUE = 1e50
DIVERGED = "diverged (loss stopped being a finite number)"
SUBSET = [c.DATASET, c.CLASS_PAIR, c.DATA_MODE]

#: Measures that are positive by what they mean, and texts that stand for a missing number.
_ABOVE_ZERO, _MISSING = ("d_data_", "label_sharpness"), ("", "nan", "none")
_POINT = [c.MODEL, c.DATASET, c.DOMAIN, c.CLASS_PAIR, c.TRAIN_SIZE, c.DATA_MODE]


def listing(names: Sequence[str]) -> str:
    """Return ``a``, ``a and b``, ``a, b and c``."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def given(terms: Sequence[str], name: str) -> str:
    """Say which other terms a coefficient holds equal, if any."""
    others = [WORDS[one].removeprefix("log ") for one in terms if one != name]
    return f", given {listing(others)}" if others else ""


def number(value: float | None, figures: int = 3) -> str:
    """Render a number to so many figures, or nothing when there is none."""
    if value is None or pd.isna(value):
        return ""
    small = value != 0 and abs(value) < 1e-4  # K_F of images lies above: one notation a column
    large = 1e3 <= abs(value) < 1e7
    text = (
        f"{value:,.0f}"
        if large
        else f"{value:.{figures - 1}e}"
        if small
        else f"{value:.{figures}g}"
    )
    return "0" if text == "-0" else text.replace("-", "−")


def p_value(value: float | None) -> str:
    """Render a p-value to two figures; a small one as a bound."""
    if value is None:
        return ""
    return "< 0.001" if value < 1e-3 else f"{value:.2g}"


def interval(bounds: Interval | None) -> str:
    """Render an interval, to the figures that tell its ends apart; a dash with too few datasets for
    one.
    """
    if bounds is None:
        return "–"
    ends = ([number(bound, figures) for bound in bounds] for figures in range(3, 9))
    apart = next((pair for pair in ends if pair[0] != pair[1]), None)
    return " to ".join(apart) if apart else f"{number(bounds[0])}, without scatter"


def established(adjusted_p: float | None, bounds: Interval | None, null: float = 0.0) -> bool:
    """Whether a number is claimed: its adjusted p-value holds, and its interval excludes the
    null.
    """
    held = adjusted_p is not None and adjusted_p <= LEVEL
    return held and bounds is not None and not bounds[0] <= null <= bounds[1]


def decided(
    p: float | None, adjusted_p: float | None, bounds: Interval | None, null: float = 0.0
) -> str:
    """Spell the adjusted p-value, and why it establishes nothing where it does not."""
    if p is None or adjusted_p is None:
        return "not tested"
    said = p_value(adjusted_p)
    text = f"adjusted p {said if said.startswith('<') else f'= {said}'}"
    if established(adjusted_p, bounds, null):
        return text
    if adjusted_p <= LEVEL:
        return text + (
            f", but the interval holds {null:g}" if bounds else ", but without an interval"
        )
    text += f", above {LEVEL:g}"
    if not established(0.0, bounds, null):
        return text
    by = " (by resampling, unlike the interval)" if p > LEVEL else ""
    return f"p = {p_value(p)} alone{by}; {text}, decides"


# A text cell that begins with =, +, - or @ is a formula to a spreadsheet: such cells get a leading
# apostrophe (OWASP, "CSV Injection"), which reading takes off again; so is a leading apostrophe
# itself.
_RISKY = ("=", "+", "-", "@", "\t", "\r", "'")


def escape_cell(value: object) -> object:
    """Return ``value`` made safe for a spreadsheet; anything but risky text is returned as it
    is.
    """
    return f"'{value}" if isinstance(value, str) and value.startswith(_RISKY) else value


def unescape_cell(value: object) -> object:
    """Undo :func:`escape_cell`."""
    escaped = isinstance(value, str) and value[:1] == "'" and value[1:].startswith(_RISKY)
    return value[1:] if isinstance(value, str) and escaped else value


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
    """Read a table that :func:`write_csv` wrote, empty text staying empty; DataError if there is
    none.
    """
    try:
        header = pd.read_csv(path, nrows=0).columns
        text = {name: str for name in header if unescape_cell(name) in c.TEXT_COLUMNS}
        blank = {name: ["", "nan"] for name in header if name not in text}
        exact: Any = {"keep_default_na": False, "float_precision": "round_trip"}
        table: pd.DataFrame = pd.read_csv(path, dtype=text, na_values=blank, **exact)
    except (OSError, pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError) as error:
        rule, hint = "A results file must be a CSV table", "write it with `isweep results --csv`"
        raise DataError(rule, f"{path}: {error}", hint) from error
    for name in table.columns:
        if not pd.api.types.is_numeric_dtype(table[name].dtype):
            table[name] = table[name].astype(object).map(unescape_cell)
    return table.rename(columns=unescape_cell)


def check_values(table: pd.DataFrame) -> None:
    """Refuse rows without a name, of a status that is none, or with a part of an image."""
    nameless = [repr(name) for name in table.columns if not isinstance(name, str)]
    _refuse("The columns of a results table have names", ", ".join(nameless[:5]), "name them")
    for name in (c.TRIAL_ID, c.MODEL, c.DATASET):
        blank = sum(map(_is_blank, table[name])) if name in table else 0
        found = f"{plural(blank, 'row')} without" if blank else ""
        _refuse(f"Every row of a results table has a {name}", found, "name them")
    known = [str(status) for status in TrialStatus]
    said = table.get(c.STATUS, pd.Series(dtype=object))
    unknown = sorted({str(value) for value in said if not _is_blank(value)} - set(known))
    hint = "correct it, or leave it blank for trials that are done"
    _refuse(f"The status of a trial is {' or '.join(known)}", listing([*map(repr, unknown)]), hint)
    sizes = table.get(c.TRAIN_SIZE, pd.Series(dtype=float))
    numbers = pd.to_numeric(sizes, errors="coerce").astype(float)
    wrong = sizes[(np.isfinite(numbers) & (numbers != np.floor(numbers))) | _truth_values(sizes)]
    found = f"{wrong.iloc[0]}, {plural(len(wrong), 'row')} in all" if len(wrong) else ""
    _refuse("A train size is a whole number of images", found, "count images in ones")


def _refuse(rule: str, found: str, hint: str) -> None:
    """Raise what breaks a rule, if something was found."""
    if found:
        raise DataError(rule, found, hint)


def _truth_values(values: pd.Series) -> pd.Series:
    """Tell True and False, which pandas takes for 1 and 0, from numbers."""
    if values.dtype != object and not pd.api.types.is_bool_dtype(values):
        return pd.Series(False, index=values.index)
    return values.map(lambda value: isinstance(value, (bool, np.bool_))).astype(bool)


def _is_blank(value: Any) -> bool:
    return not value.strip() if isinstance(value, str) else bool(pd.isna(value))


def split_by_recipe(table: pd.DataFrame) -> pd.DataFrame:
    """Tell models apart by what their recipes vary within one cell, ``vgg13
    (learning_rate=0.0003)``.
    """
    if c.RECIPE not in table:
        return table
    texts = [f"recipe={text}".split("+") for text in table[c.RECIPE].fillna("")]
    changes = [dict(change.split("=", 1) for change in text if "=" in change) for text in texts]
    parts = pd.Series(changes, index=table.index)
    keys = [
        n
        for n in (c.MODEL, c.DATASET, c.CLASS_PAIR, c.TRAIN_SIZE, c.SEED, c.DATA_MODE)
        if n in table
    ]
    axes = set()
    for _, cell in parts.groupby([table[key].fillna("") for key in keys]):
        names = {name for changes in cell for name in changes}
        axes |= {name for name in names if len({changes.get(name) for changes in cell}) > 1}
    if not axes:
        return table
    labels = parts.map(
        lambda own: ", ".join(f"{name}={own.get(name, 'as given')}" for name in sorted(axes))
    )
    return table.assign(**{c.MODEL: table[c.MODEL].astype(str) + " (" + labels + ")"})


@dataclass(frozen=True, slots=True)
class Exclusion:
    """How many rows (or stored values) were left out, and why."""

    reason: str
    count: int

    def __str__(self) -> str:
        """Say it in a line."""
        return f"{self.reason}: {self.count:,}"


def normalise(table: pd.DataFrame) -> tuple[pd.DataFrame, tuple[Exclusion, ...]]:
    """Check the table, add columns it lacks, and make stored infinities missing; return it sorted
    by ``trial_id``, and the number of unusable values per column.
    """
    missing = [name for name in c.REQUIRED if name not in table]
    rule, found = f"A results table needs the columns {', '.join(c.REQUIRED)}", ", ".join(missing)
    _refuse(rule, f"without {found}" if found else "", "see docs/results-columns.md")
    repeated = sorted({str(name) for name in table.columns[table.columns.duplicated()]})
    found = f"{', '.join(repeated)} repeated" if repeated else ""
    _refuse("A results table has every column once", found, "keep one")
    check_values(table)
    twice = table[c.TRIAL_ID][table[c.TRIAL_ID].duplicated()]
    found = f"{len(twice)} repeated, such as {twice.iloc[0]!r}" if len(twice) else ""
    _refuse("A results table has one row per trial", found, "keep the last attempt of each trial")
    unknown = sorted({str(value) for value in table[c.DOMAIN]} - set(c.DOMAINS))
    _refuse(
        "A domain is natural or medical",
        ", ".join(map(repr, unknown)),
        "correct the dataset's spec",
    )
    shares = pd.to_numeric(
        table.get(c.TEST_ACCURACY, pd.Series(np.nan, table.index)), errors="coerce"
    )
    wrong = shares[(shares < 0) | ((shares > 1) & (shares < LARGEST_VALUE))]
    first = table.loc[wrong.index, c.TRIAL_ID].head(1).to_list()
    found = f"{wrong.iloc[0]:g} at trial {first[0]!r}, {len(wrong)} in all" if first else ""
    _refuse("An accuracy is a share from 0 to 1", found, "divide percentages by 100")
    domains = table.groupby(c.DATASET)[c.DOMAIN].nunique()
    found = f"{domains.idxmax()!r} has two" if (domains > 1).any() else ""
    _refuse("A dataset has one domain", found, "correct the dataset's spec")
    full, exclusions = _with_numbers(split_by_recipe(table).copy())
    absent = {n.name: "" if n.kind == "text" else np.nan for n in c.COLUMNS if n.name not in full}
    full = full.assign(**absent)
    texts = [name for name in full.columns if name in c.TEXT_COLUMNS]
    # As objects: a look at one of pandas' own string columns is a call into Arrow, and fits take
    # thousands.
    full[texts] = (
        full[texts].astype(object).where(full[texts].notna(), "").astype(str).astype(object)
    )
    full.loc[full[c.STATUS] == "", c.STATUS] = c.DONE
    return full.sort_values(c.TRIAL_ID, kind="stable").reset_index(drop=True), exclusions


def finished_trials(table: pd.DataFrame) -> tuple[pd.DataFrame, tuple[Exclusion, ...]]:
    """Return the trials that did not diverge, and how many trials and unusable values that left
    out.
    """
    check_values(table)
    done = table.get(c.STATUS, pd.Series("", table.index)).fillna("").isin([c.DONE, ""])
    kept, unusable = _with_numbers(table[done].copy())
    diverged = int((~done).sum())
    return kept, (*([Exclusion(DIVERGED, diverged)] if diverged else []), *unusable)


def _with_numbers(full: pd.DataFrame) -> tuple[pd.DataFrame, tuple[Exclusion, ...]]:
    """Make every measured column one of numbers, and what is none or stands for none missing and
    counted.
    """
    exclusions = []
    measured = [n for n in full.columns if n not in c.TEXT_COLUMNS]
    for name in [
        n for n in measured if c.describe([n])[0].meaning != "not part of the standard table"
    ]:
        values = pd.to_numeric(full[name].mask(_truth_values(full[name])), errors="coerce").astype(
            float
        )
        lost = (values.isna() & full[name].notna()).to_numpy(copy=True)
        lost[lost] = [
            str(v).strip().lower() not in _MISSING for v in full[name].to_numpy(dtype=object)[lost]
        ]
        unusable = {
            "not a number": pd.Series(lost, index=values.index),
            "stored infinity": values.abs() >= LARGEST_VALUE,
        }
        if name.startswith(_ABOVE_ZERO) and not name.endswith("_std_error"):
            unusable["not above zero"] = values <= 0
            unusable["next to zero"] = (values > 0) & (values < 1 / LARGEST_VALUE)
        for what, affected in unusable.items():
            if affected.any():
                exclusions.append(
                    Exclusion(f"{name}: {what}, treated as missing", int(affected.sum()))
                )
            values = values.mask(affected)
        full[name] = values
    return full, tuple(exclusions)


Policy = Literal["refuse", "ignore"]
#: The short reason of every refusal; the long one, with the scales met, is the scale's note.
UNEQUAL_SCALES = "K_F was measured on unequal scales"
SAME_SHARPNESS = "K_F is the same for all datasets"
UNRECORDED = "unrecorded"
_SCALE = [c.SHARPNESS_PIXEL_RANGE, c.IMAGE_SIZE, c.SHARPNESS_CHANNELS]


@dataclass(frozen=True, slots=True, kw_only=True)
class SharpnessScale:
    """Whether K_F may be compared over datasets, what was done, and the scales met with their
    datasets.
    """

    comparable: bool
    policy: Policy
    note: str
    scales: tuple[tuple[str, tuple[str, ...]], ...] = ()


def sharpness_scale(table: pd.DataFrame, policy: Policy) -> SharpnessScale:
    """Tell whether K_F, which depends on pixel range, side and channels, may be compared over
    datasets.
    """
    measured = table.reindex(columns=[*table.columns.union([c.LABEL_SHARPNESS, *_SCALE])])
    measured = measured[measured[c.LABEL_SHARPNESS].notna()]
    scales = measured.groupby(_SCALE, dropna=False)[c.DATASET]
    found = tuple((spell_scale(key), tuple(sorted(names.unique()))) for key, names in scales)
    listed = "; ".join(f"{scale}: {', '.join(names)}" for scale, names in found)
    comparable, note = len(found) <= 1 or policy == "ignore", ""
    if not comparable:
        note = (
            f"{UNEQUAL_SCALES} ({listed}), so fits that compare it over datasets are refused; "
            "measure at one "
            "size and channel count."
        )
    elif len(found) > 1:
        note = (
            "K_F is compared over unequal scales as it stands, although more pixels or channels "
            "alone make "
            f"it smaller: {listed}."
        )
    elif measured[_SCALE].isna().any(axis=None):
        note = "The scale of K_F is not fully recorded; it is taken to be one."
    return SharpnessScale(comparable=comparable, policy=policy, note=note, scales=found)


def spell_scale(key: object) -> str:
    """Spell the scale of a K_F: its (pixel range, side, channels), NaN where one is not
    recorded.
    """
    range_, side, channels = np.asarray(key, dtype=float).tolist()
    parts = {
        "size": (side, f"{side:g}×{side:g} pixels"),
        "channels": (channels, f"{channels:g} channel{'s' * (channels != 1)}"),
        "range": (range_, f"range {range_:g}"),
    }
    return ", ".join(
        f"{UNRECORDED} {what}" if np.isnan(v) else said for what, (v, said) in parts.items()
    )


def fitted_points(full: pd.DataFrame) -> tuple[pd.DataFrame, tuple[Exclusion, ...]]:
    """Average trials over seeds and add the regressors: a row per model, dataset, class pair and
    train size.

    Losses are averaged as logarithms; ``weight`` makes the class pairs of a dataset count together
    as one. Also returned is how many trials have no loss to fit, each under its first reason; they
    stay for others.
    """
    no_trial = {
        DIVERGED: full[c.STATUS] != c.DONE,
        "no positive train size": ~(full[c.TRAIN_SIZE] > 0),
    }
    reasons = no_trial | {
        "no test loss": full[c.TEST_LOSS].isna(),
        "test loss not above zero, so it has no logarithm": full[c.TEST_LOSS] <= 0,
    }
    usable, exclusions = pd.Series(True, index=full.index), []
    for reason, affected in reasons.items():
        if count := int((usable & affected).sum()):
            exclusions.append(Exclusion(reason, count))
        usable &= ~affected
    trials = full.assign(**{LOG_LOSS: np.log(full[c.TEST_LOSS].where(usable))})
    trials = trials[~pd.DataFrame(no_trial).any(axis=1)]
    names = [n for n in trials.columns if n not in c.TEXT_COLUMNS and n not in _POINT]
    numbers = [name for name in names if pd.api.types.is_numeric_dtype(trials[name])]
    points = trials.groupby(_POINT, sort=True)[numbers].mean().reset_index()
    pairs = points.groupby([c.MODEL, c.DATASET, c.TRAIN_SIZE])[c.CLASS_PAIR].transform("size")

    sharpness, errors = points[c.LABEL_SHARPNESS], 1.0 - points[c.TEST_ACCURACY]
    reference = at_largest_size(points, c.D_DATA_MLE)
    added = {
        WEIGHT: 1.0 / pairs,
        c.TEST_LOSS: np.exp(points[LOG_LOSS]),
        OF_GUESSING: points[LOG_LOSS] - np.log(np.log(points[c.NUM_CLASSES].fillna(2.0))),
        LOG_ERROR: np.log(errors.where(errors > 0)),
        LOG_TRAIN_SIZE: np.log(points[c.TRAIN_SIZE].astype(float)),
        LOG_SHARPNESS: np.log(sharpness.where(sharpness > 0)),
        IS_MEDICAL: (points[c.DOMAIN] == c.MEDICAL).astype(float),
        CELL: points.groupby([c.MODEL, c.TRAIN_SIZE, c.DATA_MODE]).ngroup(),
        CURVE: points.groupby([c.MODEL, *SUBSET]).ngroup(),
        D_REFERENCE: reference,
        INVERSE_D: 1.0 / reference,
    }
    # Copied, since columns added lie apart in memory, and every selection of rows would pay for it.
    return points.assign(**added).copy(), tuple(exclusions)


def at_largest_size(points: pd.DataFrame, name: str, by: Sequence[str] = SUBSET) -> pd.Series:
    """The positive value of a measure at the largest train size that has one, for each of
    ``by``.
    """
    known = points[points[name] > 0]
    last = known.groupby([*by])[c.TRAIN_SIZE].transform("max") == known[c.TRAIN_SIZE]
    reference = known[last].groupby([*by])[name].mean()
    keys = pd.MultiIndex.from_frame(points[[*by]])
    return pd.Series(reference.reindex(keys).to_numpy(dtype=float), index=points.index)


def select(points: pd.DataFrame, model: str, subset: str = ALL) -> pd.DataFrame:
    """Return the points of one model (or all of them, pooled) and one domain (or both)."""
    rows = points if model == POOLED else points[points[c.MODEL] == model]
    return rows if subset == ALL else rows[rows[c.DOMAIN] == subset]


def sums_of(points: pd.DataFrame, column: str) -> Sums:
    """Reduce points to sums per dataset for the slope of ``column`` on −log N / d within curves."""
    y, size, d = (
        points[name].to_numpy(dtype=float) for name in (column, LOG_TRAIN_SIZE, D_REFERENCE)
    )
    groups, weights = points[c.DATASET].to_numpy(dtype=str), points[WEIGHT].to_numpy(dtype=float)
    return curve_sums(y, -size / d, points[CURVE].to_numpy(), groups, weights)


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetSummary:
    """What one dataset brought to the fits. K_F is a mean over train sizes and class pairs; at the
    largest size 1 / d_data, log ``loss`` (over models too) and ``loss_gain`` by the strongest
    ``attack`` up to 8/255. ``image_size``, ``channels`` and ``num_classes`` are 0 where it has
    several, None where none is recorded.
    """

    dataset: str
    domain: str
    num_trials: int
    train_sizes: tuple[int, ...]
    d_data: float | None
    label_sharpness: float | None
    image_size: int | None
    channels: int | None
    num_classes: int | None = None
    loss: float | None = None
    loss_gain: float | None = None
    attack: str = ""


def summaries_of(full: pd.DataFrame, points: pd.DataFrame) -> tuple[DatasetSummary, ...]:
    """Return what each dataset brought, from all trials and the fitted points."""
    tried = [
        a
        for a in c.attack_columns(points.columns)
        if a.epsilon <= 8 and points[a.name].notna().any()
    ]
    attack = max(tried, key=lambda a: (a.attack == "fgsm", a.epsilon), default=None)
    last = points[points[c.TRAIN_SIZE] == points.groupby(c.DATASET)[c.TRAIN_SIZE].transform("max")]
    losses = np.exp(last.groupby(c.DATASET)[LOG_LOSS].mean())
    inverse_d = points.groupby(c.DATASET)[INVERSE_D].mean()
    cells = points.drop_duplicates([c.DATASET, c.CLASS_PAIR, c.TRAIN_SIZE]).groupby(c.DATASET)
    sharpness = cells[c.LABEL_SHARPNESS].mean()
    gains = losses.iloc[:0] if attack is None else last.groupby(c.DATASET)[attack.name].mean()

    def known(value: float) -> float | None:
        return None if np.isnan(value) else float(value)

    def only(values: pd.Series) -> int | None:
        return None if values.isna().all() else int(values.max()) * (values.nunique() == 1)

    return tuple(
        DatasetSummary(
            dataset=str(name),
            domain=str(rows[c.DOMAIN].iloc[0]),
            num_trials=len(rows),
            train_sizes=tuple(sorted(int(n) for n in rows[c.TRAIN_SIZE].dropna().unique())),
            d_data=known(1 / inverse_d.get(name, np.nan)),
            label_sharpness=known(sharpness.get(name, np.nan)),
            image_size=only(rows[c.IMAGE_SIZE]),
            channels=only(rows[c.CHANNELS]),
            num_classes=only(rows[c.NUM_CLASSES]),
            loss=known(losses.get(name, np.nan)),
            loss_gain=known(gains.get(name, np.nan)),
            attack="" if attack is None else attack.words,
        )
        for name, rows in full.groupby(c.DATASET)
    )
