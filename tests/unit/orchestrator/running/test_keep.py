"""Test clusters/keep.py, the supervisor of a submitted sweep, with a simulated head node."""

import importlib.util
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus

KEEP = Path(__file__).parents[4] / "clusters/keep.py"
STATUS = {0: JobStatus.SUCCEEDED, None: JobStatus.FAILED, "stopped": JobStatus.STOPPED}


@dataclass
class Head:
    """A simulated head node: at each listing a running job ends in the next way of ``ends``.

    A way is the exit code of the driver, None for a driver that died without one, "stopped", or
    "lost": the head does not answer once, and comes back as a new cluster without jobs.
    """

    ends: list[Any]
    jobs: dict[str, JobDetails] = field(default_factory=dict)
    submitted: list[str] = field(default_factory=list)

    def submit_job(self, entrypoint: str) -> str:
        self.submitted.append(entrypoint)
        return self.run(entrypoint)

    def run(self, entrypoint: str) -> str:
        name = f"job_{len(self.jobs)}_{len(self.submitted)}"
        self.jobs[name] = JobDetails(
            type="SUBMISSION", submission_id=name, entrypoint=entrypoint, status=JobStatus.RUNNING
        )
        return name

    def list_jobs(self) -> list[JobDetails]:
        running = [name for name, job in self.jobs.items() if job.status == JobStatus.RUNNING]
        if running:
            end = self.ends.pop(0)
            if end == "lost":
                self.jobs.clear()
                raise ConnectionError("Failed to connect to Ray at http://127.0.0.1:8265")
            changes = {"status": STATUS.get(end, JobStatus.FAILED)}
            if isinstance(end, int):
                changes["driver_exit_code"] = end
            name = running[0]
            self.jobs[name] = self.jobs[name].model_copy(update=changes)
        return list(self.jobs.values())


@pytest.fixture
def keep(monkeypatch, tmp_path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("keep", KEEP)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module.time, "sleep", lambda seconds: None)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    return module


def exit_code_with(keep: ModuleType, monkeypatch: pytest.MonkeyPatch, head: Head) -> int:
    monkeypatch.setattr(keep, "connect", lambda: head)
    return keep.main(["paper", "--device", "gpu"])


@pytest.mark.parametrize(
    ("ends", "code", "num_submitted"),
    [
        *(([code], code, 1) for code in range(5)),  # the exit code of the sweep
        *(([death, death, 0], 0, 3) for death in (None, -9, 137)),  # a driver that died: again
        ([None] * 50, 3, 10),  # at most ten drivers
        (["stopped"], 130, 1),  # somebody stopped the job
    ],
)
def test_keep_has_the_exit_code_of_the_sweep_and_replaces_a_driver_that_died(
    keep, monkeypatch, ends, code, num_submitted
):
    head = Head([*ends])
    assert exit_code_with(keep, monkeypatch, head) == code
    assert (len(head.submitted), len(set(head.submitted))) == (num_submitted, 1)


def test_keep_waits_for_a_lost_head_and_submits_again(keep, monkeypatch, capsys):
    head = Head(["lost", 0])
    assert exit_code_with(keep, monkeypatch, head) == 0
    assert len(head.submitted) == 2
    output = capsys.readouterr().out
    hint = "start it with `ray up` if it is down: Failed to connect"
    assert f"keep: the head does not answer; {hint}" in output
    assert "keep: the head was lost: the cluster that answers now does not know the job" in output


def test_a_request_that_the_head_refuses_is_repeated_with_its_reason(keep, monkeypatch, capsys):
    head = Head([0])
    answers = iter([RuntimeError("Request failed with status code 500: no agent\ntraceback")])
    submit_job = head.submit_job

    def refuse_once(entrypoint: str) -> str:
        error = next(answers, None)
        if error is not None:
            raise error
        return submit_job(entrypoint)

    monkeypatch.setattr(head, "submit_job", refuse_once)
    assert exit_code_with(keep, monkeypatch, head) == 0
    assert (
        "keep: the head refused a request, which is repeated every 5 s: "
        "Request failed with status code 500: no agent\n"
    ) in capsys.readouterr().out


@pytest.mark.parametrize(
    ("run_s", "down_s", "num_submitted"),
    [
        (7200.0, 0.0, 15),  # each driver runs for long, so the failures are not counted together
        (0.0, 7200.0, 10),  # the head is down for long, but each driver dies at once
    ],
)
def test_only_the_time_in_which_a_driver_runs_makes_its_failure_slow(
    keep, monkeypatch, run_s, down_s, num_submitted
):
    seconds = 0.0
    head = Head([None] * 14 + [0])
    list_jobs = head.list_jobs
    is_down = False

    def list_jobs_on_a_clock() -> list[JobDetails]:
        nonlocal seconds, is_down
        if not any(job.status == JobStatus.RUNNING for job in head.jobs.values()):
            is_down = not is_down and down_s > 0
            if is_down:
                seconds += down_s
                raise ConnectionError("Failed to connect")
        else:
            seconds += run_s
        return list_jobs()

    monkeypatch.setattr(keep.time, "monotonic", lambda: seconds)
    monkeypatch.setattr(head, "list_jobs", list_jobs_on_a_clock)
    assert exit_code_with(keep, monkeypatch, head) == (0 if run_s else 3)
    assert len(head.submitted) == num_submitted


def test_a_second_keep_waits_for_the_running_job(keep, monkeypatch):
    head = Head([0])
    head.run(keep.shlex.join(keep.driver_command(["paper", "--device", "gpu"])))
    first_listings = iter([list(head.jobs.values())])  # in the first listing the job runs
    list_jobs = head.list_jobs
    monkeypatch.setattr(head, "list_jobs", lambda: next(first_listings, None) or list_jobs())
    assert exit_code_with(keep, monkeypatch, head) == 0
    assert head.submitted == []


def test_without_the_token_of_the_cluster_keep_ends_at_once(keep, monkeypatch, capsys):
    def refuse(address: str) -> None:
        raise AuthenticationError("Token authentication is enabled but Ray couldn't find a token")

    monkeypatch.setattr("ray.job_submission.JobSubmissionClient", refuse)
    with pytest.raises(SystemExit) as caught:
        keep.main(["paper"])
    assert caught.value.code == 3
    output = capsys.readouterr().out
    assert "keep: the cluster's token is not in ~/.ray/auth_token; copy it there" in output


def test_the_submitted_command_has_absolute_paths(keep, monkeypatch, tmp_path):
    sweep = tmp_path / "mine.yaml"
    sweep.write_text("name: mine", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    words = keep.driver_command(["mine.yaml", "--root=/disk/root"])
    assert Path(words[0]).is_absolute()
    assert words[1:] == ["run", str(sweep), "--root=/disk/root", "--address", "auto"]
    assert keep.driver_command(["paper"])[-2:] == ["--root", str(tmp_path / "isweep-root")]


@pytest.mark.parametrize("words", [[], ["--device", "gpu"]])
def test_without_a_sweep_keep_prints_its_usage(keep, words, capsys):
    assert keep.main(words) == 2
    assert "usage: keep.py SWEEP" in capsys.readouterr().out
