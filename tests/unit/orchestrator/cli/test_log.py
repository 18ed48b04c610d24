"""The log of all commands."""

import json
import logging
import os
import re
import warnings
from importlib import metadata
from pathlib import Path

import pytest

from orchestrator.cli.app import root_log
from orchestrator.planning.paths import RootPaths


@pytest.fixture
def read(root):
    """Make the root; returns how to read its log."""
    os.mkdir(root)
    return lambda: (Path(root) / "isweep.log").read_text(encoding="utf-8")


def test_start_and_end_of_each_command_and_no_secret(run, root, read):
    run("plan", "smoke")
    run("fit", "smoke", "--from-store")
    version = metadata.version("isweep")
    assert re.findall(r"isweep (\S+) starts: (.*)", read()) == [
        (version, f"isweep plan smoke --root {root}"),
        (version, f"isweep fit smoke --from-store --root {root}"),
    ]
    assert re.findall(r"ends with exit code (\d)", read()) == ["0", "2"]
    run("plan", "smoke", "--storage", "foo://me:hush@host/x?sig=hush")
    assert "foo://…@host/x?…" in read()
    assert "hush" not in read()


def test_warnings_go_there_and_not_to_the_terminal(run, read, monkeypatch):
    def warn(*_):
        warnings.warn("odd", stacklevel=1)
        return []

    monkeypatch.setattr("orchestrator.planning.dataset_rows.list_datasets", warn)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        code, _, err = run("datasets")
    assert (code, err) == (0, "")
    assert re.search(r"WARNING py\.warnings: .*UserWarning: odd", read())


def test_what_was_logged_before_the_root_was_made_is_kept(root):
    with root_log(root):
        logging.getLogger("early").info("first words")
        RootPaths.at(root).make()
        logging.getLogger("late").info("last words")
    found = (Path(root) / "isweep.log").read_text(encoding="utf-8")
    assert re.search(r"(?s)early: first words.*last words", found)


def on_a_full_disk(path):
    path.symlink_to("/dev/full")


@pytest.mark.parametrize("make", [os.makedirs, os.mkfifo, on_a_full_disk])
def test_a_log_that_cannot_be_written_stops_nothing_and_logging_is_as_before(run, root, read, make):
    make(Path(root) / "isweep.log")
    before = (list(logging.getLogger().handlers), logging.getLogger().level, warnings.showwarning)
    code, out, err = run("plan", "smoke", "--json")
    assert (code, err, json.loads(out)["sweep"]) == (0, "", "smoke")
    assert (
        list(logging.getLogger().handlers),
        logging.getLogger().level,
        warnings.showwarning,
    ) == before
