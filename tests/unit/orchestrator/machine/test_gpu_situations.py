"""Test plans, refusals and retries for GPUs that a lab may have and this machine does not have.

GPUs are described as PyTorch and nvidia-smi describe them. Failures are exceptions of libraries.
"""

import json
import re
from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch

from orchestrator.machine.cluster import Resources, RunOptions
from orchestrator.machine.gpu_problems import check_gpus_fit, describe_gpus
from orchestrator.machine.gpus import torch_gpus
from orchestrator.machine.gpus.records import Gpu, NodeGpus
from orchestrator.machine.gpus.this_machine import weakest_gpu_model
from orchestrator.machine.gpus.visible import LOGICAL_GPUS
from orchestrator.planning.costs.gpu_checks import packing_pays
from orchestrator.planning.costs.gpu_models import GPU_MODELS
from orchestrator.planning.costs.memory import peak_bytes
from orchestrator.planning.costs.needs import core_seconds, need_of
from orchestrator.planning.estimate import estimate
from orchestrator.planning.plan import plan_sweep
from orchestrator.planning.runtimes import (
    HANG_FACTOR,
    MIN_LIMIT_S,
    UNTIMED_FACTOR,
    MeasuredTrial,
    RuntimeModel,
    corrections_for,
    time_limit,
)
from orchestrator.planning.sweep_file import load_sweep
from orchestrator.results.records import TrialFailure
from orchestrator.running.gpu_sharing import names_of_small_gpus, runtime_model_for
from orchestrator.running.recovery.failures import classify
from orchestrator.running.recovery.memory_verdicts import MAY_RETRY
from orchestrator.running.recovery.resource_policy import ResourcePolicy
from orchestrator.running.recovery.retries import (
    MAX_CRASHES_AND_MEMORY_FAILURES,
    RETRY_POLICIES,
    Retries,
)
from orchestrator.running.workers import trial_device
from orchestrator.running.workers.worker import TrialTrainable
from orchestrator.tuning.tune_sweep import tune_sweep
from search_spaces.errors import SetupError, SweepError
from search_spaces.sweeps import ResourceSpec
from tasks.trials.cuda_graphs import CaptureError
from tests.small_sweep import small_sweep
from tests.unit.orchestrator.machine.test_devices import simulate_nvidia_smi

GIB = 2**30
RTX4090 = Gpu("NVIDIA GeForce RTX 4090", "GPU-4090", int(23.6 * GIB), capability=8.9)
A100 = Gpu("NVIDIA A100-SXM4-80GB", "GPU-a100", int(79.3 * GIB), capability=8.0)
H100 = Gpu("NVIDIA H100 80GB HBM3", "GPU-h100", int(79.2 * GIB), capability=9.0)
T4 = Gpu("Tesla T4", "GPU-t4", int(14.6 * GIB), capability=7.5)
MIG = Gpu("NVIDIA A100-SXM4-80GB MIG 1g.10gb", "MIG-1", int(9.5 * GIB), processors=14, mig=True)
ADA = Gpu(
    "NVIDIA RTX 6000 Ada Generation", "GPU-ada", int(47.4 * GIB), capability=8.9, processors=142
)
A10G = Gpu("NVIDIA A10G", "GPU-a10g", int(22.5 * GIB), capability=8.6)
TURING = Gpu("NVIDIA TITAN RTX", "GPU-rtx", int(23.5 * GIB), capability=7.5, processors=72)


def node(*gpus, **changes):
    fields = {
        "driver": "580.65",
        "torch": "2.13.0",
        "cuda": "13.0",
        "num_ray_gpus": float(len(gpus)),
    }
    return NodeGpus("a", gpus, **(fields | changes))


@dataclass(frozen=True)
class Situation:
    """The GPUs of a lab, and the result of planning and running the grid of the paper there.

    Attributes:
        node: The GPUs of the only node.
        model: Name of the GPU model that a plan uses.
        memory_gib: Memory of this model in GiB.
        plan: Pattern of the text of ``isweep plan``.
        refused: Pattern of the error before a run starts; empty if it runs.
        shares: True if trials share a GPU when MPS runs.
        visible: Value of ``CUDA_VISIBLE_DEVICES``; None if it is not set.
    """

    node: NodeGpus
    model: str
    memory_gib: float
    plan: str
    refused: str = ""
    shares: bool = True
    visible: str | None = None


NO_BFLOAT16 = (
    "left. The trials cannot run on {}: the recipe paper needs bfloat16, "
    ".* Add `--set recipe.precision=float32`"
)
ON_T4 = r"paper computes in bfloat16, but the Tesla T4 of node a .*7\.5.*precision=float32`, or ano"
SLICES = r"divided into slices \(MIG\).*CUDA_VISIBLE_DEVICES=MIG-.*num_gpus: 1"
UNKNOWN = (
    "The time of the trials on 1 {} is unknown. To measure the speed of a .*`isweep gpu-check`"
)
ON_MIG = UNKNOWN.format(MIG.name)
SITUATIONS = {
    "a: a desktop": Situation(
        node(RTX4090), "rtx4090", 23.6, r"left: about [\d.]+ h on 1 rtx4090 if trials share"
    ),
    "b: an A100": Situation(
        node(A100), "a100", 79.3, r"left: about [\d.]+ h on 1 a100 if trials share"
    ),
    "c: eight H100s": Situation(
        node(*[H100] * 8), "h100", 79.2, r"left: about [\d.]+ \w+ on 8 h100s if trials share"
    ),
    "d: a T4": Situation(node(T4), "t4", 14.6, NO_BFLOAT16.format("1 t4"), ON_T4),
    "e: a slice": Situation(node(MIG, visible="MIG-1"), MIG.name, 9.5, ON_MIG, "", False, "MIG-1"),
    "e: MIG, no slice named": Situation(node(MIG), MIG.name, 9.5, ON_MIG, SLICES, False),
    "f: two kinds": Situation(node(A100, T4), "t4", 14.6, NO_BFLOAT16.format("2 t4s"), ON_T4),
    "f: the larger is old": Situation(
        node(A10G, TURING), "a10g", 22.5, NO_BFLOAT16.format("2 a10gs"), "the NVIDIA TITAN RTX of"
    ),
    "unknown": Situation(node(ADA), ADA.name, 47.4, UNKNOWN.format(ADA.name)),
    "unknown and old": Situation(
        node(TURING),
        TURING.name,
        23.5,
        NO_BFLOAT16.format(f"1 {TURING.name}"),
        "the NVIDIA TITAN RTX of",
    ),
}
"""Situations by name; of two GPU models the smaller decides."""


# Of 23.6 GiB, other processes use 3.1 GiB in the first failure and 0.2 GiB in the second.
MEMORY_USED_BY_OTHERS, MEMORY_USED_BY_TRIAL = (
    classify(torch.OutOfMemoryError("CUDA out of memory.")).model_copy(
        update={"held_by_others": used_gib / 23.6}
    )
    for used_gib in (3.1, 0.2)
)


@pytest.fixture(scope="module")
def plan():
    return plan_sweep(load_sweep("paper"))


@pytest.fixture(scope="module")
def trials(plan):
    return {trial.network.model.name: trial for trial in plan.trials}


def with_float32(trials):
    changed = []
    for trial in trials:
        recipe = trial.network.recipe.model_copy(update={"precision": "float32"})
        network = trial.network.model_copy(update={"recipe": recipe})
        changed.append(trial.model_copy(update={"network": network}))
    return changed


@pytest.mark.parametrize("name", SITUATIONS)
def test_the_plan_of_each_situation(plan, tmp_path, monkeypatch, name):
    """The GPUs are described by nvidia-smi, and by PyTorch if the model is unknown."""
    situation = SITUATIONS[name]
    rows = [
        f"{gpu.name.partition(' MIG')[0]}, {gpu.uuid}, {gpu.memory_bytes // 2**20}, "
        + ("Enabled" if gpu.mig else "[N/A]")
        for gpu in situation.node.gpus
    ]
    simulate_nvidia_smi(tmp_path, monkeypatch, rows)
    monkeypatch.setattr(torch_gpus, "describe", lambda visible: situation.node)
    if situation.visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", situation.visible)
    model, number = weakest_gpu_model(())
    assert (model.name, number) == (situation.model, len(situation.node.gpus))
    text = estimate(plan.trials, (), gpu=model, num_gpus=number)["text"]
    assert re.search(situation.plan, text)


@pytest.mark.parametrize("name", SITUATIONS)
def test_the_refusal_of_each_situation_before_anything_starts(plan, name):
    gpu_node = SITUATIONS[name].node
    message = SITUATIONS[name].refused
    with pytest.raises(SweepError, match=message) if message else nullcontext():
        check_gpus_fit([gpu_node], plan.trials, share=1.0, alone=True)
    if message != SLICES:
        check_gpus_fit([gpu_node], with_float32(plan.trials), share=1.0, alone=True)


def test_a_search_refuses_a_gpu_before_it_prepares_anything(tmp_path, monkeypatch):
    monkeypatch.setattr("orchestrator.running.stages.gpus_here", lambda: [T4])
    monkeypatch.setattr("orchestrator.running.stages.describe_gpus", lambda *_, **__: [node(T4)])
    with pytest.raises(SweepError, match=ON_T4):
        tune_sweep("demo", RunOptions(root=str(tmp_path)), changes={"recipe": "paper"})
    assert not [*tmp_path.rglob("prepared/*")]


@pytest.mark.parametrize(
    ("gpu_node", "share", "message"),
    [
        (
            node(driver="550.54", num_ray_gpus=8.0),
            1.0,
            r"Ray offers 8 GPUs, but torch 2\.13\.0, built for CUDA 13\.0, can use 0 with the NVID"
            r"IA driver 550\.54\. Install a driver of branch 580 or later for CUDA 13\.0",
        ),
        (
            node(replace(A100, compute_mode="Exclusive_Process")),
            0.5,
            r"has the compute mode Exclusive_Process, so only one trial can use this GPU at a time, "
            r"but each trial requests only 0\.5 GPU",
        ),
        (node(replace(A100, compute_mode="Prohibited")), 1.0, "the compute mode Prohibited"),
        (
            node(MIG, visible="0"),
            1.0,
            "divided into slices .* List the slices with `nvidia-smi -L`",
        ),
        (
            node(MIG, visible="0", slices=("MIG-1", "MIG-2", "GPU-2")),
            1.0,
            r"type `export CUDA_VISIBLE_DEVICES=MIG-1,MIG-2,GPU-2`\. .*`--num-gpus=3` to "
            "`ray start`. In the sweep file, set `resources.num_gpus: 1`",
        ),
        (
            node(replace(RTX4090, held_bytes=20 * GIB), is_wsl=True),
            1.0,
            r"Close programs in Windows that use the GPU\. .* `Dedicated GPU memory`\. To run ",
        ),
        (
            node(driver="551.23", is_wsl=True, num_ray_gpus=1.0),
            1.0,
            r"branch 580 or later .* install the driver in Windows, and do not install one in Linux",
        ),
        (
            node(replace(A100, held_bytes=75 * GIB)),
            1.0,
            r"GPU-a100: other processes use 75\.0 of 79\.3 GiB, but the largest trial needs up to "
            r"6\.\d GiB",
        ),
        (
            node(MIG, replace(MIG, uuid="MIG-2", held_bytes=4 * GIB), visible="MIG-1,MIG-2"),
            1.0,
            "MIG-2: other processes use",
        ),
        (
            node(MIG, visible="MIG-1,MIG-gone", num_ray_gpus=2.0),
            1.0,
            "offers 2 GPUs, .* can use 1 with .* CUDA_VISIBLE_DEVICES=MIG-1",
        ),
        (
            node(replace(A100, has_kernels=False)),
            1.0,
            r"has the compute capability 8\.0, which torch 2\.13\.0 does not support",
        ),
        (
            node(replace(A100, capability=12.0, has_kernels=False)),
            1.0,
            r"12\.0, which torch 2\.13\.0 does not support\. Install the newest torch \(`pip "
            r"uninstall --yes torch torchvision && pip install torch torchvision`\)\. To run on CPUs",
        ),
        (
            node(replace(A100, capability=7.0, has_kernels=False)),
            1.0,
            r"does not support\. Install torch 2\.14 or earlier from PyTorch's cu126 wheels \(`pip "
            r"uninstall .* --index-url https:\S+/whl/cu126`\)\. To run on CPUs",
        ),
        (
            node(replace(A100, capability=3.7, has_kernels=False)),
            1.0,
            r"3\.7, which torch 2\.13\.0 does not support\. Use a newer GPU\. To run on CPUs",
        ),
    ],
)
def test_an_unusable_gpu_is_refused_with_a_hint(plan, gpu_node, share, message):
    with pytest.raises(SetupError, match=message):
        check_gpus_fit([gpu_node], plan.trials, share=share, alone=True)


@pytest.mark.parametrize(
    ("gpu_node", "share", "alone"),
    [
        (node(replace(A100, compute_mode="Exclusive_Process")), 1.0, True),
        (node(replace(A100, compute_mode="Exclusive_Process"), mps=True), 0.5, True),
        # The memory may belong to other trials on a shared cluster.
        (node(replace(A100, held_bytes=75 * GIB)), 1.0, False),
        (node(replace(A100, held_bytes=70 * GIB)), 1.0, True),
        # A desktop with two 4K screens, a browser and Windows.
        (node(replace(RTX4090, held_bytes=4 * GIB)), 1.0, True),
        (node(A100, MIG, visible="GPU-a100,MIG-1"), 1.0, True),
    ],
)
def test_a_gpu_with_memory_for_the_largest_trial_is_allowed(plan, gpu_node, share, alone):
    check_gpus_fit([gpu_node], plan.trials, share=share, alone=alone)


def test_on_a_gpu_too_small_for_the_largest_trial_others_may_use_only_a_tenth(plan):
    """The trial may fit with plain steps or smaller batches, so only others are refused."""
    small = Gpu("NVIDIA GeForce GTX 1660", "GPU-small", 5 * GIB, capability=8.0)
    check_gpus_fit([node(replace(small, held_bytes=GIB // 4))], plan.trials, share=1.0, alone=True)
    with pytest.raises(SetupError, match=r"other processes use 1\.0 of 5\.0 GiB"):
        check_gpus_fit([node(replace(small, held_bytes=GIB))], plan.trials, share=1.0, alone=True)


GTX1050 = Gpu("NVIDIA GeForce GTX 1050", "GPU-1050", 2 * GIB, capability=6.1, has_kernels=False)


FULL = replace(RTX4090, uuid="GPU-full", held_bytes=23 * GIB)


@pytest.mark.parametrize("unusable_gpu", [GTX1050, FULL])
def test_the_hint_hides_an_unusable_gpu_by_naming_the_others(plan, unusable_gpu):
    hint = "hide this GPU with CUDA_VISIBLE_DEVICES=GPU-4090,GPU-a10g"
    with pytest.raises(SetupError, match=hint):
        check_gpus_fit([node(RTX4090, unusable_gpu, A10G)], plan.trials, share=1.0, alone=True)


def test_the_hint_names_no_gpu_that_would_be_refused_itself(plan):
    prohibited = replace(H100, compute_mode="Prohibited")
    with pytest.raises(SetupError) as error:
        check_gpus_fit(
            [node(RTX4090, GTX1050, FULL, A10G, prohibited)], plan.trials, share=1.0, alone=True
        )
    assert error.value.hint.count("CUDA_VISIBLE_DEVICES=GPU-4090,GPU-a10g.") == 3


def test_the_hint_hides_an_old_gpu_by_naming_the_new_one(plan):
    with pytest.raises(
        SweepError, match=r"hide the Tesla T4 with CUDA_VISIBLE_DEVICES=GPU-a100\.$"
    ):
        check_gpus_fit([node(T4, A100)], plan.trials, share=1.0, alone=True)


@pytest.mark.parametrize("name", SITUATIONS)
@pytest.mark.parametrize("mps", [False, True])
def test_a_gpu_is_shared_only_if_sharing_is_known_to_be_faster(plan, trials, name, mps):
    situation = SITUATIONS[name]
    runtimes = runtime_model_for([replace(situation.node, mps=mps)], plan.sweep.resources, ())
    gpu = runtimes.gpu
    assert (gpu.name, gpu.timed) == (situation.model, situation.model in GPU_MODELS)
    assert gpu.memory_gib == pytest.approx(situation.memory_gib, abs=0.01)
    policy = ResourcePolicy(Resources(1, 1.0), runtimes)
    memory = situation.memory_gib * GIB
    for trial in trials.values():
        share = policy.start_attempt(trial).num_gpus
        if mps and situation.shares:
            assert share * memory >= min(peak_bytes(trial.network), memory)
        else:
            assert share == 1.0


def test_an_unknown_gpu_has_the_rates_of_its_capability_and_processors(trials):
    """Of two GPUs with equal memory, fewer trials occupy the one with fewer processors."""
    half_of_processors = replace(ADA, processors=71).model()
    assert (half_of_processors.half_tflops, half_of_processors.bandwidth) == pytest.approx(
        (165 * 71 / 128, 1008 * 71 / 128)
    )
    assert ADA.model().half_tflops == pytest.approx(2 * half_of_processors.half_tflops)
    for capability, known_name in (
        (8.6, "rtx3090"),
        (12.1, "rtx5090"),
        (10.3, "b200"),
        (6.1, "v100"),
    ):
        model = replace(ADA, capability=capability, processors=0).model()
        assert (model.half_tflops, model.timed) == (GPU_MODELS[known_name].half_tflops, False)
        assert model.bfloat16 is (capability >= 8)
    assert (
        need_of(trials["resnet50"], half_of_processors).share
        > need_of(trials["resnet50"], ADA.model()).share
    )


def test_with_two_sizes_of_slices_the_smaller_is_planned_and_none_is_shared(plan):
    large = replace(MIG, name=MIG.name.replace("1g.10gb", "3g.40gb"), memory_bytes=39 * GIB)
    gpu_node = node(large, MIG, visible="MIG-2,MIG-1", mps=True)
    check_gpus_fit([gpu_node], plan.trials, share=1.0, alone=True)
    runtimes = runtime_model_for([gpu_node], plan.sweep.resources, ())
    assert (runtimes.gpu.name, runtimes.gpu.memory_gib, runtimes.share) == (MIG.name, 9.5, 1.0)


def test_a_gpu_for_one_process_is_never_shared_whatever_was_measured_elsewhere(plan, tmp_path):
    summary = {"pair_gain": 1.3, "pair_gain_mps": 1.3, "row": None}
    record = {"gpu": A100.name, "parts": {"summary": {"values": summary}}}
    (tmp_path / "gpu-check-a100.json").write_text(json.dumps(record))
    for mode, mps, share in (
        ("Default", False, None),
        ("[N/A]", False, None),
        ("Exclusive_Process", False, 1.0),
        ("Exclusive_Process", True, None),
    ):
        gpu_node = node(replace(A100, compute_mode=mode), mps=mps)
        runtimes = runtime_model_for([gpu_node], plan.sweep.resources, (), [tmp_path])
        assert runtimes.share == share


@pytest.mark.parametrize(
    ("pair_gain", "requested", "before", "after"),
    [
        # Without a measurement, two trials of one GPU only compute in turn.
        (None, None, None, 1.0),
        (1.0, None, None, 1.0),
        (1.2, None, None, None),
        (1.0, 0.3, 0.3, 0.3),
    ],
)
def test_after_mps_has_ended_trials_share_a_gpu_only_if_sharing_pays_without_it(
    plan, tmp_path, pair_gain, requested, before, after
):
    summary = {"pair_gain": pair_gain, "pair_gain_mps": 1.3, "row": None}
    record = {"gpu": A100.name, "parts": {"summary": {"values": summary}}}
    (tmp_path / "gpu-check-a100.json").write_text(json.dumps(record))
    resources = plan.sweep.resources.model_copy(update={"num_gpus": requested})
    model = runtime_model_for([node(A100, mps=True)], resources, (), [tmp_path])
    assert (model.share, model.share_without_mps) == (before, after)


def test_measurements_decide_instead_of_mps_and_the_table_of_gpu_models():
    checks = {
        A100.name: {"pair_gain": 1.3, "row": {"compute_efficiency": 0.4}},
        T4.name: {"pair_gain_mps": 1.0},
    }
    assert packing_pays(A100.name, checks, mps=False)
    assert packing_pays(A100.name, checks, mps=True)  # not measured with MPS, so trials share
    assert not packing_pays(T4.name, checks, mps=True)
    assert not packing_pays("NVIDIA H100", checks, mps=False)
    model = A100.model(checks)
    assert (model.name, model.compute_efficiency) == ("a100", 0.4)
    assert model.memory_gib == pytest.approx(79.3)


def trials_of_model(plan, name):
    return [trial for trial in plan.trials if trial.network.model.name == name]


def policy_for(nodes, plan):
    runtimes = runtime_model_for(nodes, plan.sweep.resources, ())
    return ResourcePolicy(Resources(1, 1.0), runtimes)


def expected_attempts(share, batch, is_divided, is_small):
    """Return share and micro-batch of each attempt of a trial that always lacks memory.

    The share doubles up to a full GPU. Then the batch is halved down to two images, but never for
    a network with batch norm.
    """
    attempts = [(share, None)]
    while attempts[-1][0] < 1:
        attempts.append((min(1.0, 2 * attempts[-1][0]), None))
    if is_small:  # other processes use the memory: the trial waits
        attempts += [(1.0, None)] * 4
    attempts.append((1.0, None))  # with plain steps
    size = batch // 2
    while is_divided and size >= 2:
        attempts.append((1.0, size))
        size //= 2
    if is_divided and attempts[-1][1] not in (None, 2):
        attempts.append((1.0, 2))
    return attempts


@pytest.mark.parametrize("situation_name", SITUATIONS)
def test_out_of_memory_never_divides_the_batch_of_a_resnet_and_ends_with_a_hint(
    plan, trials, situation_name
):
    situation = SITUATIONS[situation_name]
    gpu_node = replace(situation.node, mps=True)
    policy = policy_for([gpu_node], plan)
    failure = classify(torch.OutOfMemoryError("CUDA out of memory."))
    for name, trial in trials.items():
        hint = ""
        attempts = []
        while not hint:
            request = policy.start_attempt(trial)
            attempts.append((request.num_gpus, request.micro_batch))
            hint = policy.failed(trial, failure).hint
        batch = trial.network.recipe.batch_size
        is_small = 2 * peak_bytes(trial.network) < situation.memory_gib * GIB
        first_share = attempts[0][0]
        assert attempts == expected_attempts(first_share, batch, name.startswith("vgg"), is_small)
        assert len(attempts) <= RETRY_POLICIES[failure.kind].num_retries + 1
        limit = "the memory of a whole GPU. Choose a larger GPU"
        if is_small:
            limit = "the GPU memory that other processes leave free"
        assert f"{name} at batch size {batch} needs more than {limit}" in hint
        assert ("micro_batches: on" in hint) is name.startswith("resnet")


def test_a_step_that_cannot_be_captured_is_retried_plainly_with_the_same_share(plan, trials):
    """After lack of memory in a capture, PyTorch raises another error at the end of the capture."""
    gpu_node = replace(SITUATIONS["b: an A100"].node, mps=True)
    policy = policy_for([gpu_node], plan)
    trial = trials["resnet18"]
    lack_of_memory = torch.OutOfMemoryError("CUDA out of memory.")
    before = policy.start_attempt(trial)
    for context, kind in ((None, "device_error"), (lack_of_memory, "out_of_memory")):
        end_error = torch.AcceleratorError(
            "CUDA error: operation failed due to a previous error during capture"
        )
        end_error.__context__ = context
        error = CaptureError(f"a step could not be captured: AcceleratorError: {end_error}")
        error.__cause__ = end_error
        failure = classify(error)
        assert (failure.kind, failure.ends_process, failure.capture_failed) == (kind, True, True)
        assert policy.failed(trial, classify(error)) == MAY_RETRY
        if context is None:
            assert policy.start_attempt(trial) == replace(before, fast="off")
            policy.networks_without_graphs.clear()
    # After lack of memory the trial gets more memory or waits, before its network loses its graphs.
    after = policy.start_attempt(trial)
    assert (after.num_gpus, after.fast) == (min(1.0, 2 * before.num_gpus), "auto")
    assert policy.start_attempt(trials["vgg16"]).fast == "auto"


NO_ENGINE = classify(RuntimeError("GET was unable to find an engine to execute this computation"))


def test_cudnn_without_an_engine_on_a_free_gpu_lacks_a_kernel_and_not_memory(plan, trials):
    policy = policy_for([node(H100)], plan)
    on_free_gpu = NO_ENGINE.model_copy(update={"held_by_others": 0.01})
    policy.start_attempt(trials["resnet50"])
    decision = policy.failed(trials["resnet50"], on_free_gpu)
    assert decision.is_final
    hint = decision.hint
    assert "cuDNN has no kernel for resnet50 at batch size 12 in bfloat16 on this GPU" in hint
    assert "Install another torch, choose another GPU" in hint


def test_a_missing_cudnn_kernel_ends_its_trial_at_the_first_attempt(plan, trials, monkeypatch):
    """The failure goes from the worker through its report to the decision of the driver."""
    monkeypatch.delenv(LOGICAL_GPUS, raising=False)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 5 * GIB)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (73 * GIB, 79 * GIB))
    error = RuntimeError("FIND was unable to find an engine to execute this computation")
    in_worker = TrialTrainable._failure(worker_with(1.0, has_run=True), error)
    failure = TrialFailure.model_validate_json(in_worker.model_dump_json())
    policy = policy_for([node(H100)], plan)
    trial = trials["resnet50"]
    policy.start_attempt(trial)
    verdict = policy.failed(trial, failure, H100.name)
    decision = Retries().failed(trial.trial_id, failure, is_final=verdict.is_final)
    assert decision.pause_s is None
    assert "cuDNN has no kernel for resnet50" in verdict.hint
    assert "memory than" not in verdict.hint


@pytest.mark.parametrize("held_by_others", [0.6, None])
def test_a_trial_without_a_cudnn_engine_waits_for_memory_of_other_processes(
    plan, trials, held_by_others
):
    policy = policy_for([node(H100)], plan)
    failure = NO_ENGINE.model_copy(update={"held_by_others": held_by_others})
    policy.start_attempt(trials["resnet50"])
    assert policy.failed(trials["resnet50"], failure) == MAY_RETRY


def test_a_trial_without_a_cudnn_engine_on_a_small_gpu_uses_plain_steps(plan, trials):
    small = Gpu("NVIDIA small", "GPU-small", 4 * GIB, capability=8.0)
    policy = policy_for([node(small)], plan)
    on_free_gpu = NO_ENGINE.model_copy(update={"held_by_others": 0.01})
    policy.start_attempt(trials["vgg19"])
    assert policy.failed(trials["vgg19"], on_free_gpu) == MAY_RETRY
    assert policy.start_attempt(trials["vgg19"]).fast == "off"


def test_lack_of_memory_on_a_small_gpu_changes_no_other_trial_of_its_network(plan):
    small = Gpu("NVIDIA small", "GPU-small", 4 * GIB, capability=8.0)
    nodes = [node(A100), node(small)]
    policy = ResourcePolicy(
        Resources(1, 1.0),
        runtime_model_for(nodes, plan.sweep.resources, ()),
        small_gpus=names_of_small_gpus(nodes),
    )
    first, second, third = trials_of_model(plan, "vgg19")[:3]
    policy.start_attempt(first)
    assert policy.failed(first, MEMORY_USED_BY_TRIAL, small.name) == MAY_RETRY
    assert policy.start_attempt(first).fast == "off"
    assert policy.start_attempt(second).fast == "auto"
    # The largest GPU of the cluster decides for all of them.
    assert policy.failed(second, MEMORY_USED_BY_TRIAL, A100.name) == MAY_RETRY
    assert policy.start_attempt(third).fast == "off"


def test_a_trial_that_no_setting_fits_into_a_small_gpu_is_retried_for_a_larger_one(plan):
    """A small second GPU once gave a trial up for which the larger GPU had room."""
    small = Gpu("NVIDIA small", "GPU-small", 4 * GIB, capability=8.0)
    nodes = [node(A100), node(small)]
    policy = ResourcePolicy(
        Resources(1, 1.0, micro_batch_policy="off"),
        runtime_model_for(nodes, plan.sweep.resources, ()),
        small_gpus=names_of_small_gpus(nodes),
    )
    trial = trials_of_model(plan, "vgg19")[0]
    retries = Retries()
    num_attempts = 0
    is_retried = True
    while is_retried:
        policy.start_attempt(trial)
        assert policy.failed(trial, MEMORY_USED_BY_TRIAL, small.name) == MAY_RETRY
        num_attempts += 1
        is_retried = retries.failed(trial.trial_id, MEMORY_USED_BY_TRIAL).pause_s is not None
    assert num_attempts == MAX_CRASHES_AND_MEMORY_FAILURES

    verdict = policy.failed(trial, MEMORY_USED_BY_TRIAL, A100.name)

    assert verdict.is_final
    assert "needs more than the memory of a whole GPU" in verdict.hint


def test_gpus_of_equal_memory_are_all_large():
    slower = replace(A100, name="NVIDIA slower", uuid="GPU-slower")
    assert names_of_small_gpus([node(A100, slower)]) == frozenset()
    assert names_of_small_gpus([node(A100), node(T4, RTX4090)]) == {T4.name, RTX4090.name}
    assert names_of_small_gpus([]) == frozenset()


def test_other_trials_of_a_network_get_at_once_what_one_needed(plan, trials):
    """If 486 VGGs each started with too little memory, so many failures in a row end a sweep."""
    policy = ResourcePolicy(Resources(1, 0.15), runtime_model_for([], plan.sweep.resources, ()))
    first, second, third = trials_of_model(plan, "vgg13")[:3]
    failure = classify(torch.OutOfMemoryError("CUDA out of memory."))
    assert policy.start_attempt(first).num_gpus == 0.15
    assert policy.start_attempt(second).num_gpus == 0.15
    assert policy.failed(first, failure) == MAY_RETRY
    assert policy.failed(second, failure) == MAY_RETRY
    for trial in (first, second, third):
        assert policy.start_attempt(trial).num_gpus == 0.3
    assert policy.start_attempt(trials["resnet18"]).num_gpus == 0.15
    assert policy.failed(third, failure) == MAY_RETRY
    assert policy.start_attempt(first).num_gpus == 0.6
    assert policy.start_attempt(second).num_gpus == 0.6
    capture_error = CaptureError("a step could not be captured: RuntimeError: .item()")
    policy.failed(second, classify(capture_error))
    assert policy.start_attempt(third).fast == "off"
    assert policy.start_attempt(trials["vgg16"]).fast == "auto"


@pytest.fixture
def full_gpu_policy(plan):
    return policy_for([node(RTX4090)], plan)


@pytest.mark.parametrize(
    ("model", "fast", "micro_batch"), [("resnet50", "off", None), ("vgg19", "off", 3)]
)
@pytest.mark.parametrize("stays", [True, False])
def test_a_small_process_of_others_costs_no_trial_and_changes_none_after_it(
    plan, full_gpu_policy, model, fast, micro_batch, stays
):
    """Such a process once cost 162 of 972 trials.

    Each trial waited for memory that it did not need with plain steps or smaller batches.
    """
    policy = full_gpu_policy
    trials = trials_of_model(plan, model)
    waiting = [*trials]
    num_attempts = Counter()
    retries = Retries()
    used_plain_steps = []  # one entry for each finished trial
    while waiting:
        trial = waiting.pop(0)
        request = policy.start_attempt(trial)
        is_running = stays or len(used_plain_steps) < 3
        num_attempts[trial.trial_id] += 1
        fits = request.fast == fast
        fits = fits and (micro_batch is None or request.micro_batch == micro_batch)
        if fits or not is_running:
            used_plain_steps.append(request.fast == "off")
            policy.finished(trial)
            retries.finished()
            continue
        assert policy.failed(trial, MEMORY_USED_BY_OTHERS) == MAY_RETRY
        assert retries.failed(trial.trial_id, MEMORY_USED_BY_OTHERS).pause_s is not None
        waiting.append(trial)
    assert len(used_plain_steps) == len(trials)
    assert max(num_attempts.values()) <= 9
    assert num_attempts.total() <= 2.5 * len(trials)
    # Trials that failed while the process ran, and one that came after.
    assert stays or sum(used_plain_steps) <= 8


def test_other_trials_change_only_after_a_failure_that_shows_the_size_of_the_network(
    plan, full_gpu_policy
):
    """A load that ended later must not change later trials.

    It once took their graphs, divided their batches, or ended them at their first failure.
    """
    small_gpu = replace(GPU_MODELS["rtx4090"], memory_gib=6.0)
    policy = replace(full_gpu_policy, runtime_model=RuntimeModel(small_gpu, share=1.0))
    first, second, third, *_, last = trials_of_model(plan, "vgg19")
    unknown_use = classify(torch.AcceleratorError("CUDA error: out of memory"))
    for trial in (first, second):
        assert policy.start_attempt(trial).fast == "auto"
        assert policy.failed(trial, unknown_use) == MAY_RETRY
    assert policy.start_attempt(second).fast == "off"
    assert policy.start_attempt(third).fast == "auto"
    assert policy.failed(third, MEMORY_USED_BY_TRIAL) == MAY_RETRY
    assert policy.start_attempt(third).fast == "off"
    resnet18 = trials_of_model(plan, "resnet18")[0]
    for _ in range(2):  # other processes may have ended before the measurement
        policy.start_attempt(resnet18)
        assert policy.failed(resnet18, MEMORY_USED_BY_TRIAL) == MAY_RETRY
    assert policy.start_attempt(resnet18).fast == "auto"
    assert policy.start_attempt(last).fast == "off"
    # The first trial started earlier, and finished with graphs.
    policy.finished(first)
    assert policy.start_attempt(last).fast == "auto"


def worker_with(num_gpus, *, has_run):
    """Return a simulated worker with a share of a GPU."""
    return SimpleNamespace(
        _has_finished_a_trial=has_run,
        assignment=SimpleNamespace(resources=Resources(1, num_gpus)),
        _gpu_uuid="GPU-1",
    )


def test_a_worker_reports_how_much_memory_other_processes_use(monkeypatch):
    worker = worker_with(1.0, has_run=True)
    worker_of_half_gpu = worker_with(0.5, has_run=True)
    monkeypatch.delenv(LOGICAL_GPUS, raising=False)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 8 * GIB)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (GIB, 24 * GIB))
    error = torch.OutOfMemoryError("CUDA out of memory.")
    failure = TrialTrainable._failure(worker, error)
    assert failure.held_by_others == pytest.approx(14.3 / 24)
    assert failure.message == "other processes use 14.3 of the GPU's 24.0 GiB: CUDA out of memory."
    failure = TrialTrainable._failure(worker_of_half_gpu, error)
    assert (failure.held_by_others, failure.message) == (None, "CUDA out of memory.")

    def fail():
        raise torch.AcceleratorError("CUDA error: out of memory")

    monkeypatch.setattr(torch.cuda, "mem_get_info", fail)
    assert trial_device.held_by_others() is None
    monkeypatch.setattr(torch.cuda, "memory_reserved", int)  # 0: even its context did not fit
    failure = TrialTrainable._failure(worker, torch.AcceleratorError("CUDA error: out of memory"))
    assert (failure.kind, failure.held_by_others) == ("out_of_memory", 1.0)
    assert (failure.ends_process, failure.gpu) == (True, "")
    assert failure.message.startswith("other processes use all memory of the GPU: CUDA error")


def test_the_time_limit_of_a_trial_depends_on_its_gpu(trials):
    """The time on a CPU core would give limits of days, and a lost GPU may give no error."""
    on_rtx4090 = RuntimeModel(GPU_MODELS["rtx4090"])
    for trial in trials.values():
        limit = time_limit(trial, (), on_rtx4090)
        assert limit == max(MIN_LIMIT_S, HANG_FACTOR * on_rtx4090.seconds(trial))
        assert limit < 4 * 3600
        assert time_limit(trial, (), RuntimeModel()) == HANG_FACTOR * core_seconds(trial)
        for gpu_node, num_gpus in (
            (node(RTX4090), 1.0),
            (node(ADA), None),
            (node(MIG, visible="MIG-1"), 1.0),
        ):
            runtimes = runtime_model_for([gpu_node], ResourceSpec(num_gpus=num_gpus), ())
            factor = HANG_FACTOR * (1 if runtimes.gpu.timed else UNTIMED_FACTOR)
            limit = time_limit(trial, (), runtimes)
            expected = max(MIN_LIMIT_S, factor * runtimes.seconds(trial))
            assert limit == pytest.approx(expected)
            assert limit < HANG_FACTOR * core_seconds(trial) / 8


def test_a_step_that_cannot_be_captured_does_not_count_against_its_gpu(monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail("rests"))
    error = CaptureError("a step could not be captured: AcceleratorError: operation not permitted")
    worker = worker_with(1.0, has_run=False)
    failure = TrialTrainable._failure(worker, error)
    TrialTrainable._delay_broken_node(worker, failure)
    assert (failure.kind, failure.ends_process) == ("device_error", True)
    assert (failure.gpu, failure.device_lost) == ("", False)


def test_a_field_names_a_lost_gpu_and_its_worker_waits_in_quarantine(monkeypatch):
    pauses = []
    monkeypatch.setattr("time.sleep", pauses.append)
    error = torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered")
    worker = worker_with(1.0, has_run=False)
    failure = TrialTrainable._failure(worker, error)
    TrialTrainable._delay_broken_node(worker, failure)
    assert failure.gpu == trial_device.gpu_and_node("GPU-1")
    assert (failure.device_lost, failure.ends_process) == (True, True)
    assert pauses == [trial_device.FIRST_QUARANTINE_S]


def test_the_gpu_share_of_a_sweep_file_is_used_unchanged():
    sweep = load_sweep(small_sweep("mine", resources={"num_gpus": 0.25, "fast": "off"}))
    assert (sweep.resources.fast, sweep.resources.micro_batches) == ("off", "auto")
    runtimes = runtime_model_for([node(A100)], sweep.resources, ())
    assert (runtimes.gpu.name, runtimes.share) == ("a100", 0.25)
    policy = ResourcePolicy(Resources(1, 0.25), runtimes)
    assert policy.request_with_mean_share(plan_sweep(sweep).trials).num_gpus == 0.25


def test_nodes_with_logical_gpus_are_left_out_of_the_description(monkeypatch):
    """The nodes report this themselves, so the command needs no option."""
    reports = {
        "tests packing": NodeGpus("tests packing", logical=True),
        "real": NodeGpus("real", (A100,)),
    }
    nodes = {name: {"Resources": {"GPU": 1.0}} for name in reports}
    monkeypatch.setattr("orchestrator.machine.gpu_problems.run_on_nodes", lambda *_: nodes)
    monkeypatch.setattr("ray.get", lambda name, timeout: reports[name])
    assert describe_gpus(2, is_private=False) == [replace(reports["real"], num_ray_gpus=1.0)]


def test_the_time_of_finished_trials_on_a_slice_corrects_others_on_the_same_slice(trials):
    trial = trials["vgg16"]
    model = MIG.model()
    seconds = 3 * need_of(trial, model, fixed_share=1.0).seconds
    measured = MeasuredTrial(trial, seconds=seconds, on_gpu=True, share=1.0, gpu=MIG.name)
    assert corrections_for(model, [measured]).seconds == {"vgg16": pytest.approx(3)}
    assert corrections_for(ADA.model(), [measured]).seconds == {}
