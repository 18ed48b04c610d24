"""Notes for the user about updates that MLflow does not store."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable

from orchestrator.results.mlflow_errors import first_line, no_answer_error

log = logging.getLogger(__name__)

WARN_AFTER_S = 2.0
"""Seconds without an answer of MLflow before isweep warns the user."""
NUM_FAILURES_AMONG_SUCCESSES = 2
"""Number of rounds in which one update fails although MLflow stores other updates, before
isweep warns the user of this update. After a single failure there is no warning, because
MLflow's reply may have been lost."""


class OutageNotes:
    """Printer of notes for the user about the answers of MLflow.

    A note says that MLflow does not answer, that it answers again, or that it fails to store
    one update.

    Args:
        print_note: Function that prints a message for the user.
    """

    def __init__(self, print_note: Callable[[str], None]) -> None:
        self._print_note = print_note
        self._is_outage_noted = False
        # The number of failures of each update, by key. A failure counts only in a round in
        # which MLflow stored other updates.
        self._failures_among_successes = Counter[str]()

    def update_succeeded(self, key: str, *, is_last_round: bool) -> None:
        """Print that MLflow answers again, if the user was warned before the last round."""
        del self._failures_among_successes[key]
        if self._is_outage_noted and not is_last_round:
            self._is_outage_noted = False
            self._note("MLflow answers again")

    def update_failed(
        self, error: Exception, key: str, *, failing_s: float, others_succeed: bool
    ) -> None:
        """Warn the user if MLflow fails for a long time, or if only one update fails repeatedly.

        Args:
            error: The error of the update.
            key: Key of the update.
            failing_s: Seconds since MLflow's first failure after its last success.
            others_succeed: True if MLflow stored other updates in this round, so that MLflow
                answers and only this update fails.
        """
        if others_succeed:
            self._failures_among_successes[key] += 1
            if self._failures_among_successes[key] == NUM_FAILURES_AMONG_SUCCESSES:
                self._note(
                    f"MLflow stores other updates, but not the update of {key}: "
                    f"{first_line(error)}. isweep tries again. The result store has all "
                    f"results"
                )
            return
        is_only_this_update = key in self._failures_among_successes
        is_long = failing_s >= WARN_AFTER_S
        if is_long and not is_only_this_update and not self._is_outage_noted:
            self._is_outage_noted = True
            problem = no_answer_error(error).problem
            self._note(f"{problem}. isweep tries again. The result store has all results")

    def _note(self, text: str) -> None:
        """Print a message for the user.

        If the terminal raises an error, the thread continues.
        """
        try:
            self._print_note(text)
        except Exception as error:
            log.warning("A message could not be printed (%s): %s", first_line(error), text)
