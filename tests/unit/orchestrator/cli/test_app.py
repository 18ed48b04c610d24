"""Help, version, completion, pipes."""

import subprocess
import sys
from importlib import metadata

import pytest

from orchestrator.cli import main
from orchestrator.cli.app import COMMANDS, application


def test_help_and_version_load_nothing_heavy():
    code = (
        "import sys\nfrom orchestrator.cli import main\ncode = main(sys.argv[1:])\n"
        "print(code, *sorted({'torch', 'ray', 'mlflow', 'pandas', 'numpy'} & set(sys.modules)))"
    )
    for words in (["--help"], ["--version"], ["run", "--help"], ["measure", "x", "--seed", "x"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *words], capture_output=True, text=True, check=True
        )
        assert done.stdout.splitlines()[-1] == ("2" if "x" in words else "0")


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.split() == ["isweep", metadata.version("isweep")]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_names_every_command(shell):
    script = application().generate_completion(shell=shell)
    for functions in COMMANDS.values():
        for function in functions:
            assert function.__name__ in script


def test_output_into_a_closed_pipe_is_no_error(root):
    command = f"{sys.executable} -m orchestrator.cli plan paper --root {root} --json | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    assert done.stdout == "{\n"
    assert done.stderr == ""
