"""Six GPUs that a lab may have, from what is refused to what a trial asks for again: none of them
is here.

They are described as torch and nvidia-smi describe them; failures are the libraries' own
exceptions."""

import json
import re
from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch

from orchestrator.machine import gpus
from orchestrator.machine.cluster import Resources, RunOptions
from orchestrator.machine.gpu_problems import refuse, survey
from orchestrator.machine.gpus import Gpu, NodeGpus, gpu_models_here
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
from orchestrator.running import trial_device
from orchestrator.running.gpu_sharing import names_of_small_gpus, runtime_model_for
from orchestrator.running.recovery.failures import classify
from orchestrator.running.recovery.memory_verdicts import MAY_RETRY
from orchestrator.running.recovery.resource_policy import ResourcePolicy
from orchestrator.running.recovery.retries import BASE_RETRIES, Retries
from orchestrator.running.worker import TrialTrainable
from orchestrator.tuning.tune_sweep import tune_sweep
from search_spaces.errors import SetupError, SweepError
from search_spaces.sweeps import ResourceSpec
from tasks.trials.training import CaptureError
from tests.small_sweep import small_sweep
from tests.unit.orchestrator.machine.test_devices import nvidia_smi

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
    """What a lab has, and what becomes of the paper's grid there.

    Attributes:
        visible: what ``CUDA_VISIBLE_DEVICES`` says; None where it is not set.
        model: that is planned for, and its memory in GiB.
        plan: what ``isweep plan`` says of it.
        refused: what a run says before anything starts; empty where it runs.
        shares: whether trials share a GPU where MPS runs.
    """

    node: NodeGpus
    model: str
    memory_gib: float
    plan: str
    refused: str = ""
    shares: bool = True
    visible: str | None = None


NO_BFLOAT16 = (
    "left, which cannot run on {}: the recipe paper needs bfloat16, "
    ".* Add `--set recipe.precision=float32`"
)
ON_T4 = r"paper computes in bfloat16, but the Tesla T4 of node a .*7\.5.*precision=float32`, or ano"
SLICES = r"divided into slices \(MIG\).*CUDA_VISIBLE_DEVICES=MIG-.*num_gpus: 1"
UNKNOWN = "On 1 {}, the time is unknown. Run `isweep gpu-check` on a GPU of this kind to measure it"
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
"""The smaller one of two kinds decides."""


OTHERS, MINE = (
    classify(torch.OutOfMemoryError("CUDA out of memory.")).model_copy(
        update={"held_by_others": held_gib / 23.6}
    )
    for held_gib in (3.1, 0.2)
)


@pytest.fixture(scope="module")
def plan():
    return plan_sweep(load_sweep("paper"))


@pytest.fixture(scope="module")
def trials(plan):
    return {trial.network.model.name: trial for trial in plan.trials}


def float32(trials):
    for trial in trials:
        recipe = trial.network.recipe.model_copy(update={"precision": "float32"})
        yield trial.model_copy(
            update={"network": trial.network.model_copy(update={"recipe": recipe})}
        )


@pytest.mark.parametrize("where", SITUATIONS)
def test_what_a_plan_says(plan, tmp_path, monkeypatch, where):
    """Of what nvidia-smi and, of GPUs that are not known by their name, torch say there."""
    situation = SITUATIONS[where]
    rows = [
        f"{gpu.name.partition(' MIG')[0]}, {gpu.uuid}, {gpu.memory_bytes // 2**20}, "
        + ("Enabled" if gpu.mig else "[N/A]")
        for gpu in situation.node.gpus
    ]
    nvidia_smi(tmp_path, monkeypatch, rows)
    monkeypatch.setattr(gpus, "describe", lambda visible: situation.node)
    if situation.visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", situation.visible)
    model, number = gpu_models_here(())
    assert (model.name, number) == (situation.model, len(situation.node.gpus))
    assert re.search(situation.plan, estimate(plan.trials, (), gpu=model, num_gpus=number)["text"])


@pytest.mark.parametrize("where", SITUATIONS)
def test_what_is_refused_before_anything_starts(plan, where):
    there, words = SITUATIONS[where].node, SITUATIONS[where].refused
    with pytest.raises(SweepError, match=words) if words else nullcontext():
        refuse([there], plan.trials, share=1.0, alone=True)
    if words != SLICES:
        refuse([there], [*float32(plan.trials)], share=1.0, alone=True)


def test_a_search_refuses_a_gpu_before_it_prepares_anything(tmp_path, monkeypatch):
    monkeypatch.setattr("orchestrator.running.stages.gpus_here", lambda: [T4])
    monkeypatch.setattr("orchestrator.running.stages.survey", lambda *_, **__: [node(T4)])
    with pytest.raises(SweepError, match=ON_T4):
        tune_sweep("demo", RunOptions(root=str(tmp_path)), changes={"recipe": "paper"})
    assert not [*tmp_path.rglob("prepared/*")]


@pytest.mark.parametrize(
    ("there", "share", "words"),
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
            r"the compute mode Exclusive_Process, so trials cannot share this GPU, but each trial requests only 0\.5 GPU",
        ),
        (node(replace(A100, compute_mode="Prohibited")), 1.0, "the compute mode Prohibited"),
        (node(MIG, visible="0"), 1.0, "divided into slices"),
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
            r"12\.0, which torch 2\.13\.0 does not support\. Install the newest torch, or hide",
        ),
        (
            node(replace(A100, capability=7.0, has_kernels=False)),
            1.0,
            r"does not support\. Install torch 2\.14 or earlier from PyTorch's cu126 wheels, or hide",
        ),
        (
            node(replace(A100, capability=3.7, has_kernels=False)),
            1.0,
            r"3\.7, which torch 2\.13\.0 does not support\. Use a newer GPU, or hide",
        ),
    ],
)
def test_what_stands_in_the_way_is_refused_with_the_hint(plan, there, share, words):
    with pytest.raises(SetupError, match=words):
        refuse([there], plan.trials, share=share, alone=True)


@pytest.mark.parametrize(
    ("there", "share", "alone"),
    [
        (node(replace(A100, compute_mode="Exclusive_Process")), 1.0, True),
        (node(replace(A100, compute_mode="Exclusive_Process"), mps=True), 0.5, True),
        # Other trials of ours, on a shared cluster.
        (node(replace(A100, held_bytes=75 * GIB)), 1.0, False),
        (node(replace(A100, held_bytes=70 * GIB)), 1.0, True),
        # A desk: two 4K screens, a browser and Windows.
        (node(replace(RTX4090, held_bytes=4 * GIB)), 1.0, True),
        (node(A100, MIG, visible="GPU-a100,MIG-1"), 1.0, True),
    ],
)
def test_what_has_room_for_the_largest_trial_is_allowed(plan, there, share, alone):
    refuse([there], plan.trials, share=share, alone=alone)


def test_on_a_gpu_too_small_for_the_largest_trial_only_a_tenth_is_left_to_others(plan):
    """Plain steps and smaller batches may fit; others are not to blame for what they hold not."""
    small = Gpu("NVIDIA GeForce GTX 1660", "GPU-small", 5 * GIB, capability=8.0)
    refuse([node(replace(small, held_bytes=GIB // 4))], plan.trials, share=1.0, alone=True)
    with pytest.raises(SetupError, match=r"other processes use 1\.0 of 5\.0 GiB"):
        refuse([node(replace(small, held_bytes=GIB))], plan.trials, share=1.0, alone=True)


GTX1050 = Gpu("NVIDIA GeForce GTX 1050", "GPU-1050", 2 * GIB, capability=6.1, has_kernels=False)


@pytest.mark.parametrize("card", [GTX1050, replace(RTX4090, uuid="GPU-full", held_bytes=23 * GIB)])
def test_a_second_card_that_stands_in_the_way_may_be_hidden_by_the_others_uuids(plan, card):
    hint = "hide this GPU with CUDA_VISIBLE_DEVICES=GPU-4090,GPU-a10g"
    with pytest.raises(SetupError, match=hint):
        refuse([node(RTX4090, card, A10G)], plan.trials, share=1.0, alone=True)


def test_an_old_card_beside_a_new_one_may_be_hidden_by_the_others_uuid(plan):
    with pytest.raises(SweepError, match=r"hide this GPU with CUDA_VISIBLE_DEVICES=GPU-a100\.$"):
        refuse([node(T4, A100)], plan.trials, share=1.0, alone=True)


@pytest.mark.parametrize("where", SITUATIONS)
@pytest.mark.parametrize("mps", [False, True])
def test_a_gpu_is_shared_only_where_that_is_known_to_pay(plan, trials, where, mps):
    situation = SITUATIONS[where]
    expectation = runtime_model_for([replace(situation.node, mps=mps)], plan.sweep.resources, ())
    known = expectation.gpu
    assert (known.name, known.timed) == (situation.model, situation.model in GPU_MODELS)
    assert known.memory_gib == pytest.approx(situation.memory_gib, abs=0.01)
    requests = ResourcePolicy(Resources(1, 1.0), expectation)
    for trial in trials.values():
        share, memory = requests.start_attempt(trial).num_gpus, situation.memory_gib * GIB
        if mps and situation.shares:
            assert share * memory >= min(peak_bytes(trial.network), memory)
        else:
            assert share == 1.0


def test_an_unknown_gpu_has_the_rates_of_its_capability_and_processors(trials):
    """Of two with as much memory the one with fewer processors is kept busy by fewer trials."""
    half = replace(ADA, processors=71).model()
    assert (half.half_tflops, half.bandwidth) == pytest.approx((165 * 71 / 128, 1008 * 71 / 128))
    assert ADA.model().half_tflops == pytest.approx(2 * half.half_tflops)
    for capability, like in ((8.6, "rtx3090"), (12.1, "rtx5090"), (10.3, "b200"), (6.1, "v100")):
        found = replace(ADA, capability=capability, processors=0).model()
        assert (found.half_tflops, found.timed) == (GPU_MODELS[like].half_tflops, False)
        assert found.bfloat16 is (capability >= 8)
    assert need_of(trials["resnet50"], half).share > need_of(trials["resnet50"], ADA.model()).share


def test_of_two_sizes_of_slice_the_smaller_is_expected_and_none_is_shared(plan):
    large = replace(MIG, name=MIG.name.replace("1g.10gb", "3g.40gb"), memory_bytes=39 * GIB)
    there = node(large, MIG, visible="MIG-2,MIG-1", mps=True)
    refuse([there], plan.trials, share=1.0, alone=True)
    found = runtime_model_for([there], plan.sweep.resources, ())
    assert (found.gpu.name, found.gpu.memory_gib, found.share) == (MIG.name, 9.5, 1.0)


def test_no_gpu_that_takes_one_process_is_shared_whatever_was_measured_elsewhere(plan, tmp_path):
    summary = {"pair_gain": 1.3, "pair_gain_mps": 1.3, "row": None}
    record = {"gpu": A100.name, "parts": {"summary": {"values": summary}}}
    (tmp_path / "gpu-check-a100.json").write_text(json.dumps(record))
    for mode, mps, share in (
        ("Default", False, None),
        ("[N/A]", False, None),
        ("Exclusive_Process", False, 1.0),
        ("Exclusive_Process", True, None),
    ):
        there = node(replace(A100, compute_mode=mode), mps=mps)
        assert runtime_model_for([there], plan.sweep.resources, (), [tmp_path]).share == share


def test_a_measured_pair_decides_over_mps_and_what_was_measured_over_the_table():
    checks = {
        A100.name: {"pair_gain": 1.3, "row": {"compute_efficiency": 0.4}},
        T4.name: {"pair_gain_mps": 1.0},
    }
    assert packing_pays(A100.name, checks, mps=False)
    assert packing_pays(A100.name, checks, mps=True)  # never measured under MPS, which shares
    assert not packing_pays(T4.name, checks, mps=True)
    assert not packing_pays("NVIDIA H100", checks, mps=False)
    found = A100.model(checks)
    assert (found.name, found.compute_efficiency) == ("a100", 0.4)
    assert found.memory_gib == pytest.approx(79.3)


def attempts(share, batch, is_cut, is_small):
    """Twice the share up to a whole GPU, then, without batch norm, half of the batch down to two
    images."""
    found = [(share, None)]
    while found[-1][0] < 1:
        found.append((min(1.0, 2 * found[-1][0]), None))
    if is_small:  # others hold the memory: it waits
        found += [(1.0, None)] * 4
    found.append((1.0, None))  # by plain steps
    size = batch // 2
    while is_cut and size >= 2:
        found.append((1.0, size))
        size //= 2
    if is_cut and found[-1][1] not in (None, 2):
        found.append((1.0, 2))
    return found


@pytest.mark.parametrize("where", SITUATIONS)
def test_out_of_memory_never_cuts_the_batch_of_a_resnet_and_ends_in_words(plan, trials, where):
    there = replace(SITUATIONS[where].node, mps=True)
    requests = ResourcePolicy(
        Resources(1, 1.0), runtime_model_for([there], plan.sweep.resources, ())
    )
    failure = classify(torch.OutOfMemoryError("CUDA out of memory."))
    for name, trial in trials.items():
        said, seen = "", []
        while not said:
            request = requests.start_attempt(trial)
            seen.append((request.num_gpus, request.micro_batch))
            said = requests.failed(trial, failure).hint
        batch = trial.network.recipe.batch_size
        is_small = 2 * peak_bytes(trial.network) < SITUATIONS[where].memory_gib * GIB
        assert seen == attempts(seen[0][0], batch, name.startswith("vgg"), is_small)
        assert len(seen) <= BASE_RETRIES[failure.kind] + 1
        there = "other processes leave" if is_small else "a whole GPU has. Choose a larger GPU"
        assert f"{name} at batch size {batch} needs more memory than {there}" in said
        assert ("micro_batches: on" in said) is name.startswith("resnet")


def test_a_step_that_cannot_be_captured_is_tried_again_plainly_with_the_same_share(plan, trials):
    """As PyTorch tells it: ending a capture in which memory ran out raises an error of its own."""
    there = replace(SITUATIONS["b: an A100"].node, mps=True)
    requests = ResourcePolicy(
        Resources(1, 1.0), runtime_model_for([there], plan.sweep.resources, ())
    )
    trial, memory = trials["resnet18"], torch.OutOfMemoryError("CUDA out of memory.")
    before = requests.start_attempt(trial)
    for context, kind in ((None, "device_error"), (memory, "out_of_memory")):
        ended = torch.AcceleratorError(
            "CUDA error: operation failed due to a previous error during capture"
        )
        ended.__context__ = context
        error = CaptureError(f"a step could not be captured: AcceleratorError: {ended}")
        error.__cause__ = ended
        failure = classify(error)
        assert (failure.kind, failure.ends_process, failure.capture_failed) == (kind, True, True)
        assert requests.failed(trial, classify(error)) == MAY_RETRY
        if context is None:
            assert requests.start_attempt(trial) == replace(before, fast="off")
            requests.without_graphs.clear()
    # Where memory ran out it gets more, or waits for what others hold, before its network loses its
    # graphs.
    after = requests.start_attempt(trial)
    assert (after.num_gpus, after.fast) == (min(1.0, 2 * before.num_gpus), "auto")
    assert requests.start_attempt(trials["vgg16"]).fast == "auto"


NO_ENGINE = classify(RuntimeError("GET was unable to find an engine to execute this computation"))


def test_cudnn_without_an_engine_on_a_free_gpu_lacks_a_kernel_and_not_memory(plan, trials):
    requests = ResourcePolicy(
        Resources(1, 1.0), runtime_model_for([node(H100)], plan.sweep.resources, ())
    )
    nobody_else = NO_ENGINE.model_copy(update={"held_by_others": 0.01})
    verdict = requests.failed(trials["resnet50"], nobody_else)
    assert verdict.is_final
    hint = verdict.hint
    assert "cuDNN has no kernel for resnet50 at batch size 12 in bfloat16 on this GPU" in hint
    assert "Install another torch, choose another GPU" in hint


def test_a_missing_cudnn_kernel_ends_its_trial_at_the_first_attempt(plan, trials, monkeypatch):
    """From the exception in the worker, over the report to the driver, to the decision."""
    monkeypatch.delenv(gpus.LOGICAL_GPUS, raising=False)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 5 * GIB)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (73 * GIB, 79 * GIB))
    error = RuntimeError("FIND was unable to find an engine to execute this computation")
    in_worker = TrialTrainable._failure(worker_with(1.0, has_run=True), error)
    failure = TrialFailure.model_validate_json(in_worker.model_dump_json())
    policy = ResourcePolicy(
        Resources(1, 1.0), runtime_model_for([node(H100)], plan.sweep.resources, ())
    )
    trial = trials["resnet50"]
    policy.start_attempt(trial)
    verdict = policy.failed(trial, failure, H100.name)
    decision = Retries().failed(trial.trial_id, failure, is_final=verdict.is_final)
    assert decision.pause_s is None
    assert "cuDNN has no kernel for resnet50" in verdict.hint
    assert "memory than" not in verdict.hint


@pytest.mark.parametrize("held_by_others", [0.6, None])
def test_cudnn_without_an_engine_beside_other_processes_waits_for_memory(
    plan, trials, held_by_others
):
    requests = ResourcePolicy(
        Resources(1, 1.0), runtime_model_for([node(H100)], plan.sweep.resources, ())
    )
    failure = NO_ENGINE.model_copy(update={"held_by_others": held_by_others})
    assert requests.failed(trials["resnet50"], failure) == MAY_RETRY


def test_cudnn_without_an_engine_on_a_gpu_that_may_be_too_small_takes_plain_steps(plan, trials):
    small = Gpu("NVIDIA small", "GPU-small", 4 * GIB, capability=8.0)
    requests = ResourcePolicy(
        Resources(1, 1.0), runtime_model_for([node(small)], plan.sweep.resources, ())
    )
    nobody_else = NO_ENGINE.model_copy(update={"held_by_others": 0.01})
    assert requests.failed(trials["vgg19"], nobody_else) == MAY_RETRY
    assert requests.start_attempt(trials["vgg19"]).fast == "off"


def test_what_a_small_gpu_lacks_changes_no_other_trial_of_its_network(plan):
    small = Gpu("NVIDIA small", "GPU-small", 4 * GIB, capability=8.0)
    nodes = [node(A100), node(small)]
    requests = ResourcePolicy(
        Resources(1, 1.0),
        runtime_model_for(nodes, plan.sweep.resources, ()),
        small_gpus=names_of_small_gpus(nodes),
    )
    first, second, third = [cell for cell in plan.trials if cell.network.model.name == "vgg19"][:3]
    assert requests.failed(first, MINE, small.name) == MAY_RETRY
    assert requests.start_attempt(first).fast == "off"
    assert requests.start_attempt(second).fast == "auto"
    # The largest GPU of the cluster decides for all of them.
    assert requests.failed(second, MINE, A100.name) == MAY_RETRY
    assert requests.start_attempt(third).fast == "off"


def test_gpus_of_equal_memory_are_all_large():
    slower = replace(A100, name="NVIDIA slower", uuid="GPU-slower")
    assert names_of_small_gpus([node(A100, slower)]) == frozenset()
    assert names_of_small_gpus([node(A100), node(T4, RTX4090)]) == {T4.name, RTX4090.name}
    assert names_of_small_gpus([]) == frozenset()


def test_what_one_trial_of_a_network_needed_the_others_get_at_once(plan, trials):
    """486 VGGs that each begin with too little would end a sweep: that many failures in a row are
    in vain."""
    requests = ResourcePolicy(Resources(1, 0.15), runtime_model_for([], plan.sweep.resources, ()))
    first, second, third = [cell for cell in plan.trials if cell.network.model.name == "vgg13"][:3]
    failure = classify(torch.OutOfMemoryError("CUDA out of memory."))
    assert (requests.start_attempt(first).num_gpus, requests.start_attempt(second).num_gpus) == (
        0.15,
        0.15,
    )
    assert requests.failed(first, failure) == requests.failed(second, failure) == MAY_RETRY
    assert [requests.start_attempt(cell).num_gpus for cell in (first, second, third)] == [
        0.3,
        0.3,
        0.3,
    ]
    assert requests.start_attempt(trials["resnet18"]).num_gpus == 0.15
    assert requests.failed(third, failure) == MAY_RETRY
    assert requests.start_attempt(first).num_gpus == 0.6
    assert requests.failed(first, OTHERS) == MAY_RETRY
    assert (requests.start_attempt(first).num_gpus, requests.start_attempt(second).num_gpus) == (
        1.0,
        0.6,
    )
    requests.failed(
        second, classify(CaptureError("a step could not be captured: RuntimeError: .item()"))
    )
    assert (requests.start_attempt(third).fast, requests.start_attempt(trials["vgg16"]).fast) == (
        "off",
        "auto",
    )


@pytest.fixture
def whole(plan):
    return ResourcePolicy(
        Resources(1, 1.0), runtime_model_for([node(RTX4090)], plan.sweep.resources, ())
    )


@pytest.mark.parametrize(
    ("model", "fast", "parts"), [("resnet50", "off", None), ("vgg19", "off", 3)]
)
@pytest.mark.parametrize("lasts", [True, False])
def test_a_small_foreign_process_costs_no_cell_and_marks_none_after_it(
    plan, whole, model, fast, parts, lasts
):
    """It was 162 of 972 cells: each waited for room that plain steps, or parts, did not need."""
    cells = [cell for cell in plan.trials if cell.network.model.name == model]
    waiting, attempts, retries, less = [*cells], Counter(), Retries(), []
    while waiting:
        cell = waiting.pop(0)
        request, is_there = whole.start_attempt(cell), lasts or len(less) < 3
        attempts[cell.trial_id] += 1
        fits = request.fast == fast and (parts is None or request.micro_batch == parts)
        if fits or not is_there:
            less.append(request.fast == "off")
            whole.finished(cell)
            retries.finished()
            continue
        assert whole.failed(cell, OTHERS) == MAY_RETRY
        assert retries.failed(cell.trial_id, OTHERS).pause_s is not None
        waiting.append(cell)
    assert len(less) == len(cells)
    assert max(attempts.values()) <= 9
    assert attempts.total() <= 2.5 * len(cells)
    assert lasts or sum(less) <= 8  # those that failed meanwhile, and one that came after


def test_only_what_shows_a_network_s_own_size_is_learnt_for_its_other_cells(plan, whole):
    """A passing load took the later cells' graphs, or cut them, or ended them at their first
    failure."""
    first, second, third, *_ = (cell for cell in plan.trials if cell.network.model.name == "vgg19")
    untold = classify(torch.AcceleratorError("CUDA error: out of memory"))
    whole = replace(
        whole, runtime_model=RuntimeModel(replace(GPU_MODELS["rtx4090"], memory_gib=6.0), share=1.0)
    )
    for cell in (first, second):
        assert whole.start_attempt(cell).fast == "auto"
        assert whole.failed(cell, untold) == MAY_RETRY
    assert (whole.start_attempt(second).fast, whole.start_attempt(third).fast) == ("off", "auto")
    assert whole.failed(third, MINE) == MAY_RETRY
    assert whole.start_attempt(third).fast == "off"
    small = next(cell for cell in plan.trials if cell.network.model.name == "resnet18")
    for _ in range(2):  # others may have gone before it was asked
        whole.start_attempt(small)
        assert whole.failed(small, MINE) == MAY_RETRY
    assert whole.start_attempt(small).fast == "auto"
    fourth = next(cell for cell in reversed(plan.trials) if cell.network.model.name == "vgg19")
    assert whole.start_attempt(fourth).fast == "off"
    whole.trials[
        first.trial_id
    ].level_in_use = 0  # it began before, and came to its end with graphs
    whole.finished(first)
    assert whole.start_attempt(fourth).fast == "auto"


def worker_with(num_gpus, *, has_run):
    """A worker that had this share of a GPU."""
    return SimpleNamespace(
        _has_finished_a_trial=has_run,
        assignment=SimpleNamespace(resources=Resources(1, num_gpus)),
        _gpu_uuid="GPU-1",
    )


def test_a_process_asks_its_gpu_who_holds_the_memory_that_it_lacks(monkeypatch):
    worker, half = (worker_with(num_gpus, has_run=True) for num_gpus in (1.0, 0.5))
    monkeypatch.delenv(gpus.LOGICAL_GPUS, raising=False)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 8 * GIB)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (GIB, 24 * GIB))
    error = torch.OutOfMemoryError("CUDA out of memory.")
    failure = TrialTrainable._failure(worker, error)
    assert failure.held_by_others == pytest.approx(14.3 / 24)
    assert failure.message == "other processes use 14.3 of the GPU's 24.0 GiB: CUDA out of memory."
    failure = TrialTrainable._failure(half, error)
    assert (failure.held_by_others, failure.message) == (None, "CUDA out of memory.")

    def fails():
        raise torch.AcceleratorError("CUDA error: out of memory")

    monkeypatch.setattr(torch.cuda, "mem_get_info", fails)
    assert trial_device.held_by_others() is None
    monkeypatch.setattr(torch.cuda, "memory_reserved", int)  # not even its context found room
    failure = TrialTrainable._failure(worker, torch.AcceleratorError("CUDA error: out of memory"))
    assert (failure.kind, failure.held_by_others) == ("out_of_memory", 1.0)
    assert (failure.ends_process, failure.gpu) == (True, "")
    assert failure.message.startswith("other processes use all memory of the GPU: CUDA error")


def test_a_trial_hangs_by_what_is_expected_of_the_gpu_that_it_has(trials):
    """Not by a core's hours, which are days: a GPU that is lost may say nothing at all."""
    known = RuntimeModel(GPU_MODELS["rtx4090"])
    for trial in trials.values():
        assert (
            time_limit(trial, (), known)
            == max(MIN_LIMIT_S, HANG_FACTOR * known.seconds(trial))
            < 4 * 3600
        )
        assert time_limit(trial, (), RuntimeModel()) == HANG_FACTOR * core_seconds(trial)
        for there, asked in (
            (node(RTX4090), 1.0),
            (node(ADA), None),
            (node(MIG, visible="MIG-1"), 1.0),
        ):
            its = runtime_model_for([there], ResourceSpec(num_gpus=asked), ())
            factor = HANG_FACTOR * (1 if its.gpu.timed else UNTIMED_FACTOR)
            assert time_limit(trial, (), its) == pytest.approx(
                max(MIN_LIMIT_S, factor * its.seconds(trial))
            )
            assert time_limit(trial, (), its) < HANG_FACTOR * core_seconds(trial) / 8


def test_a_step_that_cannot_be_captured_is_no_fault_of_its_gpu(monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail("rests"))
    error = CaptureError("a step could not be captured: AcceleratorError: operation not permitted")
    failure = TrialTrainable._failure(worker_with(1.0, has_run=False), error)
    assert (failure.kind, failure.ends_process) == ("device_error", True)
    assert (failure.gpu, failure.device_lost) == ("", False)


def test_a_lost_gpu_is_named_by_a_field_and_its_worker_waits(monkeypatch):
    pauses = []
    monkeypatch.setattr("time.sleep", pauses.append)
    error = torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered")
    failure = TrialTrainable._failure(worker_with(1.0, has_run=False), error)
    assert failure.gpu == trial_device.gpu_and_node("GPU-1")
    assert (failure.device_lost, failure.ends_process) == (True, True)
    assert pauses == [trial_device.FIRST_QUARANTINE_S]


def test_a_sweep_s_own_share_is_taken_as_it_is():
    sweep = load_sweep(small_sweep("mine", resources={"num_gpus": 0.25, "fast": "off"}))
    assert (sweep.resources.fast, sweep.resources.micro_batches) == ("off", "auto")
    found = runtime_model_for([node(A100)], sweep.resources, ())
    assert (found.gpu.name, found.share) == ("a100", 0.25)
    assert (
        ResourcePolicy(Resources(1, 0.25), found).mean_request(plan_sweep(sweep).trials).num_gpus
        == 0.25
    )


def test_a_driver_leaves_nodes_out_whose_gpus_are_for_scheduling_only(monkeypatch):
    """They say so themselves: whoever types the command need not."""
    said = {
        "tests packing": NodeGpus("tests packing", logical=True),
        "real": NodeGpus("real", (A100,)),
    }
    nodes = {name: {"Resources": {"GPU": 1.0}} for name in said}
    monkeypatch.setattr("orchestrator.machine.gpu_problems.ask_nodes", lambda *_: nodes)
    monkeypatch.setattr("ray.get", lambda name, timeout: said[name])
    assert survey(2, local=False) == [replace(said["real"], num_ray_gpus=1.0)]


def test_what_finished_trials_took_on_a_slice_corrects_the_others_there(trials):
    trial, model = trials["vgg16"], MIG.model()
    seconds = 3 * need_of(trial, model, given=1.0).seconds
    measured = MeasuredTrial(trial, seconds=seconds, on_gpu=True, share=1.0, gpu=MIG.name)
    assert corrections_for(model, [measured]).seconds == {"vgg16": pytest.approx(3)}
    assert corrections_for(ADA.model(), [measured]).seconds == {}
