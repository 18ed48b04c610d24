"""Test connections to Ray, and the launch files for ``ray up``."""

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
    _started_with_retries,
    check_process,
    connect,
    resolve_head,
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
    """Return the launch file as Ray reads it: checked, and with defaults for missing keys."""
    raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    prepared = prepare_config(raw)
    validate_config(prepared)
    return prepared


def run_on_node(
    home: Path, command: str, programs: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run a setup command as Ray does, with ``home`` as the home folder and simulated programs."""
    for name, body in programs.items():
        program = home / name
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text(f"#!/bin/bash\n{body}\n", encoding="utf-8")
        program.chmod(0o755)
    environment = {"HOME": str(home), "PATH": f"{home}/bin:{os.environ['PATH']}"}
    words = ["bash", "-c", f"true && ({command})"]
    return subprocess.run(words, capture_output=True, text=True, env=environment, check=False)


class TestFiles:
    """Properties of the launch files that :func:`check_launch_file` does not check."""

    def test_only_its_owner_can_read_the_token(self, config):
        assert "mkdir -p ~/.ray && chmod 700 ~/.ray" in config["initialization_commands"]
        assert "chmod 600 ~/.ray/auth_token" in config["setup_commands"]
        assert "0.0.0.0" not in str(config)

    def test_no_fixed_port_of_the_head_is_in_the_range_of_worker_ports(self, config):
        (head,) = config["head_start_ray_commands"]
        fixed = [int(number) for number in re.findall(r"port=(\d+)", head)]
        assert fixed
        assert not [number for number in fixed if 10002 <= number <= 19999]

    def test_the_package_is_installed_from_a_wheel_and_everything_else_by_hash(self, config):
        # Ray puts the setup commands of all nodes before those of the head.
        commands = [
            command for command in config["head_setup_commands"] if "pip install" in command
        ]
        packages, wheel, *further = commands
        assert packages.endswith(f"install --quiet {LOCKED}")
        assert wheel.endswith(f"--no-deps --force-reinstall {NEWEST}")
        assert all(command.endswith(CONSTRAINED) for command in further), further

    def test_a_wheel_of_an_earlier_version_is_not_installed(self, config, tmp_path):
        """Ray never deletes files on a node, and pip accepts only one wheel of a package."""
        (wheel,) = [command for command in config["setup_commands"] if "--no-deps" in command]
        (tmp_path / "isweep-dist").mkdir()
        for number, version in enumerate(("0.10.0", "0.9.0")):
            (tmp_path / f"isweep-dist/isweep-{version}-py3-none-any.whl").touch()
            os.utime(tmp_path / f"isweep-dist/isweep-{version}-py3-none-any.whl", (number, number))
        done = run_on_node(tmp_path, wheel, {"isweep-venv/bin/pip": 'echo "$@"'})
        wheels = [Path(word).name for word in done.stdout.split() if ".whl" in word]
        assert wheels == ["isweep-0.9.0-py3-none-any.whl"]

    def test_no_secret_no_account_and_no_command_that_ends_processes_of_others(self, path):
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


def head_policy() -> dict[str, Any]:
    path = REPOSITORY / "clusters" / "iam" / "head.json"
    return json.loads(path.read_text(encoding="utf-8"))


class TestCloudFile:
    @pytest.fixture
    def path(self) -> Path:
        return REPOSITORY / "cluster.yaml"

    @pytest.mark.parametrize("name", ["cluster.yaml", "clusters/gcp.yaml"])
    def test_the_commands_on_a_worker_install_everything_and_end_with_a_check_of_the_gpu(
        self, name
    ):
        """Ray would replace all other commands by those of a node type."""
        document = yaml.safe_load((REPOSITORY / name).read_text(encoding="utf-8"))
        autoscaling = AutoscalingConfig(document, skip_content_hash=True)
        for kind in ("gpu_worker", "gpu_worker_on_demand"):
            commands = autoscaling.get_worker_setup_commands(kind)
            packages, wheel = [command for command in commands if "pip install" in command]
            assert packages.endswith(LOCKED)
            assert wheel.endswith(NEWEST)
            assert "torch.zeros(1, device='cuda')" in commands[-1]
        head_commands = autoscaling.get_head_setup_commands()
        assert not [command for command in head_commands if "cuda'" in command]

    def test_the_setup_waits_for_a_machine_that_updates_itself_at_its_first_start(
        self, config, tmp_path
    ):
        """`DPkg::Lock::Timeout` works for `apt-get install` only; `update` has another lock."""
        (install_command,) = [
            command for command in config["setup_commands"] if "apt-get" in command
        ]
        simulated_programs = {
            "python3": "test -e ~/installed",
            "sudo": '"$@"',
            "sleep": "touch ~/waited",
            "apt-get": """
                case "$*" in
                  *update*) test -e ~/waited ;;
                  *DPkg::Lock::Timeout=*install*) touch ~/installed ;;
                esac""",
        }
        programs = {f"bin/{name}": body for name, body in simulated_programs.items()}
        done = run_on_node(tmp_path, install_command, programs)
        assert done.returncode == 0
        assert (tmp_path / "waited").exists()

    def test_on_demand_workers_differ_from_spot_workers_only_in_the_market(self, config):
        spot = config["available_node_types"]["gpu_worker"]
        on_demand = config["available_node_types"]["gpu_worker_on_demand"]
        market = {"InstanceMarketOptions": {"MarketType": "spot"}}
        assert spot["node_config"] == {**on_demand["node_config"], **market}

    def test_both_cloud_providers_get_the_same_commands(self, config):
        gcp_file = yaml.safe_load(
            (REPOSITORY / "clusters" / "gcp.yaml").read_text(encoding="utf-8")
        )
        aws_file = yaml.safe_load((REPOSITORY / "cluster.yaml").read_text(encoding="utf-8"))
        for name in (
            "file_mounts",
            "initialization_commands",
            "setup_commands",
            "head_start_ray_commands",
        ):
            assert gcp_file[name] == aws_file[name], name
        assert gcp_file["worker_setup_commands"][-1:] == aws_file["worker_setup_commands"]

    def test_the_policy_of_the_head_is_limited(self):
        for statement in head_policy()["Statement"]:
            only_reads = all(re.match(r"ec2:Describe", action) for action in statement["Action"])
            is_limited = statement["Resource"] != "*" or "Condition" in statement
            assert only_reads or is_limited, statement["Sid"]
            assert not [action for action in statement["Action"] if "*" in action]

    @pytest.mark.parametrize(
        ("action", "context", "is_allowed"),
        [
            ("ec2:RunInstances", {}, True),
            ("ec2:RunInstances", {"aws:RequestedRegion": "another"}, False),
            ("ec2:CreateTags", {"ec2:CreateAction": "RunInstances"}, True),
            ("ec2:CreateTags", {"aws:ResourceTag/ray-cluster-name": "isweep"}, True),
            # If the head could tag a machine of others as its own, it could end that machine.
            ("ec2:CreateTags", {}, False),
            ("ec2:CreateTags", {"aws:ResourceTag/ray-cluster-name": "another"}, False),
            ("ec2:TerminateInstances", {"aws:ResourceTag/ray-cluster-name": "isweep"}, True),
            ("ec2:TerminateInstances", {}, False),
            ("iam:PassRole", {"iam:PassedToService": "ec2.amazonaws.com"}, True),
            ("iam:PassRole", {"iam:PassedToService": "lambda.amazonaws.com"}, False),
            # Nodes are terminated and never stopped.
            ("ec2:StopInstances", {"aws:ResourceTag/ray-cluster-name": "isweep"}, False),
        ],
    )
    def test_the_head_may_change_only_its_own_machines(self, action, context, is_allowed):
        """IAM allows an action if all conditions of one statement are met."""
        statements = head_policy()["Statement"]
        request = {"aws:RequestedRegion": "CHANGE-region", **context}
        assert {statement["Effect"] for statement in statements} == {"Allow"}
        of_action = [statement for statement in statements if action in statement["Action"]]
        conditions = [statement.get("Condition", {}) for statement in of_action]
        assert all(set(condition) <= {"StringEquals"} for condition in conditions)
        are_met = [
            condition.get("StringEquals", {}).items() <= request.items() for condition in conditions
        ]
        assert any(are_met) is is_allowed

    def test_nodes_use_the_groups_of_the_user_and_protected_metadata(self, config):
        kinds = config["available_node_types"]
        assert kinds["gpu_worker"]["min_workers"] == 0
        for node in kinds.values():
            assert node["node_config"]["MetadataOptions"] == {
                "HttpTokens": "required",
                "HttpPutResponseHopLimit": 1,
            }
        # Groups have ids: Ray would create a missing group of `provider`, open to the world.
        assert "security_group" not in config["provider"]
        assert "CPU" not in kinds["head"]["resources"]  # all of its CPUs prepare data


def make_cluster(**changes: Any) -> Cluster:
    fields = {
        "num_cpus": 4,
        "num_gpus": 0,
        "num_nodes": 1,
        "object_store_bytes": 0,
        "dashboard": "",
        "is_private": True,
    }
    return Cluster(**{**fields, **changes})


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
        ("requested", "available", "device", "message"),
        [
            (
                {"num_gpus": 0.25},
                {"num_gpus": 0},
                "gpu",
                r"num_gpus: 0\.25`, but this machine has only 0\. .*--device cpu",
            ),
            ({"num_gpus": 2}, {"num_gpus": 1}, "auto", "num_gpus: 2`, but this machine has only 1"),
            ({"num_cpus": 2}, {"num_cpus": 1}, "auto", "num_cpus: 2`, but this machine has only 1"),
            (
                {"memory_bytes": 10**12},
                {"memory_bytes": 1e9},
                "auto",
                r"memory_bytes: 1,000,000,000,000`, but this machine has only 1,000,000,000",
            ),
        ],
    )
    def test_a_private_cluster_must_have_the_requested_resources(
        self, requested, available, device, message
    ):
        with pytest.raises(ConfigError, match=message):
            trial_resources(ResourceSpec(**requested), make_cluster(**available), device)
        assert trial_resources(
            ResourceSpec(**requested), make_cluster(**available, is_private=False), device
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
    def test_an_address_must_be_host_and_port(self, address):
        message = r"is not the host:port of the head node of a Ray cluster. Use `--address auto`"
        for use in (lambda: RunOptions(address=address), lambda: connect(address).__enter__()):
            with pytest.raises(ConfigError, match=message) as caught:
                use()
            assert caught.value.exit_code == 2
        assert RunOptions(address="[::1]:6379").address == "[::1]:6379"  # contacted later

    def test_an_ipv6_address_may_be_in_brackets(self):
        with socket.create_server(("::1", 0), family=socket.AF_INET6) as server:
            address = f"[::1]:{server.getsockname()[1]}"
            assert resolve_head(address) == address

    def test_an_address_that_does_not_answer_is_an_error(self):
        with socket.socket() as silent_socket:
            # Bound without listening: the port refuses connections, and no program can take it.
            silent_socket.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{silent_socket.getsockname()[1]}"
            with pytest.raises(
                SetupError, match=f"No Ray cluster answers at {address}: .*refused"
            ) as caught:
                connect(address).__enter__()
        assert caught.value.exit_code == 3

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({}, "no authentication token was found"),
            pytest.param(
                {"RAY_AUTH_TOKEN_PATH": "/dev/null"},
                "cannot be opened or is empty: /dev/null",
                marks=pytest.mark.long,
            ),
        ],
    )
    def test_a_missing_token_is_an_error(self, tmp_path, settings, message):
        """The test starts another process, which is not connected yet."""
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith("RAY_")
        }
        with socket.create_server(("127.0.0.1", 0)) as server:
            address = f"127.0.0.1:{server.getsockname()[1]}"
            done = subprocess.run(
                [sys.executable, "-c", CONNECT, address],
                env={**environment, "HOME": str(tmp_path), "RAY_AUTH_MODE": "Token", **settings},
                capture_output=True,
                text=True,
                check=False,
            )
        assert done.returncode == 3, done.stderr
        assert re.search(f"The Ray cluster at {address} needs a token: .*{message}", done.stdout)


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


def test_a_machine_without_bash_is_refused_before_ray_starts(monkeypatch, tmp_path):
    """Ray starts workers with bash: without it every worker would fail without a reason."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SetupError, match="but no folder on PATH contains bash"):
        connect().__enter__()


@pytest.mark.parametrize(
    ("victim", "is_private"), [("gcs_server", True), ("raylet", True), ("raylet", False)]
)
def test_a_stopped_process_of_the_cluster_counts_as_lost_and_is_ended(
    monkeypatch, tmp_path, victim, is_private
):
    monkeypatch.setattr(signals, "_typed_command", ["isweep", "run", "a b.yaml"])
    program = tmp_path / victim
    lost = threading.Event()
    shutil.copy(shutil.which("sleep"), program)
    monkeypatch.setattr(server_watch, "CHECK_INTERVAL_S", 0.05)
    monkeypatch.setattr(server_watch, "PRIVATE_LOST_AFTER_S", 0.2)
    monkeypatch.setattr(server_watch, "SHARED_LOST_AFTER_S", 0.2)
    monkeypatch.setattr("orchestrator.machine.watch.end_main_thread", lambda *_: lost.set())
    # A Ray cluster that this process already has is watched by another thread.
    earlier_threads = threading.enumerate()
    stopped_children = processes.stopped_children

    def stopped_children_of_this_test():
        if threading.current_thread() in earlier_threads:
            return []
        return stopped_children()

    monkeypatch.setattr(processes, "stopped_children", stopped_children_of_this_test)
    rule = {"gcs_server": "The head of the Ray cluster", "raylet": "The raylet of this node"}[
        victim
    ]
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        subprocess.Popen([program, "3600"]) as process,
    ):
        port = server.getsockname()[1]
        node = {"NodeID": "here", "NodeManagerAddress": "127.0.0.1", "NodeManagerPort": port}
        context = SimpleNamespace(gcs_address=f"127.0.0.1:{port}", get_node_id=lambda: "here")
        ray = SimpleNamespace(
            get_runtime_context=lambda: context, nodes=lambda: [node], shutdown=lambda: None
        )

        def stop_process() -> None:
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
                stop_process()
            assert process.wait(300) == -signal.SIGKILL
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("check_s", "num_checks"),
    [(2.0, 60), (6.0, 20), (3600.0, 60)],
    ids=["refused connections", "dropped packets", "this process was suspended"],
)
def test_a_silent_cluster_is_lost_after_two_minutes_by_the_clock(monkeypatch, check_s, num_checks):
    """A check of two servers that drop packets takes 4 s longer than one of servers that refuse."""
    now_s = [0.0]
    monkeypatch.setattr(server_watch, "accepts_connections", lambda host, port: False)
    monkeypatch.setattr(processes, "stopped_children", list)
    servers = {"gcs_server": server_watch._Server("The head", "10.0.0.1", 6379)}
    watch = server_watch._ServerCheck(
        servers, server_watch.SHARED_LOST_AFTER_S, is_private=False, monotonic=lambda: now_s[0]
    )
    errors = []
    for _ in range(num_checks):
        now_s[0] += check_s
        errors.append(watch.check())
    assert errors[:-1] == [None] * (num_checks - 1)
    assert "The head at 10.0.0.1:6379 has not answered for 120 s" in str(errors[-1])


@pytest.mark.parametrize("has_just_ended", [False, True])
def test_a_cluster_whose_suspended_server_cannot_be_killed_any_more_is_lost_as_well(
    monkeypatch, has_just_ended
):
    now_s = [0.0]
    killed: list[int] = []

    def kill(pid: int, _signal: int) -> None:
        killed.append(pid)
        if has_just_ended:
            raise ProcessLookupError

    stopped = [
        processes.ProcessState(11, "dashboard", "T", os.getpid()),
        processes.ProcessState(12, "raylet", "T", os.getpid()),
    ]
    monkeypatch.setattr(server_watch, "accepts_connections", lambda host, port: True)
    monkeypatch.setattr(processes, "stopped_children", lambda: stopped)
    monkeypatch.setattr(os, "kill", kill)
    servers = {"raylet": server_watch._Server("The raylet", "127.0.0.1", 1)}
    watch = server_watch._ServerCheck(
        servers, lost_after_s=4.0, is_private=True, monotonic=lambda: now_s[0]
    )
    errors = []
    for _ in range(2):
        now_s[0] += 2
        errors.append(watch.check())
    assert errors[0] is None
    assert "The raylet at 127.0.0.1:1 has not answered for 4 s" in str(errors[1])
    assert killed == [12]


def test_tune_logs_no_error_for_retried_trials(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SetupError):
        connect().__enter__()
    for name in ("ray.tune.tune", "ray.tune.execution.experiment_state"):
        assert not logging.getLogger(name).isEnabledFor(logging.ERROR)
    assert logging.getLogger("ray.tune.execution").isEnabledFor(logging.ERROR)


@pytest.mark.parametrize(
    ("num_failures", "error", "expected_error"),
    [
        (2, Exception("The current node timed out during startup."), None),
        (9, Exception("The current node timed out during startup."), SetupError),
        (9, KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_ray_is_started_again_after_a_timeout_and_no_folder_is_left(
    monkeypatch, tmp_path, num_failures, error, expected_error
):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folders: list[Path] = []
    shutdowns: list[int] = []

    def init(_temp_dir: str, **_: Any) -> None:
        assert not any(folder.exists() for folder in folders), "the start before left its folder"
        folders.append(Path(_temp_dir))
        if len(folders) <= num_failures:
            raise error

    ray = SimpleNamespace(init=init, shutdown=lambda: shutdowns.append(1))
    ending = nullcontext()
    if expected_error is SetupError:
        message = r"Ray did not start on this machine: The .* startup\. End other programs, and"
        ending = pytest.raises(SetupError, match=message)
    elif expected_error is KeyboardInterrupt:
        ending = pytest.raises(KeyboardInterrupt)
    with ending, _started_with_retries(ray, num_cpus=1):
        assert [folder.exists() for folder in folders] == [False, False, True]
    # After Ctrl-C, Ray is shut down at once. After an error, it is started three times at most.
    expected = (1, 1) if expected_error is KeyboardInterrupt else (3, 0)
    assert (len(folders), len(shutdowns)) == expected
    assert not list(tmp_path.iterdir())


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.skipif(not AVAILABLE, reason=REASON)
@pytest.mark.parametrize(
    ("order", "dashboard"),
    [("ray first", "none"), ("ray later", "dashboard")],
)
def test_a_private_cluster_is_private_and_leaves_no_files(tmp_path, order, dashboard):
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")
    }
    # The temporary folder of the system: paths of sockets must be short.
    with tempfile.TemporaryDirectory() as temporary:
        # In a network namespace every listening socket belongs to the cluster.
        done = subprocess.run(
            isolated(sys.executable, "-c", PRIVATE, order, str(tmp_path), dashboard),
            capture_output=True,
            text=True,
            check=False,
            env={**environment, "TMPDIR": temporary},
        )
        assert os.listdir(temporary) == []
    assert done.returncode == 0, done.stderr
    first, second = json.loads(done.stdout.splitlines()[-1])
    for report in (first, second):
        assert report["cluster"] == [1.0, 1, True]
        assert set(report["listening"]) <= {"127.0.0.1", "::1"}
        assert bool(report["dashboard"]) == (dashboard == "dashboard")
        assert report["mode"] == "0o600"
        assert report["token_is_used"]
        assert report["token_gone"]
        assert report["restored"]
        assert report["own_temporary_folder"] == [temporary, temporary]
        # Ray's subreaper setting would make every child of this process seem to end well.
        assert report["false_exits_with"] == 1
    assert first["token"] != second["token"]
    assert len(first["token"]) == 64


def test_a_removed_current_folder_is_named(tmp_path, monkeypatch):
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    with pytest.raises(SetupError, match="The current folder does not exist any more"):
        check_process()


def test_warnings_as_errors_are_refused_because_rays_dashboard_has_warnings(monkeypatch):
    monkeypatch.setenv("PYTHONWARNINGS", "error")
    with pytest.raises(ConfigError, match=r"dashboard does not start\. Unset PYTHONWARNINGS"):
        check_process()


def test_a_python_without_docstrings_is_refused_before_ray_starts(tmp_path):
    done = subprocess.run(
        [sys.executable, "-OO", "-m", "orchestrator.cli", "run", "demo"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "and Ray does not start without them. Unset PYTHONOPTIMIZE" in done.stderr
    assert "prepare" not in done.stderr
