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


def scores_by_quantity(scores):
    return {score.quantity: score for score in scores}


def test_the_published_numbers_agree_with_themselves_in_every_cell():
    table = published_table()
    scores = scores_by_quantity(scorecard(table))
    assert {name: score.num_compared for name, score in scores.items()} == {
        "d_data": 66,
        "K_F": 11,
        "test loss": 261,
        "d_repr (MLE)": 396,
        "d_repr (TwoNN)": 66,
        "FGSM loss gain at 2/255": 11,
    }
    for score in scores.values():
        assert score.num_compared == score.num_published == score.num_agreeing
        assert score.median_ratio == pytest.approx(1)
        assert score.apart == ()


@pytest.mark.parametrize("quantity", QUANTITIES, ids=lambda quantity: quantity.name)
def test_numbers_agree_within_the_factor_of_their_quantity(quantity):
    table = published_table()
    for factor, agrees in ((quantity.factor * 0.999, True), (quantity.factor * 1.001, False)):
        changed = table.assign(**{quantity.column: table[quantity.column] * factor})
        score = scores_by_quantity(scorecard(changed))[quantity.name]
        assert score.num_agreeing == (score.num_compared if agrees else 0)
        assert score.median_ratio == pytest.approx(factor)


def test_a_partial_sweep_is_scored_on_its_trials_by_data_mode():
    table = published_table()
    part = table[(table["dataset"] == "brats") & (table["model"] == "vgg13")]
    with_higher_losses = part.assign(data_mode="corrected", test_loss=part["test_loss"] * 10)
    scores = scorecard(pd.concat([part, with_higher_losses], ignore_index=True))
    losses = {score.data_mode: score for score in scores if score.quantity == "test loss"}
    assert (losses["as_released"].num_compared, losses["as_released"].num_agreeing) == (6, 6)
    assert (losses["corrected"].num_compared, losses["corrected"].num_agreeing) == (6, 0)
    assert losses["corrected"].apart[0] == "vgg13-brats-500"
    gains = next(score for score in scores if score.quantity.startswith("FGSM"))
    assert (gains.num_compared, gains.median_ratio) == (0, None)
    assert "6 of 261" in score_table(scores).rows[2]


def test_datasets_outside_the_study_are_not_compared():
    assert all(score.num_compared == 0 for score in scorecard(synthetic_table()))


def test_two_sweeps_are_compared_on_shared_combinations_with_datasets_as_replicates():
    first = synthetic_table(num_natural=3, num_medical=3, trial_std=0.1)
    second = synthetic_table(num_natural=3, num_medical=2, trial_std=0.1).assign(
        test_loss=first["test_loss"] * 1.5
    )
    comparison = compare(first, second, names=("as released", "corrected"))
    (change,) = [change for change in comparison.changes if change.quantity == "test_loss"]
    assert (comparison.num_only_first, comparison.num_only_second) == (3, 0)
    assert (change.num_cells, change.num_datasets) == (15, 5)
    assert change.ratio == pytest.approx(1.5)
    assert comparison.table().title == "corrected against as released"


def test_a_change_has_the_t_interval_of_dataset_means():
    rng = np.random.default_rng(0)
    table = synthetic_table(num_natural=4, num_medical=0)
    logs = rng.normal(0, 0.3, 4)[table["dataset"].str[-1].astype(int)]
    changed = table.assign(test_loss=table["test_loss"] * np.exp(logs))
    change = compare(table, changed).changes[0]
    means = np.unique(logs)
    # 3.182446 is the 97.5 % quantile of t with 3 degrees of freedom.
    reach = 3.182446 * means.std(ddof=1) / 2
    bounds = [means.mean() - reach, means.mean() + reach]
    assert np.log(change.interval) == pytest.approx(bounds, rel=1e-4)


def test_sweeps_without_a_shared_combination_cannot_be_compared():
    table = synthetic_table(num_natural=2, num_medical=0)
    with pytest.raises(
        DataError,
        match=r"is in both sweeps \(first has 6 combinations, second has 6",
    ):
        compare(table, table.assign(train_size=7 * table["train_size"]))


def test_diverged_trials_and_text_are_neither_compared_nor_scored():
    table = published_table().astype({"test_loss": object, "train_size": object})
    extra = table.iloc[:3].assign(
        trial_id=["x", "y", "z"],
        seed=1,
        test_loss=[np.inf, 1.797e308, "0,3"],
        status=["diverged", "done", "done"],
    )
    with_unusable_rows = pd.concat([table, extra], ignore_index=True).astype({"train_size": str})
    assert scorecard(with_unusable_rows) == scorecard(published_table())
    comparison = compare(published_table(), with_unusable_rows)
    assert comparison.changes == compare(published_table(), published_table()).changes
    assert comparison.notes == (
        "Left out of second: trials that diverged because their loss was no longer a finite number (1)",
        "Left out of second: values of test_loss that are not a number (1)",
        "Left out of second: values of test_loss that are infinite (1)",
    )
    assert all(note in comparison.table().note for note in comparison.notes)


def test_seeds_of_a_combination_are_averaged_as_in_the_fits():
    table = synthetic_table(num_natural=3, num_medical=0, num_seeds=2)
    factors = np.where(table["seed"] == 0, 1.0, 16.0)
    comparison = compare(table, table.assign(test_loss=table["test_loss"] * factors))
    assert comparison.changes[0].ratio == pytest.approx(4.0)
    note = "Means are over the seeds of a cell, then over the cells of a dataset"
    assert note in comparison.table().note


def test_sharpness_on_another_scale_is_not_compared_and_a_note_gives_the_reason():
    table = synthetic_table(num_natural=3, num_medical=0)
    table = table.assign(sharpness_pixel_range=255.0, image_size=32, sharpness_channels=1)
    assert "label_sharpness" in {change.quantity for change in compare(table, table).changes}
    comparison = compare(table, table.assign(image_size=64), names=("small", "large"))
    quantities = {change.quantity for change in comparison.changes}
    assert "test_loss" in quantities
    assert "label_sharpness" not in quantities
    assert comparison.notes == (
        "K_F is not compared, because its scale is 32×32 pixels, 1 channel, range 255 in small and "
        "64×64 pixels, 1 channel, range 255 in large",
    )


def test_recipes_of_a_sweep_are_not_averaged_like_seeds():
    first = synthetic_table(num_natural=3, num_medical=0).assign(recipe="paper+epochs=1")
    second = first.assign(
        recipe="paper+epochs=2", trial_id=first["trial_id"] + "b", test_loss=2 * first["test_loss"]
    )
    two_recipes = pd.concat([first, second])
    tripled = two_recipes.assign(test_loss=3 * two_recipes["test_loss"])
    assert compare(two_recipes, tripled).changes[0].num_cells == 18
    with pytest.raises(
        DataError, match=r"is in both sweeps \(first has 9 combinations, second has 18"
    ):
        compare(first, two_recipes)
