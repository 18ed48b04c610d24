"""The verdict of a GPU's self-test, kept on its node."""

from __future__ import annotations

import fcntl
import json
import os
import sys
import time
from contextlib import ExitStack, suppress
from typing import Any

from orchestrator.machine import gpus
from orchestrator.machine.processes import answer_of
from orchestrator.planning.paths import user_cache
from orchestrator.results.store import provenance
from search_spaces.fingerprint import fingerprint
from tasks.atomic import write_atomic

SELF_TEST_TIMEOUT_S, UNFINISHED_S = 300.0, 86_400.0
"""Less than a trial may take without a word; how long a test that came to no end is not tried
again."""


def self_test(uuid: str) -> dict[str, Any]:
    """Return the verdict of the self-test for a GPU: the kept one, or that of a new test."""
    about = provenance()
    versions = [uuid, gpus.driver_version(), about.packages.get("torch", ""), about.code_version]
    folder = user_cache("gpus")
    file = folder / f"self-test-{uuid}-{fingerprint(versions)[:12]}.json"
    with ExitStack() as stack:
        # A home that cannot be written, or a full disk, costs each process the test, and no cell.
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context((folder / f"self-test-{uuid}.lock").open("w"))
            fcntl.flock(lock, fcntl.LOCK_EX)
        with suppress(OSError, ValueError, KeyError, TypeError):
            known: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            if known["finished"] or time.time() - known["at"] < UNFINISHED_S:
                return {"graphs": bool(known["graphs"]), "reason": str(known["reason"])}
        verdict = _tested() | {"at": time.time(), "versions": versions}
        with suppress(OSError):
            write_atomic(file, json.dumps(verdict).encode())
        return verdict


def _tested() -> dict[str, Any]:
    command = (sys.executable, "-m", "orchestrator.machine.self_test", "cuda")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    said, complaint = answer_of(*command, visible=visible, timeout=SELF_TEST_TIMEOUT_S)
    with suppress(ValueError, IndexError):
        verdict = dict(json.loads(said.splitlines()[-1]))
        # Another time the GPU may not be full, and others may not slow it down.
        return verdict | {"finished": not (verdict["error"] or verdict["slower"])}
    return {"graphs": False, "finished": False, "reason": f"the self-test died: {complaint}"}
