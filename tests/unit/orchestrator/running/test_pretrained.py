"""Pretrained weights in a run: fetched once by the driver, refused before anything is prepared."""

import hashlib
from pathlib import Path

import pytest
import torchvision

from orchestrator.machine.cluster import RunOptions
from orchestrator.planning.workspace import Workspace
from orchestrator.running.networks import check_same_start, fetch_pretrained
from orchestrator.running.run import run_sweep
from orchestrator.tuning.tune_sweep import tune_sweep
from search_spaces.errors import ConfigError, SetupError
from tests.small_sweep import small_sweep
from tests.unit.orchestrator.results.examples import trial_record, trial_result

START = {"from": "torchvision:resnet18", "pretrained": True}
SWEEP = small_sweep("started", models=[START], image_size=32)


def refuse(*_: object, **__: object) -> None:
    raise AssertionError("this must not be reached")


def test_a_machine_without_a_connection_is_told_before_anything_is_prepared(root, monkeypatch):
    def offline(*_: object, **__: object) -> None:
        raise OSError("<urlopen error [Errno -2] Name or service not known>")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    monkeypatch.setattr("orchestrator.running.stages.connect", refuse)
    monkeypatch.setattr("tasks.prepared.prepare.prepare_dataset", refuse)
    told = "resnet18 cannot be downloaded: <urlopen error.*Or remove the key `pretrained` from the model"
    with pytest.raises(SetupError, match=told) as raised:
        run_sweep(SWEEP, RunOptions(root=root, tracking=False))
    assert raised.value.exit_code == 3
    assert not (Path(root) / "prepared").exists()


def test_weights_are_downloaded_once_per_root_and_belong_to_one_architecture(root, monkeypatch):
    made = torchvision.models.resnet18(num_classes=2).state_dict()
    calls = []
    monkeypatch.setattr(
        "torchvision.models._api.load_state_dict_from_url",
        lambda *_, **__: calls.append(1) or full(made),
    )
    workspace, said = Workspace.open(SWEEP, root), []
    first = fetch_pretrained(workspace.plan, (), workspace.paths, said.append)
    assert fetch_pretrained(workspace.plan, (), workspace.paths, said.append) == first
    assert (len(calls), list(first)) == (1, ["torchvision-resnet18"])
    assert said == ["Downloading the pretrained weights of torchvision resnet18"]
    assert (
        fetch_pretrained(workspace.plan, workspace.plan.trials_by_id, workspace.paths, refuse) == {}
    )


def full(weights: dict[str, object]) -> dict[str, object]:
    """Weights with a classifier of ImageNet's size, as downloads have."""
    return {
        **weights,
        **{n: v for n, v in torchvision.models.resnet18().state_dict().items() if "fc." in n},
    }


def test_damaged_weights_are_refused_before_anything_is_prepared(root, monkeypatch):
    monkeypatch.setattr("tasks.prepared.prepare.prepare_dataset", refuse)
    path = Workspace.open(SWEEP, root).paths.pretrained("torchvision-resnet18")
    path.parent.mkdir(parents=True)
    path.write_bytes(b"half a download")
    with pytest.raises(
        ConfigError, match="weights of torchvision resnet18 are not a valid safetensors file"
    ):
        run_sweep(SWEEP, RunOptions(root=root, tracking=False))


def test_results_that_started_from_other_weights_of_the_same_name_are_not_mixed(root: str) -> None:
    plan = Workspace.open({**SWEEP, "train_sizes": [30, 40]}, root).plan
    first, _ = plan.trials_by_id
    result = trial_result().model_copy(update={"pretrained": hashlib.sha256(b"old").hexdigest()})
    record = trial_record(result, spec=plan.trials[0])
    check_same_start({first: record}, plan, {"torchvision-resnet18": b"old"})
    check_same_start({first: record}, plan, {})
    told = (
        r"other pretrained weights than torchvision-resnet18 on this machine \(SHA-256 \w{16}…\): "
        r"\w{16}… in 1 result\. Copy the file pretrained/torchvision-"
    )
    with pytest.raises(ConfigError, match=told):
        check_same_start({first: record}, plan, {"torchvision-resnet18": b"new"})


def test_a_search_refuses_pretrained_networks_before_anything_starts(root, monkeypatch):
    monkeypatch.setattr("orchestrator.running.stages.connect", refuse)
    with pytest.raises(ConfigError, match="A search cannot tune pretrained networks"):
        tune_sweep({**SWEEP, "train_sizes": [100]}, RunOptions(root=root, tracking=False))
    assert not (Path(root) / "prepared").exists()
