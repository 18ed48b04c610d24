"""Each wrong field of a launch file is told with its place and the way out."""

import copy
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.running.launch import check_launch_file

REPOSITORY = Path(__file__).parents[4]
WORKER = "available_node_types.gpu_worker"
NODE = "available_node_types.head.node_config"


@pytest.fixture(autouse=True)
def checkout(tmp_path, monkeypatch) -> Path:
    """A folder to type `ray up` in: a wheel, a token, a key."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("dist", ".ray", ".ssh"):
        (tmp_path / name).mkdir()
    (tmp_path / "dist" / f"isweep-{metadata.version('isweep')}-py3-none-any.whl").touch()
    (tmp_path / ".ssh/id_ed25519").write_text("a key", encoding="utf-8")
    token = tmp_path / ".ray/auth_token"
    token.write_text("0123", encoding="utf-8")
    token.chmod(0o600)
    return tmp_path


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
    return [f"{one.where}: {one.what}; {one.way_out}" for one in check_launch_file(path)]


@pytest.mark.parametrize("name", ["cluster.yaml", "clusters/gcp.yaml", "clusters/onprem.yaml"])
def test_a_file_that_is_filled_in_is_good(checkout, name):
    pytest.importorskip("boto3") if name == "cluster.yaml" else None
    assert told(checkout, filled_in(name)) == []


@pytest.mark.parametrize(
    ("name", "places"),
    [
        ("cluster.yaml", ["ImageId", "SecurityGroupIds[0]"]),
        ("clusters/gcp.yaml", ["provider.project_id", "sourceImage", "subnetwork"]),
        ("clusters/onprem.yaml", ["provider.head_ip", "provider.worker_ips[0]", "provider.worker_ips[1]"]),
    ],
)
def test_every_place_marked_change_is_named(name, places):
    found = [one for one in check_launch_file(REPOSITORY / name) if "still to be filled in" in one.what]
    for place in places:
        assert any(one.where.endswith(place) for one in found), (place, found)
    assert all("CHANGE" in one.what or "example.org" in one.what for one in found)


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


START = "RAY_AUTH_MODE=token ray start --head --port=6379 --dashboard-host=127.0.0.1 --autoscaling-config=c"


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("max_worker", 8, "'max_worker' was unexpected"),
        ("provider", None, "'provider' is a required property"),
        ("provider/type", "asw", "provider.type: asw is none that Ray knows; aliyun, aws"),
        ("max_workers", "many", "max_workers: 'many' is not of type"),
        ("idle_timeout_minutes", "ten", "idle_timeout_minutes: 'ten' is not of type"),
        ("provider/head_ip", "127.0.0.2", "provider: a machine is named twice"),
        ("provider/head_ip", "no-such-host.invalid", "no-such-host.invalid: this machine does not know"),
        ("provider/worker_ips", ["127.0.0.2"], "min_workers: 2, and worker_ips names 1"),
        (
            "auth/ssh_private_key",
            "~/.ssh/other",
            "auth.ssh_private_key: no ~/.ssh/other; make one: ssh-keygen",
        ),
        ("auth/ssh_private_key", None, "auth.ssh_private_key: the head needs a key"),
        ("file_mounts", {"~/isweep-dist": "./dits"}, "file_mounts.~/isweep-dist: no ./dits"),
        ("head_start_ray_commands", ["echo"], "head_start_ray_commands: no `ray start`"),
        ("head_start_ray_commands", [START.replace("=token", "=disabled")], "no token is asked for"),
        (
            "head_start_ray_commands",
            [START.replace("127.0.0.1", "0.0.0.0")],
            "the dashboard, which runs code",
        ),
        ("head_start_ray_commands", ["ray stop", START], "`ray stop` ends every Ray process"),
        ("head_start_ray_commands", [START.split(" --auto")[0]], "the head would start no worker"),
        ("head_start_ray_commands", [START], "workers look for the head at another port"),
    ],
)
def test_a_wrong_field_of_ones_own_machines(checkout, place, value, message):
    found = told(checkout, changed(filled_in("clusters/onprem.yaml"), place, value))
    assert found
    assert any(message in one for one in found), found
    assert all(one.partition("; ")[2] for one in found)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (f"{NODE}.ImageId", "ubuntu-24.04", "ImageId: ubuntu-24.04 has not the form of one"),
        (f"{NODE}.SecurityGroupIds", ["default"], "SecurityGroupIds: default has not the form"),
        (f"{NODE}.SecurityGroupIds", None, "Ray makes one that opens SSH to the world"),
        (f"{NODE}.IamInstanceProfile", None, "Ray gives the head full rights"),
        (f"{WORKER}.min_worker", 1, "'min_worker' was unexpected"),
        ("head_node_type", "haed", "`head_node_type` must be one of `available_node_types`"),
        ("max_workers", 0, "max_workers: no worker may start"),
    ],
)
def test_a_wrong_field_on_aws(checkout, place, value, message):
    found = told(checkout, changed(filled_in("cluster.yaml"), place.replace(".", "/"), value))
    assert any(message in one for one in found), found


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda at: (at / ".ray/auth_token").unlink(), "no ~/.ray/auth_token"),
        (lambda at: (at / ".ray/auth_token").chmod(0o644), "others can read the token; chmod 600"),
        (lambda at: (at / ".ray/auth_token").write_text(" \n"), "the token is empty"),
        (lambda at: next((at / "dist").iterdir()).unlink(), "wheels of isweep: none"),
        (lambda at: (at / "dist/isweep-0.0.1-py3-none-any.whl").touch(), "wheels of isweep: "),
    ],
)
def test_what_travels_must_be_there(checkout, harm, message):
    harm(checkout)
    (found,) = told(checkout, filled_in("clusters/onprem.yaml"))
    assert message in found


@pytest.mark.parametrize(
    ("text", "message"),
    [("a: [", "not YAML"), ("", "no keys"), ("- a", "no keys"), (None, "No such file")],
)
def test_what_is_no_launch_file(tmp_path, text, message):
    path = tmp_path / "launch.yaml"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    (found,) = check_launch_file(path)
    assert message in found.what
