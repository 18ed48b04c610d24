"""SLURM, Kubernetes and image files, and lock files: what needs none of these systems."""

import copy
import json
import os
import re
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from packaging.requirements import Requirement

REPOSITORY = Path(__file__).parents[4]
CLUSTERS = REPOSITORY / "clusters"


@pytest.fixture(scope="module")
def job() -> dict[str, Any]:
    return yaml.safe_load((CLUSTERS / "rayjob.yaml").read_text(encoding="utf-8"))


def schema_errors(job: dict[str, Any]) -> list[str]:
    """Return the errors that KubeRay's schema finds in a job, with their places in the file."""
    schema = json.loads((REPOSITORY / "tests/data/kuberay_rayjob.json").read_text(encoding="utf-8"))
    errors = jsonschema.Draft202012Validator(schema).iter_errors(job)
    return [f"{'.'.join(map(str, error.absolute_path))}: {error.message}" for error in errors]


def test_the_ray_job_fits_the_schema_of_kuberay(job):
    assert schema_errors(job) == []
    job = copy.deepcopy(job)
    job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["minReplica"] = 0
    (error,) = schema_errors(job)
    assert error.startswith(
        "spec.rayClusterSpec.workerGroupSpecs.0: Additional properties are not allowed"
    )


def test_every_pod_has_limits_and_may_start_in_a_restricted_namespace(job):
    """The standard "restricted" asks for this. KubeRay sets nothing for the autoscaler and the
    submitter."""
    cluster = job["spec"]["rayClusterSpec"]
    groups = (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])
    pods = [group["template"]["spec"] for group in groups] + [
        job["spec"]["submitterPodTemplate"]["spec"]
    ]
    containers = [container for pod in pods for container in pod["containers"]]
    for pod in pods:
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in (*containers, cluster["autoscalerOptions"]):
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    for container in containers:
        assert container["resources"]["requests"] == container["resources"]["limits"]
    assert len({container["image"] for container in containers}) == 1
    # A Kubernetes job refuses pods that restart by themselves.
    assert pods[-1]["restartPolicy"] == "Never"


def test_the_ray_job_needs_a_token_scales_from_zero_and_continues_after_a_crash(job):
    spec, cluster = job["spec"], job["spec"]["rayClusterSpec"]
    (gpu_workers,) = cluster["workerGroupSpecs"]
    assert (cluster["authOptions"], gpu_workers["minReplicas"], gpu_workers["replicas"]) == (
        {"mode": "token"},
        0,
        0,
    )
    command = spec["entrypoint"].split()
    (volume_mount,) = cluster["headGroupSpec"]["template"]["spec"]["containers"][0]["volumeMounts"]
    assert spec["backoffLimit"] >= 1
    assert command[0].startswith("/")
    assert command[command.index("--root") + 1].startswith(volume_mount["mountPath"] + "/")
    # KubeRay opens the dashboard through a service of the head, so no host may be set. Kueue changes
    # the size only of jobs with this annotation. Both facts are from their source code.
    assert "dashboard-host" not in cluster["headGroupSpec"]["rayStartParams"]
    assert (cluster["enableInTreeAutoscaling"], spec["shutdownAfterJobFinishes"]) == (True, True)
    assert job["metadata"]["annotations"] == {"kueue.x-k8s.io/elastic-job": "true"}


SIMULATED_COMMANDS = {
    "scontrol": (
        'if [ "$1" = show ]; then echo node1; echo node2; else echo "requeued $2" >> "$LOG"; fi'
    ),
    "getent": """
        [ -n "${NO_ADDRESS:-}" ] || printf '127.0.1.1 STREAM %s\\n127.0.1.1 DGRAM\\n' "$2"
        [ -n "${NO_ADDRESS:-}${ONLY_LOOPBACK:-}" ] || echo "10.0.0.1 STREAM $2" """,
    "srun": """
        echo "srun $*" >> "$LOG"; echo "patience $RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT" >> "$LOG"
        [ -z "${RAY_EXIT:-}" ] || exit "$RAY_EXIT"
        until [ "$1" = -- ]; do shift; done; shift; "$@" || ended=$?
        exit "${STEP_EXIT:-${ended:-0}}" """,
    # When it is stopped, it closes its runs first.
    "isweep": """
        [ -n "${LONG:-}" ] || exit "${SWEEP_EXIT:-0}"
        trap 'echo "runs closed" >> "$LOG"; exit 130' TERM
        kill -TERM "$(cat "$BATCH_ID")"
        for _ in $(seq 300); do sleep 0.1; done""",
}


def submit(folder: Path, *arguments: str, **environment: str) -> tuple[int, str, str]:
    """Run the batch script with simulated SLURM commands; return exit code, log and stderr."""
    (folder / "bin").mkdir()
    for name, body in SIMULATED_COMMANDS.items():
        program = folder / "bin" / name
        program.write_text(f"#!/bin/bash\n{body}\n", encoding="utf-8")
        program.chmod(0o755)
    (folder / "bin" / "activate").write_text("", encoding="utf-8")
    if "NO_TOKEN" not in environment:
        (folder / ".ray").mkdir()
        (folder / ".ray" / "auth_token").write_text("t", encoding="utf-8")
    environment_variables = {
        "PATH": f"{folder}/bin:{os.environ['PATH']}",
        "HOME": str(folder),
        "LOG": str(folder / "log"),
        "BATCH_ID": str(folder / "batch"),
        "ISWEEP_VENV": str(folder),
        "SCRATCH": str(folder),
        "SLURM_NNODES": "2",
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_JOB_ID": "123456",
        "SLURM_CPUS_PER_TASK": "32",
        **environment,
    }
    environment_variables = {name: value for name, value in environment_variables.items() if value}
    shell_command = 'echo $$ > "$BATCH_ID"; exec bash "$@"'
    process = subprocess.run(
        ["bash", "-c", shell_command, "sbatch", str(CLUSTERS / "slurm.sbatch"), *arguments],
        capture_output=True,
        text=True,
        env=environment_variables,
        check=False,
    )
    log_file = folder / "log"
    return (
        process.returncode,
        log_file.read_text(encoding="utf-8") if log_file.exists() else "",
        process.stderr,
    )


def test_the_batch_job_starts_ray_on_each_node_and_the_sweep_on_the_first(tmp_path):
    exit_code, log, _ = submit(
        tmp_path, "paper", "--device", "gpu", SLURM_GPUS_PER_NODE="a100:4", SLURM_GPUS_ON_NODE="4"
    )
    assert (exit_code, "patience 600\n" in log) == (0, True)
    source_file = Path(find_spec("ray").origin).parent / "scripts/symmetric_run.py"
    assert 'env_integer("RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT"' in source_file.read_text(
        encoding="utf-8"
    )
    assert "--nodes=2 --ntasks=2 --cpus-per-task=32 " in log
    assert (
        "ray symmetric-run --address 10.0.0.1:23456 --min-nodes 2 --num-cpus 32 --num-gpus 4 -- "
        in log
    )
    assert (
        f"isweep run paper --address 10.0.0.1:23456 --root {tmp_path}/isweep-root --device gpu"
        in log
    )


RAY_DID_NOT_START = "Ray did not start on all 2 nodes"
NO_ADDRESS = "isweep: the name of the first node, node1, has no address"


@pytest.mark.parametrize(
    ("environment", "expected_code", "requeued", "message"),
    [
        *(({"SWEEP_EXIT": str(code)}, code, False, "") for code in range(5)),
        ({"SWEEP_EXIT": "143"}, 143, True, ""),
        # An error of the user, although the step ends with the signal of its other nodes.
        ({"SWEEP_EXIT": "2", "STEP_EXIT": "143"}, 2, False, ""),
        # A step that ends before the sweep starts is tried three times.
        ({"RAY_EXIT": "143"}, 143, True, ""),
        ({"RAY_EXIT": "143", "SLURM_RESTART_COUNT": "1"}, 143, True, ""),
        ({"RAY_EXIT": "143", "SLURM_RESTART_COUNT": "2"}, 3, False, RAY_DID_NOT_START),
        # `ray symmetric-run` ends with 0 where `ray start` fails on the head, with 1 where a node
        # is late.
        ({"RAY_EXIT": "0"}, 3, False, RAY_DID_NOT_START),
        ({"RAY_EXIT": "1"}, 3, False, RAY_DID_NOT_START),
        ({"RAY_EXIT": "3"}, 3, False, ""),
        (
            {"SCRATCH": ""},
            1,
            False,
            "set a root folder that is kept after the job: ISWEEP_ROOT=DIR sbatch",
        ),
        ({"NO_ADDRESS": "1"}, 3, False, NO_ADDRESS),
        ({"ONLY_LOOPBACK": "1"}, 3, False, f"{NO_ADDRESS} that other nodes can reach"),
        ({"NO_TOKEN": "1"}, 2, False, "~/.ray/auth_token has no token"),
    ],
)
def test_only_an_interrupted_job_is_requeued(
    tmp_path, environment, expected_code, requeued, message
):
    exit_code, log, stderr = submit(tmp_path, "paper", **environment)
    assert (exit_code, "requeued 123456" in log) == (expected_code, requeued)
    assert message in stderr
    assert (RAY_DID_NOT_START in stderr) is (message == RAY_DID_NOT_START)


def test_only_the_sweep_gets_the_signal_two_minutes_before_the_time_limit(tmp_path):
    script = (CLUSTERS / "slurm.sbatch").read_text(encoding="utf-8")
    # Without B: every process of a step gets the signal, also those of Ray.
    assert "#SBATCH --signal=B:TERM@120\n" in script
    exit_code, log, _ = submit(tmp_path, "paper", LONG="1")
    assert (exit_code, log.splitlines()[2:]) == (130, ["runs closed", "requeued 123456"])
    (tmp_path / "other").mkdir()
    exit_code, log, stderr = submit(tmp_path / "other")
    assert (exit_code, log, "usage: sbatch clusters/slurm.sbatch SWEEP" in stderr) == (1, "", True)


def test_shellcheck_finds_nothing_in_the_batch_script(tmp_path):
    # SC1091: the environment belongs to the site. SC2016: text in single quotes is for the inner
    # shell.
    check_script(tmp_path, (CLUSTERS / "slurm.sbatch").read_text(), "--exclude=SC1091,SC2016")


@pytest.fixture(scope="module")
def skypilot_task() -> dict[str, Any]:
    return yaml.safe_load((CLUSTERS / "skypilot.yaml").read_text(encoding="utf-8"))


def check_script(folder: Path, text: str, *options: str) -> None:
    """Check the syntax of a script with bash, and with shellcheck where it is installed."""
    (folder / "script.sh").write_text(text, encoding="utf-8")
    checks = [["bash", "-n"], *([["shellcheck", *options]] if shutil.which("shellcheck") else [])]
    for check in checks:
        command = [*check, folder / "script.sh"]
        process = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (process.returncode, process.stdout) == (0, "")


@pytest.mark.parametrize("script", ["setup", "run"])
def test_the_skypilot_scripts_are_valid_shell(skypilot_task, script, tmp_path):
    check_script(tmp_path, f"#!/bin/bash\n{skypilot_task[script]}")
    # A checkout of the repository is not mounted.
    assert set(skypilot_task["file_mounts"].values()) == {"./dist", "~/.ray/auth_token"}


PROGRAMS = {
    "isweep@.service": "%h/isweep-venv/bin/python",
    "mlflow.service": "%h/isweep-venv/bin/mlflow",
}


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd")
@pytest.mark.parametrize("name", PROGRAMS)
def test_systemd_accepts_the_unit(tmp_path, name):
    text = (CLUSTERS / name).read_text(encoding="utf-8")
    unit = tmp_path / name  # systemd would look for the program
    unit.write_text(text.replace(PROGRAMS[name], "/bin/true"), encoding="utf-8")
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}
    command = ["systemd-analyze", "verify", "--user", unit]
    process = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert (process.returncode, process.stderr) == (0, "")


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_command_in_a_unit_installs_it_in_a_new_home(name, tmp_path):
    """Its comment contains the command; the home has no ~/.config."""
    text = (CLUSTERS / name).read_text(encoding="utf-8")
    (command,) = re.findall(
        r"^#   (.* ~/isweep-dist/\S+.*) && loginctl enable-linger$", text, re.MULTILINE
    )
    (tmp_path / "isweep-dist").mkdir()
    shutil.copy(CLUSTERS / name, tmp_path / "isweep-dist")
    process = subprocess.run(
        ["bash", "-c", command], env={**os.environ, "HOME": str(tmp_path)}, check=False
    )
    assert process.returncode == 0
    assert (tmp_path / ".config/systemd/user" / name).read_text(encoding="utf-8") == text


def locked_packages(name: str) -> dict[str, Requirement]:
    text = (REPOSITORY / f"constraints-{name}.txt").read_text(encoding="utf-8")
    lines = [line.rstrip(" \\") for line in text.splitlines() if re.match(r"[A-Za-z0-9]", line)]
    return {name_of(Requirement(line)): Requirement(line) for line in lines}


def name_of(requirement: Requirement) -> str:
    return re.sub(r"[-_.]+", "-", requirement.name).lower()


EXTRAS = {"cuda": ("medical",), "cpu": ("demo", "formats", "medical", "postgres")}
"""The extras that each lock contains."""


@pytest.mark.parametrize("name", EXTRAS)
def test_every_package_is_locked_by_hash_and_only_gpu_nodes_get_cuda(name):
    text = (REPOSITORY / f"constraints-{name}.txt").read_text(encoding="utf-8")
    entries = re.split(r"\n(?=[A-Za-z0-9])", text.strip())[1:]
    assert len(entries) > 100
    assert all("--hash=sha256:" in entry for entry in entries)
    assert "://" not in text
    packages = locked_packages(name)
    assert {"torch", "torchvision", "ray", "mlflow", "pydicom"} <= set(packages)
    assert ({"triton", "nvidia-cudnn-cu13"} <= set(packages)) is (name == "cuda")
    assert any("nvidia" in package for package in packages) is (name == "cuda")
    assert str(packages["torch"].specifier).endswith("+cpu") is (name == "cpu")


@pytest.mark.parametrize("name", EXTRAS)
def test_the_locks_contain_the_requirements_at_the_tested_versions(name):
    import tomllib

    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [*project["dependencies"]]
    lines += [line for extra in EXTRAS[name] for line in project["optional-dependencies"][extra]]
    packages = locked_packages(name)
    for requirement in map(Requirement, lines):
        (version,) = (s.version for s in packages[name_of(requirement)].specifier)
        assert requirement.specifier.contains(version), requirement
    tested_lines = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines()
    for requirement in (Requirement(line) for line in tested_lines if "==" in line):
        package = packages.get(name_of(requirement))
        assert package is None or str(package.specifier) == str(requirement.specifier), requirement


@pytest.mark.parametrize(
    ("name", "required", "forbidden"),
    [
        (
            "Dockerfile",
            [
                "--require-hashes --requirement /tmp/constraints-cuda.txt",
                r"--no-deps /tmp/isweep-\*\.whl",
                # `runAsNonRoot` refuses a name where the pod sets no user.
                r"^USER [1-9]\d*$",
                # The linker of a base image without CUDA does not know this folder, where Google's
                # Kubernetes puts libcuda.so.1.
                "LD_LIBRARY_PATH=/usr/local/nvidia/lib64",
            ],
            r"^COPY (?!dist/)",
        ),
        # Otherwise a builder without BuildKit first gets the whole folder, with images and the
        # history.
        (".dockerignore", [r"\A(#.*\n)*\*\n!dist/\n\Z"], "^!(?!dist/)"),
        (
            "clusters/skypilot.yaml",
            [
                "RAY_AUTH_MODE=token",
                "--port=6379",
                r'--storage "\$STORAGE"',
                r"~/.ray/auth_token: ~/.ray/auth",
            ],
            # These commands would end SkyPilot's own Ray. pyarrow opens S3 buckets.
            r"^[^#]*(ray stop|symmetric-run|pkill|s3fs)",
        ),
    ],
)
def test_a_file_contains_what_it_must_and_nothing_forbidden(name, required, forbidden):
    text = (REPOSITORY / name).read_text(encoding="utf-8")
    assert [pattern for pattern in required if not re.search(pattern, text, re.MULTILINE)] == []
    assert not re.search(forbidden, text, re.MULTILINE)


def test_mlflow_knows_the_options_and_variables_of_its_unit():
    """Password and places are only in the environment: every user can read a command line."""
    text = (CLUSTERS / "mlflow.service").read_text(encoding="utf-8")
    arguments = re.search(r"^ExecStart=\S+/mlflow server (.*)$", text, re.MULTILINE)[1].split()
    options = dict(zip(arguments[::2], arguments[1::2], strict=True))
    assert (options["--host"], options["--allowed-hosts"]) == (
        "127.0.0.1",
        "localhost:*,127.0.0.1:*",
    )
    # The source is read and not imported, because an import takes seconds.
    folder = Path(find_spec("mlflow").origin).parent
    source = "".join(
        (folder / f"{name}.py").read_text() for name in ("cli/__init__", "utils/cli_args")
    )
    assert all(f'"{option}"' in source for option in options)
    variables = set(re.findall(r"^#   (MLFLOW_\w+)=", text, re.MULTILINE))
    assert variables == {"MLFLOW_BACKEND_STORE_URI", "MLFLOW_ARTIFACTS_DESTINATION"}
    assert all(f'envvar="{name}"' in source for name in variables)
    assert "MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false" in text
    assert not {"--backend-store-uri", "--artifacts-destination"} & options.keys()


def test_the_image_is_built_with_the_setup_commands_of_the_cluster(tmp_path):
    """The fields are those of a component of EC2 Image Builder, schema version 1.0."""
    component = yaml.safe_load((CLUSTERS / "image.yaml").read_text(encoding="utf-8"))
    assert set(component) == {"name", "description", "schemaVersion", "phases"}
    phases = {phase["name"]: phase["steps"] for phase in component["phases"]}
    assert (component["schemaVersion"], list(phases)) == (1.0, ["build", "validate"])
    steps = [step for phase_steps in phases.values() for step in phase_steps]
    assert {(*step, step["action"]) for step in steps} == {
        ("name", "action", "inputs", "ExecuteBash")
    }
    scripts = ["\n".join(step["inputs"]["commands"]) for step in steps]
    cluster = yaml.safe_load((REPOSITORY / "cluster.yaml").read_text(encoding="utf-8"))
    setup_commands = [
        command
        for command in cluster["setup_commands"]
        if "isweep-venv" in command and "sed" not in command
    ]
    assert len(setup_commands) == 3
    assert all(
        " ".join(command.split()) in " ".join(scripts[0].split()) for command in setup_commands
    )
    for script in scripts:
        check_script(tmp_path, f"#!/bin/bash\n{script}\n", "--severity=warning")
