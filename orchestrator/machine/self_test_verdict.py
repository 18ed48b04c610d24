"""The verdicts of self-tests, kept on each node, so that a GPU is tested once per network.

A verdict holds for one GPU, driver, torch, version of this code and network. Processes of one node
wait for each other, so a test runs once although several workers ask for it.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.machine import gpus
from orchestrator.machine.processes import run_program
from orchestrator.machine.self_test_case import Case
from orchestrator.planning.paths import user_cache
from orchestrator.results.provenance import provenance
from search_spaces.fingerprint import fingerprint
from tasks.atomic import write_atomic

TIMEOUT_S = 300.0
"""Seconds that a test may take: less than a trial may be silent before it counts as hung."""
UNFINISHED_FOR_S = 600.0
"""Seconds for which a verdict is believed that an error or another load of the GPU caused. Plain
steps cost about a fifth more time, and a test takes less than a minute."""


@dataclass(frozen=True)
class KeptVerdict:
    """What a trial needs to know of a self-test; see :class:`~.self_test.Verdict`.

    Attributes:
        wrong: what the GPU computes wrongly; empty if it computes rightly.
        plain_because: why trials take plain steps; empty if they take graphs.
        is_final: whether the verdict is kept for good.
        tested_at: Unix time of the test.
        file: where the verdict is kept.
    """

    wrong: str
    plain_because: str
    is_final: bool
    tested_at: float
    file: Path

    @property
    def is_valid(self) -> bool:
        """Whether no new test is due."""
        return self.is_final or time.time() - self.tested_at < UNFINISHED_FOR_S


_verdicts_of_this_process: dict[Path, KeptVerdict] = {}
"""For a home that cannot be written: each process then tests once, and not before every trial."""


def verdict_of(uuid: str, case: Case) -> KeptVerdict:
    """Return the verdict for a GPU and a network: the kept one, or that of a new test."""
    about = provenance()
    versions = [uuid, gpus.driver_version(), about.packages.get("torch", ""), about.code_version]
    # The batch size is that of the first trial: a search tries many with one network.
    network = [case.model, case.image_size, case.channels, case.precision]
    key = fingerprint([*versions, *network])[:12]
    file = user_cache("gpus") / f"self-test-{uuid}-{case.model.name}-{key}.json"
    with _locked(file.with_name(f"self-test-{uuid}.lock")):
        verdict = _verdicts_of_this_process.get(file) or _read(file)
        if verdict is not None and verdict.is_valid:
            return verdict
        verdict = _tested(case, file)
        _verdicts_of_this_process[file] = verdict
        fields = {
            "wrong": verdict.wrong,
            "plain_because": verdict.plain_because,
            "is_final": verdict.is_final,
            "tested_at": verdict.tested_at,
            "versions": versions,
        }
        with suppress(OSError):
            write_atomic(file, json.dumps(fields).encode())
    return verdict


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock during a block. If the home cannot be written, the block runs without it."""
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


def _read(file: Path) -> KeptVerdict | None:
    """Return the verdict in a file; None if there is none that can be read."""
    try:
        fields: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return KeptVerdict(
            wrong=str(fields["wrong"]),
            plain_because=str(fields["plain_because"]),
            is_final=bool(fields["is_final"]),
            tested_at=float(fields["tested_at"]),
            file=file,
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _tested(case: Case, file: Path) -> KeptVerdict:
    """Run the self-test in a process of its own, on the GPU that this process sees."""
    program = run_program(
        sys.executable,
        "-m",
        "orchestrator.machine.self_test",
        "cuda",
        case.to_json(),
        visible=os.environ.get("CUDA_VISIBLE_DEVICES", ""),
        timeout_s=TIMEOUT_S,
    )
    now = time.time()
    with suppress(ValueError, IndexError, KeyError, TypeError):
        fields = json.loads(program.output.splitlines()[-1])
        return KeptVerdict(
            wrong=str(fields["wrong"]),
            plain_because=str(fields["plain_because"]),
            is_final=bool(fields["is_final"]),
            tested_at=now,
            file=file,
        )
    reason = program.error or "the process printed nothing"
    return KeptVerdict("", f"the self-test gave no verdict: {reason}", False, now, file)
