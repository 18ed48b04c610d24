"""Does the simulated world bite? Mends are taken out one by one, and must be caught.

``python -m tests.simulation.mutations [--schedules 2000] [--into FILE]`` copies the code, breaks one promise,
and runs schedules until one is violated; stopped and started again, it goes on with the promises left.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import multiprocessing
import shutil
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from benchmarks.harness import environment
from tests.simulation import __main__ as _  # noqa: F401  # see run()

ROOT = Path(__file__).parents[2]
CODE = ("search_spaces", "tasks", "orchestrator", "isweep", "tests", "benchmarks")
SAID = "said.txt"


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
SEARCH, TUNING = "orchestrator/tuning/search.py", "orchestrator/tuning/trials.py"
REQUESTS = "orchestrator/running/requests.py"

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
        "        (lambda *_: None)(",
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
        "        kill()\n",
        "        return\n",
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
        "            if _has_too_much(run, wanted, data):\n",
        "            if False:\n",
    ),
    Mutation(
        "second runs of a cell are deleted", RUNS,
        "            self.client.delete_run(run_id)\n",
        "            pass\n",
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
        "record.record_id, record.file), data)\n",
        "record.record_id, record.file), data, durable=False)\n",
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
    Mutation(
        "a cell that waits for its worker when Tune breaks loses no attempt", TRIALS,
        "if trial_id in (killed or self._queue.begun):",
        "if not killed or trial_id in killed:",
    ),
    Mutation(
        "a cell that is stopped with a memory kill loses no attempt", TRIALS,
        "            self._attempts[trial_id] -= 1\n",
        "",
    ),
    Mutation(
        "a memory kill that ends Tune costs its own cell alone", TRIALS,
        "if trial_id in (killed or self._queue.begun):",
        "if trial_id in self._queue.begun:",
    ),
    Mutation(
        "a report that comes twice counts once", TRIALS,
        "        if trial_id not in self._queue.running or self._queue.error is not None:\n"
        "            return\n"
        "        self._nodes",
        "        self._nodes",
    ),
    Mutation(
        "a result ends its cell", TRIALS,
        "        self._num_broken = 0\n"
        "        self._settled(trial_id)\n",
        "        self._num_broken = 0\n",
    ),
    Mutation(
        "a killed driver's processes are ended by the next", ENDING,
        " if processes.is_abandoned(folder)]",
        " if False]",
    ),
    Mutation(
        "a live driver's processes are left alone", ENDING,
        " if processes.is_abandoned(folder)]",
        "]",
    ),
    Mutation(
        "a search stores what it asks for before that begins", TUNING,
        "            self.run.stored.save(record)\n"
        "            known",
        "            known",
    ),
    Mutation(
        "a killed search goes on with what it had asked for", SEARCH,
        "                if search.wants(one.point, one.run):\n",
        "                if False:\n",
    ),
    Mutation(
        "a search keeps to its budget", SEARCH,
        "self.spent + self.num_searching + 1 <=",
        "self.spent + 1 <=",
    ),
    Mutation(
        "a search compares with the sweep's own recipe", SEARCH,
        "        return (self.cell.own, 0) not in self.known_runs\n",
        "        return False\n",
    ),
    Mutation(
        "finalists are trained with other seeds", SEARCH,
        "range(1, self.tune.seeds)",
        "range(1, 1)",
    ),
    Mutation(
        "a search uses no results of other data", SEARCH,
        "            return is_ours and fingerprints.get(prepared) == record.data_fingerprint\n",
        "            return is_ours\n",
    ),
    Mutation(
        "a search is told each point once", SEARCH,
        "            elif one.run == 0 and search.cell.contains(one.point):\n",
        "            elif search.cell.contains(one.point):\n",
    ),
    Mutation(
        "the result of a search's trial is stored", TUNING,
        "        self.run.stored.save(record)\n"
        "        self._stored.records",
        "        self._stored.records",
    ),
    Mutation(
        "a cell that failed waits before it is tried again", QUEUE,
        "elif self.later and min(self.later.values()) <= now:",
        "elif self.later:",
    ),
    Mutation(
        "what ends a sweep ends it", TRIALS,
        "            self._queue.error = error\n\n"
        "    def _hear",
        "            pass\n\n"
        "    def _hear",
    ),
    Mutation(
        "Tune that breaks now and then ends no sweep", TRIALS,
        "        self._num_broken = 0\n"
        "        self._settled",
        "        self._settled",
    ),
    Mutation(
        "Tune that breaks again and again ends one", TRIALS,
        " or self._num_broken > MOST_BROKEN_FITS",
        "",
    ),
    Mutation(
        "a lost cluster ends a sweep", TRIALS,
        "not self._execution.is_up() or ",
        "",
    ),
    Mutation(
        "attempts of earlier runs are counted", TRIALS,
        "self._work.earlier.get(trial_id, 0) + self._attempts[trial_id]",
        "self._attempts[trial_id]",
    ),
    Mutation(
        "a cell that hung may die of something else", FAILURES,
        "        self._failures.pop(trial_id, None)\n",
        "",
    ),
    Mutation(
        "the third death of a cell alone is its own doing", FAILURES,
        "    FailureKind.WORKER_CRASH: 2,",
        "    FailureKind.WORKER_CRASH: 9,",
    ),
    Mutation(
        "a cell that hangs is tried once more", FAILURES,
        "    FailureKind.HUNG: 1,",
        "    FailureKind.HUNG: 9,",
    ),
    Mutation(
        "a cell that ran out of memory gets more", REQUESTS,
        "        times = max(self.out_of_memory[cell.trial_id], self.out_of_memory[network], pressed)\n",
        "        times = 0\n",
    ),
    Mutation(
        "a cell that can get no more is given up", FAILURES,
        "        if hopeless:",
        "        if False:",
    ),
    Mutation(
        "other code here and there ends no sweep", FAILURES,
        "        self.in_vain = self.unfit[node, True] = self.in_a_row[node, gpus] = 0\n",
        "",
    ),
    Mutation(
        "other code on every node ends a sweep", FAILURES,
        "any(self.unfit[address, other_code] < MOST_ON_UNFIT for address in offered)",
        "True",
    ),
    Mutation(
        "a shared cluster that has no room is waited for", FAILURES,
        "if self._ends and now",
        "if now",
    ),
    Mutation(
        "arrays go with the last cell that needs them", TRIALS,
        "        self._execution.arrays.trial_ended(trial_id, self._array(trial_id), for_good=True)\n",
        "",
    ),
    Mutation(
        "the story of a cell is told to its end", STORE,
        "[*events, event][-MOST_EVENTS:]",
        "[event]",
    ),
    Mutation(
        "a look believes no outline of a record that has changed", STATE,
        "if n in files and stamp == files[n].stamp}",
        "if n in files}",
    ),
    Mutation(
        "a damaged row of the index is not believed", STATE,
        " if seal == zlib.crc32(f\"{stamp} {text}\".encode())",
        "",
    ),
    Mutation(
        "a lease whose renewal got no reply is still one's own", LOCKS,
        "tag = there if found.get(\"token\") == self._token else None",
        "tag = None",
    ),
    Mutation(
        "a lease that somebody deleted is made again", LOCKS,
        "tag = self._files.put(self._path, self._content(), \"create\")\n",
        "tag = None\n",
    ),
    Mutation(
        "another store's sweep of the same name is left alone", RUNS,
        "found.tags.get(STORAGE_TAG, storage) == storage",
        "True",
    ),
    Mutation(
        "MLflow shows what the last attempt died of", RUNS,
        "if failed and tags.items() <= self.client.get_run(failed.run_id).data.tags.items():",
        "if failed:",
    ),
    Mutation(
        "points that MLflow did not take are sent later", TRACKING,
        "points=(*live.points, *points)",
        "points=tuple(points)",
    ),
    Mutation(
        "a point is sent once", RUNS,
        " if (point.key, point.step, point.value) not in there]",
        "]",
    ),
    Mutation(
        "MLflow shows how a sweep ended", TRACKING,
        "        ending = \"KILLED\"\n",
        "        ending = \"FINISHED\"\n",
    ),
    Mutation(
        "a cell that nobody works on does not say that it runs", RUNS,
        "            self.client.set_tag(known.run_id, table.STATUS, KILLED)\n",
        "",
    ),
    Mutation(
        "a sweep that is stopped closes its runs", TRACKING,
        "        self._running.clear()\n"
        "        self._want(_END, ending)",
        "        self._want(_END, ending)",
    ),
    Mutation(
        "a killed search asks for what an unbroken one does", SEARCH,
        "len(trials), again) % 2**32",
        "len(trials), again, id(self)) % 2**32",
    ),
    Mutation(
        "finalists are those of the whole search", SEARCH,
        "in search.further() if search.searched else ():",
        "in search.further():",
    ),
    Mutation(
        "where others die too, a cell that dies gets more attempts", FAILURES,
        "        self.deaths[trial_id] += died\n",
        "",
    ),
    Mutation(
        "where a GPU fails others too, a cell gets more attempts", FAILURES,
        "len(self.of_gpus.get(gpu, ())) > 1",
        "False",
    ),
    Mutation(
        "cells that ran when Tune broke are not given up for it", FAILURES,
        "    FailureKind.CLUSTER_ERROR: 5,",
        "    FailureKind.CLUSTER_ERROR: 0,",
    ),
    Mutation(
        "a worker that is not set up costs no cell", FAILURES,
        "    FailureKind.SETUP: 3,",
        "    FailureKind.SETUP: 0,",
    ),
    Mutation(
        "bad data stay bad", FAILURES,
        "    FailureKind.BAD_DATA: 0,",
        "    FailureKind.BAD_DATA: 1,",
    ),
    Mutation(
        "a lease is given back", LOCKS,
        "            if self._read()[0].get(\"token\") == self._token:\n",
        "            if False:\n",
    ),
    Mutation(
        "another driver's lease is left alone", LOCKS,
        "            if self._read()[0].get(\"token\") == self._token:\n",
        "            if True:\n",
    ),
    Mutation(
        "a live driver's lease changes with every beat", LOCKS,
        "        self._beats += 1\n",
        "",
    ),
    Mutation(
        "the first retry comes after a second", FAILURES,
        "FIRST_PAUSE_S * 2 **",
        "LONGEST_PAUSE_S * 2 **",
    ),
    Mutation(
        "a stop waits 8 s for MLflow", TRACKING,
        "PATIENCE_S if ending == \"FINISHED\" else STOP_PATIENCE_S",
        "PATIENCE_S",
    ),
    Mutation(
        "a failure goes once the result is there", STORE,
        "        stamp = self._files.write(",
        "        if isinstance(record, TrialRecord):\n"
        "            self._files.remove("
        "self._path(FailureRecord.folder, record.record_id, FailureRecord.file))\n"
        "        stamp = self._files.write(",
    ),
)  # fmt: skip


def main() -> int:
    """Run those that FILE does not have yet; returns 1 where fewer than nine tenths of all are caught."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--schedules", type=int, default=2000)
    parser.add_argument("--only", default="", help="those whose promise has these words")
    parser.add_argument("--into", type=Path, help="FILE, written after each")
    asked = parser.parse_args()
    known = json.loads(asked.into.read_text("utf-8")) if asked.into and asked.into.exists() else {}
    caught = dict.fromkeys(known.get("not_caught", ()), "") | known.get("caught_by", {})
    for mutation in MUTATIONS:
        if asked.only not in mutation.promise or mutation.promise in caught:
            continue
        caught[mutation.promise] = found = run(mutation, asked.schedules)
        print(f"{'caught' if found else 'NOT CAUGHT'}: {mutation.promise}  {found}", flush=True)
        if asked.into:
            document = {
                "mutations": len(caught),
                "share_caught": round(sum(map(bool, caught.values())) / len(caught), 3),
                "schedules_at_most": asked.schedules,
                "not_caught": [name for name, found in caught.items() if not found],
                "caught_by": {name: found for name, found in caught.items() if found},
                "environment": environment(),
            }
            text = json.dumps(document, indent=1, ensure_ascii=False)
            asked.into.write_text(text + "\n", encoding="utf-8")
    return 0 if sum(map(bool, caught.values())) >= 0.9 * len(caught) else 1


def run(mutation: Mutation, schedules: int) -> str:
    """Return the first violation that a mutation brings about; empty where there is none."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in CODE:
            shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
        path = folder / mutation.file
        text = path.read_text(encoding="utf-8")
        if text.count(mutation.before) < 1:
            raise SystemExit(f"{mutation.promise}: {mutation.file} has it no more: {mutation.before!r}")
        path.write_text(text.replace(mutation.before, mutation.after), encoding="utf-8")
        # What others wrote is imported once, here.
        child = multiprocessing.get_context("fork").Process(target=_simulate, args=(folder, schedules))
        child.start()
        child.join()
        told = (folder / SAID).read_text(encoding="utf-8").splitlines()
        found = next((line for line in told if line.startswith("seed ")), "")
        if bool(child.exitcode) is not bool(found):
            raise SystemExit(f"{mutation.promise}: ended with {child.exitcode} and said {told[-20:]}")
        return found[:160]


def _simulate(folder: Path, schedules: int) -> None:
    """Run schedules on the code in a folder, in a process of its own, until one is violated."""
    for name in [name for name in sys.modules if name.partition(".")[0] in CODE]:
        del sys.modules[name]
    sys.path.insert(0, str(folder))
    sys.argv = ["simulation", "--schedules", str(schedules), "--stop"]
    with (folder / SAID).open("w", encoding="utf-8") as out, contextlib.redirect_stdout(out):
        status = importlib.import_module("tests.simulation.__main__").main()
    sys.exit(status)


if __name__ == "__main__":
    sys.exit(main())
