"""One command line in this process."""

import re

import pytest

from orchestrator.cli import main


@pytest.fixture
def run(capsys, root):
    """Run a command in this process; returns its exit code, stdout and stderr with line breaks folded."""

    def go(*arguments: str, at: str | None = None):
        try:
            code = main([*arguments, "--root", at or root])
        except SystemExit as stop:  # argparse
            code = stop.code
        out, err = capsys.readouterr()
        return code, out, re.sub(r"\s+", " ", err)

    return go
