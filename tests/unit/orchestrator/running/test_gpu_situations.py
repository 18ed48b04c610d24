"""Six GPUs that a lab may have, from what is refused to what a trial asks for again: none of them is here.

They are described as torch and nvidia-smi describe them; failures are the libraries' own exceptions.
"""

from dataclasses import replace

import pytest
import torch

from orchestrator.planning.plan import plan_sweep
from orchestrator.planning.predict import card_there, packing_pays, peak_bytes
from orchestrator.planning.sweep_file import load_sweep, parse_sweep
from orchestrator.running.cluster import Resources
from orchestrator.running.failures import classify
from orchestrator.running.gpus import Gpu, NodeGpus, refuse
from orchestrator.running.requests import Requests, expected
from search_spaces.errors import ConfigError, SetupError

GIB = 2**30
RTX4090 = Gpu("NVIDIA GeForce RTX 4090", "GPU-4090", int(23.6 * GIB), capability=(8, 9))
A100 = Gpu("NVIDIA A100-SXM4-80GB", "GPU-a100", int(79.3 * GIB), capability=(8, 0))
H100 = Gpu("NVIDIA H100 80GB HBM3", "GPU-h100", int(79.2 * GIB), capability=(9, 0))
T4 = Gpu("Tesla T4", "GPU-t4", int(14.6 * GIB), capability=(7, 5))
MIG = Gpu("NVIDIA A100-SXM4-80GB MIG 1g.10gb", "GPU-a100", int(9.5 * GIB), mig=True)


def node(*gpus, **changes):
    fields = {"driver": "580.65", "torch": "2.13.0", "cuda": "13.0", "offered": float(len(gpus))}
    return NodeGpus("a", gpus, **(fields | changes))


SITUATIONS = {
    "a: a desktop": node(RTX4090),
    "b: an A100": node(A100),
    "c: eight H100s": node(*[replace(H100, uuid=f"GPU-{n}") for n in range(8)]),
    "d: a T4": node(T4),
    "e: MIG": node(MIG, visible="MIG-1"),
    "f: two kinds": node(A100, T4),
}


@pytest.fixture(scope="module")
def plan():
    return plan_sweep(load_sweep("paper"))


@pytest.fixture(scope="module")
def trials(plan):
    return {trial.network.model.name: trial for trial in plan.trials}


def float32(trials):
    return [
        trial.model_copy(
            update={
                "network": trial.network.model_copy(
                    update={"recipe": trial.network.recipe.model_copy(update={"precision": "float32"})}
                )
            }
        )
        for trial in trials
    ]


@pytest.mark.parametrize("where", SITUATIONS)
def test_bfloat16_is_refused_where_a_gpu_has_none_and_nothing_else(plan, where):
    there = SITUATIONS[where]
    if any(gpu.capability < (8, 0) for gpu in there.gpus):
        with pytest.raises(ConfigError, match=r"Tesla T4 of node a, whose is 7.5.*precision: float32"):
            refuse([there], plan.trials, share=1.0, alone=True)
    else:
        refuse([there], plan.trials, share=1.0, alone=True)
    refuse([there], float32(plan.trials), share=1.0, alone=True)


@pytest.mark.parametrize(
    ("there", "share", "alone", "words"),
    [
        (
            node(driver="550.54", offered=8.0),
            1.0,
            True,
            r"offers 8 GPUs, torch 2.13.0 built for CUDA 13.0 reaches 0 with NVIDIA driver 550.54; "
            r"CUDA 13.0 needs a driver of branch 580 or later, this is 550.54",
        ),
        (
            node(replace(A100, compute_mode="Exclusive_Process")),
            0.5,
            True,
            "Exclusive_Process, for shares",
        ),
        (node(replace(A100, compute_mode="Prohibited")), 1.0, True, "compute mode is Prohibited"),
        (node(MIG), 1.0, True, r"cut into slices \(MIG\).*CUDA_VISIBLE_DEVICES=MIG-"),
        (node(MIG, visible="0"), 1.0, True, "cut into slices"),
        (node(replace(A100, held_bytes=9 * GIB)), 1.0, True, r"GPU-a100: others hold 9.0 of 79.3 GiB"),
        (node(replace(A100, has_kernels=False)), 1.0, True, "no kernels for compute capability 8.0"),
    ],
)
def test_what_stands_in_the_way_is_refused_with_the_way_out(plan, there, share, alone, words):
    with pytest.raises(SetupError, match=words):
        refuse([there], plan.trials, share=share, alone=alone)


def test_what_is_allowed():
    for there, share, alone in (
        (node(replace(A100, compute_mode="Exclusive_Process")), 1.0, True),
        (node(replace(A100, compute_mode="Exclusive_Process"), mps=True), 0.5, True),
        (node(replace(A100, held_bytes=9 * GIB)), 1.0, False),  # other trials of ours, on a shared cluster
        (node(replace(A100, held_bytes=7 * GIB)), 1.0, True),
        (node(MIG, visible="MIG-1,MIG-2", offered=7.0), 1.0, True),  # CUDA shows a process one slice at most
    ):
        refuse([there], (), share=share, alone=alone)


@pytest.mark.parametrize(
    ("where", "model", "memory", "timed"),
    [
        ("a: a desktop", "rtx4090", 23.6, True),
        ("b: an A100", "a100", 79.3, True),
        ("c: eight H100s", "h100", 79.2, True),
        ("d: a T4", "t4", 14.6, True),
        ("e: MIG", MIG.name, 9.5, False),
        ("f: two kinds", "t4", 14.6, True),  # the smaller one decides
    ],
)
@pytest.mark.parametrize("mps", [False, True])
def test_a_gpu_is_shared_only_where_that_is_known_to_pay(plan, trials, where, model, memory, timed, mps):
    there = replace(SITUATIONS[where], mps=mps)
    expectation = expected([there], plan.sweep.resources, ())
    assert (expectation.card.name, expectation.card.timed) == (model, timed)
    assert expectation.card.memory_gib == pytest.approx(memory, abs=0.01)
    requests = Requests(Resources(1, 1.0), expectation)
    for trial in trials.values():
        share = requests.of(trial).num_gpus
        if not mps or "MIG" in model:
            assert share == 1.0
        else:
            assert share * expectation.card.memory_gib * GIB >= min(peak_bytes(trial.network), memory * GIB)


def test_a_measured_pair_decides_over_mps_and_what_was_measured_over_the_table():
    checks = {
        A100.name: {"pair_gain": 1.3, "row": {"compute_efficiency": 0.4}},
        T4.name: {"pair_gain_mps": 1.0},
    }
    assert packing_pays(A100.name, checks, mps=False)
    assert packing_pays(A100.name, checks, mps=True)  # never measured under MPS, which shares
    assert not packing_pays(T4.name, checks, mps=True)
    assert not packing_pays("NVIDIA H100", checks, mps=False)
    found = card_there(A100.name, 79.3, checks)
    assert (found.name, found.compute_efficiency, found.memory_gib) == ("a100", 0.4, 79.3)


@pytest.mark.parametrize("where", SITUATIONS)
def test_out_of_memory_never_cuts_the_batch_of_a_resnet_and_ends_in_words(plan, trials, where):
    there = replace(SITUATIONS[where], mps=True)
    requests = Requests(Resources(1, 1.0), expected([there], plan.sweep.resources, ()))
    failure = classify(torch.OutOfMemoryError("CUDA out of memory."))
    for name, trial in trials.items():
        said, shares = "", []
        while not said and len(shares) < 12:
            request = requests.of(trial)
            shares.append(request.num_gpus)
            assert request.micro_batch is None or name.startswith("vgg")
            assert request.micro_batch is None or request.num_gpus == 1.0
            said = requests.failed(trial, failure)
        assert shares == sorted(shares)
        assert shares[-1] == 1.0
        assert "needs more memory than a whole GPU has" in said


def test_a_sweep_s_own_share_is_taken_as_it_is():
    text = "name: mine\nmodels: [small_cnn]\ndatasets: [manifold_d4]\ntrain_sizes: [20]\ntest_size: 20\n"
    text += "image_size: 16\nrecipe: smoke\nresources: {num_gpus: 0.25, fast: off}\n"
    sweep = plan_sweep(parse_sweep(text, origin="mine.yaml")).sweep
    assert (sweep.resources.fast, sweep.resources.micro_batches) == ("off", "auto")
    assert expected([node(A100)], sweep.resources, ()).card is None
