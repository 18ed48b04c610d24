"""Test the log of an attempt: it has all output, and code of users keeps the usual streams."""

import logging
import sys
import warnings

from orchestrator.running.workers import attempt_log
from orchestrator.running.workers.attempt_log import AttemptLog, recorded


def test_log_lines_warnings_and_prints_are_in_the_log(capsys):
    with recorded() as log:
        logging.getLogger("my.network").info("a log line")
        warnings.simplefilter("default")  # in tests a warning is an error, in a worker it is not
        warnings.warn("a warning", stacklevel=1)
        print("out")
        print("error", file=sys.stderr)
    text = log.text()
    for part in ("INFO my.network: a log line", "UserWarning: a warning", "out", "error"):
        assert part in text
    assert capsys.readouterr().out == "out\n"


def test_code_of_a_user_may_use_all_of_a_stream(capfdbinary):
    """``sys.stdout.buffer`` once failed a trial as if its network were wrong."""
    before = sys.stdout
    with recorded():
        assert sys.stdout.fileno() == before.fileno()
        assert (sys.stdout.encoding, sys.stdout.errors) == (before.encoding, before.errors)
        assert sys.stdout.isatty() == before.isatty()
        assert sys.stdout.writable()
        sys.stdout.buffer.write(b"bytes")
        sys.stdout.flush()
    assert b"bytes" in capfdbinary.readouterr().out


def test_warnings_are_handled_as_before_after_an_attempt():
    """A worker whose warnings were logged before its first trial once lost them after it."""
    logging.captureWarnings(True)
    try:
        before = warnings.showwarning
        with recorded():
            pass
        assert warnings.showwarning is before
    finally:
        logging.captureWarnings(False)


def test_a_long_log_keeps_its_beginning_and_its_end(monkeypatch):
    monkeypatch.setattr(attempt_log, "HEAD_CHARACTERS", 10)
    monkeypatch.setattr(attempt_log, "TAIL_CHARACTERS", 20)
    log = AttemptLog()
    for number in range(100):
        log.write(f"{number:03d} ")
    text = log.text()
    assert text.startswith("000 001 00")
    assert text.endswith("098 099 ")
    stored_text = text.partition("\n…")[0] + text.rpartition("…\n")[2]
    assert f"{400 - len(stored_text):,} characters are left out" in text
