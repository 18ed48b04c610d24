"""Errors that users can cause. Any other exception is a bug and may print a traceback."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError

MAX_SHOWN = 200
"""Messages show at most this number of characters of a value."""
RULE_PREFIX = "Value error, "
"""Text that pydantic puts before the message of one of our own rules."""
PYDANTIC_SUBJECT = "Input "
"""First word of pydantic's messages. Our messages begin with the key instead."""
PLAIN_RULES = {
    "should be greater than or equal to": "must be at least",
    "should be less than or equal to": "must be at most",
    "should be greater than": "must be above",
    "should be less than": "must be below",
    "should be a valid integer": "must be a whole number",
    "should be a valid number": "must be a number",
    "should be a valid boolean": "must be true or false",
    "should be a valid string": "must be text",
}
"""Simpler words for the rules in pydantic's messages."""


class SweepError(Exception):
    """A mistake that a user can fix.

    Args:
        problem: One sentence: the mistake, its place and the value that the user entered.
        hint: One sentence: what the user should do; empty only if the user can do nothing.

    Example:
        >>> print(DataError("labels.csv row 12 has no label", hint="Fill it in, or drop the row"))
        labels.csv row 12 has no label. Fill it in, or drop the row.
    """

    exit_code = 2

    def __init__(self, problem: str, hint: str = "") -> None:
        super().__init__(problem, hint)  # pickle needs both arguments
        self.problem = problem
        self.hint = hint

    def __str__(self) -> str:
        """Return the problem and the hint as two sentences."""
        return " ".join(_sentence(part) for part in (self.problem, self.hint) if part)

    def _render_traceback_(self) -> list[str]:
        """Return the text that IPython prints instead of a traceback."""
        return [f"{type(self).__name__}: {self}"]


class ConfigError(SweepError):
    """A sweep file, preset or command-line value is not valid."""


class DataError(SweepError):
    """Raw or prepared data contain an error, or cannot be read."""


class TooFewImagesError(DataError):
    """A dataset has too few images for the requested train and test sizes.

    Args:
        problem: See :class:`SweepError`.
        hint: See :class:`SweepError`.
        largest_train_size: The largest train size that is possible with this test set; 0 if
            even the test set is too large.
    """

    def __init__(self, problem: str, hint: str = "", largest_train_size: int = 0) -> None:
        super().__init__(problem, hint)
        self.largest_train_size = largest_train_size


class CorruptStoreError(DataError):
    """A stored file is damaged: its checksum, size or schema is wrong."""


class NewerRecordError(CorruptStoreError):
    """A newer version of isweep wrote a stored file, so the file must not be replaced."""


class SetupError(SweepError):
    """The machine, cluster, storage or tracking server cannot be used."""

    exit_code = 3


def _sentence(text: str) -> str:
    """Add a full stop to a text that does not end with ``.``, ``?`` or ``!``."""
    return text if text.endswith((".", "?", "!")) else f"{text}."


def raise_all(problems: Iterable[SweepError], error: type[SweepError] = ConfigError) -> None:
    """Raise one ``error`` with a line for each problem. If there are no problems, do nothing.

    Several checks may find the same problem, so equal messages are listed only once.
    """
    problems = list({str(problem): problem for problem in problems}.values())
    if not problems:
        return
    if len(problems) == 1 and isinstance(problems[0], error):
        raise problems[0]
    lines = "".join(f"\n  - {problem}" for problem in problems)
    raise error(f"{plural(len(problems), 'problem')} found:{lines}")


def pydantic_error(error: ValidationError) -> SweepError:
    """Return a ConfigError for the first problem that pydantic reports."""
    problem = error.errors()[0]
    key = ".".join(str(part) for part in problem["loc"])
    return broken_rule(f"`{key}`", repr(problem["input"]), rule_of(problem["msg"]))


def rule_of(message: str) -> str:
    """Return the rule in pydantic's message about a value, such as ``must be at least 1``."""
    rule = message.removeprefix(RULE_PREFIX).removeprefix(PYDANTIC_SUBJECT)
    rule = rule.partition(" for <class")[0]  # the name of a Python type helps no user
    for pydantic_words, words in PLAIN_RULES.items():
        rule = rule.replace(pydantic_words, words)
    return rule


def broken_rule(place: str, value: str, rule: str) -> ConfigError:
    """Return the error for a value that breaks a rule.

    Args:
        place: The key of the value, in backticks.
        value: The value as text. Only its first characters are part of the message.
        rule: Result of :func:`rule_of`.
    """
    shown = value[:MAX_SHOWN]
    if rule.startswith(("must ", "should ")):
        return ConfigError(f"{place} is {shown}, but {rule}")
    if rule.startswith("is "):
        return ConfigError(f"{place} is {shown}, which {rule}")
    return ConfigError(f"{place} is {shown}: {rule[0].lower()}{rule[1:]}")


def missing_path_hint(path: Path) -> str:
    """Return a hint for a path that does not exist, such as ``Did you mean data/mnist?``."""
    try:
        folder = next(parent for parent in path.absolute().parents if parent.is_dir())
        missing = path.absolute().relative_to(folder).parts[0]
        candidates = difflib.get_close_matches(missing, sorted(os.listdir(folder)), n=10)
    except (OSError, ValueError, StopIteration, IndexError):
        return ""
    # Two names are not similar only because both end with .yaml.
    similar = [name for name in candidates if _are_similar(Path(name).stem, Path(missing).stem)]
    if not similar:
        return f"The folder {folder} has no {missing}."
    if similar[0] == missing:
        return f"{folder / missing} is a link to a file that does not exist."
    return f"Did you mean {folder / similar[0]}?"


def _are_similar(name: str, other_name: str) -> bool:
    return bool(difflib.get_close_matches(name, [other_name], n=1))


def plural(count: float, noun: str) -> str:
    """Format a number with its noun: ``1 trial``, ``2 trials``, ``2 classes``."""
    number = f"{count:,.15g}" if isinstance(count, float) else f"{count:,}"
    if count == 1:
        return f"{number} {noun}"
    return f"{number} {_plural_noun(noun)}"


def _plural_noun(noun: str) -> str:
    return f"{noun}es" if noun.endswith("s") else f"{noun}s"


def did_you_mean(name: str, candidates: Iterable[object]) -> str:
    """Return a question such as ``Did you mean 'demo'? ``; empty if no candidate is similar.

    The question ends with a space, so the caller can append another sentence.
    """
    values = {str(value): value for value in candidates}
    similar = difflib.get_close_matches(name, values, n=1)
    if not similar:
        return ""
    return f"Did you mean {values[similar[0]]!r}? "


def unknown_name(
    noun: str, name: object, table: Iterable[str] | Iterable[int], *, of: str = ""
) -> ConfigError:
    """Return the error for an unknown name, with a similar name and all known names.

    Args:
        noun: word for the named thing, in the singular: ``model``.
        name: the unknown name.
        table: all known names.
        of: owner of the known names, such as ``this sweep``; empty if the names have no owner.
    """
    names = sorted(table)
    owner = f" of {of}" if of else ""
    listed = ", ".join(str(entry) for entry in names) or "none"
    hint = f"{did_you_mean(str(name), names)}Known {_plural_noun(noun)}{owner}: {listed}"
    return ConfigError(f"Unknown {noun} {str(name)!r}{owner}", hint=hint)
