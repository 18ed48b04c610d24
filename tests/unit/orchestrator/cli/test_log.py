"""The log of all commands."""

import json
import logging
import os
import re
import warnings
from importlib import metadata
from pathlib import Path

import pytest

from orchestrator.log import root_log
from orchestrator.planning.paths import RootPaths


class TestLog:
    def read(self, root: str) -> str:
        return (Path(root) / "isweep.log").read_text(encoding="utf-8")

    def test_start_and_end_of_each_command(self, run, root):
        os.mkdir(root)
        run("plan", "smoke")
        run("fit", "smoke", "--from-store")
        starts = re.findall(r"isweep (\S+) starts: (.*)", self.read(root))
        assert starts == [
            (metadata.version("isweep"), f"isweep plan smoke --root {root}"),
            (metadata.version("isweep"), f"isweep fit smoke --from-store --root {root}"),
        ]
        assert re.findall(r"ends with exit code (\d)", self.read(root)) == ["0", "2"]

    def test_warnings_go_there_and_not_to_the_terminal(self, run, root, monkeypatch):
        os.mkdir(root)
        monkeypatch.setattr(
            "orchestrator.data_commands.dataset_rows", lambda *_: warnings.warn("odd", stacklevel=1) or []
        )
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            code, _, err = run("datasets")
        assert (code, err) == (0, "")
        assert re.search(r"WARNING py\.warnings: .*UserWarning: odd", self.read(root))

    def test_what_was_logged_before_the_root_was_made_is_kept(self, root):
        with root_log(root):
            logging.getLogger("early").info("first words")
            RootPaths.create(root)
            logging.getLogger("late").info("last words")
        assert re.search(r"(?s)early: first words.*last words", self.read(root))

    def test_a_bug_leaves_its_traceback(self, root):
        os.mkdir(root)
        with pytest.raises(ZeroDivisionError, match="by zero"), root_log(root):
            _ = 1 / 0
        assert "ends with a bug" in self.read(root)
        assert "ZeroDivisionError" in self.read(root)

    def test_no_secret_is_in_it(self, run, root):
        os.mkdir(root)
        run("plan", "smoke", "--storage", "foo://me:hush@host/x?sig=hush")
        assert "foo://…@host/x?…" in self.read(root)
        assert "hush" not in self.read(root)

    def test_a_log_that_cannot_be_written_stops_nothing(self, run, root):
        os.makedirs(Path(root) / "isweep.log")
        code, out, err = run("plan", "smoke", "--json")
        assert (code, err) == (0, "")
        assert json.loads(out)["sweep"] == "smoke"

    def test_a_pipe_in_its_place_is_waited_for_by_nobody(self, run, root):
        os.mkdir(root)
        os.mkfifo(Path(root) / "isweep.log")
        assert run("status", "smoke")[0] == 0

    def test_logging_is_as_before_afterwards(self, run, root):
        before = (list(logging.getLogger().handlers), logging.getLogger().level, warnings.showwarning)
        run("plan", "smoke")
        assert (list(logging.getLogger().handlers), logging.getLogger().level, warnings.showwarning) == before
