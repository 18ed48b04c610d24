"""What is left of a sweep: by the costs of its networks, and by what done trials took."""

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
from orchestrator.planning.costs.networks import cost_of, has_cost
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
    return of_model(plan, "small_cnn")


def of_model(plan, name):
    return [trial for trial in plan.trials if trial.network.model.name == name]


def done(
    trial, seconds, *, device="cpu", threads=1, peak=0, micro_batch=None, found=None, **record
):
    said = {
        "device": device,
        "num_threads": threads,
        "peak_memory_bytes": peak,
        "micro_batch": micro_batch,
    }
    result = (found or trial_result()).model_copy(update=said)
    return trial_record(result, spec=trial, started_at=0.0, finished_at=seconds, **record)


def measured(*records):
    return state_of({str(i): record for i, record in enumerate(records)}).measured_trials()


def seconds_on_share(trial, gpu, share):
    return need_of(trial, gpu, given=share).seconds


def test_core_hours_count_every_thread_of_a_trial(trials):
    """Two trials are left, each as long as the measured one: 100 s on four cores."""
    found = estimate(trials[1:], measured(done(trials[0], 100.0, threads=4)))
    assert found["cpu_core_hours"] == pytest.approx(2 * 400 / 3600)


@pytest.mark.parametrize(
    ("num_cpus", "minutes", "said"),
    [(1, 800 / 60, "13 min on 1 CPU."), (8, 400 / 60, "6.7 min on 8 CPUs.")],
)
def test_a_plan_tells_minutes_on_the_cpus_that_are_here(trials, num_cpus, minutes, said):
    """Two trials of 400 s; no number of cores makes one of them shorter."""
    known = measured(done(trials[0], 400.0, threads=1))
    found = estimate(trials[1:], known, gpu=None, num_cpus=num_cpus)
    assert found["cpu_hours"] == pytest.approx(minutes / 60)
    assert found["text"].startswith(f"2 trials left: about {said}")


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_gpu_hours_count_a_trials_share_of_its_gpu(trials, share):
    known = measured(done(trials[0], 100.0, **{**ON_H100, "gpu_share": share}))
    found = estimate(trials[1:], known, share=share)
    assert found["gpu_hours"] == pytest.approx(2 * 100 * share / 3600)


def test_diverged_trials_tell_no_rate(trials):
    stopped = done(trials[1], 0.001, found=diverged())
    found = estimate(trials[2:], measured(done(trials[0], 100.0), stopped))
    assert found["cpu_core_hours"] == pytest.approx(100 / 3600)
    assert corrections_for(None, measured(stopped)) == Corrections()


def test_a_large_networks_time_is_its_arithmetic(trials):
    text = (
        SWEEP.replace("[small_cnn, small_mlp]", "[vgg19]")
        .replace("[20]", "[400]")
        .replace("16", "224")
    )
    trial = plan_sweep(parse_sweep(text, origin="mine.yaml")).trials[0]
    operations = training_flops(trial) + sum(attack_flops(trial).values())
    operations += cost_of(trial.network).forward_flops * (
        400 + 20 + 20
    )  # test images pass once in between
    assert core_seconds(trial) == pytest.approx(operations / CORE_FLOPS, rel=0.1)


def test_test_images_that_pass_between_epochs_take_their_time(trials):
    """After the first of two epochs, as after ten of a hundred; in float32, which GPUs are slow
    in."""

    def after(epochs):
        recipe = trials[0].network.recipe.model_copy(update={"epochs": epochs})
        network = trials[0].network.model_copy(update={"recipe": recipe})
        return trials[0].model_copy(update={"network": network})

    cost, gpu, test_size = cost_of(trials[0].network), H100, 20
    for epochs, looks in ((2, 1), (10, 9), (100, 9)):
        times = [core_seconds(after(epochs)) for epochs in (1, epochs)]
        steps = (epochs - 1) * 2
        step, look = (
            part.flops / CORE_FLOPS + CORE_INTERVAL_S * part.num_launches
            for part in (cost.step, cost.evaluation)
        )
        passes = looks * test_size / cost.evaluation_batch
        assert times[1] - times[0] == pytest.approx(steps * step + passes * look)
    look = pass_time(cost.evaluation, gpu, interval=EAGER_INTERVAL_S, half=False).seconds
    step = pass_time(cost.step, gpu, interval=GRAPH_INTERVAL_S, half=False).seconds
    longer = seconds_on_share(after(100), gpu, 1.0) - seconds_on_share(after(1), gpu, 1.0)
    assert longer == pytest.approx(99 * 2 * step + 9 * test_size / cost.evaluation_batch * look)


def test_every_attack_that_is_asked_for_takes_its_time(trials):
    usual = trials[0]
    asked = usual.model_copy(
        update={"attacks": usual.attacks.model_copy(update={"methods": ("fgsm", "pgd")})}
    )
    num_attacked = usual.network.subset.test_size * len(usual.attacks.epsilons)
    # 5 descents of 20 gradient steps, each step three passes; 5 forward passes at the descents'
    # ends, and one that scores.
    added = num_attacked * (5 * 20 * 3 + 5 + 1) * cost_of(usual.network).forward_flops
    assert sum(attack_flops(asked).values()) - sum(attack_flops(usual).values()) == pytest.approx(
        added
    )
    assert core_seconds(asked) > core_seconds(usual)
    gpu = H100
    assert need_of(asked, gpu).seconds > need_of(usual, gpu).seconds


def test_a_plan_for_more_gpus_is_shorter_and_never_below_its_bound(trials):
    one, two = (on_gpus(trials, H100, number) for number in (1, 2))
    assert two["hours"] <= one["hours"]
    for found in (one, two):
        assert found["hours"] >= found["gpu_hours"] / found["num_gpus"] > 0
    assert set(one["shares"]) == {"small_cnn"}


@pytest.mark.parametrize(
    ("share", "num_gpus"), [(0.5, 1), (0.25, 1), (1.0, 2), (2.0, 5), (None, 1)]
)
def test_a_share_that_the_sweep_asks_for_is_planned_with(trials, share, num_gpus):
    """Hours are as a status counts them afterwards: time times share, whatever a trial makes of
    it."""
    found = estimate(trials, (), share=share, num_gpus=num_gpus)
    given, cluster = [need_of(trial, H100, given=share) for trial in trials], found["cluster"]
    assert cluster["shares"] == {"small_cnn": given[0].share if share is None else share}
    assert found["gpu_hours"] == pytest.approx(
        sum(need.seconds * need.share for need in given) / 3600
    )
    used = cluster["hours"] * cluster["num_gpus"] * cluster["utilisation"]
    assert found["gpu_hours"] == pytest.approx(used)


def test_a_trial_that_asks_for_more_gpus_than_there_are_is_refused(trials):
    message = r"One trial needs 2 GPUs .*, but the plan has only 1\. Plan with `--gpus 2`"
    with pytest.raises(ConfigError, match=message):
        on_gpus(trials, H100, 1, share=2.0)
    assert estimate(trials, (), share=2.0)["cluster"]["num_gpus"] == 2


def test_a_trial_that_no_gpu_can_hold_is_named(trials):
    tiny = replace(H100, memory_gib=0.5)
    text = estimate(trials, (), gpu=tiny)["text"]
    assert "small_cnn" in text.partition("memory")[2]
    assert on_gpus(trials, H100, 1)["too_large"] == {}
    assert set(on_gpus(trials, H100, 1, share=0.001)["too_large"]) == {"small_cnn"}


def test_the_papers_grid_has_the_operations_and_image_passes_that_others_counted():
    """109 million passes and 6.12 EFLOP, from the published sizes and epochs and each network's own
    count."""
    trials = plan_sweep(load_sweep("paper")).trials
    passes = sum(trial.network.recipe.epochs * trial.network.train_size for trial in trials)
    assert passes == pytest.approx(109e6, rel=0.005)
    assert sum(map(training_flops, trials)) == pytest.approx(6.12e18, rel=0.02)


def test_the_papers_grid_on_one_h100_lies_between_its_floor_and_an_unpacked_run():
    """Traffic and arithmetic alone take 4.5 h; a roofline of one trial at a time in eager mode says
    17 h."""
    plan = plan_sweep(load_sweep("paper"))
    found = on_gpus(plan.trials, H100, 1)
    assert 4.5 < found["hours"] < 17
    many = on_gpus(plan.trials, H100, 64)
    assert many["hours"] <= 1.05 * many["gpu_hours"] / many["num_gpus"]


def test_a_measured_peak_scales_the_memory_and_so_the_share_of_the_same_network(plan):
    cnn, mlp = of_model(plan, "small_cnn"), of_model(plan, "small_mlp")
    reserved = 30 * 2**30  # far more than predicted
    found = corrections_for(H100, measured(done(cnn[0], 1.0, peak=reserved, **ON_H100)))
    need = need_of(cnn[1], H100, found)
    assert need.memory_bytes == pytest.approx(reserved + CONTEXT_BYTES)
    assert need.share >= need.memory_bytes / (H100.memory_gib * 2**30) > need_of(cnn[1], H100).share
    assert need_of(mlp[0], H100, found) == need_of(mlp[0], H100)


def test_the_worst_peak_counts_and_one_of_batches_in_parts_does_not(plan):
    cnn = of_model(plan, "small_cnn")
    peaks = zip(cnn, (2**30, 2**31, 2**40), (None, None, 2), strict=True)
    ran = [done(trial, 1.0, peak=peak, micro_batch=part, **ON_H100) for trial, peak, part in peaks]
    found = corrections_for(H100, measured(*ran))
    assert found.memory == {"small_cnn": (CONTEXT_BYTES + 2**31) / peak_bytes(cnn[1].network)}


def test_measured_seconds_scale_those_of_the_same_gpu_only(plan):
    cnn = of_model(plan, "small_cnn")
    predicted = seconds_on_share(cnn[0], H100, 0.5)
    trials = measured(
        *(
            done(trial, factor * predicted, **ON_H100)
            for trial, factor in zip(cnn, (2, 3, 9), strict=True)
        )
    )
    assert corrections_for(H100, trials).seconds == pytest.approx({"small_cnn": 3.0})
    assert corrections_for(GPU_MODELS["a100"], trials).seconds == {}
    found = estimate(plan.trials, trials, gpu=H100)
    assert found["corrections"]["seconds"] == pytest.approx({"small_cnn": 3.0})
    assert found["cluster"]["hours"] > estimate(plan.trials, [], gpu=H100)["cluster"]["hours"]


def test_trials_on_cpus_and_without_a_gpus_name_correct_no_gpu(plan):
    trial = of_model(plan, "small_cnn")[0]
    on_cpu = corrections_for(H100, measured(done(trial, 9.0, peak=2**33)))
    assert on_cpu == Corrections(
        core_seconds={"small_cnn": pytest.approx(9.0 / core_seconds(trial))}
    )
    nameless = corrections_for(H100, measured(done(trial, 9.0, device="cuda:0", gpu_share=0.5)))
    assert nameless == Corrections()


def test_the_longest_go_first_by_what_was_measured_on_cores(plan):
    cnn, mlp = of_model(plan, "small_cnn")[0], of_model(plan, "small_mlp")[0]
    assert core_seconds(cnn) > core_seconds(mlp)
    known = RuntimeModel(None, corrections_for(None, measured(done(cnn, 1.0), done(mlp, 1000.0))))
    for expected, first in ((RuntimeModel(), cnn), (known, mlp)):
        assert (
            order_trials(plan, [mlp, cnn], 1e9, expected_seconds([mlp, cnn], expected))[0] == first
        )


LOOKS = """
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


def test_a_network_that_cannot_be_counted_is_in_nobodys_way(plan, tmp_path, monkeypatch):
    (tmp_path / "looks_at_values.py").write_text(LOOKS)
    monkeypatch.syspath_prepend(str(tmp_path))
    own = "[small_cnn, {from: 'looks_at_values:net', name: looks}]"
    mine = plan_sweep(parse_sweep(SWEEP.replace("[small_cnn, small_mlp]", own), origin="mine.yaml"))
    looks, cnn = of_model(mine, "looks")[0], of_model(mine, "small_cnn")[0]
    assert has_cost(cnn.network)
    assert not has_cost(looks.network)  # its operations are guessed from its weights
    trials = measured(done(looks, 5.0, peak=2**40, **ON_H100), done(looks, 5.0))
    assert corrections_for(H100, trials) == Corrections()
    seconds = expected_seconds([cnn, looks], RuntimeModel(None, corrections_for(None, trials)))
    assert set(order_trials(mine, [cnn, looks], 1e9, seconds)) == {looks, cnn}
    assert time_limit(looks, trials, RuntimeModel()) == math.inf
    assert time_limit(cnn, trials, RuntimeModel()) < math.inf


def test_an_unmeasured_network_is_taken_for_a_middling_one(plan):
    cnn, mlp = of_model(plan, "small_cnn")[0], of_model(plan, "small_mlp")[0]
    known = RuntimeModel(None, corrections_for(None, measured(done(mlp, 1000.0))))
    assert known.seconds(mlp) == pytest.approx(1000.0)
    assert known.seconds(cnn) == pytest.approx(1000.0 * core_seconds(cnn) / core_seconds(mlp))


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
ONE = array_bytes(PLAN.trials[0].network)


def ordered(budget):
    """Array and seconds of each trial, where arrays may take so many times that of one: seeds are
    seconds."""
    seconds = {trial.trial_id: float(trial.network.seed) for trial in PLAN.trials}
    order = order_trials(PLAN, PLAN.trials, budget * ONE, seconds)
    return [(trial.network.subset.class_pair[0] // 2, trial.network.seed) for trial in order]


def test_the_longest_go_first_over_all_arrays_where_all_fit():
    assert ordered(4) == [(array, seconds) for seconds in (5, 3, 1) for array in range(4)]


@pytest.mark.parametrize("budget", [3.9, 0.5])
def test_where_they_do_not_fit_a_shelf_is_what_fits_half_the_budget(budget):
    """One array in 1.95 of them; and one that is larger than all the budget has a shelf of its
    own."""
    assert ordered(budget) == [(array, seconds) for array in range(4) for seconds in (5, 3, 1)]


def jobs(*pairs):
    return [Job(f"{index:03d}", seconds, share) for index, (seconds, share) in enumerate(pairs)]


def test_a_short_job_goes_before_those_that_fit_nowhere_only_as_far_as_trials_are_offered():
    large = [Job(f"large {i:02}", 10.0, 0.6) for i in range(LOOK_AHEAD + 1)]
    near, far = Job("near", 1.0, 0.4), Job("far", 1.0, 0.4)
    found = replay([*large[:2], near, *large[2:], far], 1)
    assert found.starts["near"] == 0
    # The first runs and all others wait: as many as are offered, until one more of them has begun.
    assert found.starts["far"] == 10.0


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 9), st.sampled_from([25, 33, 34, 50, 66, 100])), max_size=25),
    st.integers(1, 4),
)
def test_a_replay_equals_a_slow_one_in_whole_numbers(pairs, num_gpus):
    work = jobs(*sorted(((float(seconds), share / 100) for seconds, share in pairs), reverse=True))
    found, waiting, running, expected, now = replay(work, num_gpus), list(work), [], {}, 0
    while waiting or running:
        passed_over = 0
        for job in list(waiting):
            if passed_over == LOOK_AHEAD:
                break
            share = round(100 * job.share)
            used = [
                sum(other[2] for other in running if other[1] == gpu) for gpu in range(num_gpus)
            ]
            fit = [gpu for gpu in range(num_gpus) if used[gpu] + share <= 100]
            if not fit:
                passed_over += 1
                continue
            running.append((now + job.seconds, max(fit, key=lambda gpu: (used[gpu], -gpu)), share))
            expected[job.name] = now
            waiting.remove(job)
        now = min(end for end, _, _ in running)
        running = [other for other in running if other[0] > now]
    assert (found.makespan, found.starts) == (now, expected)
    spent = sum(job.seconds * job.share for job in work)
    longest = max((job.seconds for job in work), default=0.0)
    assert found.lower_bound == pytest.approx(max(spent / num_gpus, longest))
    assert found.utilisation * now * num_gpus == pytest.approx(spent)
    assert replay(work, 100_000).starts == dict.fromkeys(expected, 0.0)


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
def test_amounts_have_two_figures_and_no_exponent(value, text):
    assert amount(value) == text
    assert roughly(value) == (f"about {text}" if value > 0.001 else text)
