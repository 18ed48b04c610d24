import numpy as np
import pandas as pd
import pytest

from orchestrator.analysis.published import (
    QUANTITIES,
    compare,
    published_table,
    score_table,
    scorecard,
)
from search_spaces.errors import DataError
from tests.synthetic import synthetic_table


def by_name(scores):
    return {score.quantity: score for score in scores}


def test_the_published_numbers_agree_with_themselves_in_every_cell():
    table = published_table()
    found = by_name(scorecard(table))
    assert {name: score.num_compared for name, score in found.items()} == {
        "d_data": 66,
        "K_F": 11,
        "test loss": 261,
        "d_repr (MLE)": 396,
        "d_repr (TwoNN)": 66,
        "FGSM loss gain at 2/255": 11,
    }
    for score in found.values():
        assert score.num_compared == score.num_published == score.num_agreeing
        assert score.median_ratio == pytest.approx(1)
        assert score.apart == ()


@pytest.mark.parametrize("quantity", QUANTITIES, ids=lambda q: q.name)
def test_the_rule_of_agreement_is_its_factor(quantity):
    table = published_table()
    for factor, agrees in ((quantity.factor * 0.999, True), (quantity.factor * 1.001, False)):
        moved = table.assign(**{quantity.column: table[quantity.column] * factor})
        score = by_name(scorecard(moved))[quantity.name]
        assert score.num_agreeing == (score.num_compared if agrees else 0)
        assert score.median_ratio == pytest.approx(factor)


def test_a_partial_sweep_is_scored_on_what_it_has_by_data_mode():
    table = published_table()
    part = table[(table["dataset"] == "brats") & (table["model"] == "vgg13")]
    other = part.assign(data_mode="corrected", test_loss=part["test_loss"] * 10)
    both = scorecard(pd.concat([part, other], ignore_index=True))
    losses = {s.data_mode: s for s in both if s.quantity == "test loss"}
    assert (losses["as_released"].num_compared, losses["as_released"].num_agreeing) == (6, 6)
    assert (losses["corrected"].num_compared, losses["corrected"].num_agreeing) == (6, 0)
    assert losses["corrected"].apart[0] == "vgg13-brats-500"
    gains = next(s for s in both if s.quantity.startswith("FGSM"))
    assert (gains.num_compared, gains.median_ratio) == (0, None)
    assert "6 of 261" in score_table(both).rows[2]


def test_datasets_the_study_never_saw_are_not_compared():
    assert all(score.num_compared == 0 for score in scorecard(synthetic_table()))


def test_two_sweeps_are_compared_on_shared_cells_with_datasets_as_replicates():
    one = synthetic_table(num_natural=3, num_medical=3, trial_std=0.1)
    two = synthetic_table(num_natural=3, num_medical=2, trial_std=0.1).assign(
        test_loss=one["test_loss"] * 1.5
    )
    found = compare(one, two, names=("as released", "corrected"))
    change = {x.quantity: x for x in found.changes}["test_loss"]
    assert (found.num_only_first, found.num_only_second) == (3, 0)
    assert (change.num_cells, change.num_datasets) == (15, 5)
    assert change.ratio == pytest.approx(1.5)
    assert found.table().title == "corrected against as released"


def test_a_change_carries_the_t_interval_of_dataset_means():
    rng = np.random.default_rng(0)
    one = synthetic_table(num_natural=4, num_medical=0)
    logs = rng.normal(0, 0.3, 4)[one["dataset"].str[-1].astype(int)]
    change = compare(one, one.assign(test_loss=one["test_loss"] * np.exp(logs))).changes[0]
    means = np.unique(logs)
    reach = 3.182446 * means.std(ddof=1) / 2
    assert np.log(change.interval) == pytest.approx(
        [means.mean() - reach, means.mean() + reach], rel=1e-4
    )


def test_sweeps_without_a_shared_cell_are_no_comparison():
    one = synthetic_table(num_natural=2, num_medical=0)
    with pytest.raises(
        DataError,
        match=r"is in both sweeps \(first has 6 combinations, second has 6",
    ):
        compare(one, one.assign(train_size=7 * one["train_size"]))


def test_diverged_trials_and_text_are_neither_compared_nor_scored():
    table = published_table().astype({"test_loss": object, "train_size": object})
    extra = table.iloc[:3].assign(
        trial_id=["x", "y", "z"],
        seed=1,
        test_loss=[np.inf, 1.797e308, "0,3"],
        status=["diverged", "done", "done"],
    )
    both = pd.concat([table, extra], ignore_index=True).astype({"train_size": str})
    assert scorecard(both) == scorecard(published_table())
    compared = compare(published_table(), both)
    assert compared.changes == compare(published_table(), published_table()).changes
    assert compared.notes == (
        "Left out of second: diverged (loss stopped being a finite number): 1",
        "Left out of second: test_loss: not a number, treated as missing: 1",
        "Left out of second: test_loss: stored infinity, treated as missing: 1",
    )
    assert all(note in compared.table().note for note in compared.notes)


def test_seeds_of_a_cell_are_averaged_as_the_fits_do_and_the_note_says_so():
    one = synthetic_table(num_natural=3, num_medical=0, num_seeds=2)
    factors = np.where(one["seed"] == 0, 1.0, 16.0)
    found = compare(one, one.assign(test_loss=one["test_loss"] * factors))
    assert found.changes[0].ratio == pytest.approx(4.0)
    assert (
        "Means are over the seeds of a cell, then over the cells of a dataset" in found.table().note
    )


def test_sharpness_on_another_scale_is_not_compared_and_that_is_said():
    one = synthetic_table(num_natural=3, num_medical=0)
    one = one.assign(sharpness_pixel_range=255.0, image_size=32, sharpness_channels=1)
    assert "label_sharpness" in {change.quantity for change in compare(one, one).changes}
    found = compare(one, one.assign(image_size=64), names=("small", "large"))
    assert {"test_loss", "label_sharpness"} - {x.quantity for x in found.changes} == {
        "label_sharpness"
    }
    assert found.notes == (
        "K_F is not compared, because its scale is 32×32 pixels, 1 channel, range 255 in small and "
        "64×64 pixels, 1 channel, range 255 in large",
    )


def test_recipes_of_a_sweep_are_not_averaged_as_if_they_were_seeds():
    one = synthetic_table(num_natural=3, num_medical=0).assign(recipe="paper+epochs=1")
    two = one.assign(
        recipe="paper+epochs=2", trial_id=one["trial_id"] + "b", test_loss=2 * one["test_loss"]
    )
    both = pd.concat([one, two])
    assert compare(both, both.assign(test_loss=3 * both["test_loss"])).changes[0].num_cells == 18
    with pytest.raises(
        DataError, match=r"is in both sweeps \(first has 9 combinations, second has 18"
    ):
        compare(one, both)
