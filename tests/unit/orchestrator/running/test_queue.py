"""The memory that Tune keeps for an ended trial is freed, whatever Ray's private attributes are."""

from types import SimpleNamespace

from orchestrator.running.queue import ASSIGNMENT, TRIAL_ID, free_memory


def test_an_ended_tune_trial_keeps_neither_assignment_nor_report():
    metadata = SimpleNamespace(last_result={"report": 1}, metric_analysis={"report": 1})
    trial = SimpleNamespace(config={TRIAL_ID: "t", ASSIGNMENT: "large"}, run_metadata=metadata)
    free_memory(trial)
    assert trial.config == {TRIAL_ID: "t", ASSIGNMENT: None}
    assert (metadata.last_result, metadata.metric_analysis) == ({}, {})
    assert trial._default_result_or_future is None


def test_a_ray_without_these_private_attributes_only_costs_memory():
    """The guard of a private attribute once failed exactly in the case that it guards."""
    trial = SimpleNamespace(config={TRIAL_ID: "t", ASSIGNMENT: "large"})
    free_memory(trial)
    assert trial.config == {TRIAL_ID: "t", ASSIGNMENT: None}
