"""What is left of a sweep, from the rates of trials that are done."""

import math
from dataclasses import replace

import pytest

from orchestrator.planning.estimate import estimate, on_cards
from orchestrator.planning.plan import plan_sweep
from orchestrator.planning.predict import (
    CARDS,
    CORE_FLOPS,
    CORE_INTERVAL_S,
    EAGER_INTERVAL_S,
    GRAPH_INTERVAL_S,
    core_seconds,
    cost_of,
    flops,
    need_of,
    pass_time,
    training_flops,
)
from orchestrator.planning.sweep_file import load_sweep, parse_sweep
from search_spaces.errors import ConfigError
from tests.unit.orchestrator.results.examples import (
    diverged,
    state_of,
    trial_record,
    trial_result,
)

SWEEP = """
name: mine
models: [small_cnn]
datasets: [manifold_d4]
train_sizes: [20]
test_size: 20
image_size: 16
seeds: [0, 1, 2]
recipe: smoke
"""


@pytest.fixture
def trials():
    return plan_sweep(parse_sweep(SWEEP, origin="mine.yaml")).trials


def record(trial, seconds, *, device="cpu", num_threads=1, status="done", **where):
    found = trial_result() if status == "done" else diverged()
    result = found.model_copy(update={"device": device, "num_threads": num_threads})
    return trial_record(result, spec=trial, started_at=0.0, finished_at=seconds, **where)


def seconds_on_share(trial, card, share):
    return need_of(trial, card, given=share).seconds


def cost(trials, *records):
    done = {
        f"{i}": record(trial, **given) for i, (trial, given) in enumerate(zip(trials, records, strict=False))
    }
    return estimate(trials[len(done) :], state_of(done).measured_trials())


def test_core_hours_count_every_thread_of_a_trial(trials):
    # Two trials are left, each as long as the measured one: 100 s on four cores.
    assert cost(trials, {"seconds": 100.0, "num_threads": 4})["cpu_core_hours"] == pytest.approx(
        2 * 400 / 3600
    )


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_gpu_hours_count_a_trials_share_of_its_card(trials, share):
    done = record(trials[0], 100.0, device="cuda:0", gpu_share=share, gpu_name="NVIDIA H100 80GB HBM3")
    found = estimate(trials[1:], state_of({"0": done}).measured_trials(), share=share)
    assert found["gpu_hours"] == pytest.approx(2 * 100 * share / 3600)


def test_diverged_trials_tell_no_rate(trials):
    found = cost(trials, {"seconds": 100.0}, {"seconds": 0.001, "status": "diverged"})
    assert found["cpu_core_hours"] == pytest.approx(100 / 3600)
    assert cost(trials, {"seconds": 0.001, "status": "diverged"})["measured_share"] == 0.0


def test_without_measured_trials_the_rate_is_assumed(trials):
    """Arithmetic is the least it takes; a small network's many short operations take longer than that."""
    arithmetic = sum(flops(trial) for trial in trials) / CORE_FLOPS
    assert cost(trials)["cpu_core_hours"] > arithmetic / 3600
    network = trials[0].network
    starts = sum(kernel.num_launches for kernel in cost_of(network).step.kernels)
    num_steps = network.recipe.epochs * math.ceil(network.train_size / network.recipe.batch_size)
    assert cost(trials[:1])["cpu_core_hours"] >= starts * num_steps * CORE_INTERVAL_S / 3600


def test_a_large_networks_time_is_its_arithmetic(trials):
    text = SWEEP.replace("[small_cnn]", "[vgg19]").replace("[20]", "[400]").replace("size: 16", "size: 224")
    trial = plan_sweep(parse_sweep(text, origin="mine.yaml")).trials[0]
    assert core_seconds(trial) == pytest.approx(flops(trial) / CORE_FLOPS, rel=0.1)


def test_training_is_counted_from_the_network_itself(trials):
    network = trials[0].network
    cost = cost_of(network)
    steps = network.recipe.epochs * network.train_size
    assert flops(trials[0]) > 2.5 * cost.forward_flops * steps
    longer = network.recipe.model_copy(update={"epochs": 2 * network.recipe.epochs})
    twice = trials[0].model_copy(update={"network": network.model_copy(update={"recipe": longer})})
    added = training_flops(twice) - training_flops(trials[0])
    assert added == pytest.approx(steps * cost.step.flops / network.recipe.batch_size)


def test_test_images_that_pass_between_epochs_take_their_time(trials):
    """After the first of two epochs, as after ten of a hundred; in float32, which cards are slow in."""

    def after(epochs):
        recipe = trials[0].network.recipe.model_copy(update={"epochs": epochs})
        network = trials[0].network.model_copy(update={"recipe": recipe})
        return trials[0].model_copy(update={"network": network})

    cost, card, test_size = cost_of(trials[0].network), CARDS["h100"], 20
    for epochs, looks in ((2, 1), (10, 9), (100, 9)):
        training = training_flops(after(epochs)) - training_flops(after(1))
        added = flops(after(epochs)) - flops(after(1))
        assert added - training == pytest.approx(looks * test_size * cost.forward_flops)
        times = [core_seconds(after(epochs)) for epochs in (1, epochs)]
        steps = (epochs - 1) * 2
        step, look = (
            part.flops / CORE_FLOPS + CORE_INTERVAL_S * part.num_launches
            for part in (cost.step, cost.evaluation)
        )
        passes = looks * test_size / cost.evaluation_batch
        assert times[1] - times[0] == pytest.approx(steps * step + passes * look)
    look = pass_time(cost.evaluation, card, interval=EAGER_INTERVAL_S, half=False).seconds
    step = pass_time(cost.step, card, interval=GRAPH_INTERVAL_S, half=False).seconds
    longer = seconds_on_share(after(100), card, 1.0) - seconds_on_share(after(1), card, 1.0)
    assert longer == pytest.approx(99 * 2 * step + 9 * test_size / cost.evaluation_batch * look)


def test_every_attack_that_is_asked_for_takes_its_time(trials):
    usual = trials[0]
    asked = usual.model_copy(
        update={"attacks": usual.attacks.model_copy(update={"methods": ("fgsm", "pgd")})}
    )
    steps = usual.network.subset.test_size * len(usual.attacks.epsilons) * 5 * 20
    added = steps * 3 * cost_of(usual.network).forward_flops
    assert flops(asked) - flops(usual) == pytest.approx(added)
    assert cost([asked])["cpu_core_hours"] > cost([usual])["cpu_core_hours"]
    card = CARDS["h100"]
    assert need_of(asked, card).seconds > need_of(usual, card).seconds


def test_a_plan_for_more_cards_is_shorter_and_never_below_its_bound(trials):
    one, two = (on_cards(trials, CARDS["h100"], number) for number in (1, 2))
    assert two["hours"] <= one["hours"]
    for found in (one, two):
        assert found["hours"] >= found["lower_bound_hours"] > 0
        assert found["dollars"] == pytest.approx(found["hours"] * found["num_cards"] * CARDS["h100"].price)
        # Cards are paid until the last trial ends, and draw a tenth where they have none.
        draw = found["utilisation"] + 0.1 * (1 - found["utilisation"])
        assert found["kilowatt_hours"] == pytest.approx(found["hours"] * found["num_cards"] * 0.7 * draw)
    assert set(one["shares"]) == {"small_cnn"}


@pytest.mark.parametrize(
    ("share", "num_cards", "at_once"), [(0.5, 1, 2), (0.25, 1, 3), (1.0, 2, 2), (2.0, 5, 2)]
)
def test_a_share_that_the_sweep_asks_for_is_planned_with(trials, share, num_cards, at_once):
    found = on_cards(trials, CARDS["h100"], num_cards, share=share)
    assert found["most_at_once"] == at_once
    assert found["shares"] == {"small_cnn": share}


@pytest.mark.parametrize("share", [None, 0.25, 1.0, 2.0])
def test_gpu_hours_are_those_of_the_cards_that_trials_are_given(trials, share):
    """As a status counts them afterwards: time times share, whatever a trial makes of it."""
    found = estimate(trials, (), share=share)
    given = [need_of(trial, CARDS["h100"], given=share) for trial in trials]
    expected = sum(need.seconds * need.share for need in given)
    assert found["gpu_hours"] == pytest.approx(expected / 3600)
    cluster = found["cluster"]
    assert found["gpu_hours"] == pytest.approx(
        cluster["hours"] * cluster["num_cards"] * cluster["utilisation"]
    )


def test_a_trial_that_asks_for_more_cards_than_there_are_is_refused(trials):
    message = "as many cards as one trial asks for; found: resources.num_gpus 2, 1 in all; plan with --gpus 2"
    with pytest.raises(ConfigError, match=message):
        on_cards(trials, CARDS["h100"], 1, share=2.0)
    assert estimate(trials, (), share=2.0)["cluster"]["num_cards"] == 2


def test_a_trial_that_no_card_can_hold_is_named(trials):
    tiny = replace(CARDS["h100"], memory_gib=0.5)
    assert "more memory than the share has: small_cnn" in estimate(trials, (), card=tiny)["text"]
    assert on_cards(trials, CARDS["h100"], 1)["too_large"] == {}
    assert set(on_cards(trials, CARDS["h100"], 1, share=0.001)["too_large"]) == {"small_cnn"}


def test_shares_of_a_card_never_add_up_to_more_than_the_card(trials):
    need = need_of(trials[0], CARDS["a100"])
    together = int(1 / need.share + 1e-9)
    assert together * need.memory_bytes <= CARDS["a100"].memory_gib * 2**30


def test_the_papers_grid_has_the_operations_and_image_passes_that_others_counted():
    """109 million passes and 6.12 EFLOP, from the published sizes and epochs and each network's own count."""
    trials = plan_sweep(load_sweep("paper")).trials
    passes = sum(trial.network.recipe.epochs * trial.network.train_size for trial in trials)
    assert passes == pytest.approx(109e6, rel=0.005)
    assert sum(map(training_flops, trials)) == pytest.approx(6.12e18, rel=0.02)


def test_the_papers_grid_on_one_h100_lies_between_its_floor_and_an_unpacked_run():
    """Traffic and arithmetic alone take 4.5 h; a roofline of one trial at a time in eager mode says 17 h."""
    plan = plan_sweep(load_sweep("paper"))
    found = on_cards(plan.trials, CARDS["h100"], 1)
    assert 4.5 < found["hours"] < 17
    many = on_cards(plan.trials, CARDS["h100"], 64)
    assert many["hours"] <= 1.05 * many["lower_bound_hours"]


def test_cards_that_are_too_few_for_a_trial_are_paid_and_not_used(trials):
    two, three = (on_cards(trials, CARDS["h100"], number, share=2.0) for number in (2, 3))
    assert three["hours"] == two["hours"]
    assert (two["utilisation"], three["utilisation"]) == pytest.approx((1.0, 2 / 3))
    # The idle third draws a tenth.
    assert three["kilowatt_hours"] == pytest.approx(1.05 * two["kilowatt_hours"])


def test_the_clean_test_images_take_their_time_whatever_attacks_are_asked_for(trials):
    """Without FGSM the pass that gives the test loss is the same; only its strengths' passes are not made."""
    fgsm = trials[0]
    none = fgsm.model_copy(update={"attacks": fgsm.attacks.model_copy(update={"methods": ()})})
    cost, num_images = cost_of(fgsm.network), fgsm.network.subset.test_size
    evaluation = cost.evaluation.flops / CORE_FLOPS + CORE_INTERVAL_S * cost.evaluation.num_launches
    strengths = len(fgsm.attacks.epsilons) * num_images / cost.evaluation_batch
    assert core_seconds(fgsm) - core_seconds(none) == pytest.approx(strengths * evaluation)
