"""Test the estimate of remaining time, by the costs of networks and by the time of done trials."""

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.planning.costs.gpu_models import GPU_MODELS
from orchestrator.planning.costs.memory import array_bytes, peak_bytes
from orchestrator.planning.costs.needs import (
    CORE_FLOPS,
    CORE_INTERVAL_S,
    Corrections,
    core_seconds,
    need_of,
)
from orchestrator.planning.costs.networks import cost_of, is_counted
from orchestrator.planning.costs.pass_times import EAGER_INTERVAL_S, GRAPH_INTERVAL_S, pass_time
from orchestrator.planning.costs.passes import attack_flops, training_flops
from orchestrator.planning.estimate import estimate, on_gpus
from orchestrator.planning.estimate_text import amount, roughly
from orchestrator.planning.plan import plan_sweep
from orchestrator.planning.replay import LOOK_AHEAD, Job, replay
from orchestrator.planning.runtimes import (
    RuntimeModel,
    corrections_for,
    expected_seconds,
    time_limit,
)
from orchestrator.planning.sweep_file import load_sweep, parse_sweep
from orchestrator.planning.trial_order import order_trials
from search_spaces.errors import ConfigError
from tasks.trials.records import CONTEXT_BYTES
from tests.unit.orchestrator.results.examples import diverged, state_of, trial_record, trial_result

SWEEP = """
name: mine
models: [small_cnn, small_mlp]
datasets: [manifold_d4]
train_sizes: [20]
test_size: 20
image_size: 16
seeds: [0, 1, 2]
recipe: smoke
"""
H100 = GPU_MODELS["h100"]
ON_H100 = {"device": "cuda:0", "gpu_name": "NVIDIA H100 80GB HBM3", "gpu_share": 0.5}


@pytest.fixture(scope="module")
def plan():
    return plan_sweep(parse_sweep(SWEEP, origin="mine.yaml"))


@pytest.fixture
def trials(plan):
    return trials_of_model(plan, "small_cnn")


def trials_of_model(plan, name):
    return [trial for trial in plan.trials if trial.network.model.name == name]


def trial_of_seconds(
    trial, seconds, *, device="cpu", threads=1, peak=0, micro_batch=None, result=None, **record
):
    """Return the record of a trial that took the given seconds."""
    machine_fields = {
        "device": device,
        "num_threads": threads,
        "peak_memory_bytes": peak,
        "micro_batch": micro_batch,
    }
    result = (result or trial_result()).model_copy(update=machine_fields)
    return trial_record(result, spec=trial, started_at=0.0, finished_at=seconds, **record)


def measured_trials(*records):
    state = state_of({str(index): record for index, record in enumerate(records)})
    return state.measured_trials()


def seconds_on_share(trial, gpu, share):
    return need_of(trial, gpu, fixed_share=share).seconds


def test_core_hours_count_every_thread_of_a_trial(trials):
    """Two trials remain, each as long as the measured one: 100 s on four cores."""
    remaining = estimate(trials[1:], measured_trials(trial_of_seconds(trials[0], 100.0, threads=4)))
    assert remaining["cpu_core_hours"] == pytest.approx(2 * 400 / 3600)


@pytest.mark.parametrize(
    ("num_cpus", "minutes", "duration"),
    [(1, 800 / 60, "14 min on 1 CPU."), (8, 400 / 60, "7 min on 8 CPUs.")],
)
def test_the_estimate_has_minutes_on_the_cpus_of_this_machine(trials, num_cpus, minutes, duration):
    """Two trials of 400 s remain. More cores do not make one trial shorter.

    The text also contains 20 s for the start and the report.
    """
    trials_done = measured_trials(trial_of_seconds(trials[0], 400.0, threads=1))
    remaining = estimate(trials[1:], trials_done, gpu=None, num_cpus=num_cpus)
    assert remaining["cpu_hours"] == pytest.approx(minutes / 60)
    assert remaining["text"].startswith(f"2 trials left: about {duration}")


@pytest.mark.parametrize(
    ("trial_s", "time"),
    [(1, "about 1 min"), (20, "about 1.3 to 4.3 min"), (2400, "about 2 to 8 h")],
)
def test_without_a_finished_trial_the_time_on_cpus_is_a_range(trials, trial_s, time, monkeypatch):
    monkeypatch.setattr("orchestrator.planning.estimate.core_seconds", lambda *_: trial_s)
    text = estimate(trials[:3], (), gpu=None)["text"]
    assert text.startswith(f"3 trials left: {time} on 1 CPU. ")


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_gpu_hours_count_a_trials_share_of_its_gpu(trials, share):
    trials_done = measured_trials(
        trial_of_seconds(trials[0], 100.0, **{**ON_H100, "gpu_share": share})
    )
    remaining = estimate(trials[1:], trials_done, share=share)
    assert remaining["gpu_hours"] == pytest.approx(2 * 100 * share / 3600)


def test_diverged_trials_do_not_correct_the_estimate(trials):
    stopped = trial_of_seconds(trials[1], 0.001, result=diverged())
    remaining = estimate(trials[2:], measured_trials(trial_of_seconds(trials[0], 100.0), stopped))
    assert remaining["cpu_core_hours"] == pytest.approx(100 / 3600)
    assert corrections_for(None, measured_trials(stopped)) == Corrections()


def test_the_time_of_a_large_network_is_that_of_its_arithmetic(trials):
    text = SWEEP.replace("[small_cnn, small_mlp]", "[vgg19]")
    text = text.replace("[20]", "[400]").replace("16", "224")
    trial = plan_sweep(parse_sweep(text, origin="mine.yaml")).trials[0]
    operations = training_flops(trial) + sum(attack_flops(trial).values())
    # 20 test images are evaluated between the two epochs and after them.
    operations += cost_of(trial.network).forward_flops * (400 + 20 + 20)
    assert core_seconds(trial) == pytest.approx(operations / CORE_FLOPS, rel=0.1)


def test_evaluations_between_epochs_are_part_of_the_time(trials):
    """Test images are evaluated after one of two epochs, and after nine of a hundred.

    Evaluation is in float32, in which GPUs are slow.
    """

    def trial_of_epochs(epochs):
        recipe = trials[0].network.recipe.model_copy(update={"epochs": epochs})
        network = trials[0].network.model_copy(update={"recipe": recipe})
        return trials[0].model_copy(update={"network": network})

    def core_time(part):
        return part.flops / CORE_FLOPS + CORE_INTERVAL_S * part.num_launches

    cost = cost_of(trials[0].network)
    test_size = 20
    for epochs, num_evaluations in ((2, 1), (10, 9), (100, 9)):
        longer = core_seconds(trial_of_epochs(epochs)) - core_seconds(trial_of_epochs(1))
        num_steps = (epochs - 1) * 2
        num_passes = num_evaluations * test_size / cost.evaluation_batch
        expected = num_steps * core_time(cost.step) + num_passes * core_time(cost.evaluation)
        assert longer == pytest.approx(expected)
    evaluation = pass_time(cost.evaluation, H100, interval=EAGER_INTERVAL_S, half=False).seconds
    step = pass_time(cost.step, H100, interval=GRAPH_INTERVAL_S, half=False).seconds
    longer = seconds_on_share(trial_of_epochs(100), H100, 1.0)
    longer -= seconds_on_share(trial_of_epochs(1), H100, 1.0)
    num_passes = 9 * test_size / cost.evaluation_batch
    assert longer == pytest.approx(99 * 2 * step + num_passes * evaluation)


def test_every_attack_of_the_sweep_is_part_of_the_time(trials):
    with_fgsm = trials[0]
    attacks = with_fgsm.attacks.model_copy(update={"methods": ("fgsm", "pgd")})
    with_both = with_fgsm.model_copy(update={"attacks": attacks})
    num_attacked = with_fgsm.network.subset.test_size * len(with_fgsm.attacks.epsilons)
    # PGD has 5 descents of 20 gradient steps with three passes each, 5 forward passes at the ends
    # of the descents, and one forward pass for the score.
    num_passes = 5 * 20 * 3 + 5 + 1
    expected = num_attacked * num_passes * cost_of(with_fgsm.network).forward_flops
    added = sum(attack_flops(with_both).values()) - sum(attack_flops(with_fgsm).values())
    assert added == pytest.approx(expected)
    assert core_seconds(with_both) > core_seconds(with_fgsm)
    assert need_of(with_both, H100).seconds > need_of(with_fgsm, H100).seconds


def test_a_plan_for_more_gpus_is_shorter_and_never_below_its_bound(trials):
    on_one = on_gpus(trials, H100, 1)
    on_two = on_gpus(trials, H100, 2)
    assert on_two["hours"] <= on_one["hours"]
    for cluster in (on_one, on_two):
        assert cluster["hours"] >= cluster["gpu_hours"] / cluster["num_gpus"] > 0
    assert set(on_one["shares"]) == {"small_cnn"}


@pytest.mark.parametrize(
    ("share", "num_gpus"), [(0.5, 1), (0.25, 1), (1.0, 2), (2.0, 5), (None, 1)]
)
def test_the_estimate_uses_the_gpu_share_of_the_sweep(trials, share, num_gpus):
    """GPU-hours are time times share, as `isweep status` counts them after the run."""
    remaining = estimate(trials, (), share=share, num_gpus=num_gpus)
    needs = [need_of(trial, H100, fixed_share=share) for trial in trials]
    cluster = remaining["cluster"]
    planned_share = needs[0].share if share is None else share
    assert cluster["shares"] == {"small_cnn": planned_share}
    gpu_seconds = sum(need.seconds * need.share for need in needs)
    assert remaining["gpu_hours"] == pytest.approx(gpu_seconds / 3600)
    used = cluster["hours"] * cluster["num_gpus"] * cluster["utilisation"]
    assert remaining["gpu_hours"] == pytest.approx(used)


def test_a_trial_that_needs_more_gpus_than_the_plan_has_is_refused(trials):
    message = r"One trial needs 2 GPUs .*, but the plan has only 1\. Plan with `--gpus 2`"
    with pytest.raises(ConfigError, match=message):
        on_gpus(trials, H100, 1, share=2.0)
    assert estimate(trials, (), share=2.0)["cluster"]["num_gpus"] == 2


def test_a_trial_that_needs_more_memory_than_a_gpu_has_is_named(trials):
    tiny = replace(H100, memory_gib=0.5)
    text = estimate(trials, (), gpu=tiny)["text"]
    assert "small_cnn" in text.partition("memory")[2]
    assert on_gpus(trials, H100, 1)["too_large"] == {}
    assert set(on_gpus(trials, H100, 1, share=0.001)["too_large"]) == {"small_cnn"}


def test_the_grid_of_the_paper_has_the_published_operations_and_image_passes():
    """Compare with 109 million passes and 6.12 EFLOP.

    These follow from the published sizes and epochs, and from the published counts of networks.
    """
    trials = plan_sweep(load_sweep("paper")).trials
    passes = sum(trial.network.recipe.epochs * trial.network.train_size for trial in trials)
    assert passes == pytest.approx(109e6, rel=0.005)
    assert sum(map(training_flops, trials)) == pytest.approx(6.12e18, rel=0.02)


def test_the_hours_of_the_paper_on_one_h100_lie_between_two_simple_bounds():
    """Memory traffic and arithmetic alone take 4.5 h.

    A roofline model of one trial at a time in eager mode takes 17 h.
    """
    plan = plan_sweep(load_sweep("paper"))
    on_one = on_gpus(plan.trials, H100, 1)
    assert 4.5 < on_one["hours"] < 17
    on_64 = on_gpus(plan.trials, H100, 64)
    assert on_64["hours"] <= 1.05 * on_64["gpu_hours"] / on_64["num_gpus"]


def test_a_measured_peak_corrects_memory_and_share_of_the_same_network(plan):
    cnn_trials = trials_of_model(plan, "small_cnn")
    mlp_trials = trials_of_model(plan, "small_mlp")
    reserved = 30 * 2**30  # far more than predicted
    record = trial_of_seconds(cnn_trials[0], 1.0, peak=reserved, **ON_H100)
    corrections = corrections_for(H100, measured_trials(record))
    need = need_of(cnn_trials[1], H100, corrections)
    assert need.memory_bytes == pytest.approx(reserved + CONTEXT_BYTES)
    share_of_memory = need.memory_bytes / (H100.memory_gib * 2**30)
    assert need.share >= share_of_memory > need_of(cnn_trials[1], H100).share
    assert need_of(mlp_trials[0], H100, corrections) == need_of(mlp_trials[0], H100)


def test_the_largest_peak_without_divided_batches_corrects_the_memory(plan):
    first, second, third = trials_of_model(plan, "small_cnn")
    records = [
        trial_of_seconds(first, 1.0, peak=2**30, **ON_H100),
        trial_of_seconds(second, 1.0, peak=2**31, **ON_H100),
        trial_of_seconds(third, 1.0, peak=2**40, micro_batch=2, **ON_H100),
    ]
    corrections = corrections_for(H100, measured_trials(*records))
    factor = (CONTEXT_BYTES + 2**31) / peak_bytes(second.network)
    assert corrections.memory == {"small_cnn": factor}


def test_measured_seconds_correct_the_same_gpu_only(plan):
    cnn_trials = trials_of_model(plan, "small_cnn")
    predicted = seconds_on_share(cnn_trials[0], H100, 0.5)
    records = [
        trial_of_seconds(trial, factor * predicted, **ON_H100)
        for trial, factor in zip(cnn_trials, (2, 3, 9), strict=True)
    ]
    trials = measured_trials(*records)
    assert corrections_for(H100, trials).seconds == pytest.approx({"small_cnn": 3.0})
    assert corrections_for(GPU_MODELS["a100"], trials).seconds == {}
    remaining = estimate(plan.trials, trials, gpu=H100)
    assert remaining["corrections"]["seconds"] == pytest.approx({"small_cnn": 3.0})
    assert remaining["cluster"]["hours"] > estimate(plan.trials, [], gpu=H100)["cluster"]["hours"]


def test_trials_on_cpus_and_without_a_gpus_name_correct_no_gpu(plan):
    trial = trials_of_model(plan, "small_cnn")[0]
    on_cpu = trial_of_seconds(trial, 9.0, peak=2**33)
    factor = pytest.approx(9.0 / core_seconds(trial))
    assert corrections_for(H100, measured_trials(on_cpu)) == Corrections(
        core_seconds={"small_cnn": factor}
    )
    on_unnamed_gpu = trial_of_seconds(trial, 9.0, device="cuda:0", gpu_share=0.5)
    assert corrections_for(H100, measured_trials(on_unnamed_gpu)) == Corrections()


def test_the_longest_trials_go_first_by_times_measured_on_cores(plan):
    cnn = trials_of_model(plan, "small_cnn")[0]
    mlp = trials_of_model(plan, "small_mlp")[0]
    assert core_seconds(cnn) > core_seconds(mlp)
    trials_done = measured_trials(trial_of_seconds(cnn, 1.0), trial_of_seconds(mlp, 1000.0))
    corrected = RuntimeModel(None, corrections_for(None, trials_done))
    for runtimes, first in ((RuntimeModel(), cnn), (corrected, mlp)):
        seconds = expected_seconds([mlp, cnn], runtimes)
        assert order_trials(plan, [mlp, cnn], 1e9, seconds)[0] == first


NETWORK_THAT_CHECKS_PIXELS = """
from torch import nn

class Net(nn.Module):
    def __init__(self, num_outputs):
        super().__init__()
        self.last = nn.Linear(256, num_outputs)

    def forward(self, pixels):
        flat = pixels.flatten(1)
        if not 0.2 < flat.mean() < 0.3:  # neither noise nor black
            raise ValueError("no such image")
        return self.last(flat)

def net(*, num_outputs, **options):
    return Net(num_outputs)
"""


def test_a_network_that_cannot_be_counted_is_planned_without_a_time_limit(
    plan, tmp_path, monkeypatch
):
    (tmp_path / "looks_at_values.py").write_text(NETWORK_THAT_CHECKS_PIXELS)
    monkeypatch.syspath_prepend(str(tmp_path))
    models = "[small_cnn, {from: 'looks_at_values:net', name: looks}]"
    text = SWEEP.replace("[small_cnn, small_mlp]", models)
    own_plan = plan_sweep(parse_sweep(text, origin="mine.yaml"))
    uncounted = trials_of_model(own_plan, "looks")[0]
    cnn = trials_of_model(own_plan, "small_cnn")[0]
    assert is_counted(cnn.network)
    assert not is_counted(uncounted.network)  # its operations are guessed from its weights
    trials = measured_trials(
        trial_of_seconds(uncounted, 5.0, peak=2**40, **ON_H100), trial_of_seconds(uncounted, 5.0)
    )
    assert corrections_for(H100, trials) == Corrections()
    runtimes = RuntimeModel(None, corrections_for(None, trials))
    seconds = expected_seconds([cnn, uncounted], runtimes)
    assert set(order_trials(own_plan, [cnn, uncounted], 1e9, seconds)) == {uncounted, cnn}
    assert time_limit(uncounted, trials, RuntimeModel()) == math.inf
    assert time_limit(cnn, trials, RuntimeModel()) < math.inf


def test_an_unmeasured_network_has_the_median_correction(plan):
    cnn = trials_of_model(plan, "small_cnn")[0]
    mlp = trials_of_model(plan, "small_mlp")[0]
    trials_done = measured_trials(trial_of_seconds(mlp, 1000.0))
    runtimes = RuntimeModel(None, corrections_for(None, trials_done))
    assert runtimes.seconds(mlp) == pytest.approx(1000.0)
    assert runtimes.seconds(cnn) == pytest.approx(1000.0 * core_seconds(cnn) / core_seconds(mlp))


PAIRS = """
name: mine
models: [small_cnn]
datasets: [{name: mnist5k, class_pairs: [[0, 1], [2, 3], [4, 5], [6, 7]]}]
train_sizes: [20]
test_size: 20
image_size: 28
seeds: [1, 5, 3]
recipe: smoke
"""
PLAN = plan_sweep(parse_sweep(PAIRS, origin="mine.yaml"))
BYTES_OF_ONE_ARRAY = array_bytes(PLAN.trials[0].network)


def arrays_and_seconds_in_order(budget):
    """Return array and seconds of each trial in order.

    ``budget`` counts how many arrays fit. The seed of a trial is its seconds.
    """
    seconds = {trial.trial_id: float(trial.network.seed) for trial in PLAN.trials}
    order = order_trials(PLAN, PLAN.trials, budget * BYTES_OF_ONE_ARRAY, seconds)
    return [(trial.network.subset.class_pair[0] // 2, trial.network.seed) for trial in order]


def test_if_all_arrays_fit_the_longest_trials_go_first_over_all_arrays():
    expected = [(array, seconds) for seconds in (5, 3, 1) for array in range(4)]
    assert arrays_and_seconds_in_order(4) == expected


@pytest.mark.parametrize("budget", [3.9, 0.5])
def test_if_arrays_do_not_fit_a_batch_of_arrays_fits_half_the_budget(budget):
    """Half of 3.9 arrays is room for one. An array larger than the budget is alone in its batch."""
    expected = [(array, seconds) for array in range(4) for seconds in (5, 3, 1)]
    assert arrays_and_seconds_in_order(budget) == expected


def jobs(*pairs):
    return [Job(f"{index:03d}", seconds, share) for index, (seconds, share) in enumerate(pairs)]


def test_a_short_job_passes_waiting_jobs_only_within_the_look_ahead():
    large = [Job(f"large {index:02}", 10.0, 0.6) for index in range(LOOK_AHEAD + 1)]
    early = Job("early", 1.0, 0.4)
    late = Job("late", 1.0, 0.4)
    result = replay([*large[:2], early, *large[2:], late], 1)
    assert result.starts["early"] == 0
    # One large job runs and LOOK_AHEAD wait, so the late job is offered when the next one starts.
    assert result.starts["late"] == 10.0


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 9), st.sampled_from([25, 33, 34, 50, 66, 100])), max_size=25),
    st.integers(1, 4),
)
def test_a_replay_equals_a_slow_replay_in_whole_numbers(pairs, num_gpus):
    work = jobs(*sorted(((float(seconds), share / 100) for seconds, share in pairs), reverse=True))
    result = replay(work, num_gpus)
    waiting = list(work)
    running = []  # (end, GPU, share in percent)
    expected_starts = {}
    now = 0
    while waiting or running:
        passed_over = 0
        for job in list(waiting):
            if passed_over == LOOK_AHEAD:
                break
            share = round(100 * job.share)
            used = [0] * num_gpus
            for _, gpu, used_share in running:
                used[gpu] += used_share
            fitting_gpus = [gpu for gpu in range(num_gpus) if used[gpu] + share <= 100]
            if not fitting_gpus:
                passed_over += 1
                continue
            fullest_gpu = max(fitting_gpus, key=lambda gpu: (used[gpu], -gpu))
            running.append((now + job.seconds, fullest_gpu, share))
            expected_starts[job.name] = now
            waiting.remove(job)
        now = min(end for end, _, _ in running)
        running = [entry for entry in running if entry[0] > now]
    assert (result.makespan, result.starts) == (now, expected_starts)
    gpu_seconds = sum(job.seconds * job.share for job in work)
    longest = max((job.seconds for job in work), default=0.0)
    assert result.lower_bound == pytest.approx(max(gpu_seconds / num_gpus, longest))
    assert result.utilisation * now * num_gpus == pytest.approx(gpu_seconds)
    assert replay(work, 100_000).starts == dict.fromkeys(expected_starts, 0.0)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (2.9e-5, "under 0.001"),
        (0.00149, "0.0015"),
        (0.45, "0.45"),
        (9.96, "10"),
        (1.7e4, "17,000"),
    ],
)
def test_amounts_have_two_digits_and_no_exponent(value, text):
    assert amount(value) == text
    assert roughly(value) == (f"about {text}" if value > 0.001 else text)
