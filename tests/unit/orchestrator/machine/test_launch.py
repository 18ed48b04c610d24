"""Each wrong field of a launch file is told with its place and the way out."""

import copy
import json
import zipfile
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.machine.launch_file import check_launch_file
from orchestrator.results.provenance import provenance
from tests import damage

REPOSITORY = Path(__file__).parents[4]
WORKER = "available_node_types/gpu_worker"
NODE = "available_node_types/head/node_config"
DISK = f"{WORKER}/node_config/BlockDeviceMappings/0/Ebs"
AWS, GCP, OWN = "cluster.yaml", "clusters/gcp.yaml", "clusters/onprem.yaml"


@pytest.fixture(autouse=True)
def checkout(tmp_path, monkeypatch) -> Path:
    """A folder to type `ray up` in: a wheel, a token, a key."""
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
    """As `make wheel` does, all but the package."""
    path = folder / "dist" / f"isweep-{metadata.version('isweep')}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("orchestrator/commit.json", json.dumps({"commit": commit, "dirty": False}))


def filled_in(name: str) -> dict[str, Any]:
    """A launch file of the repository with every place marked CHANGE filled in."""
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
    made: dict[str, Any] = yaml.safe_load(text)
    return made


def told(folder: Path, config: dict[str, Any]) -> list[str]:
    path = folder / "launch.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return [f"{one.place}: {one.problem}; {one.hint}" for one in check_launch_file(path)]


@pytest.mark.parametrize("name", [AWS, GCP, OWN])
def test_a_file_that_is_filled_in_is_good(checkout, name):
    pytest.importorskip("boto3") if name == AWS else None
    assert told(checkout, filled_in(name)) == []


@pytest.mark.parametrize(
    ("name", "places"),
    [
        (AWS, ["ImageId", "SecurityGroupIds[0]"]),
        (GCP, ["provider.project_id", "sourceImage", "subnetwork"]),
        (OWN, ["provider.head_ip", "provider.worker_ips[0]", "provider.worker_ips[1]"]),
    ],
)
def test_every_place_marked_change_is_named(name, places):
    found = [
        one
        for one in check_launch_file(REPOSITORY / name)
        if "still to be filled in" in one.problem
    ]
    for place in places:
        assert any(one.place.endswith(place) for one in found), (place, found)
    assert all("CHANGE" in one.problem or "example.org" in one.problem for one in found)


def changed(config: dict[str, Any], place: str, value: Any) -> dict[str, Any]:
    made = copy.deepcopy(config)
    *folders, name = place.split("/")
    inside: Any = made
    for folder in folders:
        inside = inside[int(folder) if isinstance(inside, list) else folder]
    if value is None:
        del inside[name]
    else:
        inside[int(name) if isinstance(inside, list) else name] = value
    return made


START = "RAY_AUTH_MODE=token ray start --head --dashboard-host=127.0.0.1"


WRONG = {
    OWN: [
        ("max_worker", 8, "'max_worker' was unexpected"),
        ("provider", None, "'provider' is a required property"),
        ("max_workers", "many", "max_workers: 'many' is not of type"),
        ("idle_timeout_minutes", "ten", "idle_timeout_minutes: 'ten' is not of type"),
        ("provider/head_ip", "127.0.0.2", "provider: a machine is named twice"),
        (
            "provider/head_ip",
            "no-such-host.invalid",
            "no-such-host.invalid: this machine does not know",
        ),
        ("provider/worker_ips", ["127.0.0.2"], "min_workers: 2, and worker_ips names 1"),
        (
            "auth/ssh_private_key",
            "~/.ssh/other",
            "auth.ssh_private_key: no ~/.ssh/other; make one: ssh",
        ),
        ("auth/ssh_private_key", None, "auth.ssh_private_key: the head needs a key"),
        ("file_mounts", {"~/isweep-dist": "./dits"}, "file_mounts.~/isweep-dist: no ./dits"),
        ("head_start_ray_commands", ["echo"], "head_start_ray_commands: no `ray start`"),
        (
            "head_start_ray_commands",
            [START.replace("=token", "=disabled")],
            "no token is asked for",
        ),
        (
            "head_start_ray_commands",
            [START.replace("127.0.0.1", "0.0.0.0")],
            "the dashboard, which runs",
        ),
        ("head_start_ray_commands", ["ray stop", START], "`ray stop` ends every Ray process"),
        ("head_start_ray_commands", [START], "version 2 of Ray's autoscaler"),
        ("provider/head_ip", None, "provider.head_ip: no head is named"),
        ("auth/ssh_user", None, "auth.ssh_user: nobody to log in as"),
        ("file_mounts", {"~/isweep-dist": None}, "file_mounts.~/isweep-dist: None is no path"),
        ("file_mounts", {"~/isweep-dist": "./dist"}, "file_mounts: no token travels"),
        (
            "setup_commands",
            ["cat ~/isweep-dist/other.txt"],
            "~/isweep-dist: no dist/other.txt; make wheel",
        ),
    ],
    AWS: [
        (
            "available_node_types",
            {"head": {"resources": {}, "node_config": {}}},
            "no worker may start; say",
        ),
        (
            "provider/cache_stopped_nodes",
            None,
            "Ray would stop nodes and not end them: their disks stay",
        ),
        (
            DISK,
            {"VolumeSize": 100},
            "BlockDeviceMappings: a disk is not encrypted, or none is named",
        ),
        (
            f"{DISK}/DeleteOnTermination",
            False,
            "a disk stays when its node ends. Say DeleteOnTermination",
        ),
        (
            f"{WORKER}/node_config/BlockDeviceMappings",
            None,
            "or none is named. Name it, with Encrypted: true",
        ),
        (
            f"{NODE}/InstanceMarketOptions",
            {"MarketType": "spot"},
            "a spot instance as head: taken away",
        ),
        (f"{NODE}/SecurityGroupIds", None, "Ray makes one that opens SSH to the world"),
        (f"{NODE}/IamInstanceProfile", None, "Ray gives the head full rights"),
        (f"{WORKER}/min_worker", 1, "'min_worker' was unexpected"),
        ("head_node_type", "haed", "head_node_type: must be one of available_node_types"),
        ("max_workers", 0, "max_workers: no worker may start"),
        ("provider/region", None, "provider.region: no region is named"),
        (f"{NODE}/ImageId", None, "ImageId: no image is named"),
        (f"{NODE}/ImageId", 5, "node_config: Invalid type for parameter ImageId, value: 5"),
        (
            f"{NODE}/SecurityGroupIds",
            [5],
            "Invalid type for parameter SecurityGroupIds[0], value: 5",
        ),
        (f"{NODE}/ImageID", "ami-1", 'Unknown parameter in input: "ImageID". Correct it'),
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
            "its disk stay and cost; add",
        ),
        (f"{NODE}/scheduling", [{"preemptible": True}], "a spot machine as head"),
        (
            f"{WORKER}/node_config/disks/0/autoDelete",
            None,
            "disks: the disk stays when its node ends; say",
        ),
        (f"{WORKER}/node_config/disks", [{}], "disks: the disk stays when its node ends; say"),
        (
            f"{WORKER}/node_config/networkInterfaces",
            None,
            "which opens SSH to the world; name your own",
        ),
        (
            f"{WORKER}/node_config/networkInterfaces/0/subnetwork",
            None,
            "the project's default network is",
        ),
    ],
}


@pytest.mark.parametrize(
    ("name", "place", "value", "message"),
    [(name, *row) for name, rows in WRONG.items() for row in rows],
)
def test_a_wrong_field_is_told_with_its_place_and_the_way_out(
    checkout, name, place, value, message
):
    pytest.importorskip("boto3") if name == AWS else None
    found = told(checkout, changed(filled_in(name), place, value))
    assert any(message in one for one in found), found
    assert all(one.partition("; ")[2] for one in found)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (
            lambda text: text,
            "cluster_name: mine, and clusters/iam/head.json lets the head start and end",
        ),
        (
            lambda text: text.replace("CHANGE-region", "eu-west-1"),
            "provider.region: us-east-1, and clusters",
        ),
    ],
)
def test_a_head_whose_policy_is_of_another_cluster_could_not_end_its_workers(
    checkout, harm, message
):
    pytest.importorskip("boto3")
    text = (REPOSITORY / "clusters/iam/head.json").read_text(encoding="utf-8")
    (checkout / "clusters/iam").mkdir(parents=True)
    (checkout / "clusters/iam/head.json").write_text(harm(text), encoding="utf-8")
    found = told(checkout, changed(filled_in(AWS), "cluster_name", "mine"))
    assert any(message in one for one in found), found


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda at: (at / ".ray/auth_token").unlink(), "no ~/.ray/auth_token"),
        (lambda at: (at / ".ray/auth_token").chmod(0o644), "others can read the token; chmod 600"),
        (
            lambda at: (at / ".ray/auth_token").write_text(" \n"),
            "the token is not one word of text",
        ),
        (
            lambda at: (at / ".ray/auth_token").write_text("a b"),
            "the token is not one word of text",
        ),
        (
            lambda at: (at / ".ray/auth_token").write_bytes(b"\xff\xfe"),
            "the token is not one word of text",
        ),
        (
            lambda at: (at / "dist/constraints-cuda.txt").unlink(),
            "no dist/constraints-cuda.txt; make wheel",
        ),
        (lambda at: next((at / "dist").glob("*.whl")).unlink(), "wheels of isweep: none"),
        (
            lambda at: make_wheel(at, "0" * 40),
            "py3-none-any.whl is made of commit 000000000000, and ",
        ),
        (
            lambda at: next((at / "dist").glob("*.whl")).write_bytes(b""),
            "is made of commit none, and ",
        ),
        (
            lambda at: (at / ".ssh/id_ed25519").chmod(0o644),
            "others can read the key, and ssh will not use",
        ),
        (lambda at: (at / "dist/isweep-0.0.1-py3-none-any.whl").touch(), "wheels of isweep: "),
    ],
)
def test_what_travels_must_be_there(checkout, harm, message):
    harm(checkout)
    (found,) = told(checkout, filled_in(OWN))
    assert message in found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "not YAML"),
        ("", "no file for `ray up`"),
        ("- a", "no file for `ray up`"),
        ("apiVersion: ray.io/v1", "no file for `ray up`: no cluster_name"),
        (None, "no such file"),
        ("a: 1\nb: {c: 1, c: 2}", "not YAML: while constructing a mapping"),
        ("? [a]\n: 1", "no file for `ray up`"),
        ("a: 2020-13-45", "not YAML: month must be in 1..12"),
        ("a: !!python/object/apply:os.getcwd []", "not YAML: could not determine a constructor"),
        ("[" * 1000, "not YAML"),
        ("[" + "1," * 500_000 + "]", "may have at most 100,000 bytes"),
        *((harm, "launch file must be") for harm in (damage.directory, damage.loop, damage.fifo)),
    ],
)
def test_what_is_no_launch_file(tmp_path, text, message):
    path = tmp_path / "launch.yaml"
    if text is not None:
        path.write_text(text if isinstance(text, str) else "", encoding="utf-8")
    if callable(text):
        text(path)
    (found,) = check_launch_file(path)
    assert message in found.problem
    assert found.hint


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("export RAY_AUTH_TOKEN=0123; true", "RAY_AUTH_TOKEN"),
        ("MLFLOW_TRACKING_PASSWORD='0123 y' true", "MLFLOW_TRACKING_PASSWORD"),
        *(
            (one, "")
            for one in ("export T_TOKEN=$(cat ~/t)", "A_TOKEN=$B", "RAY_AUTH_TOKEN_PATH=~/t true")
        ),
    ],
)
def test_a_secret_in_a_command_is_found_and_not_repeated(checkout, command, name):
    config = filled_in(OWN)
    config["setup_commands"].insert(0, command)
    where = f"setup_commands[0]: a secret stands in the file: {name}. Take it out"
    found = told(checkout, config)
    assert [one.startswith(where) for one in found] == [True] * bool(name)
    assert "0123" not in str(found)


def test_a_secret_in_a_field_is_found_and_a_checkout_or_a_root_does_not_travel(checkout):
    config = filled_in(OWN)
    config["provider"]["aws_secret_access_key"] = "0123"
    for name in (".git", "isweep-root", "mlflow.db", "prepared"):
        (checkout / name.strip(".") / name).mkdir(parents=True)
        config["file_mounts"][f"~/{name}"] = f"./{name.strip('.')}"
    *found, secret = sorted(told(checkout, config))
    assert len(found) == 4
    assert all("is a checkout or a root, which may hold images of" in one for one in found)
    assert secret.startswith(
        "provider.aws_secret_access_key: a secret stands in the file. Take it out"
    )
    assert "0123" not in secret
