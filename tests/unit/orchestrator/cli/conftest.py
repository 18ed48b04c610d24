"""Fixture that runs one command line in this process."""

import re

import pytest

from orchestrator.cli import printing
from orchestrator.cli.app import main


@pytest.fixture
def run(capsys, root, monkeypatch):
    """Run a command in this process as if it wrote into a pipe.

    Returns the exit code, stdout, and stderr without line breaks.
    """
    monkeypatch.setattr(printing.stdout, "width", printing.PIPE_WIDTH)

    def run_command(*arguments: str, at: str | None = None):
        try:
            code = main([*arguments, "--root", at or root])
        except SystemExit as stop:  # argparse
            code = stop.code
        out, err = capsys.readouterr()
        return code, out, re.sub(r"\s+", " ", err)

    return run_command
