"""Test the resources that a trial requests, at first and after it ran out of memory."""

import pytest

from orchestrator.machine.cluster import Resources
from orchestrator.planning.costs.gpu_models import GPU_MODELS
from orchestrator.planning.costs.needs import need_of
from orchestrator.planning.plan import plan_sweep
from orchestrator.planning.runtimes import RuntimeModel
from orchestrator.planning.sweep_file import load_sweep
from orchestrator.results.records import TrialFailure
from orchestrator.running.recovery.memory_verdicts import MAY_RETRY
from orchestrator.running.recovery.resource_policy import ResourcePolicy
from tests.small_sweep import small_sweep

A100 = GPU_MODELS["a100"]


@pytest.fixture(scope="module")
def trials():
    return plan_sweep(load_sweep(small_sweep("mine", models=["small_cnn", "small_mlp"]))).trials


def trial_of(trials, model):
    return next(trial for trial in trials if trial.network.model.name == model)


def test_shares_are_predicted_per_trial_if_the_gpu_model_is_known(trials):
    policy = ResourcePolicy(Resources(1, 0.25), RuntimeModel(A100))
    for trial in trials:
        assert policy.start_attempt(trial).num_gpus == need_of(trial, A100).share
    of_unknown_gpu = ResourcePolicy(Resources(1, 0.25))
    assert of_unknown_gpu.start_attempt(trials[0]).num_gpus == 0.25
    without_gpu = ResourcePolicy(Resources(1, 0), RuntimeModel(A100))
    assert without_gpu.start_attempt(trials[0]).num_gpus == 0
    with_full_gpu = ResourcePolicy(Resources(1, 1.0), RuntimeModel(A100, share=1.0))
    assert with_full_gpu.start_attempt(trials[0]).num_gpus == 1.0


@pytest.mark.parametrize(
    ("share_without_mps", "sentence"),
    [
        (1.0, "Each new trial has a whole GPU"),
        (None, "Trials still share a GPU, but they compute in turn"),
    ],
)
def test_attempts_after_the_end_of_mps_request_the_share_that_pays_without_it(
    trials, share_without_mps, sentence
):
    model = RuntimeModel(A100, share_without_mps=share_without_mps)
    policy = ResourcePolicy(Resources(1, 1.0), model)
    predicted = need_of(trials[0], A100).share
    assert policy.start_attempt(trials[0]).num_gpus == predicted < 1
    for _ in range(2):
        policy.use_shares_without_mps()
        assert policy.shares_without_mps_text == sentence
        assert policy.start_attempt(trials[0]).num_gpus == (share_without_mps or predicted)


def test_the_mean_request_is_the_mean_of_the_shares(trials):
    policy = ResourcePolicy(Resources(1, 0.25), RuntimeModel(A100))
    shares = [policy.start_attempt(trial).num_gpus for trial in trials]
    assert policy.request_with_mean_share(trials) == Resources(1, sum(shares) / len(shares))
    assert ResourcePolicy(Resources(2, 0)).request_with_mean_share(trials) == Resources(2, 0)


OUT_OF_MEMORY = TrialFailure(kind="out_of_memory", message="CUDA out of memory")


def fail_repeatedly(policy, trial, num_attempts):
    """Let a trial run out of memory in every attempt.

    Returns the resources of each attempt, and the last hint.
    """
    resources = []
    hint = ""
    for _ in range(num_attempts):
        request = policy.start_attempt(trial)
        resources.append((request.num_gpus, request.memory_bytes, request.micro_batch))
        hint = policy.failed(trial, OUT_OF_MEMORY).hint
    return resources, hint


def hint_after_failure(policy, trial, failure):
    policy.start_attempt(trial)
    return policy.failed(trial, failure).hint


def test_batches_of_a_network_with_batch_norm_are_divided_if_the_sweep_allows_it(trials):
    policy = ResourcePolicy(Resources(1, 0.5, micro_batch_policy="on"))
    resources, hint = fail_repeatedly(policy, trial_of(trials, "small_cnn"), 4)
    assert (resources[-1], hint) == ((1.0, 0, 8), "")


def test_no_batch_is_divided_if_the_sweep_forbids_it(trials):
    policy = ResourcePolicy(Resources(1, 1.0, fast="off", micro_batch_policy="off"))
    resources, hint = fail_repeatedly(policy, trial_of(trials, "small_mlp"), 1)
    assert resources == [(1.0, 0, None)]
    assert "small_mlp at batch size 16 needs more than the" in hint


def test_a_trial_that_used_up_the_memory_of_the_machine_is_retried_four_times(trials):
    policy = ResourcePolicy(Resources(1, 0))
    trial = trial_of(trials, "small_cnn")
    hints = [hint_after_failure(policy, trial, OUT_OF_MEMORY) for _ in range(5)]
    assert hints[:4] == [""] * 4
    hint = "small_cnn at batch size 16 needs more than the memory of the machine."
    assert f"{hint} Choose a larger machine" in hints[4]


def test_a_gpu_whose_memory_others_use_is_retried_and_then_reported_as_theirs(trials):
    policy = ResourcePolicy(Resources(1, 1.0))
    trial = trial_of(trials, "small_cnn")
    # Other processes use 35.1 or 0.3 of 39.4 GiB.
    mostly_others, hardly_others = (
        TrialFailure(kind="out_of_memory", message="", memory="gpu", held_by_others=used_gib / 39.4)
        for used_gib in (35.1, 0.3)
    )
    hints = [hint_after_failure(policy, trial, mostly_others) for _ in range(6)]
    assert hints[:5] == [""] * 5  # the fifth attempt used plain steps
    reason = (
        "needs more than the GPU memory that other processes leave free. End the other processes"
    )
    assert reason in hints[5]
    policy = ResourcePolicy(Resources(1, 1.0, fast="off"))
    policy.start_attempt(trial)
    decision = policy.failed(trial, hardly_others)
    assert decision.is_final
    assert "than the memory of a whole GPU" in decision.hint


def test_a_result_ends_the_crowded_level_that_the_needed_level_has_reached():
    sweep = load_sweep(small_sweep("many_seeds", models=["small_mlp"], seeds=[*range(5)]))
    trials = iter(plan_sweep(sweep).trials)
    used_by_others, used_by_the_trial = (
        TrialFailure(kind="out_of_memory", message="", memory="gpu", held_by_others=share)
        for share in (0.9, 0.0)
    )
    policy = ResourcePolicy(Resources(1, 1.0, micro_batch_policy="on"))
    first_trial = next(trials)
    for _ in range(5):  # the fifth failure by others raises the level
        policy.start_attempt(first_trial)
        policy.failed(first_trial, used_by_others)
    second_trial = next(trials)
    policy.start_attempt(second_trial)
    policy.failed(second_trial, used_by_the_trial)
    policy.start_attempt(second_trial)
    policy.finished(second_trial)
    own_request = policy.start_attempt(next(trials))

    third_trial = next(trials)
    policy.start_attempt(third_trial)
    policy.failed(third_trial, used_by_others)

    assert policy.start_attempt(next(trials)) == own_request


@pytest.mark.parametrize(("node_memory", "requested_memory"), [(150, 150), (1000, 200), (90, 100)])
def test_no_retry_requests_more_memory_than_a_node_has(trials, node_memory, requested_memory):
    policy = ResourcePolicy(Resources(1, 2, 100), node_memory_bytes=lambda: node_memory)
    policy.trial_levels[trials[0].trial_id].start_level = 1
    # Memory is doubled, full GPUs are not.
    expected = Resources(1, 2, requested_memory, fast="off")
    assert policy.start_attempt(trials[0]) == expected


def test_a_trial_at_its_last_level_is_retried_if_the_largest_node_has_more_memory_now(trials):
    """A larger node that joined the cluster once came too late: the verdict was final."""
    node_memory = [150.0]
    resources = Resources(1, 0, 100, micro_batch_policy="off")
    policy = ResourcePolicy(resources, node_memory_bytes=lambda: node_memory[0])
    requested, hints = [], []
    for attempt in range(6):
        requested.append(policy.start_attempt(trials[0]).memory_bytes)
        if attempt == 4:  # a larger node joins while the attempt runs
            node_memory[0] = 1000.0
        hints.append(policy.failed(trials[0], OUT_OF_MEMORY).hint)
    assert requested == [100, 150, 150, 150, 150, 200]
    assert hints[:5] == [""] * 5
    assert "needs more than the memory of the machine" in hints[5]


MOSTLY_USED_BY_OTHERS, MOSTLY_USED_BY_THE_TRIAL = (
    TrialFailure(kind="out_of_memory", message="", memory="machine", held_by_others=share)
    for share in (0.9, 0.1)
)


def test_a_trial_waits_without_end_for_memory_of_the_machine_that_others_use(trials):
    """Four kills once divided a batch of 16, and the fifth was called a fault of the network."""
    trial = trial_of(trials, "small_mlp")
    policy = ResourcePolicy(Resources(1, 0))
    micro_batches = []
    for _ in range(30):
        micro_batches.append(policy.start_attempt(trial).micro_batch)
        assert policy.failed(trial, MOSTLY_USED_BY_OTHERS) == MAY_RETRY
    assert micro_batches[:9] == [None] * 6 + [8, 4, 2]
    assert set(micro_batches[9:]) == {2}


def test_a_trial_that_uses_up_the_memory_of_its_machine_ends_after_smaller_batches(trials):
    trial = trial_of(trials, "small_mlp")
    policy = ResourcePolicy(Resources(1, 0))
    hints = []
    for _ in range(6):
        policy.start_attempt(trial)
        hints.append(policy.failed(trial, MOSTLY_USED_BY_THE_TRIAL).hint)
    assert hints[:4] == [""] * 4
    assert "small_mlp at batch size 16 needs more than the memory of the machine" in hints[-1]


CAPTURE_FAILED = TrialFailure(kind="device_error", message="", capture_failed=True)


def same_network_with_another_seed(trial):
    network = trial.network.model_copy(update={"seed": trial.network.seed + 1})
    return trial.model_copy(update={"network": network})


def test_a_trial_that_ran_with_graphs_is_retried_without_them_after_its_network_lost_them(trials):
    """Another trial of the network failed at its capture, while this one ran out of memory."""
    first = trial_of(trials, "small_cnn")
    second = same_network_with_another_seed(first)
    policy = ResourcePolicy(Resources(1, 1.0, micro_batch_policy="off"))
    assert policy.start_attempt(first).fast == "auto"
    policy.start_attempt(second)
    policy.failed(second, CAPTURE_FAILED)
    assert policy.failed(first, OUT_OF_MEMORY) == MAY_RETRY
    assert policy.start_attempt(first) == Resources(1, 1.0, fast="off", micro_batch_policy="off")
    assert policy.failed(first, OUT_OF_MEMORY).is_final


def test_a_network_that_lost_its_graphs_splits_no_batch_earlier(trials):
    """Without graphs, the level that trains without them changes nothing, and is skipped."""
    first = trial_of(trials, "small_mlp")
    second = same_network_with_another_seed(first)
    policy = ResourcePolicy(Resources(1, 0.5, micro_batch_policy="on"))
    for _ in range(2):
        policy.start_attempt(first)
        policy.failed(first, OUT_OF_MEMORY)
    plain_steps = policy.start_attempt(first)
    assert (plain_steps.num_gpus, plain_steps.fast, plain_steps.micro_batch) == (1.0, "off", None)
    policy.failed(second, CAPTURE_FAILED)
    assert policy.start_attempt(first) == plain_steps
    policy.failed(first, OUT_OF_MEMORY)
    assert policy.start_attempt(first).micro_batch == 8


def test_a_network_without_graphs_splits_its_batches_right_after_a_whole_gpu(trials):
    trial = trial_of(trials, "small_mlp")
    policy = ResourcePolicy(Resources(1, 0.5, micro_batch_policy="on"))
    policy.failed(trial, CAPTURE_FAILED)
    resources, hint = fail_repeatedly(policy, trial, 5)
    assert resources == [(0.5, 0, None), (1.0, 0, None), (1.0, 0, 8), (1.0, 0, 4), (1.0, 0, 2)]
    assert "needs more than the memory of a whole GPU" in hint


def test_the_end_of_mps_splits_no_batch_earlier(trials):
    """With MPS, this network needed a whole GPU; without it, every trial has a whole GPU."""
    trial = trial_of(trials, "small_mlp")
    model = RuntimeModel(A100, share_without_mps=1.0)
    policy = ResourcePolicy(Resources(1, 1.0, micro_batch_policy="on"), model)
    while policy.start_attempt(trial).num_gpus < 1:
        policy.failed(trial, OUT_OF_MEMORY)
    whole_gpu = policy.start_attempt(trial)
    policy.use_shares_without_mps()
    assert policy.start_attempt(trial) == whole_gpu
    for _ in range(5):  # this small network is not the cause, so it waits for other processes first
        policy.failed(trial, OUT_OF_MEMORY)
        request = policy.start_attempt(trial)
    assert (request.fast, request.micro_batch) == ("off", None)


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_a_batch_too_small_for_two_passes_is_not_split(batch_size):
    """Two passes need 2 images each, so a level with smaller passes would change no training."""
    recipe = {"from": "smoke", "batch_size": batch_size}
    sweep = load_sweep(small_sweep("tiny_batches", models=["small_cnn"], recipe=recipe))
    trial = plan_sweep(sweep).trials[0]
    assert trial.network.recipe.batch_size == batch_size
    policy = ResourcePolicy(Resources(1, 1.0, fast="off", micro_batch_policy="on"))
    resources, hint = fail_repeatedly(policy, trial, 1)
    assert resources == [(1.0, 0, None)]
    assert f"small_cnn at batch size {batch_size} needs more than the memory of a whole GPU" in hint
    unsplit = ResourcePolicy(Resources(1, 1.0, fast="off", micro_batch_policy="off"))
    assert "micro_batches" not in hint_after_failure(unsplit, trial, OUT_OF_MEMORY)
