"""The verdicts of self-tests. Each node stores them, so that a GPU is tested only once per
network.

A verdict is valid for one GPU, driver, version of torch, version of isweep, and network. The
processes of a node wait for each other, so each test runs only once even if several workers
need it.

If a test ends before it has compared the GPU with the CPU, it shows nothing about the GPU. The
trial must then not use the GPU, and the next trial tests the GPU again.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from orchestrator.machine.gpus import nvidia_smi
from orchestrator.machine.mps_worker import end_gpu_work_of_child
from orchestrator.machine.processes import run_program
from orchestrator.machine.self_test.case import PASSED_LINE, Case
from orchestrator.planning.paths import user_cache
from orchestrator.results.provenance import provenance
from search_spaces.fingerprint import fingerprint
from tasks.atomic import write_atomic

TIMEOUT_S = 300.0
"""Seconds that a test may take. The limit is short, because a trial may first wait for the
test of another process, and counts as hung after 600 s or more."""
FIRST_VALIDITY_S = 600.0
"""Seconds after which a GPU is tested again if its first verdict is not final. A verdict is
not final if an error or other processes on the GPU disturbed the test. Until the next test,
trials use no CUDA graphs and take about a fifth longer. Each further test without a final
verdict doubles this time, because tests cost time too: less than a minute, or
:data:`TIMEOUT_S` seconds if a test hangs."""
MAX_VALIDITY_S = 86_400.0
"""Longest time in seconds for which a verdict that is not final is valid. It is one day.
Compared with a day, a test of five minutes costs little time."""


@dataclass(frozen=True)
class StoredVerdict:
    """The stored part of a self-test's verdict (:class:`~.verdict.Verdict`).

    Attributes:
        gpu_problem: text that says what the GPU computes wrongly. It is empty if the GPU
            computes correctly.
        reason_for_plain_steps: text that says why trials use plain steps. It is empty if they
            use graphs.
        is_final: True if the verdict stays valid, False if a later test replaces it.
        tested_at: time at which the test was run, in seconds since 1970.
        file: file that contains the verdict.
        reason_for_doubt: text that says why ``gpu_problem`` is in doubt. It is empty if there
            is no doubt.
        comparison_error: text that says why the GPU was not compared with the CPU. It is empty
            if the GPU was compared. If it is not empty, no trial may use the GPU before a
            further test.
        valid_for_s: seconds for which the verdict is valid if it is not final.
    """

    gpu_problem: str
    reason_for_plain_steps: str
    is_final: bool
    tested_at: float
    file: Path
    reason_for_doubt: str = ""
    comparison_error: str = ""
    valid_for_s: float = FIRST_VALIDITY_S

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any], file: Path) -> StoredVerdict:
        """Return the verdict from the fields of its file.

        Raises:
            KeyError, TypeError, ValueError: the fields do not describe a verdict.
        """
        return cls(
            gpu_problem=str(fields["wrong"]),
            reason_for_plain_steps=str(fields["plain_because"]),
            is_final=bool(fields["is_final"]),
            tested_at=float(fields["tested_at"]),
            file=file,
            reason_for_doubt=str(fields.get("doubt", "")),
            comparison_error=str(fields["unchecked"]),
            valid_for_s=float(fields["valid_for_s"]),
        )

    def as_fields(self) -> dict[str, Any]:
        """Return the fields of the verdict's file, by key."""
        return {
            "wrong": self.gpu_problem,
            "plain_because": self.reason_for_plain_steps,
            "is_final": self.is_final,
            "doubt": self.reason_for_doubt,
            "unchecked": self.comparison_error,
            "tested_at": self.tested_at,
            "valid_for_s": self.valid_for_s,
        }

    @property
    def is_valid(self) -> bool:
        """True if the verdict can be used without a new test."""
        if self.comparison_error:
            return False
        return self.is_final or time.time() - self.tested_at < self.valid_for_s


_verdicts_of_this_process: dict[Path, StoredVerdict] = {}
"""The verdicts of this process, by file. They are needed if the home folder is read-only. Each
process then still tests a network only once."""


def read_or_run_self_test(uuid: str, case: Case) -> StoredVerdict:
    """Return the stored verdict for a GPU and a network. If there is no valid verdict, test
    the GPU.

    A new test takes up to :data:`TIMEOUT_S` seconds.
    """
    software = provenance()
    gpu_and_versions = [
        uuid,
        nvidia_smi.driver_version(),
        software.packages.get("torch", ""),
        software.code_version,
    ]
    # The batch size is not part of the key, because a search tries many batch sizes with one
    # network. The optimizer and the number of threads are not part of it either.
    network = [case.model, case.image_size, case.channels, case.precision]
    key = fingerprint([*gpu_and_versions, *network])[:12]
    file = user_cache("gpus") / f"self-test-{uuid}-{case.model.name}-{key}.json"
    requested_at = time.time()
    with _locked(file.with_name(f"self-test-{uuid}.lock")):
        earlier = _latest_verdict(file)
        # A test that ended while this process waited is not repeated, whatever its verdict.
        if earlier is not None and (earlier.is_valid or earlier.tested_at >= requested_at):
            return earlier
        verdict = _run_test(case, file)
        if earlier is not None and not earlier.comparison_error:
            # `earlier` was not final: otherwise there would be no second test.
            valid_for_s = min(2 * earlier.valid_for_s, MAX_VALIDITY_S)
            verdict = replace(verdict, valid_for_s=valid_for_s)
        _verdicts_of_this_process[file] = verdict
        fields = {**verdict.as_fields(), "versions": gpu_and_versions}
        with suppress(OSError):
            write_atomic(file, json.dumps(fields).encode())
    return verdict


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Lock a file during a ``with`` block. If the home folder is read-only, run the block
    without a lock.
    """
    file = None
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
        fcntl.flock(file, fcntl.LOCK_EX)
    try:
        yield
    finally:
        if file is not None:
            file.close()


def _latest_verdict(file: Path) -> StoredVerdict | None:
    """Return the latest verdict of this process or of another process, or None if there is
    none.
    """
    stored = _read(file)
    in_memory = _verdicts_of_this_process.get(file)
    if stored is None or in_memory is None:
        return stored or in_memory
    return max(stored, in_memory, key=lambda verdict: verdict.tested_at)


def _read(file: Path) -> StoredVerdict | None:
    """Return the verdict that a file contains, or None if the file is missing or cannot be
    read.
    """
    try:
        fields: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return StoredVerdict.from_fields(fields, file)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _run_test(case: Case, file: Path) -> StoredVerdict:
    """Test the GPU of this process, and return the part of the verdict that is stored."""
    fields = run_in_separate_process(case)
    return StoredVerdict.from_fields(
        {**fields, "tested_at": time.time(), "valid_for_s": FIRST_VALIDITY_S}, file
    )


def run_in_separate_process(case: Case) -> dict[str, Any]:
    """Run the self-test in a separate process, on the GPU of this process.

    Returns:
        The fields of the verdict, as :meth:`~.verdict.Verdict.as_fields` returns them. If the
        process ends without a verdict, the fields contain the reason, but no measured values.
    """
    program = run_program(
        sys.executable,
        # The user's working folder may contain a file tasks.py, which Python would import
        # instead.
        "-P",
        "-m",
        "orchestrator.machine.self_test.program",
        "cuda",
        case.to_json(),
        visible=os.environ.get("CUDA_VISIBLE_DEVICES"),
        timeout_s=TIMEOUT_S,
        before_kill=end_gpu_work_of_child,
    )
    # CUDA can end the process with an error at its exit, after the verdict was printed.
    fields = _last_verdict(program.output or program.partial_output)
    if fields:
        return fields
    name = case.model.name
    reason = program.error or "the process printed no verdict"
    if PASSED_LINE in program.partial_output:
        problem = f"{name}: the self-test ended before it had tested graphs: {reason}"
        comparison_error = ""
    else:
        problem = f"{name}: the self-test ended before it had compared GPU and CPU: {reason}"
        comparison_error = problem
    return {
        "wrong": "",
        "plain_because": problem,
        "is_final": False,
        "doubt": "",
        "unchecked": comparison_error,
    }


def _last_verdict(output: str) -> dict[str, Any]:
    """Return the last verdict that the process of a self-test printed, or an empty dict.

    The output may contain other lines. The process may be killed while it prints a line, or a
    library may print lines.
    """
    for line in reversed(output.splitlines()):
        with suppress(ValueError):
            fields = json.loads(line)
            if isinstance(fields, dict) and "wrong" in fields:
                return fields
    return {}
