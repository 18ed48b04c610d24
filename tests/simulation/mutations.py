"""Does the simulated world bite? Mends are taken out one by one, and must be caught.

``python -m tests.simulation.mutations [--schedules 2000] [--into FILE]`` copies the code, breaks one promise,
and runs schedules until one is violated.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from benchmarks.harness import environment

ROOT = Path(__file__).parents[2]
CODE = ("search_spaces", "tasks", "orchestrator", "isweep", "tests", "benchmarks", "pyproject.toml")


class Mutation(NamedTuple):
    """A line taken out or turned round: the promise that it breaks, where, and what stands there then."""

    promise: str
    file: str
    before: str
    after: str


QUEUE, TRIALS = "orchestrator/running/queue.py", "orchestrator/running/trials.py"
FAILURES, LOCKS = "orchestrator/running/failures.py", "orchestrator/running/locks.py"
TRACKING, RUNS = "orchestrator/results/tracking.py", "orchestrator/results/mlflow_runs.py"
STORE, STATE = "orchestrator/results/store.py", "orchestrator/results/state.py"
STORAGE, ENDING = "orchestrator/results/storage.py", "orchestrator/running/ending.py"

MUTATIONS = (
    Mutation(
        "a cell that failed is tried again", QUEUE,
        "        self.later[trial_id] = at\n",
        "",
    ),
    Mutation(
        "cells that are tried later are waited for", QUEUE,
        "(self.ready or self.later or self.running)",
        "(self.ready or self.running)",
    ),
    Mutation(
        "a settled cell is done", QUEUE,
        "        \"\"\"A cell has its result, or has failed for good.\"\"\"\n"
        "        self.running.discard(trial_id)\n",
        "        \"\"\"A cell has its result, or has failed for good.\"\"\"\n",
    ),
    Mutation(
        "a cell that waits again runs no more", QUEUE,
        "        self.running.discard(trial_id)\n"
        "        self.later",
        "        self.later",
    ),
    Mutation(
        "the end of a trial is no failure of it", TRIALS,
        "        if trial_id not in self._queue.running or self._queue.error is not None:\n"
        "            return\n"
        "        with self._ends_on_error():\n"
        "            self._failed(trial_id, failure, died=True)",
        "        with self._ends_on_error():\n"
        "            self._failed(trial_id, failure, died=True)",
    ),
    Mutation(
        "failures are stored", TRIALS,
        "        self._run.stored.save(record)\n"
        "        self._execution.count_failure",
        "        self._execution.count_failure",
    ),
    Mutation(
        "results are stored", TRIALS,
        "        self.run.stored.save(record)\n",
        "",
    ),
    Mutation(
        "failures are told", TRIALS,
        "        self._run.monitor.trial_failed(",
        "        str(",
    ),
    Mutation(
        "the tracker is told of failures", TRIALS,
        "        self._run.tracker.fail_trial(record)\n",
        "",
    ),
    Mutation(
        "cells that ran when Tune broke are tried again", TRIALS,
        "        running, failure = sorted(self._queue.running), classify_broken_fit(error)\n",
        "        running, failure = [], classify_broken_fit(error)\n"
        "        self._queue.running.clear()\n",
    ),
    Mutation(
        "what Tune raises does not end a sweep", TRIALS,
        "                    self._fit_failed(error)\n",
        "                    raise\n",
    ),
    Mutation(
        "what a worker says of its failure counts", TRIALS,
        "            self._reported(trial_id, failure)\n"
        "        else:\n",
        "            self._lost(trial_id, WITHOUT_A_WORD)\n"
        "        else:\n",
    ),
    Mutation(
        "hung trials are ended", FAILURES,
        "            kill()\n",
        "            continue\n",
    ),
    Mutation(
        "a worker that does not answer is ended within a minute", FAILURES,
        "min(watched.limit_s, ANSWERS_WITHIN_S)",
        "watched.limit_s",
    ),
    Mutation(
        "a crash is tried again", FAILURES,
        "    FailureKind.WORKER_CRASH: 2,",
        "    FailureKind.WORKER_CRASH: 0,",
    ),
    Mutation(
        "a lost node is tried again", FAILURES,
        "            return None, \"a lost node says nothing about the trial\"",
        "            return 0, \"a lost node says nothing about the trial\"",
    ),
    Mutation(
        "a broken network is not tried again", FAILURES,
        "        if limit is not None and mine[kind] > limit:",
        "        if limit is not None and mine[kind] > limit + 1:",
    ),
    Mutation(
        "one driver per store", LOCKS,
        "\"create\")):\n",
        "\"overwrite\")):\n",
    ),
    Mutation(
        "a lease is taken over only where nobody renews it", LOCKS,
        "                    if other != tag:\n",
        "                    if False:\n",
    ),
    Mutation(
        "a lease is taken over only as it was read", LOCKS,
        "        return self._files.put(self._path, self._content(), {\"e_tag\": tag})",
        "        return self._files.put(self._path, self._content(), \"overwrite\")",
    ),
    Mutation(
        "a lease is renewed", ENDING,
        "            lost = self._look()\n",
        "            lost = None\n",
    ),
    Mutation(
        "a newer state of a run is not struck out", TRACKING,
        "            if self._behind.get(key) is row:\n"
        "                del self._behind[key]\n",
        "            if key in self._behind:\n"
        "                del self._behind[key]\n",
    ),
    Mutation(
        "what MLflow did not take stays behind", TRACKING,
        "                self._behind[key] = self._behind.pop(key)  # behind the others\n",
        "                self._behind.pop(key)\n",
    ),
    Mutation(
        "a start compares the whole store", TRACKING,
        "        for run in results:\n",
        "        for run in []:\n",
    ),
    Mutation(
        "an older server is looked at anew", TRACKING,
        "\"RESOURCE_DOES_NOT_EXIST\"",
        "\"NEVER\"",
    ),
    Mutation(
        "the end closes what nobody works on", TRACKING,
        "            closed, duplicates = runs.end_running(busy)\n",
        "            closed, duplicates = 0, 0\n",
    ),
    Mutation(
        "a create whose reply was lost is looked for", RUNS,
        "        if key in self._uncertain and key not in self._runs:\n",
        "        if False:\n",
    ),
    Mutation(
        "a run that was reopened is not taken for finished", RUNS,
        "            known.status, known.shown = PERHAPS_RUNNING, \"\"  # until the reply is here\n",
        "",
    ),
    Mutation(
        "values are compared, not only statuses", RUNS,
        "            if finished and known.shown == digest:\n",
        "            if finished:\n",
    ),
    Mutation(
        "a run with numbers of other data is set aside", RUNS,
        "            if _has_too_much(run, wanted, data.params, data.metrics):\n",
        "            if False:\n",
    ),
    Mutation(
        "second runs of a cell are marked", RUNS,
        "        self.client.set_tag(run_id, DUPLICATE_TAG, \"true\")\n",
        "",
    ),
    Mutation(
        "a finished run is finished", RUNS,
        "        self._end(known, \"FINISHED\", run.finished_ms)\n",
        "",
    ),
    Mutation(
        "a store keeps its identity", STORE,
        "            return str(json.loads(self._files.read(path))[\"store_id\"])\n",
        "            raise FileNotFoundError(path)\n",
    ),
    Mutation(
        "a seal that does not fit is not believed", STORE,
        "    if not intact:\n",
        "    if False:\n",
    ),
    Mutation(
        "the record of another cell is not believed", STORE,
        "    if read.record_id != record_id:\n",
        "    if False:\n",
    ),
    Mutation(
        "results are flushed", STORE,
        "        self._files.write(self._path(record.folder, record.record_id, record.file), data)\n",
        "        self._files.write(\n"
        "            self._path(record.folder, record.record_id, record.file), data, durable=False\n"
        "        )\n",
    ),
    Mutation(
        "results of other data are stale", STATE,
        "        return True\n"
        "    # An id",
        "        return False\n"
        "    # An id",
    ),
    Mutation(
        "results that are gone are counted", STATE,
        "        lost = self.trials.keys() - self.store.listing(TrialRecord).keys()\n",
        "        lost = set[str]()\n",
    ),
    Mutation(
        "storage that is away pauses a sweep", STORAGE,
        "                waits = isinstance(error, StorageAway) or error.errno in PASSING\n",
        "                waits = False\n",
    ),
)  # fmt: skip


def main() -> int:
    """Run them all; returns 1 where fewer than nine tenths are caught."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--schedules", type=int, default=2000)
    parser.add_argument("--only", default="")
    parser.add_argument("--into", type=Path)
    asked = parser.parse_args()
    caught = {}
    for mutation in MUTATIONS:
        if asked.only in mutation.promise:
            caught[mutation.promise] = found = run(mutation, asked.schedules)
            print(f"{'caught' if found else 'NOT CAUGHT'}: {mutation.promise}  {found}", flush=True)
    share = sum(map(bool, caught.values())) / len(caught)
    document = {
        "mutations": len(caught),
        "share_caught": round(share, 3),
        "schedules_at_most": asked.schedules,
        "not_caught": [name for name, found in caught.items() if not found],
        "caught_by": {name: found for name, found in caught.items() if found},
        "environment": environment(),
    }
    if asked.into:
        asked.into.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return 0 if share >= 0.9 else 1


def run(mutation: Mutation, schedules: int) -> str:
    """Return the first violation that a mutation brings about; empty where there is none."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in CODE:
            source = ROOT / part
            if source.is_dir():
                shutil.copytree(source, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, folder / part)
        path = folder / mutation.file
        text = path.read_text(encoding="utf-8")
        if text.count(mutation.before) < 1:
            raise SystemExit(f"{mutation.promise}: {mutation.file} has it no more: {mutation.before!r}")
        path.write_text(text.replace(mutation.before, mutation.after), encoding="utf-8")
        command = [sys.executable, "-m", "tests.simulation", "--schedules", str(schedules), "--stop"]
        ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=None, check=False)
        told = [line for line in ended.stdout.splitlines() if line.startswith("seed ")]
        if ended.returncode and not told:
            raise SystemExit(f"{mutation.promise}: {ended.stderr[-2000:]}")
        return told[0][:200] if told else ""


if __name__ == "__main__":
    sys.exit(main())
