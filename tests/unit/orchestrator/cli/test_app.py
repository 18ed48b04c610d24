"""Test help, version, completion and pipes of the command line."""

import io
import re
import shlex
import signal
import subprocess
import sys
from contextlib import suppress
from functools import partial
from importlib import metadata
from pathlib import Path

import pytest
from rich.console import Console

from orchestrator.cli import environment, printing, results
from orchestrator.cli.app import COMMANDS, SLOW, application, main, parse
from orchestrator.machine.signals import clear_stop_request


@pytest.mark.parametrize(
    ("columns", "width"),
    [
        (None, printing.PIPE_WIDTH),
        ("0", 80),
        ("19", 80),
        ("-3", 80),
        ("x", 80),
        ("²", 80),
        ("20", 20),
    ],
)
def test_the_variable_columns_is_ignored_if_it_is_no_usable_width(monkeypatch, columns, width):
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns is not None:
        monkeypatch.setenv("COLUMNS", columns)
    assert printing._width(io.StringIO()) == width


def test_commands_that_only_read_import_no_heavy_library(root):
    """Run all commands in one process: help and mistakes first, then commands that load more."""
    commands = [
        "--help",
        "--version",
        "run --help",
        "measure x --seed x",
        "status smoke",
        "plan smoke",
    ]
    script = (
        "import sys\nfrom orchestrator.cli.app import main\n"
        "heavy = {*'torch ray mlflow pandas numpy'.split()}\n"
        "for words in sys.argv[1:]:\n    print(main(words.split()), heavy & {*sys.modules})"
    )
    command_lines = [words + f" --root {root}" * words.endswith("smoke") for words in commands]
    done = subprocess.run(
        [sys.executable, "-c", script, *command_lines], capture_output=True, text=True, check=True
    )
    lines = done.stdout.splitlines()
    assert f"isweep {metadata.version('isweep')}" in lines
    codes = [line.split(" ", 1) for line in lines if line.endswith(("set()", "'}"))]
    assert codes[:4] == [["0", "set()"]] * 3 + [["2", "set()"]]
    assert [code for code, _ in codes[4:]] == ["0", "0"]
    assert not any(name in codes[-1][1] for name in ("torch", "ray", "mlflow"))


@pytest.mark.parametrize(
    "shell",
    ["bash", *(pytest.param(shell, marks=pytest.mark.long) for shell in ("zsh", "fish"))],
)
def test_completion_names_every_command(shell):
    script = application().generate_completion(shell=shell)
    for functions in COMMANDS.values():
        for function in functions:
            assert function.__name__.replace("_", "-") in script


@pytest.mark.long
def test_bash_completes_names_of_files_too(tmp_path):
    script = tmp_path / "isweep"
    script.write_text(application().generate_completion(shell="bash"), encoding="utf-8")
    completion = subprocess.check_output(
        ["bash", "-c", f"source {script}; complete -p isweep"], text=True
    )
    assert "-o default" in completion


def test_a_closed_stderr_does_not_end_a_run():
    code = (
        "import sys, time\nfrom orchestrator.cli.printing import stderr, stdout\n"
        "stderr.print('first')\nsys.stdin.readline()\nstderr.print('second')\n"
        "sys.stderr.write('by others')\nsys.stderr.flush()\nstdout.print('still here', "
        "stderr.quiet)"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], text=True, **pipes) as process:
        assert process.stderr.readline() == "first\n"
        process.stderr.close()
        process.stdin.write("go on\n")
        process.stdin.close()
        assert process.stdout.read() == "still here True\n"
    assert process.returncode == 0


@pytest.mark.long
def test_output_into_a_closed_pipe_is_not_an_error(root):
    command = f"{sys.executable} -m orchestrator.cli plan paper --root {root} --json | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    assert done.stdout == "{\n"
    assert done.stderr == ""


@pytest.mark.parametrize(
    "closed",
    [*(pytest.param(one, marks=pytest.mark.long) for one in (">&-", "2>&-")), "<&- >&- 2>&-"],
)
def test_a_command_without_output_streams_works_and_no_file_replaces_them(root, closed):
    code = (
        "import os, sys\nfrom orchestrator.cli.app import main\ncode = main(sys.argv[1:])\n"
        "os._exit(code or 10 * (os.open(os.devnull, os.O_RDONLY) <= 2))"
    )
    command = f'"$0" -c "$1" status smoke --root "$2" {closed}'
    done = subprocess.run(
        ["sh", "-c", command, sys.executable, code, root], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("The root " if closed == ">&-" else "")
    assert (done.stdout == "") == (">&-" in closed.split())


def test_ctrl_c_during_the_imports_is_not_reported_as_a_bug():
    code = (
        "import signal, sys\n"
        "class Finder:\n"
        "    def find_spec(name, *_):\n"
        "        name == 'cyclopts' and signal.raise_signal(signal.SIGINT)\n"
        "sys.meta_path.insert(0, Finder)\n"
        "from orchestrator.cli import entry\nentry()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "Stopped.\n")


def interrupt_then_import_error():
    try:
        raise KeyboardInterrupt
    finally:
        raise ImportError("half a module")


def interrupt_lost_in_c():
    """Replace an interrupt by another error, as the array conversion of matplotlib does."""
    with suppress(KeyboardInterrupt):
        signal.raise_signal(signal.SIGTERM)
    raise ValueError("Invalid affine transformation matrix")


STOPS = (partial(signal.raise_signal, signal.SIGTERM), partial(signal.raise_signal, signal.SIGHUP))


@pytest.mark.parametrize("stop", [interrupt_then_import_error, interrupt_lost_in_c, *STOPS])
def test_a_stop_signal_is_handled_like_ctrl_c_and_an_error_after_it_is_not_a_bug(
    capsys, tmp_path, monkeypatch, stop
):
    monkeypatch.setattr("orchestrator.planning.workspace.Workspace.open", lambda *_, **__: stop())
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        assert main(["status", "smoke", "--root", str(tmp_path)]) == 130
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        clear_stop_request()  # otherwise the next run in this process would stop
    message = capsys.readouterr().err
    assert (
        message == "Stopped. All stored results are kept. Run the same command again to continue.\n"
    )


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (
            ZeroDivisionError("by zero"),
            4,
            "A bug in isweep ended the command (ZeroDivisionError: by zero)",
        ),
        (
            RecursionError("too deep"),
            4,
            "A bug in isweep ended the command (RecursionError: too deep)",
        ),
        (
            OSError(28, "No space left on device", "/full"),
            3,
            "The disk that contains /full is full (No space left on device). Free some space",
        ),
        (
            OSError(28, "No space left on device"),
            3,
            " or the output of the command is full (No space left on device). Free some space",
        ),
        (
            PermissionError(13, "Permission denied"),
            3,
            "an error for an operation: Permission denied",
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_an_unexpected_error_gives_a_message_and_a_line_in_the_log(
    capsys, tmp_path, monkeypatch, error, code, message
):
    def raise_error(*_, **__):
        raise error

    monkeypatch.setattr("orchestrator.planning.workspace.Workspace.open", raise_error)
    assert main(["status", "smoke", "--root", str(tmp_path)]) == code
    output = capsys.readouterr()
    assert output.out == ""
    assert message in output.err
    assert "Traceback" not in output.err
    log = (tmp_path / "isweep.log").read_text(encoding="utf-8")
    assert "Traceback" in log
    assert f"ends with exit code {code}" in log


def test_a_wrong_row_of_a_table_is_blamed_on_its_line(capsys, tmp_path, monkeypatch):
    """A row is created when Python loads the file of its table."""
    path = Path(printing.__file__).with_name("table.py")
    code = compile("int(\n    base16=1\n)", str(path), "exec")
    monkeypatch.setattr(
        "orchestrator.planning.workspace.Workspace.open", lambda *_, **__: exec(code)
    )
    assert main(["status", "smoke", "--root", str(tmp_path)]) == 4
    message = capsys.readouterr().err
    assert "orchestrator/cli/table.py line 1 cannot be loaded (TypeError: " in message
    assert "correct the line" in message
    assert "bug" not in message


def test_a_file_with_the_name_of_a_library_is_blamed(capsys, tmp_path, monkeypatch):
    def raise_error(*_, **__):
        raise AttributeError("module 'ray' has no attribute 'init'")

    (tmp_path / "ray.py").touch()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr("orchestrator.planning.workspace.Workspace.open", raise_error)
    assert main(["status", "smoke", "--root", str(tmp_path)]) == 3
    message = capsys.readouterr().err
    assert f"Python would import {tmp_path}/ray.py instead of the library ray" in message
    assert "Rename this file, or remove its folder from PYTHONPATH" in message


def test_help_keeps_no_line_break_of_a_docstring():
    """On a wide terminal, the text of each option of `isweep predict` is one line."""
    console = Console(file=io.StringIO(), width=400)
    application().help_print(["predict"], console=console)
    rows = [line.strip("│ ") for line in console.file.getvalue().splitlines()]
    (measured,) = [row for row in rows if row.startswith("--measured")]
    assert measured.endswith("now. --measured replaces --d-data and --label-sharpness.")
    (domain,) = [row for row in rows if row.startswith("--domain")]
    assert domain.endswith("Domain of your training set. [choices: natural, medical]")


def test_the_help_of_predict_lists_all_targets_together():
    console = Console(file=io.StringIO(), width=100)
    application().help_print(["predict"], console=console)
    goal = console.file.getvalue().partition("─ Goal ─")[2].partition("╰")[0]
    targets = re.findall(r"--(target-\w+)", goal)
    assert targets == ["target-loss", "target-error", "target-accuracy", "target-auroc"]


def test_every_help_ends_with_examples_that_are_commands(capsys):
    for group in COMMANDS.values():
        for function, (_, *examples) in group.items():
            assert main([function.__name__.replace("_", "-"), "--help"]) == 0
            help_text = capsys.readouterr().out.rstrip()
            assert help_text.endswith("For example:\n  " + "\n  ".join(examples))
            assert "ARGS" not in help_text
            for example in examples:
                assert parse(shlex.split(example)[1:]).func is function


def test_a_slow_command_prints_its_step_at_once_also_into_a_pipe(root, capsys):
    assert {results.report, environment.doctor} <= SLOW
    assert main(["report", "smoke", "--root", str(root)]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("fitting the results and drawing figures …\n")


def test_a_step_is_shown_on_a_terminal_and_not_in_a_file(root):
    """A command without its own display prints its step, and erases this text before the answer."""
    without_wait_text = {"rm", "models", "recipes", "gpu_check", "predict"}
    wait_texts = {}
    for group in COMMANDS.values():
        for function, (wait_text, *_) in group.items():
            wait_texts[function.__name__] = wait_text
    assert {name for name, text in wait_texts.items() if not text} == without_wait_text
    wait = wait_texts["plan"]
    command = f"{sys.executable} -m orchestrator.cli plan smoke --root {root}"
    output = subprocess.check_output(["script", "-qec", command, "/dev/null"], text=True)
    assert output.index(wait) < output.index("8 trials")
    assert wait not in output.partition("small_cnn")[2]
    quiet = subprocess.run(shlex.split(command), capture_output=True, text=True, check=True)
    assert quiet.stderr == ""
