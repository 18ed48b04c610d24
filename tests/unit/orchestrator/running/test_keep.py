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

    An end is the driver's exit code, None for a driver that died without one, "stopped", or "lost": the head
    is silent for one look and comes back as a new cluster, without jobs.
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


@pytest.mark.parametrize("code", [0, 1, 2, 3, 4])
def test_it_ends_as_the_sweep_does(keep, monkeypatch, code):
    head = Head([code])
    assert end_of(keep, monkeypatch, head) == code
    assert len(head.submitted) == 1


@pytest.mark.parametrize("death", [None, -9, 137])
def test_a_driver_that_died_is_followed_by_another(keep, monkeypatch, death):
    head = Head([death, death, 0])
    assert end_of(keep, monkeypatch, head) == 0
    assert len(head.submitted) == 3
    assert len(set(head.submitted)) == 1


def test_after_a_lost_head_it_waits_and_submits_again(keep, monkeypatch, capsys):
    head = Head(["lost", 0])
    assert end_of(keep, monkeypatch, head) == 0
    assert len(head.submitted) == 2
    said = capsys.readouterr().out
    assert "keep: the head does not answer, waiting for it (ray up): Failed to connect" in said
    assert "keep: the cluster is another one than before: its head was lost" in said


def test_a_job_that_somebody_stopped_stays_stopped(keep, monkeypatch):
    head = Head(["stopped"])
    assert end_of(keep, monkeypatch, head) == keep.STOPPED
    assert len(head.submitted) == 1


def test_started_again_it_follows_the_job_that_runs(keep, monkeypatch):
    head = Head([0])
    entrypoint = keep.shlex.join(keep.command(["paper", "--device", "gpu"]))
    head.run("isweep run another")
    head.jobs.clear()
    head.run(entrypoint)
    head.ends.insert(0, 0)
    monkeypatch.setattr(head, "list_jobs", first_as_it_is(head))
    assert end_of(keep, monkeypatch, head) == 0
    assert head.submitted == []


def first_as_it_is(head: Head) -> Any:
    """The first look finds the jobs running; the next ones as ever."""
    looks = iter([list(head.jobs.values())])
    as_ever = head.list_jobs
    return lambda: next(looks, None) or as_ever()


def test_drivers_that_keep_dying_end_it(keep, monkeypatch, capsys):
    head = Head([None] * 50)
    assert end_of(keep, monkeypatch, head) == 3
    assert len(head.submitted) == keep.MAX_DEATHS
    assert "10 drivers died one after another" in capsys.readouterr().out


def test_without_the_clusters_token_it_says_so_and_does_not_wait(keep, monkeypatch, capsys):
    def refuse(address: str) -> None:
        raise AuthenticationError("Token authentication is enabled but Ray couldn't find a token")

    monkeypatch.setattr("ray.job_submission.JobSubmissionClient", refuse)
    with pytest.raises(SystemExit) as caught:
        keep.main(["paper"])
    assert caught.value.code == 3
    assert "keep: no token, or not the cluster's: put it into ~/.ray/auth_token" in capsys.readouterr().out


def test_the_command_is_absolute(keep, monkeypatch, tmp_path):
    sweep = tmp_path / "mine.yaml"
    sweep.write_text("name: mine", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    words = keep.command(["mine.yaml", "--root=/disk/root"])
    assert Path(words[0]).is_absolute()
    assert words[1:] == ["run", str(sweep), "--root=/disk/root", "--address", "auto"]
    assert keep.command(["paper"])[-2:] == ["--root", str(tmp_path / "isweep-root")]


@pytest.mark.parametrize("words", [[], ["--device", "gpu"]])
def test_without_a_sweep_it_says_what_it_wants(keep, words, capsys):
    assert keep.main(words) == 2
    assert "usage: keep.py SWEEP" in capsys.readouterr().out
