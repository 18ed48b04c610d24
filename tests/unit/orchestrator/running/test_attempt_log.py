"""What an attempt says is kept, and its own code finds the streams that it is used to."""

import logging
import sys
import warnings

from orchestrator.running import attempt_log
from orchestrator.running.attempt_log import AttemptLog, recorded


def test_what_is_logged_warned_and_printed_is_in_the_log(capsys):
    with recorded() as log:
        logging.getLogger("my.network").info("a log line")
        warnings.simplefilter("default")  # here a warning is an error, in a worker it is not
        warnings.warn("a warning", stacklevel=1)
        print("out")
        print("error", file=sys.stderr)
    text = log.text()
    for part in ("INFO my.network: a log line", "UserWarning: a warning", "out", "error"):
        assert part in text
    assert capsys.readouterr().out == "out\n"


def test_a_network_s_own_code_may_use_all_of_a_stream(capfdbinary):
    """``sys.stdout.buffer`` failed a trial as if its network were wrong."""
    before = sys.stdout
    with recorded():
        assert sys.stdout.fileno() == before.fileno()
        assert (sys.stdout.encoding, sys.stdout.errors) == (before.encoding, before.errors)
        assert sys.stdout.isatty() == before.isatty()
        assert sys.stdout.writable()
        sys.stdout.buffer.write(b"bytes")
        sys.stdout.flush()
    assert b"bytes" in capfdbinary.readouterr().out


def test_warnings_go_where_they_went_before():
    """A worker whose warnings were logged before its first trial lost them after it."""
    logging.captureWarnings(True)
    try:
        before = warnings.showwarning
        with recorded():
            pass
        assert warnings.showwarning is before
    finally:
        logging.captureWarnings(False)


def test_the_first_and_the_last_of_a_long_log_are_kept(monkeypatch):
    monkeypatch.setattr(attempt_log, "HEAD_CHARACTERS", 10)
    monkeypatch.setattr(attempt_log, "TAIL_CHARACTERS", 20)
    log = AttemptLog()
    for number in range(100):
        log.write(f"{number:03d} ")
    text = log.text()
    assert text.startswith("000 001 00")
    assert text.endswith("098 099 ")
    kept = text.partition("\n…")[0] + text.rpartition("…\n")[2]
    assert f"{400 - len(kept):,} characters are left out" in text
