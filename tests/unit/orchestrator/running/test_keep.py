"""The supervisor of a submitted sweep, against a head that is told what its jobs do."""

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
    """A head on which each submitted job ends, at the next look, in the next way of ``ends``.

    An end is the driver's exit code, None for a driver that died without one, "stopped", or "lost":
    the head is silent for one look and comes back as a new cluster, without jobs."""

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
        going = [name for name, job in self.jobs.items() if job.status == JobStatus.RUNNING]
        if going:
            end = self.ends.pop(0)
            if end == "lost":
                self.jobs.clear()
                raise ConnectionError("Failed to connect to Ray at http://127.0.0.1:8265")
            ended = {"status": STATUS.get(end, JobStatus.FAILED)}
            ended |= {"driver_exit_code": end} if isinstance(end, int) else {}
            self.jobs[going[0]] = self.jobs[going[0]].model_copy(update=ended)
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


def end_of(keep: ModuleType, monkeypatch: pytest.MonkeyPatch, head: Head) -> int:
    monkeypatch.setattr(keep, "connect", lambda: head)
    return keep.main(["paper", "--device", "gpu"])


@pytest.mark.parametrize(
    ("ends", "code", "submitted"),
    [
        *(([code], code, 1) for code in range(5)),  # as the sweep does
        *(([death, death, 0], 0, 3) for death in (None, -9, 137)),  # a driver that died is followed
        ([None] * 50, 3, 10),  # but not for ever
        (["stopped"], 130, 1),  # by somebody
    ],
)
def test_it_ends_as_the_sweep_does_and_a_driver_that_died_is_followed_by_another(
    keep, monkeypatch, ends, code, submitted
):
    head = Head([*ends])
    assert end_of(keep, monkeypatch, head) == code
    assert (len(head.submitted), len(set(head.submitted))) == (submitted, 1)


def test_after_a_lost_head_it_waits_and_submits_again(keep, monkeypatch, capsys):
    head = Head(["lost", 0])
    assert end_of(keep, monkeypatch, head) == 0
    assert len(head.submitted) == 2
    said = capsys.readouterr().out
    assert (
        "keep: the head does not answer; start it with `ray up` if it is down: Failed to connect"
        in said
    )
    assert "keep: the head was lost: the cluster that answers now does not know the job" in said


def test_started_again_it_follows_the_job_that_runs(keep, monkeypatch):
    head = Head([0])
    head.run(keep.shlex.join(keep.driver_command(["paper", "--device", "gpu"])))
    looks = iter([list(head.jobs.values())])  # the first finds it running
    as_ever = head.list_jobs
    monkeypatch.setattr(head, "list_jobs", lambda: next(looks, None) or as_ever())
    assert end_of(keep, monkeypatch, head) == 0
    assert head.submitted == []


def test_without_the_clusters_token_it_says_so_and_does_not_wait(keep, monkeypatch, capsys):
    def refuse(address: str) -> None:
        raise AuthenticationError("Token authentication is enabled but Ray couldn't find a token")

    monkeypatch.setattr("ray.job_submission.JobSubmissionClient", refuse)
    with pytest.raises(SystemExit) as caught:
        keep.main(["paper"])
    assert caught.value.code == 3
    assert (
        "keep: the cluster's token is not in ~/.ray/auth_token; copy it there"
        in capsys.readouterr().out
    )


def test_the_command_is_absolute(keep, monkeypatch, tmp_path):
    sweep = tmp_path / "mine.yaml"
    sweep.write_text("name: mine", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    words = keep.driver_command(["mine.yaml", "--root=/disk/root"])
    assert Path(words[0]).is_absolute()
    assert words[1:] == ["run", str(sweep), "--root=/disk/root", "--address", "auto"]
    assert keep.driver_command(["paper"])[-2:] == ["--root", str(tmp_path / "isweep-root")]


@pytest.mark.parametrize("words", [[], ["--device", "gpu"]])
def test_without_a_sweep_it_says_what_it_wants(keep, words, capsys):
    assert keep.main(words) == 2
    assert "usage: keep.py SWEEP" in capsys.readouterr().out
