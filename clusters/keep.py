"""The supervisor of a sweep: run the sweep as a Ray job, and submit it again if its driver dies.

    python keep.py SWEEP [options of isweep run]

Run this script on the head of the cluster, in tmux or as a service (``isweep@.service``).
docs/cluster.md describes both. The script ends with the exit code of the sweep, or when
somebody stops the job. While the head does not answer, the script waits. You may kill the
script and start it again at any time: it then waits for the job that already runs.
"""

from __future__ import annotations

import os
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

DASHBOARD = "http://127.0.0.1:8265"
FINAL_EXIT_CODES = (0, 1, 2, 3, 4)
"""Exit codes after which the sweep is not submitted again. Code 0: all trials are done. Code
1: the remaining trials have failed for good. After an error of the user (2), of the machine or
the cluster (3), or of isweep (4), somebody must repair the cause first."""
STOPPED = 130
"""Exit code after somebody stopped the job: that of a program that Ctrl-C ends."""
MAX_QUICK_FAILURES = 10
"""Number of quick failures in a row after which the script ends. A failure is quick if the
driver dies within MIN_RUN_S."""
MIN_RUN_S = 3600.0
"""Seconds that a driver must run so that its death is not a quick failure. Its death is then
the first failure of a new count."""
POLL_S = 5.0
"""Seconds between two requests to the head, and of the pause after the first quick failure."""
MAX_PAUSE_S = 300.0
"""Seconds of the longest pause before the sweep is submitted again. Each quick failure doubles
the pause."""


class JobEnd(NamedTuple):
    """The end of a job.

    Attributes:
        exit_code: Exit code of this script. None if the driver died, or if the head was lost.
        run_s: Seconds from the first to the last answer of the head about the job.
    """

    exit_code: int | None
    run_s: float


def main(arguments: list[str]) -> int:
    """Submit the sweep until it ends, and return the exit code of this script.

    Args:
        arguments: The sweep, then options of ``isweep run``.
    """
    if not arguments or arguments[0].startswith("-"):
        log("usage: keep.py SWEEP [options of isweep run]")
        return 2
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    entrypoint = shlex.join(driver_command(arguments))
    num_quick_failures = 0
    while True:
        end = wait_for_job(entrypoint)
        if end.exit_code is not None:
            return end.exit_code
        if end.run_s >= MIN_RUN_S:
            num_quick_failures = 0
        num_quick_failures += 1
        if num_quick_failures == MAX_QUICK_FAILURES:
            log(f"{MAX_QUICK_FAILURES} drivers died one after another; read isweep.log in the root")
            return 3
        pause_s = min(POLL_S * 2 ** (num_quick_failures - 1), MAX_PAUSE_S)
        log(f"the driver died; the sweep is submitted again in {pause_s:g} s")
        time.sleep(pause_s)


def driver_command(arguments: list[str]) -> list[str]:
    """Return the command of the driver.

    Ray starts the job in another folder, so the path of the sweep file becomes absolute. Paths
    in the options are not changed, so the user must type absolute paths there.
    """
    sweep, *options = arguments
    file = Path(sweep).expanduser()
    if file.is_file():
        sweep = str(file.absolute())
    command = [str(Path(sys.executable).with_name("isweep")), "run", sweep, *options]
    option_names = {option.partition("=")[0] for option in options}
    if "--address" not in option_names:
        command += ["--address", "auto"]
    if "--root" not in option_names:
        command += ["--root", str(Path.home() / "isweep-root")]
    return command


def wait_for_job(entrypoint: str) -> JobEnd:
    """Submit the job, unless it already runs, and wait until it ends.

    Args:
        entrypoint: Command of the driver, as Ray's list of jobs shows it.
    """
    submission_id = ""
    first_seen_at = 0.0
    last_seen_at = 0.0
    last_problem = ""
    while True:
        try:
            client = connect()
            jobs = [
                job
                for job in client.list_jobs()
                if job.entrypoint == entrypoint and job.submission_id
            ]
            if not submission_id:
                submission_id = running_job(jobs) or submit(client, entrypoint)
                first_seen_at = time.monotonic()
                last_seen_at = first_seen_at
            else:
                job = next((job for job in jobs if job.submission_id == submission_id), None)
                if job is None:
                    log("the head was lost: the cluster that answers now does not know the job")
                    # The time in which the head did not answer does not count.
                    return JobEnd(None, last_seen_at - first_seen_at)
                last_seen_at = time.monotonic()
                if job.status.is_terminal():
                    return JobEnd(exit_code_after(job), last_seen_at - first_seen_at)
            last_problem = ""
        except (OSError, RuntimeError) as error:
            problem = describe_problem(error)
            if problem != last_problem:
                log(problem)
                last_problem = problem
        time.sleep(POLL_S)


def describe_problem(error: OSError | RuntimeError) -> str:
    """Return a message about a request to the head that failed and is repeated."""
    reason = str(error).partition("\n")[0] or type(error).__name__
    if isinstance(error, OSError):
        return f"the head does not answer; start it with `ray up` if it is down: {reason}"
    return f"the head refused a request, which is repeated every {POLL_S:g} s: {reason}"


def connect() -> JobSubmissionClient:
    """Return a client of the dashboard on this head.

    Raises:
        SystemExit: With code 3, if the token is missing or belongs to another cluster.
    """
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    try:
        return JobSubmissionClient(DASHBOARD)
    except AuthenticationError:
        log(
            "the cluster's token is not in ~/.ray/auth_token; copy it there as described under "
            '"Tokens" in docs/cluster.md'
        )
        raise SystemExit(3) from None


def running_job(jobs: list[JobDetails]) -> str:
    """Return the submission id of the job that already runs, or an empty text."""
    for job in jobs:
        if not job.status.is_terminal():
            log(f"the job {job.submission_id} already runs; waiting for its end")
            return str(job.submission_id)
    return ""


def submit(client: JobSubmissionClient, entrypoint: str) -> str:
    """Submit the job, without a working directory to copy, and return its submission id."""
    submission_id = client.submit_job(entrypoint=entrypoint)
    log(
        f"submitted the job; see its log with `ray job logs --follow {submission_id}`, "
        f"or stop it with `ray job stop {submission_id}`"
    )
    return submission_id


def exit_code_after(job: JobDetails) -> int | None:
    """Return the exit code of this script after a job, or None to submit the sweep again."""
    if job.status == "STOPPED":
        log("the job was stopped")
        return STOPPED
    if job.driver_exit_code in FINAL_EXIT_CODES:
        log(f"the sweep ended with exit code {job.driver_exit_code}")
        return job.driver_exit_code
    return None


def log(text: str) -> None:
    """Print a line at once, so that the log of a service shows it."""
    print(f"keep: {text}", flush=True)  # noqa: T201  # this script has no logger


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
