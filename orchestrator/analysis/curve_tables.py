"""Reading and checking of a table of results, from which learning curves are predicted.

The table is a user's CSV file or the table of a sweep, with one training per row. All
trainings use the same dataset. Every used cell is checked. An error message contains the line
and the column of the wrong cell.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from orchestrator.analysis.learning_curves import (
    LARGEST_TRAIN_SIZE,
    METRICS,
    CurvePoint,
    Metric,
)
from orchestrator.analysis.number_formats import number
from orchestrator.analysis.prediction_inputs import separator_of
from search_spaces.errors import ConfigError, DataError, did_you_mean, plural

METRIC_WORDS: Mapping[Metric, str] = {
    "loss": "test loss",
    "error": "error rate",
    "accuracy": "accuracy",
    "auroc": "AUROC",
}
SCORE_COLUMNS: Mapping[Metric, tuple[str, ...]] = {
    "loss": ("test_loss", "log_loss", "loss"),
    "error": ("test_error", "error", "error_rate"),
    "accuracy": ("test_accuracy", "accuracy"),
    "auroc": ("auc", "auroc", "test_auc"),
}
"""Accepted column names of each score. The first name is the name in the table of a sweep."""
COMPLEMENTS: Mapping[Metric, Metric] = {"accuracy": "error", "error": "accuracy"}
"""For some scores, the score that equals 1 − this score."""
LARGEST_DISAGREEMENT = 0.0051
"""Largest accepted difference between two columns of the same score. Rounding to two digits
can cause such a difference."""
SIZE_COLUMNS = ("train_size", "N", "n")
TEST_SIZE_COLUMNS = ("test_size", "num_test_images")
STATUS_COLUMN, SEED_COLUMN, CLASSES_COLUMN = "status", "seed", "num_classes"
MODEL_COLUMN, PAIR_COLUMN = "model", "class_pair"
TRAINING_COLUMNS = (MODEL_COLUMN, "recipe", PAIR_COLUMN, SEED_COLUMN)
"""Columns that, together with the train size, identify a training."""
POSITIVES_COLUMN = "num_positives"
"""Column with the number of test images of the positive class of an AUROC."""
OPTIONAL_COLUMNS = (
    MODEL_COLUMN,
    PAIR_COLUMN,
    SEED_COLUMN,
    CLASSES_COLUMN,
    POSITIVES_COLUMN,
    STATUS_COLUMN,
    TEST_SIZE_COLUMNS[0],
)
"""Columns that a table may omit. If an unknown column has a similar name, isweep suggests one
of these names."""
SIMILAR_NAMES = 0.75
"""Smallest similarity (from 0 to 1) between the name of an unknown column and a suggested
name. The names "classes" and "num_classes" have a similarity of 0.78. The names "val_size" and
"test_size" have a similarity of 0.59."""
TRAINING_SCORE = re.compile(
    r"(train|training)[ _-]?(acc|accuracy|loss|log_loss|error|error_rate|auc|auroc)", re.IGNORECASE
)
"""Pattern of the column names of scores on training images. Such scores do not show how well a
network generalizes, so a hint must never suggest that a user renames them to test scores."""
MIXED_COLUMNS = ("dataset", "image_size", "channels", "data_mode", "split")
"""Columns that must have the same value in all rows of a table of learning curves."""
NETWORK_COLUMNS = ("network", "architecture", "backbone")
"""Names that users give to the column of networks, which isweep calls ``model``."""
SETTING_COLUMNS = (
    *NETWORK_COLUMNS,
    "recipe",
    "epoch",
    "epochs",
    "num_epochs",
    "batch_size",
    "learning_rate",
    "lr",
    "optimizer",
    "weight_decay",
    "dropout",
    "augmentation",
    "pretrained",
)
"""Columns of settings that change a training. Scores are averaged only over trainings with the
same settings."""
WORKBOOK_SUFFIXES = (".xlsx", ".xlsm", ".xls")
"""Extensions of Excel workbooks."""
SWEEP_SUFFIXES = (".yaml", ".yml")
"""Extensions of sweep files."""
THOUSANDS_POINT = re.compile(r"\s*[1-9]\d{0,2}(\.\d{3})+\s*")
"""Pattern of a number such as 1.000. In some countries it means 1000, in other countries it
means 1."""
THOUSANDS_COMMA = re.compile(r"\s*[1-9]\d{0,2}(,\d{3})+\s*")
"""Pattern of a number such as 1,000, whose comma separates thousands."""
DECIMAL_COMMA = re.compile(r"\s*-?\d+,\d+\s*")
"""Pattern of a number such as 0,6, whose comma separates decimals."""


@dataclass(frozen=True, slots=True)
class CheckedTable:
    """The usable rows of a table of results.

    Attributes:
        rows: One row per training with the columns of the table, and five more columns:
            ``size`` (the train size), ``score``, ``tested`` (the number of test images),
            ``positives`` (the number of test images of the positive class of an AUROC) and
            ``classes`` (the number of classes). In the last three columns, NaN means unknown.
        remarks: Sentences on rows that were left out, and on columns that are used or not
            used.
    """

    rows: pd.DataFrame
    remarks: tuple[str, ...]


@contextmanager
def errors_with_source(source: str) -> Iterator[None]:
    """Prefix the messages of errors about a table with the name of the table.

    Args:
        source: The name of the table: the path of a file, or the name of a sweep.

    Raises:
        DataError: If the body raises a DataError. The new error has the name of the table in
            its message.
    """
    try:
        yield
    except DataError as error:
        raise DataError(f"{source}: {error.problem}", hint=error.hint) from None


def read_curve(path: Path) -> pd.DataFrame:
    """Read a CSV file of results whose cells are separated by commas, tabs or semicolons.

    If cells are separated by semicolons, decimal commas (0,5) are accepted: spreadsheets in
    many countries write such files.

    Returns:
        The table with all cells as text, and column names in lower case. Spaces at the ends of
        names and cells are removed, so "small_cnn " is the same model as "small_cnn".

    Raises:
        ConfigError: If the file cannot be read as a table.
    """
    hint = (
        "Give a CSV file in UTF-8 with the column train_size and a column of scores: "
        "test_loss, test_error, test_accuracy or auc"
    )
    try:
        if path.is_dir():
            raise ConfigError(f"{path} is a folder, not a CSV file", hint=hint)
        if path.suffix.lower() in SWEEP_SUFFIXES:
            raise ConfigError(
                f"{path} is a sweep file, not a CSV file of results",
                hint=f"Leave out --curve: type `isweep predict {path}`",
            )
        if path.suffix.lower() in WORKBOOK_SUFFIXES and path.is_file():
            raise ConfigError(
                f"{path} is an Excel workbook, not a CSV file",
                hint="Save the sheet of results as CSV (UTF-8), and give this CSV file",
            )
        separator = separator_of(path)
        layout: Any = {"sep": separator, "skipinitialspace": True, "encoding": "utf-8-sig"}
        # pandas renames the second of two columns with equal names. To detect equal names, the
        # first line is also read as cells.
        header = pd.read_csv(path, header=None, nrows=1, dtype=str, **layout)
        table = pd.read_csv(path, dtype=str, **layout)
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not in UTF-8", hint=hint) from None
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(f"{path} cannot be read as a CSV file: {reason}", hint=hint) from None
    except ValueError:
        raise ConfigError(
            f"{path} is not a CSV file: it is empty, or its rows have different numbers of cells",
            hint=hint,
        ) from None
    names = [name.strip().lower() for name in map(str, table.columns)]
    typed = [name.strip().lower() for name in header.iloc[0].dropna()]
    has_size_column = any(size_column.lower() in names for size_column in SIZE_COLUMNS)
    if not has_size_column and any(map(_is_numeral, typed)):
        raise ConfigError(
            f"{path} has no header: its first line is {', '.join(typed)}",
            hint="Write the names of the columns into the first line, for example "
            "train_size,test_accuracy",
        )
    if len(names) == 1:
        raise ConfigError(
            f"{path} has only one column: its first line is {names[0]!r}",
            hint="Separate the cells of each line by commas, semicolons or tabs",
        )
    repeated = sorted({name for name in typed if typed.count(name) > 1})
    if repeated:
        raise ConfigError(
            f"{path} has more than one column with the name {', '.join(repeated)}",
            hint="Rename columns until all names differ",
        )
    table = table.set_axis(names, axis=1).apply(lambda cells: cells.str.strip())
    return table if separator != ";" else _with_decimal_points(table)


def _is_numeral(cell: str) -> bool:
    """Return whether a cell is a number, with a decimal point or a decimal comma."""
    try:
        float(cell.replace(",", "."))
    except ValueError:
        return False
    return True


def _with_decimal_points(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table with decimal points instead of decimal commas.

    Raises:
        DataError: If a table with decimal commas contains a cell such as 1.000. The point in
            this cell may separate thousands.
    """
    has_comma = table.apply(lambda cells: cells.str.fullmatch(DECIMAL_COMMA).fillna(False))
    if has_comma.to_numpy().any():
        for column in table:
            for row, cell in table[column].dropna().items():
                if THOUSANDS_POINT.fullmatch(cell):
                    raise _thousands_error(cell, int(str(row)), str(column))
    return table.mask(has_comma, table.apply(lambda cells: cells.str.replace(",", ".")))


def checked_table(
    table: pd.DataFrame, metric: Metric, num_test_images: int | None = None
) -> CheckedTable:
    """Return the usable rows of a table, with train sizes and scores as numbers.

    Args:
        table: A table with columns of train size and score. Optional columns are status,
            model, class pair, seed, number of classes and size of the test set.
        metric: The metric whose scores are used.
        num_test_images: Number of test images of all rows. If None, the column of the table is
            used.

    Raises:
        DataError: If a value is not a number or out of range, if two scores of a row
            contradict each other, if a training has two results, or if the table contains
            several datasets.
    """
    if not pd.api.types.is_integer_dtype(table.index):
        table = table.reset_index(drop=True)  # Error messages compute line numbers from the index.
    if table.empty:
        raise DataError("The table has a header, but no rows", hint="Add one row for each training")
    size_column = _column(table, SIZE_COLUMNS, "train size")
    scores = _scores(table, metric)
    is_done = pd.Series(True, index=table.index)
    if STATUS_COLUMN in table:
        is_done = table[STATUS_COLUMN].fillna("done").eq("done")
    is_usable = is_done & scores.notna()
    remarks = [*_left_out_remarks(is_done, is_usable, metric), *_column_remarks(table, size_column)]
    rows = table[is_usable].copy()
    size_rule = f"a whole number of images from 1 to {LARGEST_TRAIN_SIZE - 1:,.0f}"
    rows["size"] = _numbers(rows[size_column], size_column, size_rule, _is_size)
    if rows["size"].isna().any():
        line = int(rows.index[rows["size"].isna()][0]) + 2
        raise DataError(
            f"Line {line} of the table has a score, but no {size_column}",
            hint=f"Fill in the {size_column}, or remove the line",
        )
    _check_size_columns(rows, size_column)
    rows["score"] = scores[is_usable]
    rows["tested"] = _test_sizes(rows, num_test_images)
    rows["classes"] = np.nan
    if CLASSES_COLUMN in rows:
        rows["classes"] = _numbers(
            rows[CLASSES_COLUMN], CLASSES_COLUMN, "a number of 2 or more", lambda value: value >= 2
        )
    if PAIR_COLUMN in rows:
        rows.loc[rows[PAIR_COLUMN].fillna("").astype(str).ne(""), "classes"] = 2.0
    rows["positives"] = np.nan
    if POSITIVES_COLUMN in rows:
        rows["positives"] = _numbers(
            rows[POSITIVES_COLUMN],
            POSITIVES_COLUMN,
            "a number of 1 or more",
            lambda value: value >= 1,
        )
        if metric == "auroc":
            _check_positives(rows)
    elif metric == "auroc":
        # If there are several classes, the AUROC is the mean of one AUROC per class. Each of
        # them compares the images of one class with all other images.
        rows["positives"] = np.floor(rows["tested"] / rows["classes"])
    for name in MIXED_COLUMNS:
        if varies(rows, name):
            values = sorted(map(str, rows[name].unique()))[:5]
            raise DataError(
                f"The table contains trainings of more than one {name}: {', '.join(values)}",
                hint=f"Keep only the rows with one value of {name}",
            )
    _check_settings(rows)
    rows, repeated = _without_repeats(rows)
    return CheckedTable(rows, (*remarks, *repeated))


def _test_sizes(rows: pd.DataFrame, num_test_images: int | None) -> pd.Series:
    """Return the number of test images of each row; NaN if it is unknown.

    Raises:
        DataError: If a cell is not a number, or if it differs from ``num_test_images``.
    """
    for name in TEST_SIZE_COLUMNS:
        if name not in rows:
            continue
        sizes = _numbers(rows[name], name, "a number of 2 or more", lambda value: value >= 2)
        if num_test_images is None:
            return sizes
        differs = sizes.notna() & sizes.ne(num_test_images)
        if differs.any():
            raise DataError(
                f"Line {_first_line(differs)} of the table has {name} "
                f"{number(sizes[differs].iloc[0])}, but --test-size (in Python: test_size) is "
                f"{number(num_test_images)}",
                hint=f"Leave out --test-size to use the column {name}, or correct the column",
            )
    if num_test_images is None:
        return pd.Series(np.nan, index=rows.index)
    return pd.Series(float(num_test_images), index=rows.index)


def _first_line(is_wrong: pd.Series) -> int:
    """Return the line number of the first wrong row in the file. Line 1 is the header."""
    return int(is_wrong.index[is_wrong][0]) + 2


def _check_size_columns(rows: pd.DataFrame, size_column: str) -> None:
    """Check that all columns of train sizes contain the same numbers."""
    for name in SIZE_COLUMNS:
        if name not in rows or name == size_column:
            continue
        sizes = pd.to_numeric(rows[name], errors="coerce")
        differs = sizes.notna() & sizes.ne(rows["size"])
        if differs.any():
            raise DataError(
                f"Line {_first_line(differs)} of the table has {size_column} "
                f"{number(rows['size'][differs].iloc[0])}, but {name} "
                f"{number(sizes[differs].iloc[0])}. Both columns may be the train size",
                hint=f"If the column {name} is not the train size, remove or rename it. "
                f"Otherwise remove the column {size_column}",
            )


def _check_positives(rows: pd.DataFrame) -> None:
    """Check that the test set of an AUROC also contains images of a class that is not positive."""
    differs = rows["positives"].ge(rows["tested"])
    if differs.any():
        first = rows[differs].iloc[0]
        raise DataError(
            f"Line {_first_line(differs)} of the table has {POSITIVES_COLUMN} "
            f"{number(first['positives'])}, but the test set has {number(first['tested'])} images",
            hint=f"Write the number of test images of the positive class into {POSITIVES_COLUMN}. "
            "This number must be smaller than the number of all test images",
        )


def _check_settings(rows: pd.DataFrame) -> None:
    """Check that trainings have the same settings if their scores are averaged."""
    curve_columns = [name for name in (MODEL_COLUMN, PAIR_COLUMN) if name in rows]
    for name in SETTING_COLUMNS:
        if name not in rows:
            continue
        for _, repeats in rows.groupby(["size", *curve_columns], dropna=False):
            if not varies(repeats, name):
                continue
            values = [str(value) for value in repeats[name].unique()[:5]]
            lines = ", ".join(str(int(str(row)) + 2) for row in repeats.index[:4])
            hint = (
                f"Keep only the rows with one value of {name}. To get a curve for each value, "
                f"write a name for each value into the column {MODEL_COLUMN}, for example "
                f"{name}-{values[0]}"
            )
            if name in NETWORK_COLUMNS and MODEL_COLUMN not in rows:
                hint = f"Rename the column {name} to {MODEL_COLUMN}"
            raise DataError(
                f"Lines {lines} of the table have the same train size, but different values of "
                f"{name}: {', '.join(values)}. Only repeats with the same settings are averaged",
                hint=hint,
            )


def _without_repeats(rows: pd.DataFrame) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Remove rows that equal an earlier row, and return the other rows and a remark on the copies.

    Raises:
        DataError: If two rows have the same training and seed, but different scores.
    """
    is_copy = rows.duplicated()
    unique = rows[~is_copy]
    remarks: tuple[str, ...] = ()
    if num_copies := int(is_copy.sum()):
        remarks = (
            f"Left out: {plural(num_copies, 'row')} equal to an earlier row. If equal rows "
            "are different trainings, write the seed of each training into a column "
            f"{SEED_COLUMN}.",
        )
    if SEED_COLUMN in unique and unique[SEED_COLUMN].notna().all():
        keys = [name for name in TRAINING_COLUMNS if name in unique]
        has_rival = unique.duplicated(["size", *keys], keep=False)
        if has_rival.any():
            first = unique[has_rival].iloc[0]
            same = unique["size"].eq(first["size"]) & has_rival
            lines = ", ".join(str(int(str(row)) + 2) for row in unique.index[same][:4])
            raise DataError(
                f"Lines {lines} of the table have different scores for the same training "
                "(train size, model and seed)",
                hint="Keep one of these lines",
            )
    return unique, remarks


def _scores(table: pd.DataFrame, metric: Metric) -> pd.Series:
    """Return the score of each row. An empty cell becomes NaN.

    Error rates are computed from accuracies, and accuracies from error rates.

    Raises:
        DataError: If two columns of a row contradict each other.
    """
    complement = COMPLEMENTS.get(metric)
    columns: dict[str, pd.Series] = {}
    for name in SCORE_COLUMNS[metric]:
        if name in table:
            columns[name] = _checked_scores(table[name], name, metric)
    if complement is not None:
        for name in SCORE_COLUMNS[complement]:
            if name in table:
                columns[name] = 1 - _checked_scores(table[name], name, complement)
    if not columns:
        raise _missing_score(table, metric)
    (first_name, scores), *further = columns.items()
    for name, repeated in further:
        is_apart = (scores - repeated).abs() > LARGEST_DISAGREEMENT
        if is_apart.any():
            place = int(is_apart.to_numpy().argmax())
            first_cell, cell = table[first_name].iloc[place], table[name].iloc[place]
            line = int(str(table.index[place])) + 2
            raise DataError(
                f"Line {line} of the table contradicts itself: {first_name} is {first_cell}, "
                f"and {name} is {cell}",
                hint=f"Correct the line, or remove the column {name}",
            )
        scores = scores.fillna(repeated)
    return scores


def _checked_scores(cells: pd.Series, column: str, metric: Metric) -> pd.Series:
    if metric == "loss":
        return _numbers(cells, column, "a finite loss above 0", lambda value: 0 < value < np.inf)
    rule = "a share from 0 to 1 (write 70 % as 0.7)"
    return _numbers(cells, column, rule, lambda value: 0 <= value <= 1)


def _numbers(
    cells: pd.Series, column: str, rule: str, is_allowed: Callable[[float], bool]
) -> pd.Series:
    """Convert cells to numbers. Empty cells become NaN.

    Args:
        cells: Cells of one column.
        column: Name of the column.
        rule: Description of an allowed number, for the error message.
        is_allowed: Function that returns whether a number is allowed.

    Raises:
        DataError: If a cell is not a number, or if its number is not allowed.
    """
    is_empty = cells.isna() | cells.astype(str).str.strip().eq("")
    numbers = pd.to_numeric(cells, errors="coerce")
    counts_images = column in (*SIZE_COLUMNS, *TEST_SIZE_COLUMNS)
    for row, cell, value, empty in zip(cells.index, cells, numbers, is_empty, strict=True):
        if empty:
            continue
        line = int(row)
        if counts_images and isinstance(cell, str) and THOUSANDS_POINT.fullmatch(cell):
            raise _thousands_error(cell, line, column)
        if pd.isna(value) or not is_allowed(float(value)):
            text = repr(cell) if pd.isna(value) else str(cell).strip()
            hint = "Correct the cell"
            if isinstance(cell, str) and DECIMAL_COMMA.fullmatch(cell):
                hint = f"Write {cell.strip().replace(',', '.')}, with a decimal point"
            if counts_images and isinstance(cell, str) and THOUSANDS_COMMA.fullmatch(cell):
                hint = f"Write {cell.strip().replace(',', '')}, without commas"
            raise DataError(
                f"Line {line + 2} of the table has {column} {text}, but {column} must be {rule}",
                hint=hint,
            )
    return numbers.astype(float)


def _thousands_error(cell: str, row: int, column: str) -> DataError:
    """Return the error for a cell such as 1.000, in which the point may separate thousands."""
    text = cell.strip()
    plain = text.replace(".", "")
    return DataError(
        f"Line {row + 2} of the table has {column} {text!r}. The point in this number could "
        "separate thousands or decimals",
        hint=f"Write {plain} or {text.split('.')[0]}, depending on what you mean",
    )


def metric_of(table: pd.DataFrame) -> Metric:
    """Return the first metric for which a table has a column: loss, error, accuracy or AUROC.

    Raises:
        DataError: If the table has no such column.
    """
    for metric in METRICS:
        if any(name in table for name in SCORE_COLUMNS[metric]):
            return metric
    accepted = ", ".join(names[0] for names in SCORE_COLUMNS.values())
    present = ", ".join(map(str, table.columns[:12]))
    raise DataError(
        f"The table has no column of scores. Its columns are {present}",
        hint=_training_score_hint(table, f"one of {accepted}")
        or f"Rename the column of scores to one of {accepted}",
    )


def _training_score_hint(table: pd.DataFrame, required: str) -> str:
    """Return a hint that scores on training images cannot be used.

    The hint is empty if the table has no column of such scores.

    Args:
        table: A table of results without the required score.
        required: Words for the column that the user must add.
    """
    training_scores = [name for name in map(str, table.columns) if TRAINING_SCORE.fullmatch(name)]
    if not training_scores:
        return ""
    return (
        f"The scores in the column {training_scores[0]} are measured on training images, so they "
        f"cannot be used. Measure the scores on test images, and add them as {required}"
    )


def curve_points(rows: pd.DataFrame) -> list[CurvePoint]:
    """Return one point for each row of a :class:`CheckedTable`."""
    points = []
    columns = ["size", "score", "tested", "positives"]
    for size, score, tested, positives in rows[columns].to_numpy(dtype=float).tolist():
        points.append(
            CurvePoint(
                train_size=size,
                score=score,
                num_test_images=None if np.isnan(tested) else int(tested),
                num_positives=None if np.isnan(positives) else max(1, int(positives)),
            )
        )
    return points


def with_article(metric: Metric) -> str:
    """Return the name of a score with its article, for example "an accuracy"."""
    return f"{'a' if metric == 'loss' else 'an'} {METRIC_WORDS[metric]}"


def varies(rows: pd.DataFrame, name: str) -> bool:
    """Return whether a table has the column ``name``, with at least two different values.

    A missing value counts as a value.
    """
    return name in rows and rows[name].nunique(dropna=False) > 1


def _is_size(value: float) -> bool:
    return 1 <= value < LARGEST_TRAIN_SIZE and value == int(value)


def _left_out_remarks(is_done: pd.Series, is_usable: pd.Series, metric: Metric) -> list[str]:
    """Return a remark on unusable rows. If all rows are usable, the list is empty.

    Raises:
        DataError: If no row is usable.
    """
    required = with_article(metric)
    hint = "Fill in the scores"
    reasons = f"no {METRIC_WORDS[metric]}"
    if not is_done.all():
        required = f"the status done and {required}"
        hint = "Wait until trials are done, or fill in the scores"
        reasons = f"{reasons}, or the status is not done"
    num_rows = len(is_usable)
    if not is_usable.any():
        raise DataError(f"None of the {num_rows} rows of the table has {required}", hint=hint)
    num_left_out = int((~is_usable).sum())
    if not num_left_out:
        return []
    return [f"Left out: {num_left_out} of {num_rows} rows ({reasons})."]


def _column_remarks(table: pd.DataFrame, size_column: str) -> list[str]:
    """Return remarks on an unusual column of train sizes, and on columns with typing errors.

    Args:
        table: A table of results.
        size_column: Name of the column that contains the train sizes.
    """
    remarks = []
    if size_column != SIZE_COLUMNS[0]:
        remarks.append(f"isweep uses the column {size_column} as the train size.")
    absent = [name for name in OPTIONAL_COLUMNS if name not in table]
    known = {*OPTIONAL_COLUMNS, *TEST_SIZE_COLUMNS}
    for column in map(str, table.columns):
        similar = difflib.get_close_matches(column.lower(), absent, n=1, cutoff=SIMILAR_NAMES)
        if similar and column not in known:
            remarks.append(f"The column {column} is not used. Did you mean {similar[0]}?")
    return remarks


def _column(table: pd.DataFrame, names: Sequence[str], content: str) -> str:
    """Return the first name in ``names`` for which the table has a column.

    Raises:
        DataError: If the table has none of these columns.
    """
    for name in names:
        if name in table:
            return name
    raise _missing_column(table, names[0], content)


def _missing_column(table: pd.DataFrame, name: str, content: str) -> DataError:
    columns = [str(column) for column in table.columns]
    present = ", ".join(columns[:12])
    candidates = [column for column in columns if not TRAINING_SCORE.fullmatch(column)]
    return DataError(
        f"The table has no column of the {content}. Its columns are {present}",
        hint=f"{did_you_mean(name, candidates)}Rename the column to {name}",
    )


def _missing_score(table: pd.DataFrame, metric: Metric) -> DataError:
    """Return the error for a table that has no column of the requested score.

    If the table has another score, the hint recommends to predict this other score. The hint
    must not recommend to rename a score to a different score.
    """
    error = _missing_column(table, SCORE_COLUMNS[metric][0], METRIC_WORDS[metric])
    for other in METRICS:
        if any(name in table for name in SCORE_COLUMNS[other]):
            return DataError(
                error.problem,
                hint=f"Use --target-{other} (in Python: metric={other!r}), or add a column "
                f"{SCORE_COLUMNS[metric][0]}",
            )
    hint = _training_score_hint(table, f"the column {SCORE_COLUMNS[metric][0]}")
    return DataError(error.problem, hint=hint or error.hint)
