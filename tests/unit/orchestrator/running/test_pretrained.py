"""Test pretrained weights in a run: downloaded once by the driver, and refused before a start."""

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


def fail_if_called(*_: object, **__: object) -> None:
    raise AssertionError("this must not be reached")


def test_a_download_without_a_connection_fails_before_anything_is_prepared(root, monkeypatch):
    def offline(*_: object, **__: object) -> None:
        raise OSError("<urlopen error [Errno -2] Name or service not known>")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    monkeypatch.setattr("orchestrator.running.stages.connect", fail_if_called)
    monkeypatch.setattr("tasks.prepared.prepare.prepare_dataset", fail_if_called)
    message = "resnet18 cannot be downloaded: <urlopen error.*Or remove the key `pretrained` from the model"
    with pytest.raises(SetupError, match=message) as raised:
        run_sweep(SWEEP, RunOptions(root=root, tracking=False))
    assert raised.value.exit_code == 3
    assert not (Path(root) / "prepared").exists()


def test_weights_are_downloaded_once_per_root_and_belong_to_one_architecture(root, monkeypatch):
    weights = torchvision.models.resnet18(num_classes=2).state_dict()
    downloads = []

    def download(*_, **__):
        downloads.append(1)
        return with_imagenet_classifier(weights)

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", download)
    workspace = Workspace.open(SWEEP, root)
    plan = workspace.plan
    messages = []
    first = fetch_pretrained(plan, (), workspace.paths, messages.append)
    assert fetch_pretrained(plan, (), workspace.paths, messages.append) == first
    assert (len(downloads), list(first)) == (1, ["torchvision-resnet18"])
    assert messages == ["Downloading the pretrained weights of torchvision resnet18"]
    # If all trials are done, no weights are needed.
    assert fetch_pretrained(plan, plan.trials_by_id, workspace.paths, fail_if_called) == {}


def with_imagenet_classifier(weights: dict[str, object]) -> dict[str, object]:
    """Give a network the classifier for 1,000 classes that downloaded weights have."""
    classifier = {
        name: values
        for name, values in torchvision.models.resnet18().state_dict().items()
        if "fc." in name
    }
    return {**weights, **classifier}


def test_damaged_weights_are_refused_before_anything_is_prepared(root, monkeypatch):
    monkeypatch.setattr("tasks.prepared.prepare.prepare_dataset", fail_if_called)
    path = Workspace.open(SWEEP, root).paths.pretrained("torchvision-resnet18")
    path.parent.mkdir(parents=True)
    path.write_bytes(b"half a download")
    with pytest.raises(
        ConfigError, match="weights of torchvision resnet18 are not a valid safetensors file"
    ):
        run_sweep(SWEEP, RunOptions(root=root, tracking=False))


def test_results_from_other_pretrained_weights_of_the_same_name_are_not_mixed(root: str) -> None:
    plan = Workspace.open({**SWEEP, "train_sizes": [30, 40]}, root).plan
    first, _ = plan.trials_by_id
    result = trial_result().model_copy(update={"pretrained": hashlib.sha256(b"old").hexdigest()})
    record = trial_record(result, spec=plan.trials[0])
    check_same_start({first: record}, plan, {"torchvision-resnet18": b"old"})
    check_same_start({first: record}, plan, {})
    message = (
        r"weights of torchvision-resnet18 in this root are not the weights from which stored results "
        r"started\. In this root, their SHA-256 is \w{16}…, but it is \w{16}… in 1 result\. Copy the file `pretrained/torchvision-"
    )
    with pytest.raises(ConfigError, match=message):
        check_same_start({first: record}, plan, {"torchvision-resnet18": b"new"})


def test_a_search_refuses_pretrained_networks_before_anything_starts(root, monkeypatch):
    monkeypatch.setattr("orchestrator.running.stages.connect", fail_if_called)
    with pytest.raises(ConfigError, match="A search cannot tune pretrained networks"):
        tune_sweep({**SWEEP, "train_sizes": [100]}, RunOptions(root=root, tracking=False))
    assert not (Path(root) / "prepared").exists()
