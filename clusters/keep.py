"""Keep a sweep going on the head of a cluster: submit it as a Ray job, and again when its driver
died.

    python keep.py SWEEP [options of isweep run]

Ends when the sweep does, with its exit code, or when somebody stops the job. It may be killed and
started again at any time: it finds the job that runs. While the head does not answer it waits. Type
it in tmux on the head, or make it a service (``isweep@.service``); docs/cluster.md says how.
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
FINAL = (0, 1, 2, 3, 4)
"""Done, done with failed cells, and mistakes, of a user or of ours, that another try would only
repeat."""
STOPPED = 130
MAX_DEATHS = 10
"""Of drivers that did not live long, one after another; what they finished is kept, and the next
goes on."""
LONG_LIFE_S = 3600.0
LOOK_EVERY_S = 5.0
LONGEST_PAUSE_S = 300.0


def main(words: list[str]) -> int:
    """Keep the sweep of ``words`` going; returns how it ended."""
    if not words or words[0].startswith("-"):
        say("usage: keep.py SWEEP [options of isweep run]")
        return 2
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    entrypoint = shlex.join(command(words))
    deaths = 0
    while deaths < MAX_DEATHS:
        started = time.monotonic()
        ended = follow(entrypoint)
        if ended is not None:
            return ended
        deaths = deaths + 1 if time.monotonic() - started < LONG_LIFE_S else 1
        pause = min(LOOK_EVERY_S * 2 ** (deaths - 1), LONGEST_PAUSE_S)
        say(f"the driver died; going on in {pause:g} s")
        time.sleep(pause)
    say(f"{MAX_DEATHS} drivers died one after another; see the log of the sweep below its root")
    return 3


def command(words: list[str]) -> list[str]:
    """Return the driver's command: absolute, since a job starts in a folder that nobody chose."""
    sweep = Path(words[0]).expanduser()
    named = {word.partition("=")[0] for word in words}
    isweep = [str(Path(sys.executable).with_name("isweep")), "run"]
    isweep += [str(sweep.absolute()) if sweep.is_file() else words[0], *words[1:]]
    isweep += [] if "--address" in named else ["--address", "auto"]
    isweep += [] if "--root" in named else ["--root", str(Path.home() / "isweep-root")]
    return isweep


def follow(entrypoint: str) -> int | None:
    """Find or submit the job, and wait until it ends.

    Returns:
        The exit code to end with; None when the driver died, by itself or with the head.
    """
    submission, told = "", ""
    while True:
        try:
            client = connect()
            jobs = [
                job
                for job in client.list_jobs()
                if job.entrypoint == entrypoint and job.submission_id
            ]
            job = next((job for job in jobs if job.submission_id == submission), None)
            if not submission:
                submission = running(jobs) or submit(client, entrypoint)
            elif job is None:
                say("the cluster is another one than before: its head was lost")
                return None
            elif job.status.is_terminal():
                return ending(job)
            told = ""
        except (OSError, RuntimeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            if reason != told:
                say(f"the head does not answer, waiting for it (ray up): {reason}")
                told = reason
        time.sleep(LOOK_EVERY_S)


def connect() -> JobSubmissionClient:
    """Return a client of the head's own dashboard; without the cluster's token it ends here, with
    3.
    """
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    try:
        return JobSubmissionClient(DASHBOARD)
    except AuthenticationError:
        say(
            'no token, or not the cluster\'s: put it into ~/.ray/auth_token, see "Tokens" in '
            "docs/cluster.md"
        )
        raise SystemExit(3) from None


def running(jobs: list[JobDetails]) -> str:
    """Return the id of the job that runs already, or nothing."""
    found = [str(job.submission_id) for job in jobs if not job.status.is_terminal()]
    if found:
        say(f"job {found[0]} runs already; following it")
    return found[0] if found else ""


def submit(client: JobSubmissionClient, entrypoint: str) -> str:
    """Submit the job without a working directory: nothing is shipped, and its id is a new one."""
    submission = client.submit_job(entrypoint=entrypoint)
    say(f"submitted {submission}: ray job logs --follow {submission}, ray job stop {submission}")
    return submission


def ending(job: JobDetails) -> int | None:
    """Return how an ended job lets us end; None when it has to be submitted again."""
    if job.status == "STOPPED":
        say("the job was stopped")
        return STOPPED
    if job.driver_exit_code in FINAL:
        say(f"the sweep ended with exit code {job.driver_exit_code}")
        return job.driver_exit_code
    return None


def say(text: str) -> None:
    """Print a line at once, so that a service's log has it."""
    print(f"keep: {text}", flush=True)  # noqa: T201  # a script of its own


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
