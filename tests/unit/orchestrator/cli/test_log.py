"""Test the log file of all commands."""

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
def read_log(root):
    """Make the root, and return a function that reads its log."""
    os.mkdir(root)
    return lambda: (Path(root) / "isweep.log").read_text(encoding="utf-8")


def test_the_log_has_start_and_end_of_each_command_and_no_password(run, root, read_log):
    run("plan", "smoke")
    run("fit", "smoke", "--from-store")
    version = metadata.version("isweep")
    assert re.findall(r"isweep (\S+) starts: (.*)", read_log()) == [
        (version, f"isweep plan smoke --root {root}"),
        (version, f"isweep fit smoke --from-store --root {root}"),
    ]
    assert re.findall(r"ends with exit code (\d)", read_log()) == ["0", "2"]
    run("plan", "smoke", "--storage", "foo://me:hush@host/x?sig=hush")
    assert "foo://…@host/x?…" in read_log()
    assert "hush" not in read_log()


def test_warnings_go_to_the_log_and_not_to_the_terminal(run, read_log, monkeypatch):
    def warn(*_):
        warnings.warn("odd", stacklevel=1)
        return []

    monkeypatch.setattr("orchestrator.planning.dataset_rows.list_datasets", warn)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        code, _, err = run("datasets")
    assert (code, err) == (0, "")
    assert re.search(r"WARNING py\.warnings: .*UserWarning: odd", read_log())


def test_log_entries_from_before_the_root_existed_are_kept(root):
    with root_log(root):
        logging.getLogger("early").info("first words")
        RootPaths.at(root).make()
        logging.getLogger("late").info("last words")
    log = (Path(root) / "isweep.log").read_text(encoding="utf-8")
    assert re.search(r"(?s)early: first words.*last words", log)


def make_full_disk(path):
    path.symlink_to("/dev/full")


def make_dangling_link(path):
    path.symlink_to(path.parent / "missing" / "log")


def logging_settings():
    root_logger = logging.getLogger()
    return list(root_logger.handlers), root_logger.level, warnings.showwarning


@pytest.mark.parametrize("make", [os.makedirs, os.mkfifo, make_full_disk, make_dangling_link])
def test_something_else_in_place_of_the_log_is_named_once_and_stops_no_command(
    run, root, read_log, make
):
    make(Path(root) / "isweep.log")
    settings_before = logging_settings()
    code, out, err = run("plan", "smoke", "--json")
    assert (code, json.loads(out)["sweep"]) == (0, "smoke")
    assert err.count("isweep.log is not a file, so isweep writes no log. Remove /") == 1
    assert logging_settings() == settings_before
