"""SLURM, Kubernetes and image files, and the lock of CUDA nodes: what can be held without any of
them."""

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


def mistakes(job: dict[str, Any]) -> list[str]:
    """What KubeRay's schema has against a job, as places in the file."""
    schema = json.loads((REPOSITORY / "tests/data/kuberay_rayjob.json").read_text(encoding="utf-8"))
    found = jsonschema.Draft202012Validator(schema).iter_errors(job)
    return [f"{'.'.join(map(str, error.absolute_path))}: {error.message}" for error in found]


def test_the_ray_job_is_what_kuberay_takes(job):
    assert mistakes(job) == []
    job = copy.deepcopy(job)
    job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["minReplica"] = 0
    (told,) = mistakes(job)
    assert told.startswith(
        "spec.rayClusterSpec.workerGroupSpecs.0: Additional properties are not allowed"
    )


def test_every_pod_has_bounds_and_may_start_in_a_restricted_namespace(job):
    """What the standard "restricted" asks. Of autoscaler and submitter KubeRay says nothing by
    itself."""
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
    assert (
        pods[-1]["restartPolicy"] == "Never"
    )  # a Kubernetes job takes no pod that starts again by itself


def test_the_ray_job_asks_for_a_token_scales_from_zero_and_goes_on_where_it_died(job):
    spec, cluster = job["spec"], job["spec"]["rayClusterSpec"]
    (gpu,) = cluster["workerGroupSpecs"]
    assert (cluster["authOptions"], gpu["minReplicas"], gpu["replicas"]) == (
        {"mode": "token"},
        0,
        0,
    )
    words = spec["entrypoint"].split()
    (mount,) = cluster["headGroupSpec"]["template"]["spec"]["containers"][0]["volumeMounts"]
    assert spec["backoffLimit"] >= 1
    assert words[0].startswith("/")
    assert words[words.index("--root") + 1].startswith(mount["mountPath"] + "/")
    # As the sources say: KubeRay calls the head's service, and Kueue lets only elastic jobs scale.
    assert "dashboard-host" not in cluster["headGroupSpec"]["rayStartParams"]
    assert (cluster["enableInTreeAutoscaling"], spec["shutdownAfterJobFinishes"]) == (True, True)
    assert job["metadata"]["annotations"] == {"kueue.x-k8s.io/elastic-job": "true"}


FAKES = {
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
    # Told to stop while it runs, it closes its runs first.
    "isweep": """
        [ -n "${LONG:-}" ] || exit "${SWEEP_EXIT:-0}"
        trap 'echo "runs closed" >> "$LOG"; exit 130' TERM
        kill -TERM "$(cat "$BATCH_ID")"
        for _ in $(seq 300); do sleep 0.1; done""",
}


def submit(folder: Path, *arguments: str, **environment: str) -> tuple[int, str, str]:
    """Run the batch script on stand-ins for SLURM's commands."""
    (folder / "bin").mkdir()
    for name, body in FAKES.items():
        command = folder / "bin" / name
        command.write_text(f"#!/bin/bash\n{body}\n", encoding="utf-8")
        command.chmod(0o755)
    (folder / "bin" / "activate").write_text("", encoding="utf-8")
    if "NO_TOKEN" not in environment:
        (folder / ".ray").mkdir()
        (folder / ".ray" / "auth_token").write_text("t", encoding="utf-8")
    variables = {
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
    variables = {name: value for name, value in variables.items() if value}
    started = 'echo $$ > "$BATCH_ID"; exec bash "$@"'
    done = subprocess.run(
        ["bash", "-c", started, "sbatch", str(CLUSTERS / "slurm.sbatch"), *arguments],
        capture_output=True,
        text=True,
        env=variables,
        check=False,
    )
    log = folder / "log"
    return done.returncode, log.read_text(encoding="utf-8") if log.exists() else "", done.stderr


def test_the_batch_job_starts_one_ray_node_per_node_and_the_sweep_on_the_first(tmp_path):
    code, log, _ = submit(
        tmp_path, "paper", "--device", "gpu", SLURM_GPUS_PER_NODE="a100:4", SLURM_GPUS_ON_NODE="4"
    )
    assert (code, "patience 600\n" in log) == (0, True)
    source = Path(find_spec("ray").origin).parent / "scripts/symmetric_run.py"
    assert 'env_integer("RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT"' in source.read_text(
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


LATE, NO_ADDRESS = (
    "Ray did not start on all 2 nodes",
    "isweep: the name of the first node, node1, has no address",
)


@pytest.mark.parametrize(
    ("environment", "code", "requeued", "told"),
    [
        *(({"SWEEP_EXIT": str(code)}, code, False, "") for code in range(5)),
        ({"SWEEP_EXIT": "143"}, 143, True, ""),
        # A mistake, although the step ends by the signal of its other nodes.
        ({"SWEEP_EXIT": "2", "STEP_EXIT": "143"}, 2, False, ""),
        # A step that ends before the sweep began is tried three times.
        ({"RAY_EXIT": "143"}, 143, True, ""),
        ({"RAY_EXIT": "143", "SLURM_RESTART_COUNT": "1"}, 143, True, ""),
        ({"RAY_EXIT": "143", "SLURM_RESTART_COUNT": "2"}, 3, False, LATE),
        # `ray symmetric-run` ends with 0 where `ray start` fails on the head, with 1 where a node
        # is late.
        ({"RAY_EXIT": "0"}, 3, False, LATE),
        ({"RAY_EXIT": "1"}, 3, False, LATE),
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
def test_only_an_interrupted_job_goes_back_to_the_queue(
    tmp_path, environment, code, requeued, told
):
    found, log, error = submit(tmp_path, "paper", **environment)
    assert (found, "requeued 123456" in log) == (code, requeued)
    assert told in error
    assert (LATE in error) is (told == LATE)


def test_two_minutes_before_the_limit_the_sweep_alone_is_told_to_stop(tmp_path):
    text = (CLUSTERS / "slurm.sbatch").read_text(encoding="utf-8")
    assert (
        "#SBATCH --signal=B:TERM@120\n" in text
    )  # without B: every process of a step gets it, Ray's too
    code, log, _ = submit(tmp_path, "paper", LONG="1")
    assert (code, log.splitlines()[2:]) == (130, ["runs closed", "requeued 123456"])
    (tmp_path / "other").mkdir()
    code, log, error = submit(tmp_path / "other")
    assert (code, log, "usage: sbatch clusters/slurm.sbatch SWEEP" in error) == (1, "", True)


def test_shellcheck_has_nothing_to_say_of_the_batch_script(tmp_path):
    # SC1091: the environment is the site's. SC2016: what stands in single quotes is for the inner
    # shell.
    check_script(tmp_path, (CLUSTERS / "slurm.sbatch").read_text(), "--exclude=SC1091,SC2016")


@pytest.fixture(scope="module")
def task() -> dict[str, Any]:
    return yaml.safe_load((CLUSTERS / "skypilot.yaml").read_text(encoding="utf-8"))


def check_script(folder: Path, text: str, *options: str) -> None:
    """Hold a script to bash, and to shellcheck where that is there."""
    (folder / "script.sh").write_text(text, encoding="utf-8")
    checks = [["bash", "-n"], *([["shellcheck", *options]] if shutil.which("shellcheck") else [])]
    for check in checks:
        words = [*check, folder / "script.sh"]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("script", ["setup", "run"])
def test_the_skypilot_scripts_are_shell(task, script, tmp_path):
    check_script(tmp_path, f"#!/bin/bash\n{task[script]}")
    assert set(task["file_mounts"].values()) == {"./dist", "~/.ray/auth_token"}  # no checkout


PROGRAMS = {
    "isweep@.service": "%h/isweep-venv/bin/python",
    "mlflow.service": "%h/isweep-venv/bin/mlflow",
}


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd")
@pytest.mark.parametrize("name", PROGRAMS)
def test_systemd_takes_the_unit(tmp_path, name):
    text = (CLUSTERS / name).read_text(encoding="utf-8")
    unit = tmp_path / name  # systemd would look for the program
    unit.write_text(text.replace(PROGRAMS[name], "/bin/true"), encoding="utf-8")
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}
    words = ["systemd-analyze", "verify", "--user", unit]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_unit_says_how_it_is_put_in_place_where_none_was_before(name, tmp_path):
    """The command of its comment, in a home without ~/.config."""
    text = (CLUSTERS / name).read_text(encoding="utf-8")
    (command,) = re.findall(
        r"^#   (.* ~/isweep-dist/\S+.*) && loginctl enable-linger$", text, re.MULTILINE
    )
    (tmp_path / "isweep-dist").mkdir()
    shutil.copy(CLUSTERS / name, tmp_path / "isweep-dist")
    done = subprocess.run(
        ["bash", "-c", command], env={**os.environ, "HOME": str(tmp_path)}, check=False
    )
    assert done.returncode == 0
    assert (tmp_path / ".config/systemd/user" / name).read_text(encoding="utf-8") == text


def locked(name: str) -> dict[str, Requirement]:
    text = (REPOSITORY / f"constraints-{name}.txt").read_text(encoding="utf-8")
    lines = [line.rstrip(" \\") for line in text.splitlines() if re.match(r"[A-Za-z0-9]", line)]
    return {name_of(Requirement(line)): Requirement(line) for line in lines}


def name_of(requirement: Requirement) -> str:
    return re.sub(r"[-_.]+", "-", requirement.name).lower()


LOCKS = {"cuda": ("medical",), "cpu": ("demo", "formats", "medical", "postgres")}
"""Which extras each lock holds."""


@pytest.mark.parametrize("name", LOCKS)
def test_every_package_is_locked_by_hash_and_only_gpu_nodes_get_cuda(name):
    text = (REPOSITORY / f"constraints-{name}.txt").read_text(encoding="utf-8")
    entries = re.split(r"\n(?=[A-Za-z0-9])", text.strip())[1:]
    assert len(entries) > 100
    assert all("--hash=sha256:" in entry for entry in entries)
    assert "://" not in text
    packages = locked(name)
    assert {"torch", "torchvision", "ray", "mlflow", "pydicom"} <= set(packages)
    assert ({"triton", "nvidia-cudnn-cu13"} <= set(packages)) is (name == "cuda")
    assert any("nvidia" in package for package in packages) is (name == "cuda")
    assert str(packages["torch"].specifier).endswith("+cpu") is (name == "cpu")


@pytest.mark.parametrize("name", LOCKS)
def test_the_locks_hold_what_the_project_asks_for_at_the_tested_versions(name):
    import tomllib

    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = [*project["dependencies"]]
    asked += [line for extra in LOCKS[name] for line in project["optional-dependencies"][extra]]
    lock = locked(name)
    for requirement in map(Requirement, asked):
        (version,) = (s.version for s in lock[name_of(requirement)].specifier)
        assert requirement.specifier.contains(version), requirement
    tested = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines()
    for requirement in (Requirement(line) for line in tested if "==" in line):
        found = lock.get(name_of(requirement))
        assert found is None or str(found.specifier) == str(requirement.specifier), requirement


@pytest.mark.parametrize(
    ("name", "has", "has_not"),
    [
        (
            "Dockerfile",
            [
                "--require-hashes --requirement /tmp/constraints-cuda.txt",
                r"--no-deps /tmp/isweep-\*\.whl",
                # A name would be refused by `runAsNonRoot` where no pod says who runs.
                r"^USER [1-9]\d*$",
                # Not known to the linker of a base without CUDA: there Google's Kubernetes puts
                # libcuda.so.1.
                "LD_LIBRARY_PATH=/usr/local/nvidia/lib64",
            ],
            r"^COPY (?!dist/)",
        ),
        # A builder without BuildKit is else sent the whole folder first: a root with images, and
        # the history.
        (".dockerignore", [r"\A(#.*\n)*\*\n!dist/\n\Z"], "^!(?!dist/)"),
        (
            "clusters/skypilot.yaml",
            [
                "RAY_AUTH_MODE=token",
                "--port=6379",
                r'--storage "\$STORAGE"',
                r"~/.ray/auth_token: ~/.ray/auth",
            ],
            # They would end SkyPilot's own Ray; buckets of S3 are opened by pyarrow.
            r"^[^#]*(ray stop|symmetric-run|pkill|s3fs)",
        ),
    ],
)
def test_a_file_says_what_it_must(name, has, has_not):
    text = (REPOSITORY / name).read_text(encoding="utf-8")
    assert [one for one in has if not re.search(one, text, re.MULTILINE)] == []
    assert not re.search(has_not, text, re.MULTILINE)


def test_mlflow_takes_the_words_of_its_unit():
    """What is only in its environment are the password and the places: every user can read a
    command line."""
    text = (CLUSTERS / "mlflow.service").read_text(encoding="utf-8")
    words = re.search(r"^ExecStart=\S+/mlflow server (.*)$", text, re.MULTILINE)[1].split()
    asked = dict(zip(words[::2], words[1::2], strict=True))
    assert (asked["--host"], asked["--allowed-hosts"]) == ("127.0.0.1", "localhost:*,127.0.0.1:*")
    # Read and not imported, which takes seconds.
    folder = Path(find_spec("mlflow").origin).parent
    known = "".join(
        (folder / f"{name}.py").read_text() for name in ("cli/__init__", "utils/cli_args")
    )
    assert all(f'"{option}"' in known for option in asked)
    told = set(re.findall(r"^#   (MLFLOW_\w+)=", text, re.MULTILINE))
    assert told == {"MLFLOW_BACKEND_STORE_URI", "MLFLOW_ARTIFACTS_DESTINATION"}
    assert all(f'envvar="{name}"' in known for name in told)
    assert "MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false" in text
    assert not {"--backend-store-uri", "--artifacts-destination"} & asked.keys()


def test_the_image_is_baked_with_the_set_up_commands_of_the_cluster(tmp_path):
    """Fields are those of a component of EC2 Image Builder, schema version 1.0."""
    component = yaml.safe_load((CLUSTERS / "image.yaml").read_text(encoding="utf-8"))
    assert set(component) == {"name", "description", "schemaVersion", "phases"}
    phases = {phase["name"]: phase["steps"] for phase in component["phases"]}
    assert (component["schemaVersion"], list(phases)) == (1.0, ["build", "validate"])
    steps = [step for of_phase in phases.values() for step in of_phase]
    assert {(*step, step["action"]) for step in steps} == {
        ("name", "action", "inputs", "ExecuteBash")
    }
    scripts = ["\n".join(step["inputs"]["commands"]) for step in steps]
    cluster = yaml.safe_load((REPOSITORY / "cluster.yaml").read_text(encoding="utf-8"))
    baked = [one for one in cluster["setup_commands"] if "isweep-venv" in one and "sed" not in one]
    assert len(baked) == 3
    assert all(" ".join(command.split()) in " ".join(scripts[0].split()) for command in baked)
    for script in scripts:
        check_script(tmp_path, f"#!/bin/bash\n{script}\n", "--severity=warning")
