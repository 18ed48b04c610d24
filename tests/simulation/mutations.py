"""Check that the simulation detects faults: break one promise at a time, and run schedules.

``python -m tests.simulation.mutations [--schedules 2000] [--into FILE]`` copies the code, breaks
one promise, and runs schedules until one reports a violation. A stopped run continues with the
remaining promises when it is started again."""

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
from typing import Any, NamedTuple

from benchmarks.harness import environment
from tests.simulation import __main__ as _  # noqa: F401  # see run()

ROOT = Path(__file__).parents[2]
CODE = ("search_spaces", "tasks", "orchestrator", "isweep", "tests", "benchmarks")
OUTPUT_FILE = "said.txt"
COMMITTED_RUN = ROOT / "benchmarks" / "results" / "mutations.json"
"""The committed run. A mutation first runs the schedule that caught it there."""


class Mutation(NamedTuple):
    """A change of the product's source that breaks one promise.

    Attributes:
        promise: The promise that the change breaks.
        file: The changed file.
        before: The source text that is replaced.
        after: The text that replaces it.
    """

    promise: str
    file: str
    before: str
    after: str


QUEUE = "orchestrator/running/queue.py"
TRIALS = "orchestrator/running/trials.py"
OUTCOMES = "orchestrator/running/outcomes.py"
ATTEMPTS = "orchestrator/running/attempts.py"
RETRIES = "orchestrator/running/recovery/retries.py"
LOCKS = "orchestrator/machine/locks.py"
WATCHDOG = "orchestrator/running/recovery/watchdog.py"
WORK = "orchestrator/running/trial_source.py"
START_WAIT = "orchestrator/running/recovery/start_wait.py"
TRACKING = "orchestrator/results/tracking.py"
SENDER = "orchestrator/results/update_sender.py"
PENDING = "orchestrator/results/pending_updates.py"
SWEEP_TRACKING = "orchestrator/results/sweep_tracking.py"
RUNS = "orchestrator/results/mlflow_runs.py"
STORE = "orchestrator/results/store.py"
STATE = "orchestrator/results/state.py"
STORED = "orchestrator/results/stored_results.py"
OUTLINES = "orchestrator/results/outlines.py"
STORAGE = "orchestrator/results/storage.py"
WATCH = "orchestrator/machine/watch.py"
RAY_FOLDERS = "orchestrator/machine/ray_folders.py"
SEARCH = "orchestrator/tuning/search.py"
STUDY = "orchestrator/tuning/study.py"
EARLIER_TRIALS = "orchestrator/tuning/earlier_trials.py"
TUNING = "orchestrator/tuning/search_trials.py"
NODE_HEALTH = "orchestrator/running/recovery/node_health.py"
RESOURCES = "orchestrator/running/recovery/resource_policy.py"

MUTATIONS = tuple(
    Mutation(promise, file, before, after)
    for file, rows in {
        QUEUE: (
            ("a trial that failed is tried again", "        self.retry_at[trial_id] = at\n", ""),
            (
                "trials that are tried later are waited for",
                "(self.ready or self.retry_at or self.submitted)",
                "(self.ready or self.submitted)",
            ),
            (
                "a settled trial is done",
                '        """Remove a submitted trial that has a result, or that gets no further attempt."""\n'
                "        self.submitted.discard(trial_id)\n",
                '        """Remove a submitted trial that has a result, or that gets no further attempt."""\n',
            ),
            (
                "a trial that waits again runs no more",
                "        self.submitted.discard(trial_id)\n"
                "        self.running.discard(trial_id)\n        self.retry_at",
                "        self.running.discard(trial_id)\n        self.retry_at",
            ),
            (
                "a trial that failed waits before it is tried again",
                "elif self.retry_at and min(self.retry_at.values()) <= now:",
                "elif self.retry_at:",
            ),
            (
                "what ends a sweep ends it",
                "        except SweepError as error:\n            self.stop(error)\n",
                "        except SweepError:\n            pass\n",
            ),
        ),
        TRIALS: (
            (
                "trials that ran when Tune broke are tried again",
                "        failure = classify_broken_loop(error)\n",
                "        failure = classify_broken_loop(error)\n"
                "        self._queue.submitted.clear()\n",
            ),
            (
                "what Tune raises does not end a sweep",
                "                    self._process_tune_failure(error)\n",
                "                    raise\n",
            ),
            (
                "what a worker says of its failure counts",
                "            self._outcomes.process_report(trial_id, outcome)\n        else:\n",
                "            self._outcomes.process_unreported_end(trial_id, NO_RESULT)\n        else:\n",
            ),
            (
                "a trial that waits for its worker when Tune breaks loses no attempt",
                "        failed_ids = killed_ids or set(self._queue.running)\n",
                "        failed_ids = killed_ids or set(self._queue.submitted)\n",
            ),
            (
                "a memory kill that ends Tune costs its own trial alone",
                "        failed_ids = killed_ids or set(self._queue.running)\n",
                "        failed_ids = set(self._queue.running)\n",
            ),
            (
                "Tune that breaks again and again ends one",
                " or self._outcomes.num_tune_failures > MAX_TUNE_FAILURES",
                "",
            ),
            ("a lost cluster ends a sweep", "not self._backend.is_up() or ", ""),
        ),
        OUTCOMES: (
            (
                "the end of a trial is no failure of it",
                "        if trial_id not in self._queue.submitted or self._queue.is_stopped:\n"
                "            return\n"
                "        with self._queue.stop_on_error():\n"
                "            self._process_failure(trial_id, failure, process_ended=True)",
                "        with self._queue.stop_on_error():\n"
                "            self._process_failure(trial_id, failure, process_ended=True)",
            ),
            (
                "failures are stored",
                "        self._run.stored.save(record)\n        self._backend.count_failure",
                "        self._backend.count_failure",
            ),
            (
                "failures are told",
                "        self._run.monitor.trial_failed(",
                "        (lambda *_: None)(",
            ),
            (
                "the tracker is told of failures",
                "        self._run.tracker.fail_trial(record)\n",
                "",
            ),
            (
                "a trial that is stopped with a memory kill loses no attempt",
                "        self._attempts.of(trial_id).number -= 1\n",
                "",
            ),
            (
                "a report that comes twice counts once",
                "        if trial_id not in self._queue.submitted or self._queue.is_stopped:\n"
                "            return\n"
                "        self._attempts.of(trial_id).node",
                "        self._attempts.of(trial_id).node",
            ),
            (
                "a result ends its trial",
                "        self.num_tune_failures = 0\n        self._remove(trial_id)\n",
                "        self.num_tune_failures = 0\n",
            ),
            (
                "Tune that breaks now and then ends no sweep",
                "        self.num_tune_failures = 0\n        self._remove",
                "        self._remove",
            ),
            (
                "arrays go with the last trial that needs them",
                (
                    "        self._backend.arrays.remove_trial(trial_id, "
                    "self._array_key(trial_id), "
                    "for_good=True)\n"
                ),
                "",
            ),
        ),
        ATTEMPTS: (
            (
                "attempts of earlier runs are counted",
                "Attempt(self._num_earlier.get(trial_id, 0))",
                "Attempt(0)",
            ),
        ),
        RETRIES: (
            (
                "a crash is tried again",
                "    FailureKind.WORKER_CRASH: RetryPolicy(2),",
                "    FailureKind.WORKER_CRASH: RetryPolicy(0),",
            ),
            (
                "a lost node is tried again",
                '            return RetryLimit(None, "")',
                '            return RetryLimit(0, "")',
            ),
            (
                "a broken network is not tried again",
                "if limit.num_retries is not None and num_of_kind > limit.num_retries:",
                "if limit.num_retries is not None and num_of_kind > limit.num_retries + 1:",
            ),
            (
                "the third death of a trial alone is its own doing",
                "    FailureKind.WORKER_CRASH: RetryPolicy(2),",
                "    FailureKind.WORKER_CRASH: RetryPolicy(9),",
            ),
            (
                "a trial that hangs is tried once more",
                "    FailureKind.HUNG: RetryPolicy(1),",
                "    FailureKind.HUNG: RetryPolicy(9),",
            ),
            (
                "a trial that can get no more is given up",
                "        if is_final:",
                "        if False:",
            ),
            (
                "where others die too, a trial that dies gets more attempts",
                "        trial.num_lost_processes += process_ended\n",
                "",
            ),
            (
                "where a GPU fails others too, a trial gets more attempts",
                "len(self.trials_by_gpu[failure.gpu]) > 1",
                "False",
            ),
            (
                "trials that ran when Tune broke are not given up for it",
                "    FailureKind.CLUSTER_ERROR: RetryPolicy(5),",
                "    FailureKind.CLUSTER_ERROR: RetryPolicy(0),",
            ),
            (
                "a worker that is not set up costs no trial",
                "    FailureKind.SETUP: RetryPolicy(3),",
                "    FailureKind.SETUP: RetryPolicy(0),",
            ),
            (
                "bad data stay bad",
                "    FailureKind.BAD_DATA: RetryPolicy(0),",
                "    FailureKind.BAD_DATA: RetryPolicy(1),",
            ),
            (
                "the first retry comes after a second",
                "self.first_pause_s * 2.0**",
                "self.max_pause_s * 2.0**",
            ),
        ),
        NODE_HEALTH: (
            (
                "other code here and there ends no sweep",
                "        self.code_scores[node] = 0\n",
                "",
            ),
            (
                "other code on every node ends a sweep",
                "scores[address] < NODE_UNFIT_AFTER for address in eligible",
                "True for address in eligible",
            ),
        ),
        WATCHDOG: (
            ("hung trials are ended", "        kill()\n", "        return\n"),
            (
                "a worker that does not answer is ended within a minute",
                "return min(self.max_silence_s, WORKER_TIMEOUT_S)",
                "return self.max_silence_s",
            ),
            (
                "a trial that hung may die of something else",
                "        self._failures.pop(trial_id, None)\n",
                "",
            ),
            (
                "an epoch begins the limit of its trial anew",
                "            watched.last_message_at = self._clock.monotonic()\n",
                "",
            ),
        ),
        START_WAIT: (
            (
                "a shared cluster that has no room is waited for",
                "        if not self._is_private:\n            return\n",
                "",
            ),
        ),
        WORK: (("results are stored", "        self.run.stored.save(record)\n", ""),),
        LOCKS: (
            (
                "one driver per store",
                '"create") or self._take_over()\n',
                '"overwrite") or self._take_over()\n',
            ),
            (
                "a lease is taken over only where nobody renews it",
                "            if later.tag != lease.tag:\n",
                "            if False:\n",
            ),
            (
                "a lease is taken over only as it was read",
                '        return self._files.put(self._path, self._content(), {"e_tag": lease.tag})',
                '        return self._files.put(self._path, self._content(), "overwrite")',
            ),
            (
                "a lease whose renewal got no reply is still one's own",
                "            return lease.tag\n",
                "            return None\n",
            ),
            (
                "a lease that somebody deleted is made again",
                '            return self._files.put(self._path, self._content(), "create")\n',
                "            return None\n",
            ),
            (
                "a lease is given back",
                '            if self._read().fields.get("token") == self._token:\n',
                "            if False:\n",
            ),
            (
                "another driver's lease is left alone",
                '            if self._read().fields.get("token") == self._token:\n',
                "            if True:\n",
            ),
            (
                "a live driver's lease changes with every beat",
                "        self._num_writes += 1\n",
                "",
            ),
        ),
        WATCH: (
            (
                "a lease is renewed",
                "            failure = self._check()\n",
                "            failure = None\n",
            ),
        ),
        RAY_FOLDERS: (
            (
                "a killed driver's processes are ended by the next",
                " if machine.is_abandoned(folder)]",
                " if False]",
            ),
            (
                "a live driver's processes are left alone",
                " if machine.is_abandoned(folder)]",
                "]",
            ),
        ),
        PENDING: (
            (
                "a newer state of a run is not struck out",
                "        if self._updates.get(key) is update:\n"
                "            del self._updates[key]\n",
                "        if key in self._updates:\n            del self._updates[key]\n",
            ),
            (
                "what MLflow did not take stays behind",
                "            self._updates[key] = self._updates.pop(key)\n",
                "            self._updates.pop(key)\n",
            ),
        ),
        TRACKING: (
            (
                "a start compares the whole store",
                "        for run in results:\n",
                "        for run in []:\n",
            ),
            (
                "points that MLflow did not take are sent later",
                "points=(*live.points, *points)",
                "points=tuple(points)",
            ),
            (
                "a sweep that is stopped closes its runs",
                "        self._forget_running_trials()\n        self._put(END_KEY, EndSweep(ending))",
                "        self._put(END_KEY, EndSweep(ending))",
            ),
            (
                "a stop waits 8 s for MLflow",
                "self._sender.wait_until_none_sendable(STOPPED_SWEEP)",
                "self._sender.wait_until_none_sendable(FINISHED_SWEEP)",
            ),
        ),
        SENDER: (
            (
                "an older server is looked at anew",
                "error_code(error) == MISSING_CODE",
                'error_code(error) == "NEVER"',
            ),
            (
                "the end closes what nobody works on",
                "            closed, duplicates = runs.end_running(open_keys)\n",
                "            closed, duplicates = 0, 0\n",
            ),
        ),
        SWEEP_TRACKING: (
            (
                "MLflow shows how a sweep ended",
                '        ending = "KILLED"\n',
                '        ending = "FINISHED"\n',
            ),
        ),
        RUNS: (
            (
                "a create whose reply was lost is looked for",
                "        if key in self._uncertain_keys and key not in self._runs:\n",
                "        if False:\n",
            ),
            (
                "a run that was reopened is not taken for finished",
                "            tracked.status = PERHAPS_RUNNING\n"
                '            tracked.digest = ""\n'
                "            self.client.update_run",
                "            self.client.update_run",
            ),
            (
                "values are compared, not only statuses",
                "            if is_finished and tracked.digest == digest:\n",
                "            if is_finished:\n",
            ),
            (
                "a run with numbers of other data is set aside",
                "            if _must_be_replaced(run, final_metrics, data):\n",
                "            if False:\n",
            ),
            (
                "second runs of a trial are deleted",
                "            self.client.delete_run(run_id)\n",
                "            pass\n",
            ),
            (
                "a finished run is finished",
                '        self._end(tracked, "FINISHED", run.finished_ms)\n',
                "",
            ),
            (
                "another store's sweep of the same name is left alone",
                "experiment.tags.get(STORAGE_TAG, storage) == storage",
                "True",
            ),
            (
                "MLflow shows what the last attempt died of",
                "            if tags.items() <= shown_tags.items():\n",
                "            if True:\n",
            ),
            (
                "a point is sent once",
                " if (point.step, point.value) not in stored[point.key]]",
                "]",
            ),
            (
                "a trial that nobody works on does not say that it runs",
                "            self.client.set_tag(tracked.run_id, STATUS, KILLED)\n",
                "",
            ),
            (
                "a result that is copied from another sweep is shown as that sweep's",
                'if name != "kind" and not name.startswith',
                'if name not in ("kind", "sweep") and not name.startswith',
            ),
        ),
        STORE: (
            (
                "a store keeps its identity",
                '            self._known_id = str(json.loads(self._files.read(path))["store_id"])\n',
                "            raise FileNotFoundError(path)\n",
            ),
            (
                "a checksum that does not fit is not believed",
                "    if not is_intact:\n",
                "    if False:\n",
            ),
            (
                "the record of another trial is not believed",
                "    if record.record_id != record_id:\n",
                "    if False:\n",
            ),
            (
                "results are flushed",
                "record.record_id, record.file), data)\n",
                "record.record_id, record.file), data, durable=False)\n",
            ),
            (
                "the history of a trial is kept to its end",
                "[*earlier, event][-MAX_EVENTS:]",
                "[event]",
            ),
            (
                "a failure goes once the result is there",
                "        stamp = self._files.write(",
                "        if isinstance(record, TrialRecord):\n"
                "            self._files.remove("
                "self._path(FailureRecord.folder, record.record_id, FailureRecord.file))\n"
                "        stamp = self._files.write(",
            ),
        ),
        STATE: (
            (
                "results of other data are outdated",
                "    return dataset is not None and dataset.fingerprint != data_fingerprint\n",
                "    return False\n",
            ),
        ),
        STORED: (
            (
                "results that are gone are counted",
                "        lost = self.trials.keys() - self.store.listing(TrialRecord).keys()\n",
                "        lost = set[str]()\n",
            ),
            (
                "a look believes no outline of a record that has changed",
                "if trial_id in files and entry.stamp == files[trial_id].stamp:\n",
                "if trial_id in files:\n",
            ),
        ),
        OUTLINES: (
            (
                "a damaged row of the index is not believed",
                "            if checksum == _checksum(stamp, text):\n",
                "            if True:\n",
            ),
        ),
        STORAGE: (
            (
                "storage that is away pauses a sweep",
                "    return isinstance(error, StorageAway) or error.errno in TEMPORARY_ERRORS\n",
                "    return False\n",
            ),
        ),
        TUNING: (
            (
                "a search stores what it asks for before that begins",
                "            self.run.stored.save(record)\n            requests",
                "            requests",
            ),
            (
                "the result of a search's trial is stored",
                "        self.run.stored.save(record)\n        self._stored_trials.records",
                "        self._stored_trials.records",
            ),
        ),
        SEARCH: (
            (
                "a killed search goes on with what it had asked for",
                "                if search.needs(record.training):\n",
                "                if False:\n",
            ),
            (
                "a search keeps to its budget",
                "planned = self.spent + self.num_sampling + 1\n",
                "planned = self.spent + 1\n",
            ),
            (
                "a search compares with the sweep's own recipe",
                "        return Training(self.combination.sweep_point, 0) not in self.known_trainings\n",
                "        return False\n",
            ),
            ("finalists are trained with other seeds", "range(1, self.tune.seeds)", "range(1, 1)"),
            (
                "a search is told each point once",
                "            elif record.training.is_of_sampling and search.combination",
                "            elif search.combination",
            ),
            (
                "finalists are those of the whole search",
                "            if search.is_sampling_over:\n                remaining",
                "            if True:\n                remaining",
            ),
        ),
        EARLIER_TRIALS: (
            (
                "a search uses no results of other data",
                "            return fingerprints.get(prepared_id) == record.data_fingerprint\n",
                "            return True\n",
            ),
        ),
        STUDY: (
            (
                "a killed search asks for what an unbroken one does",
                "len(self.trials), repeat) % SEED_RANGE",
                "len(self.trials), repeat, id(self)) % SEED_RANGE",
            ),
        ),
        RESOURCES: (
            (
                "a trial that ran out of memory gets more",
                "        resources = self._levels.request(trial, level)\n",
                "        resources = self._levels.request(trial, 0)\n",
            ),
            (
                "a trial whose memory others hold is not given up for it",
                "if is_by_others or has_next or level < MIN_FINAL_MACHINE_LEVEL:\n",
                "if has_next or level < MIN_FINAL_MACHINE_LEVEL:\n",
            ),
        ),
    }.items()
    for promise, before, after in rows
)


def main() -> int:
    """Run the mutations that FILE does not have yet. Return 1 if fewer than 90 % are caught."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--schedules",
        type=int,
        default=2000,
        help="at least 500: with fewer, no named schedule runs, and some mutations need one",
    )
    parser.add_argument("--only", default="", help="those whose promise has these words")
    parser.add_argument("--into", type=Path, help="FILE, written after each")
    options = parser.parse_args()
    earlier = {}
    if options.into and options.into.exists():
        earlier = json.loads(options.into.read_text("utf-8"))
    committed_violations = json.loads(COMMITTED_RUN.read_text("utf-8"))["caught_by"]
    caught = dict.fromkeys(earlier.get("not_caught", ()), "") | earlier.get("caught_by", {})
    for mutation in MUTATIONS:
        if options.only not in mutation.promise or mutation.promise in caught:
            continue
        first_violation = committed_violations.get(mutation.promise, "")
        violation = run(mutation, options.schedules, first_violation)
        caught[mutation.promise] = violation
        verdict = "caught" if violation else "NOT CAUGHT"
        print(f"{verdict}: {mutation.promise}  {violation}", flush=True)
        if options.into:
            text = json.dumps(summary(caught, options.schedules), indent=1, ensure_ascii=False)
            options.into.write_text(text + "\n", encoding="utf-8")
    return 0 if num_caught(caught) >= 0.9 * len(caught) else 1


def num_caught(caught: dict[str, str]) -> int:
    """Return how many mutations caused a violation."""
    return sum(map(bool, caught.values()))


def summary(caught: dict[str, str], schedules: int) -> dict[str, Any]:
    """Return the document about the mutations that have run, given the violation of each."""
    return {
        "mutations": len(caught),
        "share_caught": round(num_caught(caught) / len(caught), 3),
        "schedules_at_most": schedules,
        "not_caught": [promise for promise, violation in caught.items() if not violation],
        "caught_by": {promise: violation for promise, violation in caught.items() if violation},
        "environment": environment(),
    }


def run(mutation: Mutation, schedules: int, first_violation: str = "") -> str:
    """Return the first violation that a mutation causes, or an empty text.

    Args:
        mutation: The change of the source.
        schedules: Number of schedules that run at most.
        first_violation: An earlier violation; its schedule runs first.
    """
    with tempfile.TemporaryDirectory() as temporary_folder:
        folder = Path(temporary_folder)
        for part in CODE:
            shutil.copytree(
                ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__")
            )
        path = folder / mutation.file
        text = path.read_text(encoding="utf-8")
        if text.count(mutation.before) < 1:
            raise SystemExit(
                f"{mutation.promise}: {mutation.file} has it no more: {mutation.before!r}"
            )
        path.write_text(text.replace(mutation.before, mutation.after), encoding="utf-8")
        # The child inherits the imported libraries, so that it imports only the copied code.
        child = multiprocessing.get_context("fork").Process(
            target=_simulate, args=(folder, schedules, first_violation)
        )
        child.start()
        child.join()
        output_lines = (folder / OUTPUT_FILE).read_text(encoding="utf-8").splitlines()
        violation = next((line for line in output_lines if line.startswith("seed ")), "")
        if bool(child.exitcode) is not bool(violation):
            raise SystemExit(
                f"{mutation.promise}: ended with {child.exitcode} and said {output_lines[-20:]}"
            )
        return violation[:160]


def _simulate(folder: Path, schedules: int, first_violation: str) -> None:
    """Run schedules on the code in a folder until one reports a violation, then exit."""
    for name in list(sys.modules):
        if name.partition(".")[0] in CODE:
            del sys.modules[name]
    sys.path.insert(0, str(folder))
    first_schedule = first_violation.partition(": ")[0]
    sys.argv = ["simulation", "--schedules", str(schedules), "--stop", "--begin", first_schedule]
    with (folder / OUTPUT_FILE).open("w", encoding="utf-8") as out, contextlib.redirect_stdout(out):
        status = importlib.import_module("tests.simulation.__main__").main()
    sys.exit(status)


if __name__ == "__main__":
    sys.exit(main())
