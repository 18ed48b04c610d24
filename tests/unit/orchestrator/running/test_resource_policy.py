"""What a trial asks for, at first and after it ran out of memory."""

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


@pytest.fixture(scope="module")
def cells():
    return plan_sweep(load_sweep(small_sweep("mine", models=["small_cnn", "small_mlp"]))).trials


def test_shares_are_predicted_per_trial_where_the_gpu_is_known(cells):
    requests = ResourcePolicy(Resources(1, 0.25), RuntimeModel(GPU_MODELS["a100"]))
    for cell in cells:
        assert requests.start_attempt(cell).num_gpus == need_of(cell, GPU_MODELS["a100"]).share
    assert ResourcePolicy(Resources(1, 0.25)).start_attempt(cells[0]).num_gpus == 0.25
    assert (
        ResourcePolicy(Resources(1, 0), RuntimeModel(GPU_MODELS["a100"]))
        .start_attempt(cells[0])
        .num_gpus
        == 0
    )
    whole = ResourcePolicy(Resources(1, 1.0), RuntimeModel(GPU_MODELS["a100"], share=1.0))
    assert whole.start_attempt(cells[0]).num_gpus == 1.0


def test_the_usual_share_is_the_mean_of_those_asked_for(cells):
    requests = ResourcePolicy(Resources(1, 0.25), RuntimeModel(GPU_MODELS["a100"]))
    shares = [requests.start_attempt(cell).num_gpus for cell in cells]
    assert requests.mean_request(cells) == Resources(1, sum(shares) / len(shares))
    assert ResourcePolicy(Resources(2, 0)).mean_request(cells) == Resources(2, 0)


OUT_OF_MEMORY = TrialFailure(kind="out_of_memory", message="CUDA out of memory")


def attempts(requests, cell, number):
    """Return what each attempt gets at a trial that is out of memory every time, and what is said
    at last."""
    found, said = [], ""
    for _ in range(number):
        request = requests.start_attempt(cell)
        found.append((request.num_gpus, request.memory_bytes, request.micro_batch))
        said = requests.failed(cell, OUT_OF_MEMORY).hint
    return found, said


def test_batches_of_a_network_with_batch_norm_are_cut_where_that_is_asked_for(cells):
    cell = next(cell for cell in cells if cell.network.model.name == "small_cnn")
    found, said = attempts(ResourcePolicy(Resources(1, 0.5, micro_batches="on")), cell, 4)
    assert (found[-1], said) == ((1.0, 0, 8), "")


def test_no_batch_is_cut_where_that_is_refused(cells):
    cell = next(cell for cell in cells if cell.network.model.name == "small_mlp")
    found, said = attempts(
        ResourcePolicy(Resources(1, 1.0, fast="off", micro_batches="off")), cell, 1
    )
    assert found == [(1.0, 0, None)]
    assert "small_mlp at batch size 16 needs more memory" in said


def test_a_machine_that_was_out_of_memory_may_have_more_the_next_time(cells):
    requests = ResourcePolicy(Resources(1, 0))
    cell = next(cell for cell in cells if cell.network.model.name == "small_cnn")
    said = []
    for _ in range(5):
        requests.start_attempt(cell)
        said.append(requests.failed(cell, OUT_OF_MEMORY).hint)
    assert said[:4] == [""] * 4
    assert (
        "small_cnn at batch size 16 needs more memory than the machine gave. Choose a larger machine"
        in said[4]
    )


def test_a_gpu_whose_memory_others_hold_is_tried_again_and_then_said_to_be_theirs(cells):
    requests = ResourcePolicy(Resources(1, 1.0))
    cell = next(cell for cell in cells if cell.network.model.name == "small_cnn")
    others, alone = (
        TrialFailure(kind="out_of_memory", message="", memory="gpu", held_by_others=held_gib / 39.4)
        for held_gib in (35.1, 0.3)
    )
    said = []
    for _ in range(6):
        requests.start_attempt(cell)
        said.append(requests.failed(cell, others).hint)
    assert said[:5] == [""] * 5  # the last by plain steps
    assert (
        "needs more memory than other processes leave on the GPU. End the other processes"
        in said[5]
    )
    verdict = ResourcePolicy(Resources(1, 1.0, fast="off")).failed(cell, alone)
    assert verdict.is_final
    assert "than a whole GPU has" in verdict.hint


@pytest.mark.parametrize(("there", "asked"), [(150, 150), (1000, 200), (90, 100)])
def test_no_trial_asks_again_for_more_memory_than_a_node_has(cells, there, asked):
    requests = ResourcePolicy(Resources(1, 2, 100), node_memory_bytes=lambda: there)
    requests.trials[cells[0].trial_id].min_level = 1
    assert requests.start_attempt(cells[0]) == Resources(
        1, 2, asked, fast="off"
    )  # whole GPUs are not doubled


HELD, OWN = (
    TrialFailure(kind="out_of_memory", message="", memory="machine", held_by_others=share)
    for share in (0.9, 0.1)
)


def test_a_trial_whose_machine_s_memory_others_hold_waits_and_is_never_hopeless(cells):
    """Four kills took a batch of 16 apart, and the fifth blamed the network."""
    cell = next(cell for cell in cells if cell.network.model.name == "small_mlp")
    requests, parts = ResourcePolicy(Resources(1, 0)), []
    for _ in range(30):
        parts.append(requests.start_attempt(cell).micro_batch)
        assert requests.failed(cell, HELD) == MAY_RETRY
    assert parts[:9] == [None] * 6 + [8, 4, 2]
    assert set(parts[9:]) == {2}


def test_a_trial_that_takes_its_machine_s_memory_itself_gets_smaller_parts_and_an_end(cells):
    cell = next(cell for cell in cells if cell.network.model.name == "small_mlp")
    requests, hints = ResourcePolicy(Resources(1, 0)), []
    for _ in range(6):
        requests.start_attempt(cell)
        hints.append(requests.failed(cell, OWN).hint)
    assert hints[:4] == [""] * 4
    assert "small_mlp at batch size 16 needs more memory than the machine gave" in hints[-1]


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_a_batch_too_small_for_two_passes_is_not_split(batch_size):
    """Two passes need 2 images each, so a level with smaller passes would change no training."""
    recipe = {"from": "smoke", "batch_size": batch_size}
    sweep = load_sweep(small_sweep("tiny_batches", models=["small_cnn"], recipe=recipe))
    trial = plan_sweep(sweep).trials[0]
    assert trial.network.recipe.batch_size == batch_size
    policy = ResourcePolicy(Resources(1, 1.0, fast="off", micro_batches="on"))
    found, hint = attempts(policy, trial, 1)
    assert found == [(1.0, 0, None)]
    assert f"small_cnn at batch size {batch_size} needs more memory than a whole GPU has" in hint
    unsplit = ResourcePolicy(Resources(1, 1.0, fast="off", micro_batches="off"))
    assert "micro_batches" not in unsplit.failed(trial, OUT_OF_MEMORY).hint
