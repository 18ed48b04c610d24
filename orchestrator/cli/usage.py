"""A command line that is none, explained in one message that names the flags people type."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import get_args

from cyclopts import (
    App,
    Argument,
    CoercionError,
    CycloptsError,
    MissingArgumentError,
    UnknownCommandError,
    UnknownOptionError,
)

from search_spaces.errors import ConfigError


class UsageError(ConfigError):
    """Words that are no command of ``isweep``."""


def explained(error: CycloptsError, words: Sequence[str], app: App) -> UsageError:
    """Say what is wrong with a command line and where its help is."""
    chain = " ".join(["isweep", *(error.command_chain or ())])
    if isinstance(error, UnknownCommandError):
        return _unknown_command(words, app)
    return UsageError(_rule(error, words, app), way_out=f"see: {chain} --help")


def _unknown_command(words: Sequence[str], app: App) -> UsageError:
    known = [name for name in app if not name.startswith("-")]
    if words[0].startswith("-"):
        return UsageError(f"unrecognized arguments: {words[0]}", way_out="options stand after the command")
    near = difflib.get_close_matches(words[0], known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return UsageError(f"invalid choice: {words[0]!r}", way_out=f"{hint}commands: {', '.join(known)}")


def _rule(error: CycloptsError, words: Sequence[str], app: App) -> str:
    argument = error.argument
    if isinstance(error, MissingArgumentError) and argument is not None:
        given = any(word.partition("=")[0] in argument.names for word in words)
        if not given:
            return f"the following arguments are required: {', '.join(_missing(argument, error, words, app))}"
        count = argument.token_count()[0]
        wanted = "at least one argument" if argument.token_count()[1] else f"{count} arguments"
        return f"argument {argument.name}: expected {'one argument' if wanted == '1 arguments' else wanted}"
    if isinstance(error, UnknownOptionError):
        # A word of its own has no keyword where a command takes a word in that place.
        unknown = error.token.keyword or error.token.value
        near = difflib.get_close_matches(unknown, _flags(error, app), n=1)
        return f"unrecognized arguments: {unknown}" + (f" (did you mean {near[0]}?)" if near else "")
    if isinstance(error, CoercionError) and argument is not None and error.token is not None:
        if error.__cause__ is not None or error.msg is not None:
            return f"argument {argument.name}: {error.__cause__ or error.msg}"
        choices = ", ".join(map(str, get_args(error.target_type)))
        return f"argument {argument.name}: invalid choice: {error.token.value!r} (choose from {choices})"
    if error.__cause__ is not None:
        return (f"argument {argument.name}: " if argument is not None else "") + str(error.__cause__)
    if error.unused_tokens:
        return f"unrecognized arguments: {' '.join(error.unused_tokens)}"
    error.verbose = False
    return " ".join(str(error).split())


def _missing(first: Argument, error: CycloptsError, words: Sequence[str], app: App) -> list[str]:
    """Name all options that a command needs and does not have, not the first alone."""
    given = {word.partition("=")[0] for word in words}
    return [first.name] + [
        argument.name
        for argument in _arguments(error, app)
        if argument.required and argument.name.startswith("-") and argument.name != first.name
        if given.isdisjoint(argument.names)
    ]


def _flags(error: CycloptsError, app: App) -> list[str]:
    return [name for argument in _arguments(error, app) for name in argument.names if name.startswith("-")]


def _arguments(error: CycloptsError, app: App) -> list[Argument]:
    chain = error.command_chain or ()
    # With the parser's own defaults, without which it would know flags such as --no-quiet.
    default = app.default_parameter
    return list(app[chain[0]].assemble_argument_collection(default_parameter=default)) if chain else []
