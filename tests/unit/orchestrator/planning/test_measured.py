"""What done trials change in the plan of those to come."""

import math
from dataclasses import replace

import pytest

from orchestrator.planning.estimate import (
    Expectation,
    corrections_for,
    estimate,
    expected_seconds,
    order_trials,
    time_limit,
)
from orchestrator.planning.plan import plan_sweep
from orchestrator.planning.predict import (
    CARDS,
    Corrections,
    core_seconds,
    flops,
    has_cost,
    need_of,
    peak_bytes,
)
from orchestrator.planning.sweep_file import parse_sweep
from tasks.trials.records import CONTEXT_BYTES
from tests.unit.orchestrator.results.examples import state_of, trial_record, trial_result

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
H100 = CARDS["h100"]
ON_H100 = {"device": "cuda:0", "gpu_name": "NVIDIA H100 80GB HBM3", "gpu_share": 0.5}


@pytest.fixture(scope="module")
def plan():
    return plan_sweep(parse_sweep(SWEEP, origin="mine.yaml"))


def seconds_on_share(trial, card, share):
    return need_of(trial, card, given=share).seconds


def of_model(plan, name):
    return [trial for trial in plan.trials if trial.network.model.name == name]


def done(trial, seconds, *, device="cpu", peak=0, micro_batch=None, **record):
    result = trial_result().model_copy(
        update={"device": device, "peak_memory_bytes": peak, "micro_batch": micro_batch}
    )
    return trial_record(result, spec=trial, started_at=0.0, finished_at=seconds, **record)


def measured(*records):
    return state_of({str(i): record for i, record in enumerate(records)}).measured_trials()


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
    found = corrections_for(
        H100,
        measured(
            done(cnn[0], 1.0, peak=2**30, **ON_H100),
            done(cnn[1], 1.0, peak=2**31, **ON_H100),
            done(cnn[2], 1.0, peak=2**40, micro_batch=2, **ON_H100),
        ),
    )
    assert found.memory == {"small_cnn": (CONTEXT_BYTES + 2**31) / peak_bytes(cnn[1].network)}


def test_measured_seconds_scale_those_of_the_same_card_only(plan):
    cnn = of_model(plan, "small_cnn")
    predicted = seconds_on_share(cnn[0], H100, 0.5)
    trials = measured(
        *(done(trial, factor * predicted, **ON_H100) for trial, factor in zip(cnn, (2, 3, 9), strict=True))
    )
    assert corrections_for(H100, trials).seconds == pytest.approx({"small_cnn": 3.0})
    assert corrections_for(CARDS["a100"], trials).seconds == {}
    found = estimate(plan.trials, trials, card=H100)
    assert found["corrections"]["seconds"] == pytest.approx({"small_cnn": 3.0})
    assert found["cluster"]["hours"] > estimate(plan.trials, [], card=H100)["cluster"]["hours"]


def test_measured_seconds_count_whatever_a_root_pays_for_the_card_and_on_no_other_kind(plan):
    trial = of_model(plan, "small_cnn")[0]
    trials = measured(done(trial, 3 * seconds_on_share(trial, H100, 0.5), **ON_H100))
    dear = replace(H100, price=99.0)
    assert corrections_for(dear, trials).seconds == pytest.approx({"small_cnn": 3.0})
    alone, hours = [trial], {}
    for card in (dear, CARDS["a100"]):
        hours[card.name] = estimate(alone, trials, card=card)["gpu_hours"]
    assert hours["a100"] == estimate(alone, [], card=CARDS["a100"])["gpu_hours"]
    assert hours["h100"] == pytest.approx(3 * need_of(trial, H100).card_seconds / 3600)


def test_trials_on_cpus_and_without_a_cards_name_correct_no_card(plan):
    trial = of_model(plan, "small_cnn")[0]
    on_cpu = corrections_for(H100, measured(done(trial, 9.0, peak=2**33)))
    assert on_cpu == Corrections(core_seconds={"small_cnn": pytest.approx(9.0 / core_seconds(trial))})
    nameless = corrections_for(H100, measured(done(trial, 9.0, device="cuda:0", gpu_share=0.5)))
    assert nameless == Corrections()


def test_the_longest_go_first_by_what_was_measured_on_cores(plan):
    cnn, mlp = of_model(plan, "small_cnn")[0], of_model(plan, "small_mlp")[0]
    assert flops(cnn) > flops(mlp)
    known = Expectation.of(None, measured(done(cnn, 1.0), done(mlp, 1000.0)))
    cells = [mlp, cnn]
    orders = [
        order_trials(plan, cells, 1e9, expected_seconds(cells, expected))
        for expected in (Expectation(), known)
    ]
    first = [order[0] for order in orders]
    assert first == [cnn, mlp]


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
    assert set(
        order_trials(mine, [cnn, looks], 1e9, expected_seconds([cnn, looks], Expectation.of(None, trials)))
    ) == {looks, cnn}
    assert time_limit(looks, trials) == math.inf
    assert time_limit(cnn, trials) < math.inf


def test_an_unmeasured_network_is_taken_for_a_middling_one(plan):
    cnn, mlp = of_model(plan, "small_cnn")[0], of_model(plan, "small_mlp")[0]
    known = Expectation.of(None, measured(done(mlp, 1000.0)))
    assert known.seconds(mlp) == pytest.approx(1000.0)
    assert known.seconds(cnn) == pytest.approx(1000.0 * core_seconds(cnn) / core_seconds(mlp))
