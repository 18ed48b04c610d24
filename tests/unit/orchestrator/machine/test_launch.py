"""Test that each wrong field of a launch file is reported with its place and a hint."""

import copy
import json
import zipfile
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.machine.launch.launch_file import check_launch_file
from orchestrator.results.provenance import provenance
from tests import damage

REPOSITORY = Path(__file__).parents[4]
WORKER = "available_node_types/gpu_worker"
NODE = "available_node_types/head/node_config"
DISK = f"{WORKER}/node_config/BlockDeviceMappings/0/Ebs"
AWS = "cluster.yaml"
GCP = "clusters/gcp.yaml"
ONPREM = "clusters/onprem.yaml"


@pytest.fixture(autouse=True)
def checkout(tmp_path, monkeypatch) -> Path:
    """Change into a folder for `ray up`: it has a wheel, a token and an SSH key."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("dist", ".ray", ".ssh"):
        (tmp_path / name).mkdir()
    make_wheel(tmp_path, provenance().commit)
    for name in ("constraints.txt", "constraints-cuda.txt"):
        (tmp_path / "dist" / name).touch()
    (tmp_path / ".ssh/id_ed25519").write_text("a key", encoding="utf-8")
    (tmp_path / ".ssh/id_ed25519").chmod(0o600)
    token = tmp_path / ".ray/auth_token"
    token.write_text("0123", encoding="utf-8")
    token.chmod(0o600)
    return tmp_path


def make_wheel(folder: Path, commit: str) -> None:
    """Write a wheel as `make wheel` does, without the package."""
    path = folder / "dist" / f"isweep-{metadata.version('isweep')}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("orchestrator/commit.json", json.dumps({"commit": commit, "dirty": False}))


def filled_in(name: str) -> dict[str, Any]:
    """Return a launch file of the repository in which every CHANGE is replaced."""
    text = (REPOSITORY / name).read_text(encoding="utf-8")
    for mark, value in {
        "ami-CHANGE": "ami-0123456789abcdef0",
        "sg-CHANGE": "sg-0123456789abcdef0",
        "head.example.org": "127.0.0.1",
        "gpu1.example.org": "127.0.0.2",
        "gpu2.example.org": "127.0.0.3",
        "isweep-CHANGE": "isweep-1",
        "family/CHANGE": "family/common-cu130",
        "subnetworks/CHANGE": "subnetworks/mine",
    }.items():
        text = text.replace(mark, value)
    config: dict[str, Any] = yaml.safe_load(text)
    return config


def mistakes_in(folder: Path, config: dict[str, Any]) -> list[str]:
    path = folder / "launch.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return [f"{mistake.text}. {mistake.hint}" for mistake in check_launch_file(path)]


@pytest.mark.parametrize("name", [AWS, GCP, ONPREM])
def test_a_file_that_is_filled_in_is_good(checkout, name):
    if name == AWS:
        pytest.importorskip("boto3")
    assert mistakes_in(checkout, filled_in(name)) == []


@pytest.mark.parametrize(
    ("name", "places"),
    [
        (AWS, ["ImageId", "SecurityGroupIds[0]"]),
        (GCP, ["provider.project_id", "sourceImage", "subnetwork"]),
        (ONPREM, ["provider.head_ip", "provider.worker_ips[0]", "provider.worker_ips[1]"]),
    ],
)
def test_every_place_marked_change_is_named(name, places):
    mistakes = check_launch_file(REPOSITORY / name)
    to_replace = [mistake for mistake in mistakes if "that you must replace" in mistake.problem]
    for place in places:
        found_places = [mistake.place for mistake in to_replace]
        assert any(text.endswith(place) for text in found_places), (place, found_places)
    for mistake in to_replace:
        assert "CHANGE" in mistake.problem or "example.org" in mistake.problem


def with_change(config: dict[str, Any], place: str, value: Any) -> dict[str, Any]:
    """Return a copy with one value replaced, or removed if ``value`` is None."""
    result = copy.deepcopy(config)
    *parents, name = place.split("/")
    inside: Any = result
    for parent in parents:
        inside = inside[int(parent) if isinstance(inside, list) else parent]
    if value is None:
        del inside[name]
    else:
        inside[int(name) if isinstance(inside, list) else name] = value
    return result


START = "RAY_AUTH_MODE=token ray start --head --dashboard-host=127.0.0.1"


WRONG = {
    ONPREM: [
        ("max_worker", 8, "'max_worker' was unexpected"),
        ("provider", None, "'provider' is a required property"),
        ("max_workers", "many", "max_workers: 'many' is not of type"),
        ("idle_timeout_minutes", "ten", "idle_timeout_minutes: 'ten' is not of type"),
        ("provider/head_ip", "127.0.0.2", "provider: a machine is listed twice"),
        (
            "provider/head_ip",
            "no-such-host.invalid",
            "this machine cannot look up the address of no-such-host.invalid",
        ),
        (
            "provider/worker_ips",
            ["127.0.0.2"],
            "min_workers: the value is 2, but worker_ips lists 1 machines. Set `min_workers: 1`",
        ),
        (
            "auth/ssh_private_key",
            "~/.ssh/other",
            "auth.ssh_private_key: ~/.ssh/other does not exist. Make a key with `ssh",
        ),
        ("auth/ssh_private_key", None, "auth.ssh_private_key: the SSH key with which"),
        (
            "file_mounts",
            {"~/isweep-dist": "./dits"},
            "file_mounts.~/isweep-dist: ./dits does not exist. Run `make wheel`",
        ),
        (
            "head_start_ray_commands",
            ["echo"],
            "head_start_ray_commands: no command contains `ray start`",
        ),
        (
            "head_start_ray_commands",
            [START.replace("=token", "=disabled")],
            "Ray is started without token mode",
        ),
        (
            "head_start_ray_commands",
            [START.replace("127.0.0.1", "0.0.0.0")],
            "other machines may reach the dashboard, which can run any code",
        ),
        ("head_start_ray_commands", ["ray stop", START], "`ray stop` ends every Ray process"),
        ("head_start_ray_commands", [START], "Ray uses version 2 of its autoscaler by default"),
        ("provider/head_ip", None, "provider.head_ip: the head node is missing"),
        ("auth/ssh_user", None, "auth.ssh_user: the name of the account on the nodes is missing"),
        ("file_mounts", {"~/isweep-dist": None}, "file_mounts.~/isweep-dist: None is not a path"),
        ("file_mounts", {"~/isweep-dist": "./dist"}, "file_mounts: no token is copied"),
        (
            "setup_commands",
            ["cat ~/isweep-dist/other.txt"],
            "~/isweep-dist: dist/other.txt does not exist, but the setup commands use it. Run",
        ),
    ],
    AWS: [
        (
            "available_node_types",
            {"head": {"resources": {}, "node_config": {}}},
            "no worker can start. Set `max_workers: 8`",
        ),
        (
            "provider/cache_stopped_nodes",
            None,
            "Ray would stop nodes without deleting them, so the disks would stay and cost",
        ),
        (
            DISK,
            {"VolumeSize": 100},
            "BlockDeviceMappings: a disk is not encrypted. Set `Encrypted: true`",
        ),
        (
            f"{DISK}/DeleteOnTermination",
            False,
            "after its node is terminated, a disk stays and costs money. Set `DeleteOnTermination",
        ),
        (
            f"{WORKER}/node_config/BlockDeviceMappings",
            None,
            "no disk is configured, so the disk may not be encrypted. Configure a disk with",
        ),
        (
            f"{NODE}/InstanceMarketOptions",
            {"MarketType": "spot"},
            "the head is a spot instance",
        ),
        (f"{NODE}/SecurityGroupIds", None, "Ray makes one that opens SSH to the internet"),
        (f"{NODE}/IamInstanceProfile", None, "Ray gives the head full rights"),
        (f"{WORKER}/min_worker", 1, "'min_worker' was unexpected"),
        ("head_node_type", "haed", "head_node_type: 'haed' is not a name in available_node_types"),
        ("max_workers", 0, "max_workers: no worker can start"),
        ("provider/region", None, "provider.region: the region is missing"),
        (f"{NODE}/ImageId", None, "ImageId: the image is missing"),
        (f"{NODE}/ImageId", 5, "node_config: Invalid type for parameter ImageId, value: 5"),
        (
            f"{NODE}/SecurityGroupIds",
            [5],
            "Invalid type for parameter SecurityGroupIds[0], value: 5",
        ),
        (f"{NODE}/ImageID", "ami-1", 'Unknown parameter in input: "ImageID". Correct the'),
        (
            f"{NODE}/MetadataOptions/HttpPutResponseHopLimit",
            "1",
            "HopLimit, value: 1, type: <class 'str'>",
        ),
    ],
    GCP: [
        (
            f"{WORKER}/node_config/scheduling",
            [{"provisioningModel": "SPOT"}],
            "so their disks stay and cost money. Add",
        ),
        (f"{NODE}/scheduling", [{"preemptible": True}], "the head is a spot machine"),
        (
            f"{WORKER}/node_config/disks/0/autoDelete",
            None,
            "disks: after its node is deleted, the disk stays and costs money. Set `autoDelete",
        ),
        (f"{WORKER}/node_config/disks", [{}], "disks: after its node is deleted, the disk stays"),
        (
            f"{WORKER}/node_config/networkInterfaces",
            None,
            "which opens SSH to the internet. Set subnetwork",
        ),
        (
            f"{WORKER}/node_config/networkInterfaces/0/subnetwork",
            None,
            "the nodes use the project's default network",
        ),
    ],
}


@pytest.mark.parametrize(
    ("name", "place", "value", "message"),
    [(name, *row) for name, rows in WRONG.items() for row in rows],
)
def test_a_wrong_field_is_reported_with_its_place_and_a_hint(checkout, name, place, value, message):
    if name == AWS:
        pytest.importorskip("boto3")
    mistakes = mistakes_in(checkout, with_change(filled_in(name), place, value))
    assert any(message in mistake for mistake in mistakes), mistakes
    assert all(mistake.partition(". ")[2] for mistake in mistakes)


@pytest.mark.parametrize(
    ("change_policy", "message"),
    [
        (
            lambda text: text,
            "cluster_name: the value is mine, but clusters/iam/head.json allows the head to",
        ),
        (
            lambda text: text.replace("CHANGE-region", "eu-west-1"),
            "provider.region: the value is us-east-1, but clusters",
        ),
    ],
)
def test_a_policy_of_another_cluster_is_reported_because_the_head_could_not_end_workers(
    checkout, change_policy, message
):
    pytest.importorskip("boto3")
    text = (REPOSITORY / "clusters/iam/head.json").read_text(encoding="utf-8")
    (checkout / "clusters/iam").mkdir(parents=True)
    (checkout / "clusters/iam/head.json").write_text(change_policy(text), encoding="utf-8")
    mistakes = mistakes_in(checkout, with_change(filled_in(AWS), "cluster_name", "mine"))
    assert any(message in mistake for mistake in mistakes), mistakes


@pytest.mark.parametrize(
    ("damage_checkout", "message"),
    [
        (lambda at: (at / ".ray/auth_token").unlink(), "~/.ray/auth_token does not exist"),
        (
            lambda at: (at / ".ray/auth_token").chmod(0o644),
            "other users can read the token. Run `chmod 600",
        ),
        (
            lambda at: (at / ".ray/auth_token").write_text(" \n"),
            "the token's file does not contain exactly one word",
        ),
        (
            lambda at: (at / ".ray/auth_token").write_text("a b"),
            "the token's file does not contain exactly one word",
        ),
        (
            lambda at: (at / ".ray/auth_token").write_bytes(b"\xff\xfe"),
            "the token's file does not contain exactly one word",
        ),
        (
            lambda at: (at / "dist/constraints-cuda.txt").unlink(),
            "dist/constraints-cuda.txt does not exist, but the setup commands use it. Run",
        ),
        (
            lambda at: next((at / "dist").glob("*.whl")).unlink(),
            "dist has no isweep wheel, but this machine has",
        ),
        (
            lambda at: make_wheel(at, "0" * 40),
            "py3-none-any.whl was built from commit 000000000000, but this machine has commit ",
        ),
        (
            lambda at: next((at / "dist").glob("*.whl")).write_bytes(b""),
            "was built from commit unknown, but this machine has commit ",
        ),
        (
            lambda at: (at / ".ssh/id_ed25519").chmod(0o644),
            "other users can read the key, so ssh refuses",
        ),
        (lambda at: (at / "dist/isweep-0.0.1-py3-none-any.whl").touch(), "has wheels of isweep 0"),
    ],
)
def test_files_that_ray_copies_must_exist_and_be_valid(checkout, damage_checkout, message):
    damage_checkout(checkout)
    (mistake,) = mistakes_in(checkout, filled_in(ONPREM))
    assert message in mistake


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "not YAML"),
        ("", "so it is not a launch file for `ray up`"),
        ("- a", "so it is not a launch file for `ray up`"),
        ("apiVersion: ray.io/v1", "has no cluster_name, so it is not a launch file for `ray up`"),
        (None, "launch.yaml does not exist"),
        ("a: 1\nb: {c: 1, c: 2}", "not YAML: while constructing a mapping"),
        ("? [a]\n: 1", "so it is not a launch file for `ray up`"),
        ("a: 2020-13-45", "not YAML: month must be in 1..12"),
        ("a: !!python/object/apply:os.getcwd []", "not YAML: could not determine a constructor"),
        ("[" * 1000, "not YAML"),
        ("[" + "1," * 500_000 + "]", "bytes, but a launch file can have at most 100,000"),
        (damage.directory, "launch.yaml is a folder, not a launch file"),
        (damage.loop, "launch.yaml cannot be read"),
        (damage.fifo, "launch.yaml is not a regular file"),
    ],
)
def test_a_file_that_is_no_launch_file_is_one_mistake(tmp_path, text, message):
    path = tmp_path / "launch.yaml"
    if text is not None:
        path.write_text(text if isinstance(text, str) else "", encoding="utf-8")
    if callable(text):
        text(path)
    (mistake,) = check_launch_file(path)
    assert message in mistake.problem
    assert mistake.hint


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("export RAY_AUTH_TOKEN=0123; true", "RAY_AUTH_TOKEN"),
        ("MLFLOW_TRACKING_PASSWORD='0123 y' true", "MLFLOW_TRACKING_PASSWORD"),
        ("export T_TOKEN=$(cat ~/t)", ""),
        ("A_TOKEN=$B", ""),
        ("RAY_AUTH_TOKEN_PATH=~/t true", ""),
    ],
)
def test_a_secret_in_a_command_is_reported_without_its_value(checkout, command, name):
    config = filled_in(ONPREM)
    config["setup_commands"].insert(0, command)
    expected = f"setup_commands[0]: the file contains a secret: {name}. Remove the secret"
    mistakes = mistakes_in(checkout, config)
    assert len(mistakes) == bool(name)
    assert all(mistake.startswith(expected) for mistake in mistakes)
    assert "0123" not in str(mistakes)


def test_a_secret_in_a_field_and_mounts_of_a_checkout_or_a_root_are_reported(checkout):
    config = filled_in(ONPREM)
    config["provider"]["aws_secret_access_key"] = "0123"
    for name in (".git", "isweep-root", "mlflow.db", "prepared"):
        (checkout / name.strip(".") / name).mkdir(parents=True)
        config["file_mounts"][f"~/{name}"] = f"./{name.strip('.')}"
    *mounts, secret = sorted(mistakes_in(checkout, config))
    assert len(mounts) == 4
    reason = "is a checkout or a root, which may contain images of"
    assert all(reason in mistake for mistake in mounts)
    assert secret.startswith(
        "provider.aws_secret_access_key: the file contains a secret. Remove the secret"
    )
    assert "0123" not in secret
