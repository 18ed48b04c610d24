"""Test that problems of your own data are reported before MLflow and Ray start."""

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
from tasks.sources.base import Listing, RawRequest
from tasks.sources.class_folders import listing
from tasks.sources.own.listing import HIDDEN
from tests.small_sweep import small_sweep
from tests.unit.tasks.sources.conftest import picture, png

COMMANDS = {
    "run": (run_sweep, "orchestrator.running.run"),
    "tune": (tune_sweep, "orchestrator.tuning.tune_sweep"),
}


@pytest.fixture
def sweep(tmp_path) -> dict[str, object]:
    """Write two classes of 30 pictures, and return a sweep of them."""
    for number in range(60):
        path = tmp_path / "images" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(picture(number, (16, 16))))
    source = {"kind": "folder", "path": str(tmp_path / "images"), "domain": "medical"}
    datasets = [{"name": "mine", "own": source}]
    return small_sweep("first", datasets=datasets, train_sizes=[20], test_size=10)


@pytest.fixture(params=COMMANDS)
def start_sweep(request, root, monkeypatch):
    """Return a function that starts a run or a search, and fails if Ray or MLflow starts."""
    start, module = COMMANDS[request.param]

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("Ray or MLflow starts")

    monkeypatch.setattr("orchestrator.running.stages.connect", fail)
    monkeypatch.setattr(f"{module}.tracking_session", fail)
    return lambda sweep, **options: start(sweep, RunOptions(root=root, **options))


def corrupt(images: Path) -> None:
    for number in (0, 2):
        (images / "a" / f"{number}.png").write_bytes(b"junk")


def copy_into_other_class(images: Path) -> None:
    """Replace two pictures of one class by pictures of the other."""
    for number in (0, 2):
        picture_of_b = (images / "b" / f"{number + 1}.png").read_bytes()
        (images / "a" / f"{number}.png").write_bytes(picture_of_b)


def move_away(images: Path) -> None:
    images.rename(images.with_name("elsewhere"))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (corrupt, r"2 of 60 items cannot be used \(not an image: 2\)"),
        (copy_into_other_class, "4 of 60 images are equal to an image with another label"),
        (move_away, r"`datasets\.mine\.own\.path` does not exist:"),
    ],
)
def test_problems_of_your_files_are_reported_before_ray_and_mlflow_start(
    sweep, start_sweep, tmp_path, harm, message
):
    harm(tmp_path / "images")
    with pytest.raises(SweepError, match=message):
        start_sweep(sweep)


def test_a_command_lists_your_files_once(sweep, start_sweep, monkeypatch):
    source = listing.FOLDER_SOURCE
    requests: list[RawRequest] = []

    def list_items(request: RawRequest) -> Listing:
        requests.append(request)
        return source.list_items(request)

    monkeypatch.setattr(listing, "FOLDER_SOURCE", replace(source, list_items=list_items))
    sweep["datasets"][0]["class_pairs"] = [["a", "b"]]  # the sweep file needs the class names
    for num_commands in (1, 2):  # the second command checks whether prepared files changed
        with pytest.raises(AssertionError, match="Ray or MLflow starts"):
            start_sweep(sweep)
        assert len(requests) == num_commands


def test_files_that_changed_since_preparation_are_reported_before_ray_and_mlflow_start(
    sweep, start_sweep, root, tmp_path
):
    with pytest.raises(AssertionError, match="Ray or MLflow starts"):
        start_sweep(sweep)
    (tmp_path / "images" / "a" / "0.png").unlink()
    with pytest.raises(
        DataError, match="the files or label_map have changed since the dataset was prepared"
    ):
        start_sweep(sweep)


def test_an_address_that_does_not_answer_is_reported_before_mlflow_starts(sweep, start_sweep):
    with socket.socket() as silent_socket:
        silent_socket.bind(("127.0.0.1", 0))  # not listening
        with pytest.raises(SetupError, match="No Ray cluster answers at"):
            start_sweep(sweep, address=f"127.0.0.1:{silent_socket.getsockname()[1]}")


def test_packaged_data_are_prepared_in_the_background_and_errors_come_later(root):
    options = RunOptions(root=root)
    workspace = Workspace.open("smoke", root)
    first, second = workspace.plan.prepared
    file_of_a_user = workspace.paths.prepared(first) / "a file"
    file_of_a_user.parent.mkdir(parents=True)
    file_of_a_user.touch()
    background = preparation.BackgroundPreparation(workspace, options, Progress())
    assert background._process.wait() == 0
    background.end()
    assert workspace.prepared.keys() == {second.prepared_id}
    with pytest.raises(
        DataError,
        match=r"manifold_d4-16px-corrected-53f8cc06f99d contains files that isweep did not write",
    ):
        preparation.prepare_missing(workspace, [first], options, InlineExecutor(), Progress())


def test_background_preparation_ends_with_the_start_and_keeps_its_files(root):
    workspace = Workspace.open("demo", root)
    workspace.paths.make()
    background = preparation.BackgroundPreparation(workspace, RunOptions(root=root), Progress())
    background.end()
    assert background._process.returncode == 0
    assert len(workspace.prepared) < len(workspace.plan.prepared)


def test_left_out_files_and_doubtful_classes_are_reported_once(sweep, root, tmp_path):
    (tmp_path / "images" / "c").mkdir()
    (tmp_path / "images" / "a" / ".x.png").touch()
    workspace = Workspace.open(sweep, root)
    monitor = Progress()
    messages: list[str] = []
    monitor.note = messages.append
    workspace.paths.make()
    for _ in range(2):
        preparation.prepare_own(workspace, RunOptions(root=root), monitor)
    totals, *problems = messages
    assert re.fullmatch(r"mine: (\d+) images, 2 classes, \1 groups, one for each image .*", totals)
    assert problems == [
        f"mine: left out: {HIDDEN}, 1",
        "mine: doubtful: class folder without an image: c, 1",
    ]


def test_a_preparation_that_takes_too_long_continues_at_the_next_start(sweep, root, monkeypatch):
    monkeypatch.setattr(preparation, "OWN_DATA_LIMIT_S", -1.0)
    workspace = Workspace.open(sweep, root)
    options = RunOptions(root=root)
    workspace.paths.make()
    preparation.prepare_own(workspace, options, Progress())
    assert not workspace.prepared
    monkeypatch.setattr(preparation, "OWN_DATA_LIMIT_S", 60.0)
    preparation.prepare_own(workspace, options, Progress())
    assert len(workspace.prepared) == 1
