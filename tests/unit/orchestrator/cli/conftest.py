"""One command line in this process."""

import re

import pytest

from orchestrator.cli import printing
from orchestrator.cli.app import main


@pytest.fixture
def run(capsys, root, monkeypatch):
    """Run a command in this process, as into a pipe; returns code, stdout, and stderr without line
    breaks."""

    monkeypatch.setattr(printing.stdout, "width", printing.PIPE_WIDTH)

    def go(*arguments: str, at: str | None = None):
        try:
            code = main([*arguments, "--root", at or root])
        except SystemExit as stop:  # argparse
            code = stop.code
        out, err = capsys.readouterr()
        return code, out, re.sub(r"\s+", " ", err)

    return go
