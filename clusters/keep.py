"""Run a sweep on the head of a cluster as a Ray job, and submit the job again if its driver dies.

    python keep.py SWEEP [options of isweep run]

The script ends when the sweep ends, with the exit code of the sweep, or when somebody stops the
job. You may kill the script and start it again at any time, because it looks for a job that already
runs. While the head does not answer, the script waits. Run it in tmux on the head, or as a service
(``isweep@.service``). docs/cluster.md describes both.
"""

from __future__ import annotations

import os
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

DASHBOARD = "http://127.0.0.1:8265"
FINAL_EXIT_CODES = (0, 1, 2, 3, 4)
"""The sweep is done (0), done with failed trials (1), or it was refused (2 to 4). After these exit
codes, another driver would end in the same way."""
STOPPED = 130
"""Exit code after somebody stopped the job: that of a program that Ctrl-C ends."""
MAX_SHORT_DRIVERS = 10
"""Number of drivers in a row that may die within LONG_LIFE_S. Finished trials are kept, so each
driver goes on where the last one ended."""
LONG_LIFE_S = 3600.0
"""Seconds. The death of a driver that lived longer starts a new count."""
POLL_S = 5.0
LONGEST_PAUSE_S = 300.0


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
    num_short_drivers = 0
    while True:
        start = time.monotonic()
        exit_code = follow(entrypoint)
        if exit_code is not None:
            return exit_code
        lived_long = time.monotonic() - start >= LONG_LIFE_S
        num_short_drivers = 1 if lived_long else num_short_drivers + 1
        if num_short_drivers == MAX_SHORT_DRIVERS:
            log(f"{MAX_SHORT_DRIVERS} drivers died one after another; read isweep.log in the root")
            return 3
        pause = min(POLL_S * 2 ** (num_short_drivers - 1), LONGEST_PAUSE_S)
        log(f"the driver died; the sweep is submitted again in {pause:g} s")
        time.sleep(pause)


def driver_command(arguments: list[str]) -> list[str]:
    """Return the command of the driver.

    Ray runs a job in a folder of its own. So the path of the sweep file becomes absolute; give
    absolute paths in the options.
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


def follow(entrypoint: str) -> int | None:
    """Find or submit the job, and wait until it ends.

    Args:
        entrypoint: Command of the driver, as Ray's list of jobs shows it.

    Returns:
        The exit code of this script, or None if the driver died, alone or with the head.
    """
    submission_id = ""
    last_reason = ""
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
            else:
                job = next((job for job in jobs if job.submission_id == submission_id), None)
                if job is None:
                    log("the head was lost: the cluster that answers now does not know the job")
                    return None
                if job.status.is_terminal():
                    return exit_code_after(job)
            last_reason = ""
        except (OSError, RuntimeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            if reason != last_reason:
                log(f"the head does not answer; start it with `ray up` if it is down: {reason}")
                last_reason = reason
        time.sleep(POLL_S)


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
