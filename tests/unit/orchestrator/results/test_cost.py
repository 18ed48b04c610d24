"""What a sweep's results cost, by hand."""

import pytest

from orchestrator.planning.estimate import MeasuredTrial, Price, Prices
from orchestrator.results.state import cost_of
from tests.unit.orchestrator.results.examples import (
    state_of,
    trial_record,
    trial_result,
    trial_spec,
)

PRICES = Prices(card=Price(dollars=2, watts=500), core=Price(dollars=0.1, watts=10), origin="ours")
ON_CARD = trial_result().model_copy(update={"device": "cuda"})


def record(size: int, result=None, **changes):
    spec = trial_spec(size)
    fields = {"spec": spec, "trial_id": spec.trial_id, "started_at": 0.0, "finished_at": 3600.0, **changes}
    return trial_record(result, **fields)


def state(*records):
    return state_of({one.trial_id: one for one in records})


def test_hours_money_and_power_are_time_times_share_times_rate():
    cost = cost_of(
        state(
            record(40, ON_CARD, gpu_share=0.25, finished_at=7200.0),  # half a card's hour
            record(50, ON_CARD, gpu_share=1.0),
            record(60, trial_result().model_copy(update={"num_threads": 4})),  # four cores' hours
        ),
        PRICES,
    )
    assert (cost.gpu_hours, cost.core_hours) == (1.5, 4.0)
    assert cost.dollars == pytest.approx(1.5 * 2 + 4 * 0.1)
    assert cost.kilowatt_hours == pytest.approx((1.5 * 500 + 4 * 10) / 1000)
    assert cost.text() == "cost so far 1.5 GPU-hours and 4 core-hours: 3.4 $, 0.79 kWh (ours)"


def test_a_network_measured_again_saves_its_training_once():
    cost = cost_of(
        state(record(40, ON_CARD, gpu_share=0.5, measured_at=9000.0), record(50, ON_CARD, gpu_share=1.0)),
        PRICES,
    )
    assert (cost.networks_used_again, cost.saved_gpu_hours, cost.gpu_hours) == (1, 0.5, 1.5)
    assert "1 kept networks measured again, not trained: 0.5 GPU-hours saved" in cost.text()


def test_nothing_costs_nothing():
    cost = cost_of(state(), PRICES)
    assert (cost.dollars, cost.kilowatt_hours) == (0, 0)
    assert cost.text() == "cost so far 0 core-hours: 0 $, 0 kWh (ours)"


def test_the_share_of_a_record_that_knows_none_is_a_whole_card():
    found = state(record(40, ON_CARD)).measured_trials()[0]
    assert found == MeasuredTrial(trial_spec(), True, 1.0, 3600.0, peak_bytes=1000)
