"""Own data that cannot be used are told of before MLflow and Ray start."""

import re
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.machine.cluster import RunOptions
from orchestrator.planning.workspace import Workspace
from orchestrator.running import preparation
from orchestrator.running.progress import Progress
from orchestrator.running.run import run_sweep
from orchestrator.tuning.tune_sweep import tune_sweep
from search_spaces.errors import DataError, SetupError, SweepError
from tasks.remote import InlineExecutor
from tasks.sources import folder
from tasks.sources.base import Listing, RawRequest
from tasks.sources.own.listing import HIDDEN
from tests.small_sweep import small_sweep
from tests.unit.tasks.sources.conftest import picture, png

WAYS = {
    "run": (run_sweep, "orchestrator.running.run"),
    "tune": (tune_sweep, "orchestrator.tuning.tune_sweep"),
}


@pytest.fixture
def sweep(tmp_path) -> dict[str, object]:
    """A sweep of two classes of 30 pictures."""
    for number in range(60):
        path = tmp_path / "images" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(picture(number, (16, 16))))
    own = {"kind": "folder", "path": str(tmp_path / "images"), "domain": "medical"}
    return small_sweep(
        "first", datasets=[{"name": "mine", "own": own}], train_sizes=[20], test_size=10
    )


@pytest.fixture(params=WAYS)
def started(request, root, monkeypatch):
    """What starts a run or a search; Ray and MLflow must not be reached, and say so."""
    start, module = WAYS[request.param]

    def reached(*_: object, **__: object) -> None:
        raise AssertionError("Ray or MLflow starts")

    monkeypatch.setattr("orchestrator.running.stages.connect", reached)
    monkeypatch.setattr(f"{module}.open_tracker", reached)
    return lambda sweep, **options: start(sweep, RunOptions(root=root, **options))


def corrupt(images: Path) -> None:
    for number in (0, 2):
        (images / "a" / f"{number}.png").write_bytes(b"junk")


def contradictory(images: Path) -> None:
    """Pictures of two classes that are the same."""
    for number in (0, 2):
        (images / "a" / f"{number}.png").write_bytes(
            (images / "b" / f"{number + 1}.png").read_bytes()
        )


def gone(images: Path) -> None:
    images.rename(images.with_name("elsewhere"))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (corrupt, r"2 of 60 items cannot be used \(not an image: 2\)"),
        (contradictory, "4 of 60 images are equal to an image with another label"),
        (gone, r"datasets\.mine\.own\.path does not exist:"),
    ],
)
def test_what_is_wrong_with_own_files_is_told_before_ray_and_mlflow(
    sweep, started, tmp_path, harm, message
):
    harm(tmp_path / "images")
    with pytest.raises(SweepError, match=message):
        started(sweep)


def test_a_command_lists_own_files_once(sweep, started, monkeypatch):
    source = folder.folder
    listed: list[RawRequest] = []

    def list_items(request: RawRequest) -> Listing:
        listed.append(request)
        return source.list_items(request)

    monkeypatch.setattr(folder, "folder", replace(source, list_items=list_items))
    sweep["datasets"][0]["class_pairs"] = [["a", "b"]]  # reading the sweep file needs the names
    for num_commands in (1, 2):  # the second finds prepared data, and whether files changed
        with pytest.raises(AssertionError, match="Ray or MLflow starts"):
            started(sweep)
        assert len(listed) == num_commands


def test_files_that_changed_since_are_told_before_ray_and_mlflow(sweep, started, root, tmp_path):
    with pytest.raises(AssertionError, match="Ray or MLflow starts"):
        started(sweep)
    (tmp_path / "images" / "a" / "0.png").unlink()
    with pytest.raises(
        DataError, match="the files or label_map have changed since the dataset was prepared"
    ):
        started(sweep)


def test_an_address_that_does_not_answer_is_told_before_mlflow(sweep, started):
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # not listening
        with pytest.raises(SetupError, match="No Ray cluster answers at"):
            started(sweep, address=f"127.0.0.1:{held.getsockname()[1]}")


def test_packaged_data_are_prepared_beside_the_start_and_what_fails_is_told_later(root):
    options, workspace = RunOptions(root=root), Workspace.open("smoke", root)
    first, second = workspace.plan.prepared
    somebodys = workspace.paths.prepared(first) / "a file"
    somebodys.parent.mkdir(parents=True)
    somebodys.touch()
    background = preparation.BackgroundPreparation(workspace, options, Progress())
    assert background._process.wait() == 0
    background.end()
    assert workspace.prepared.keys() == {second.prepared_id}
    with pytest.raises(
        DataError,
        match=r"manifold_d4-16px-corrected-53f8cc06f99d contains files that isweep did not write",
    ):
        preparation.prepare_missing(workspace, [first], options, InlineExecutor(), Progress())


def test_preparing_beside_the_start_ends_with_it_and_keeps_what_is_read(root):
    workspace = Workspace.open("demo", root)
    workspace.paths.make()
    background = preparation.BackgroundPreparation(workspace, RunOptions(root=root), Progress())
    background.end()
    assert background._process.returncode == 0
    assert len(workspace.prepared) < len(workspace.plan.prepared)


def test_what_is_left_out_or_doubtful_is_told_once(sweep, root, tmp_path):
    (tmp_path / "images" / "c").mkdir()
    (tmp_path / "images" / "a" / ".x.png").touch()
    workspace, monitor, said = Workspace.open(sweep, root), Progress(), list[str]()
    monitor.note = said.append
    workspace.paths.make()
    for _ in range(2):
        preparation.prepare_own(workspace, RunOptions(root=root), monitor)
    totals, *problems = said
    assert re.fullmatch(r"mine: (\d+) images, 2 classes, \1 groups, one for each image .*", totals)
    assert problems == [
        f"mine: left out: {HIDDEN}, 1",
        "mine: doubtful: class folder without an image: c, 1",
    ]


def test_what_takes_longer_goes_on_where_it_is(sweep, root, monkeypatch):
    monkeypatch.setattr(preparation, "OWN_DATA_LIMIT_S", -1.0)
    workspace, options = Workspace.open(sweep, root), RunOptions(root=root)
    workspace.paths.make()
    preparation.prepare_own(workspace, options, Progress())
    assert not workspace.prepared
    monkeypatch.setattr(preparation, "OWN_DATA_LIMIT_S", 60.0)
    preparation.prepare_own(workspace, options, Progress())
    assert len(workspace.prepared) == 1
