"""Connecting to Ray, and the cluster files for ``ray up``: what must hold in each of them."""

import json
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig

from orchestrator.machine import processes, server_watch, signals
from orchestrator.machine.cluster import (
    Cluster,
    RunOptions,
    _private_cluster,
    connect,
    trial_resources,
)
from search_spaces.errors import ConfigError, SetupError
from search_spaces.sweeps import ResourceSpec
from tests.isolation import AVAILABLE, REASON, isolated

REPOSITORY = Path(__file__).parents[4]
FILES = [
    REPOSITORY / name for name in ("cluster.yaml", "clusters/gcp.yaml", "clusters/onprem.yaml")
]
CONSTRAINED = "--constraint ~/isweep-dist/constraints.txt"
LOCKED = "--require-hashes --requirement ~/isweep-dist/constraints-cuda.txt"
NEWEST = '"$(ls -t ~/isweep-dist/isweep-*.whl | head -n 1)"'


@pytest.fixture(params=FILES, ids=lambda path: path.name)
def path(request) -> Path:
    return request.param


@pytest.fixture
def config(path) -> dict[str, Any]:
    """The file as Ray understands it: checked, and filled with Ray's defaults where it is
    silent."""
    raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    prepared = prepare_config(raw)
    validate_config(prepared)
    return prepared


def on_a_node(
    home: Path, command: str, programs: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run a set-up command as Ray does, in a home of its own, with stand-ins for programs below
    it."""
    for name, body in programs.items():
        program = home / name
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text(f"#!/bin/bash\n{body}\n", encoding="utf-8")
        program.chmod(0o755)
    environment = {"HOME": str(home), "PATH": f"{home}/bin:{os.environ['PATH']}"}
    words = ["bash", "-c", f"true && ({command})"]
    return subprocess.run(words, capture_output=True, text=True, env=environment, check=False)


class TestFiles:
    """What :func:`check_launch_file` finds nothing wrong with: here what it does not look at."""

    def test_the_token_is_for_its_owner_alone(self, config):
        assert "mkdir -p ~/.ray && chmod 700 ~/.ray" in config["initialization_commands"]
        assert "chmod 600 ~/.ray/auth_token" in config["setup_commands"]
        assert "0.0.0.0" not in str(config)

    def test_no_fixed_port_of_the_head_lies_where_ray_looks_for_those_of_its_workers(self, config):
        (head,) = config["head_start_ray_commands"]
        fixed = [int(number) for number in re.findall(r"port=(\d+)", head)]
        assert fixed
        assert not [number for number in fixed if 10002 <= number <= 19999]

    def test_the_package_comes_as_a_wheel_and_everything_else_by_hash(self, config):
        # Ray puts the setup commands of all nodes before those of the head.
        packages, wheel, *others = [c for c in config["head_setup_commands"] if "pip install" in c]
        assert packages.endswith(f"install --quiet {LOCKED}")
        assert wheel.endswith(f"--no-deps --force-reinstall {NEWEST}")
        assert all(command.endswith(CONSTRAINED) for command in others), others

    def test_a_wheel_of_a_former_version_beside_it_is_not_installed(self, config, tmp_path):
        """Ray copies to a node without deleting there: pip takes no two wheels of one package."""
        (wheel,) = [command for command in config["setup_commands"] if "--no-deps" in command]
        (tmp_path / "isweep-dist").mkdir()
        for number, version in enumerate(("0.10.0", "0.9.0")):
            (tmp_path / f"isweep-dist/isweep-{version}-py3-none-any.whl").touch()
            os.utime(tmp_path / f"isweep-dist/isweep-{version}-py3-none-any.whl", (number, number))
        done = on_a_node(tmp_path, wheel, {"isweep-venv/bin/pip": 'echo "$@"'})
        assert [Path(word).name for word in done.stdout.split() if ".whl" in word] == [
            "isweep-0.9.0-py3-none-any.whl"
        ]

    def test_no_secret_no_account_and_nothing_that_ends_other_peoples_processes(self, path):
        text = path.read_text(encoding="utf-8")
        patterns = {
            "access key": r"\b(AKIA|ASIA)[A-Z0-9]{16}\b",
            "long secret": r"(?<![\w/.-])[A-Za-z0-9/+]{40}(?![\w/.-])",
            "hex token": r"\b[0-9a-f]{32,}\b",
            "account number": r"(?<!\d)\d{12}(?!\d)",
            "resource name": r"\barn:aws",
            "end of others": r"^[^#]*(ray stop|pkill|killall|kill -)",
            "private key": r"BEGIN [A-Z ]*PRIVATE KEY",
            "secret in words": r"(?i)(secret|password|aws_credentials)\w*\s*[:=]\s*\S",
            "somebody's image, group or net": r"\b(ami|sg|subnet|vpc)-[0-9a-f]{8,}\b",
        }
        for name, pattern in patterns.items():
            assert not re.search(pattern, text, re.MULTILINE), name


class TestCloudFile:
    @pytest.fixture
    def path(self) -> Path:
        return REPOSITORY / "cluster.yaml"

    @pytest.mark.parametrize("name", ["cluster.yaml", "clusters/gcp.yaml"])
    def test_what_ray_runs_on_a_worker_installs_all_and_ends_with_a_look_at_its_gpu(self, name):
        """By Ray's own reading: commands of a node type would run instead of all others."""
        made = yaml.safe_load((REPOSITORY / name).read_text(encoding="utf-8"))
        read = AutoscalingConfig(made, skip_content_hash=True)
        for kind in ("gpu_worker", "gpu_worker_on_demand"):
            commands = read.get_worker_setup_commands(kind)
            first, wheel = [i for i, command in enumerate(commands) if "pip install" in command]
            assert commands[first].endswith(LOCKED)
            assert commands[wheel].endswith(NEWEST)
            assert "torch.zeros(1, device='cuda')" in commands[-1]
        assert not [command for command in read.get_head_setup_commands() if "cuda'" in command]

    def test_a_machine_that_updates_itself_at_its_first_start_is_waited_for(self, config, tmp_path):
        """`DPkg::Lock::Timeout` holds for `apt-get install` alone: `update` ends at once at its own
        lock."""
        (make,) = [command for command in config["setup_commands"] if "apt-get" in command]
        fakes = {
            "python3": "test -e ~/installed",
            "sudo": '"$@"',
            "sleep": "touch ~/waited",
            "apt-get": """
                case "$*" in
                  *update*) test -e ~/waited ;;
                  *DPkg::Lock::Timeout=*install*) touch ~/installed ;;
                esac""",
        }
        done = on_a_node(tmp_path, make, {f"bin/{name}": body for name, body in fakes.items()})
        assert done.returncode == 0
        assert (tmp_path / "waited").exists()

    def test_on_demand_workers_stand_beside_spot_ones(self, config):
        spot, beside = (
            config["available_node_types"][n] for n in ("gpu_worker", "gpu_worker_on_demand")
        )
        market = {"InstanceMarketOptions": {"MarketType": "spot"}}
        assert spot["node_config"] == {**beside["node_config"], **market}

    def test_the_other_provider_gets_the_same_commands(self, config):
        other = yaml.safe_load((REPOSITORY / "clusters" / "gcp.yaml").read_text(encoding="utf-8"))
        ours = yaml.safe_load((REPOSITORY / "cluster.yaml").read_text(encoding="utf-8"))
        for name in (
            "file_mounts",
            "initialization_commands",
            "setup_commands",
            "head_start_ray_commands",
        ):
            assert other[name] == ours[name], name
        assert other["worker_setup_commands"][-1:] == ours["worker_setup_commands"]

    def test_the_head_policy_is_bounded(self):
        policy = json.loads(
            (REPOSITORY / "clusters" / "iam" / "head.json").read_text(encoding="utf-8")
        )
        for statement in policy["Statement"]:
            reading = all(re.match(r"ec2:Describe", action) for action in statement["Action"])
            assert reading or statement["Resource"] != "*" or "Condition" in statement, statement[
                "Sid"
            ]
            assert not [action for action in statement["Action"] if "*" in action]

    @pytest.mark.parametrize(
        ("action", "asked", "allowed"),
        [
            ("ec2:RunInstances", {}, True),
            ("ec2:RunInstances", {"aws:RequestedRegion": "another"}, False),
            ("ec2:CreateTags", {"ec2:CreateAction": "RunInstances"}, True),
            ("ec2:CreateTags", {"aws:ResourceTag/ray-cluster-name": "isweep"}, True),
            # Somebody else's machine, tagged as one of the cluster's, could be ended.
            ("ec2:CreateTags", {}, False),
            ("ec2:CreateTags", {"aws:ResourceTag/ray-cluster-name": "another"}, False),
            ("ec2:TerminateInstances", {"aws:ResourceTag/ray-cluster-name": "isweep"}, True),
            ("ec2:TerminateInstances", {}, False),
            ("iam:PassRole", {"iam:PassedToService": "ec2.amazonaws.com"}, True),
            ("iam:PassRole", {"iam:PassedToService": "lambda.amazonaws.com"}, False),
            # Nodes are not kept.
            ("ec2:StopInstances", {"aws:ResourceTag/ray-cluster-name": "isweep"}, False),
        ],
    )
    def test_the_head_may_touch_its_own_machines_only(self, action, asked, allowed):
        """As IAM reads a policy that only allows: one statement whose conditions are all met is
        enough."""
        policy = json.loads(
            (REPOSITORY / "clusters" / "iam" / "head.json").read_text(encoding="utf-8")
        )
        request = {"aws:RequestedRegion": "CHANGE-region", **asked}
        assert {one["Effect"] for one in policy["Statement"]} == {"Allow"}
        conditions = [
            one.get("Condition", {}) for one in policy["Statement"] if action in one["Action"]
        ]
        assert all(set(condition) <= {"StringEquals"} for condition in conditions)
        met = [
            condition.get("StringEquals", {}).items() <= request.items() for condition in conditions
        ]
        assert any(met) is allowed

    def test_groups_and_metadata_are_our_own(self, config):
        kinds = config["available_node_types"]
        assert kinds["gpu_worker"]["min_workers"] == 0
        for node in kinds.values():
            assert node["node_config"]["MetadataOptions"] == {
                "HttpTokens": "required",
                "HttpPutResponseHopLimit": 1,
            }
        # By id: a group named in `provider` is made by Ray, open to the world, where it is missing.
        assert "security_group" not in config["provider"]
        assert "CPU" not in kinds["head"]["resources"]  # all of its CPUs prepare data


def make_cluster(**changes: Any) -> Cluster:
    return Cluster(
        **{
            "num_cpus": 4,
            "num_gpus": 0,
            "num_nodes": 1,
            "object_store_bytes": 0,
            "dashboard": "",
            "is_private": True,
            **changes,
        }
    )


class TestTrialResources:
    spec = ResourceSpec(num_cpus=2, num_gpus=0.25)

    @pytest.mark.parametrize(
        ("num_gpus", "device", "expected"),
        [(0, "auto", 0), (1, "auto", 0.25), (1, "cpu", 0), (0, "gpu", 0.25)],
    )
    def test_gpu_share_by_device(self, num_gpus, device, expected):
        cluster = make_cluster(num_gpus=num_gpus, is_private=False)
        assert trial_resources(self.spec, cluster, device).num_gpus == expected

    @pytest.mark.parametrize(
        ("asked", "there", "device", "found"),
        [
            (
                {"num_gpus": 0.25},
                {"num_gpus": 0},
                "gpu",
                r"num_gpus: 0\.25, but this machine has 0\. .*--device cpu",
            ),
            ({"num_gpus": 2}, {"num_gpus": 1}, "auto", "num_gpus: 2, but this machine has 1"),
            ({"num_cpus": 2}, {"num_cpus": 1}, "auto", "num_cpus: 2, but this machine has 1"),
            (
                {"memory_bytes": 10**12},
                {"memory_bytes": 1e9},
                "auto",
                r"memory_bytes: 1,000,000,000,000, but this machine has 1,000,000,000",
            ),
        ],
    )
    def test_a_private_cluster_must_have_what_is_asked_for(self, asked, there, device, found):
        with pytest.raises(ConfigError, match=found):
            trial_resources(ResourceSpec(**asked), make_cluster(**there), device)
        assert trial_resources(
            ResourceSpec(**asked), make_cluster(**there, is_private=False), device
        )


CONNECT = """
import sys
from orchestrator.machine.cluster import connect
from search_spaces.errors import SetupError
try:
    connect(sys.argv[1]).__enter__()
except SetupError as error:
    print(error)
    sys.exit(error.exit_code)
"""


class TestAddress:
    @pytest.mark.parametrize(
        "address",
        [
            "ray://head:10001",
            "head",
            "head:",
            ":6379",
            "head:port",
            "head:99999",
            "head:²",
            "http://h:1",
            "",
        ],
    )
    def test_must_be_host_and_port(self, address):
        for ask in (lambda: RunOptions(address=address), lambda: connect(address).__enter__()):
            with pytest.raises(
                ConfigError,
                match=r"is not the host:port of the head node of a Ray cluster. Use `--address auto`",
            ) as caught:
                ask()
            assert caught.value.exit_code == 2
        assert RunOptions(address="[::1]:6379").address == "[::1]:6379"  # and looked for later

    def test_that_does_not_answer(self):
        with socket.socket() as held:
            held.bind(
                ("127.0.0.1", 0)
            )  # bound, not listening: the port refuses, and nobody else takes it
            address = f"127.0.0.1:{held.getsockname()[1]}"
            with pytest.raises(
                SetupError, match=f"No Ray cluster answers at {address}: .*refused"
            ) as caught:
                connect(address).__enter__()
        assert caught.value.exit_code == 3

    @pytest.mark.parametrize(
        ("settings", "found"),
        [
            ({}, "no authentication token was found"),
            ({"RAY_AUTH_TOKEN_PATH": "/dev/null"}, "cannot be opened or is empty: /dev/null"),
        ],
    )
    def test_without_the_token_that_the_mode_asks_for(self, tmp_path, settings, found):
        """In a process of its own, which is connected to nothing yet."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        with socket.create_server(("127.0.0.1", 0)) as somebody:
            address = f"127.0.0.1:{somebody.getsockname()[1]}"
            done = subprocess.run(
                [sys.executable, "-c", CONNECT, address],
                env={**kept, "HOME": str(tmp_path), "RAY_AUTH_MODE": "Token", **settings},
                capture_output=True,
                text=True,
                check=False,
            )
        assert done.returncode == 3, done.stderr
        assert re.search(f"The Ray cluster at {address} needs a token: .*{found}", done.stdout)


PRIVATE = """
import json, os, subprocess, sys, tempfile
from pathlib import Path
import psutil
if sys.argv[1] == "ray first":
    import ray
from orchestrator.machine.cluster import connect

token_file = Path(sys.argv[2]) / "ray-token"
token_file.write_text("stale")
os.chmod(token_file, 0o644)
before = {name: os.environ.get(name) for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "HOME")}
found = []
for _ in range(2):
    with connect(num_cpus=1, dashboard=sys.argv[3] == "dashboard", token_file=token_file) as cluster:
        sockets = psutil.net_connections("tcp")
        listening = {s.laddr.ip.removeprefix("::ffff:") for s in sockets if s.status == "LISTEN"}
        found.append({
            "cluster": [cluster.num_cpus, cluster.num_nodes, cluster.is_private],
            "dashboard": cluster.dashboard,
            "listening": sorted(listening),
            "mode": oct(token_file.stat().st_mode & 0o777),
            "token_is_used": token_file.read_text() == os.environ["RAY_AUTH_TOKEN"],
            "token": token_file.read_text(),
            "false_exits_with": subprocess.run(["false"]).returncode,
            "own_temporary_folder": [os.environ["TMPDIR"], tempfile.gettempdir()],
        })
    found[-1]["token_gone"] = not token_file.exists()
    found[-1]["restored"] = before == {name: os.environ.get(name) for name in before}
print(json.dumps(found))
"""


def test_a_machine_without_bash_is_told_before_ray_starts(monkeypatch, tmp_path):
    """Ray starts workers by it: none would live, and nothing say why."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SetupError, match="but no folder on PATH contains bash"):
        connect().__enter__()


@pytest.mark.parametrize(
    ("victim", "is_private"), [("gcs_server", True), ("raylet", True), ("raylet", False)]
)
def test_a_stopped_process_of_the_own_cluster_is_lost_and_ended_though_it_seems_to_listen(
    monkeypatch, tmp_path, victim, is_private
):
    monkeypatch.setattr(signals, "_typed_command", ["isweep", "run", "a b.yaml"])
    program, lost = tmp_path / victim, threading.Event()
    shutil.copy(shutil.which("sleep"), program)
    monkeypatch.setattr(server_watch, "LOOK_EVERY_S", 0.05)
    monkeypatch.setattr(server_watch, "PRIVATE_LOST_AFTER_S", 0.2)
    monkeypatch.setattr(server_watch, "SHARED_LOST_AFTER_S", 0.2)
    monkeypatch.setattr("orchestrator.machine.signals.end_main_thread", lambda *_: lost.set())
    others, seen = (
        threading.enumerate(),
        processes.stopped_child,
    )  # a cluster of this process has a watch too
    own = lambda: None if threading.current_thread() in others else seen()  # noqa: E731
    monkeypatch.setattr("orchestrator.machine.processes.stopped_child", own)
    rule = {"gcs_server": "The head of the Ray cluster", "raylet": "The raylet of this node"}[
        victim
    ]
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        subprocess.Popen([program, "3600"]) as process,
    ):
        port = server.getsockname()[1]
        node = {"NodeID": "here", "NodeManagerAddress": "127.0.0.1", "NodeManagerPort": port}
        about = SimpleNamespace(gcs_address=f"127.0.0.1:{port}", get_node_id=lambda: "here")
        ray = SimpleNamespace(
            get_runtime_context=lambda: about, nodes=lambda: [node], shutdown=lambda: None
        )

        def stopped() -> None:
            with server_watch.watch_servers(ray, is_private=is_private):
                assert not lost.wait(0.5)
                process.send_signal(signal.SIGSTOP)
                lost.wait(300)
                raise KeyboardInterrupt

        # Nobody can repair a cluster that ends with its driver.
        repair = "" if is_private else r"Repair or restart the cluster\. "
        command = r"Run the same command again: `isweep run 'a b\.yaml'`\.$"
        try:
            with pytest.raises(
                SetupError,
                match=rf"{rule} at .* s\. {repair}Finished trials are kept\. {command}",
            ):
                stopped()
            assert process.wait(300) == -signal.SIGKILL
        finally:
            process.kill()


def test_tune_says_nothing_of_cells_that_were_tried_again(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SetupError):
        connect().__enter__()
    assert not logging.getLogger("ray.tune.tune").isEnabledFor(logging.ERROR)
    assert logging.getLogger("ray.tune.execution").isEnabledFor(logging.ERROR)


@pytest.mark.parametrize(
    ("good_after", "error", "ends"),
    [
        (2, Exception("The current node timed out during startup."), None),
        (9, Exception("The current node timed out during startup."), SetupError),
        (9, KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_ray_is_started_again_where_it_took_over_thirty_seconds_and_no_half_of_it_is_left(
    monkeypatch, tmp_path, good_after, error, ends
):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folders, undone = list[Path](), []

    def init(_temp_dir: str, **_: Any) -> None:
        assert not any(folder.exists() for folder in folders), "nothing is left of the start before"
        folders.append(Path(_temp_dir))
        if len(folders) <= good_after:
            raise error

    ray = SimpleNamespace(init=init, shutdown=lambda: undone.append(1))
    message = (
        r"Ray did not start on this machine: The .* startup\. If the machine"
        if ends is SetupError
        else None
    )
    ending = pytest.raises(ends, match=message) if ends else nullcontext()
    with ending, _private_cluster(ray, num_cpus=1):
        assert [folder.exists() for folder in folders] == [False, False, True]
    assert (len(folders), len(undone)) == ((1, 1) if ends is KeyboardInterrupt else (3, 0))
    assert not list(tmp_path.iterdir())


@pytest.mark.ray
@pytest.mark.skipif(not AVAILABLE, reason=REASON)
@pytest.mark.parametrize(
    ("order", "dashboard"),
    [("ray first", "none"), pytest.param("ray later", "dashboard", marks=pytest.mark.long)],
)
def test_a_private_cluster_is_private_and_leaves_nothing(tmp_path, order, dashboard):
    here = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    # The system's own: paths of sockets must be short.
    with tempfile.TemporaryDirectory() as temporary:
        # In a network namespace every listening socket is the cluster's.
        done = subprocess.run(
            isolated(sys.executable, "-c", PRIVATE, order, str(tmp_path), dashboard),
            capture_output=True,
            text=True,
            check=False,
            env={**here, "TMPDIR": temporary},
        )
        assert os.listdir(temporary) == []
    assert done.returncode == 0, done.stderr
    first, second = json.loads(done.stdout.splitlines()[-1])
    for found in (first, second):
        assert found["cluster"] == [1.0, 1, True]
        assert set(found["listening"]) <= {"127.0.0.1", "::1"}
        assert bool(found["dashboard"]) == (dashboard == "dashboard")
        assert found["mode"] == "0o600"
        assert found["token_is_used"]
        assert found["token_gone"]
        assert found["restored"]
        assert found["own_temporary_folder"] == [temporary, temporary]
        # Ray's subreaper setting would make every child of this process seem to end well.
        assert found["false_exits_with"] == 1
    assert first["token"] != second["token"]
    assert len(first["token"]) == 64
