"""What the findings say: nothing without an interval, nothing at unequal N, nothing that chance would say
often.
"""

import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from statsmodels.stats.multitest import multipletests

from orchestrator.analysis import fit_scaling_laws, published_table
from orchestrator.analysis.figures import DRAWINGS
from orchestrator.analysis.findings import family, findings
from orchestrator.analysis.fit_records import SharpnessScale
from orchestrator.analysis.guessing import flattened
from orchestrator.analysis.laws import adjust, fit_level, fit_train_size
from orchestrator.analysis.synthetic import synthetic_table
from orchestrator.analysis.table import fitted_points, normalise, usable_trials

pytestmark = pytest.mark.usefixtures("without_priors")


def points_of(table):
    return fitted_points(usable_trials(normalise(table)[0])[0])


def growing_table():
    """Losses rise with d at every N, while d's estimate grows with N as the loss falls."""
    rng = np.random.default_rng(0)
    table = synthetic_table(num_natural=8, num_medical=7, train_sizes=(250, 1000, 4000, 16000))
    true_d = table.groupby("dataset")["d_data_mle"].transform("mean")
    grown = true_d * (table["train_size"] / 250) ** 0.25
    log_loss = 0.05 * true_d - 0.5 * np.log(table["train_size"]) + rng.normal(0, 0.05, len(table))
    return table.assign(d_data_mle=grown, test_loss=np.exp(log_loss))


@pytest.fixture(scope="module")
def growing():
    return fit_scaling_laws(growing_table())


@pytest.fixture(scope="module")
def published():
    table = published_table()
    return fit_scaling_laws(table[table["model"].isin(["resnet34", "vgg13"])], sharpness_policy="ignore")


def test_a_slope_on_d_data_is_taken_at_equal_n(growing):
    for domain in ("natural", "medical"):
        pooled = growing.law("loss_on_d_data", subset=domain).coefficients[1].value
        equal = growing.level("d_data_mle", subset=domain).coefficient("d_data_mle").value
        assert pooled < 0 < equal
    answer = findings(growing)[0].answer
    assert "Among 8 natural datasets, at equal model and train size, log test loss rises by" in answer
    assert "falls by" not in answer


def test_lines_of_the_figure_compare_equal_n_and_its_caption_says_so(growing):
    drawing = next(d for d in DRAWINGS if d.name == "loss_on_d_data")
    figure = drawing.draw(points_of(growing_table()), growing)
    lines = [line for line in figure.axes[0].get_lines() if len(line.get_xdata()) == 2]
    assert lines
    for line in lines:
        assert line.get_ydata()[1] > line.get_ydata()[0]
    assert "compare points of equal train size" in drawing.describe(None, growing)


def test_no_line_is_drawn_through_two_datasets():
    """Its slope has no interval, and the findings say that none can be fitted."""
    table = synthetic_table(num_natural=2, num_medical=2, class_pairs=("3-8", "4-9"))
    fits = fit_scaling_laws(table)
    drawing = next(d for d in DRAWINGS if d.name == "loss_on_d_data")
    figure = drawing.draw(points_of(table), fits)
    assert not [line for axes in figure.axes for line in axes.get_lines() if len(line.get_xdata()) == 2]
    assert "Lines are fits" not in drawing.describe(None, fits)


def test_no_correlation_is_named_without_an_interval_that_excludes_zero():
    table = synthetic_table(num_natural=2, num_medical=2, models=("a", "b"))
    rng = np.random.default_rng(1)
    for name in [n for n in table if n.endswith("loss_gain")]:
        table[name] = rng.normal(5, 1, len(table))
    answer = findings(fit_scaling_laws(table))[1].answer
    assert "correlates" not in answer
    assert "r =" not in answer
    assert "For none of 8 combinations of attack, epsilon and model is a correlation" in answer


def test_an_established_correlation_is_counted_among_all_that_were_tried():
    table = synthetic_table(num_natural=6, num_medical=6, models=("a", "b"))
    answer = findings(fit_scaling_laws(table))[1].answer
    found = re.search(
        r"correlates with K_F in (\d+) of 8 combinations.*r = ([\d.]+), 95 % interval ([\d.]+) to", answer
    )
    assert found
    assert 0 < float(found[3]) < float(found[2]) <= 1


def test_shares_are_counts_of_points_with_the_share_of_datasets_beside():
    table = synthetic_table(num_natural=3, num_medical=1, models=("a",))
    table["d_repr_mle"] = table["d_data_mle"] * np.where(table["dataset"] == "natural0", 2.0, 0.5)
    answer = findings(fit_scaling_laws(table))[2].answer
    assert "d_repr is at or below d_data at 9 of 12 points (each dataset counting once: 75%" in answer


def test_an_interval_of_shares_that_never_vary_is_not_shown():
    table = synthetic_table(num_natural=4, num_medical=4, models=("a",)).assign(d_repr_mle=1e9)
    answer = findings(fit_scaling_laws(table))[2].answer
    assert "at 0 of 24 points (each dataset counting once: 0%)" in answer


def test_nothing_is_said_or_drawn_from_a_refit_that_would_be_refused():
    table = synthetic_table(num_natural=2, num_medical=3, trial_std=0.3, train_sizes=(250, 500, 1000, 2000))
    fits = fit_scaling_laws(table)
    two = fits.law("loss_on_d_data_at_equal_size", subset="natural").coefficients[1]
    assert set(two.left_out.values()) == {None}
    assert two.sign_depends_on == ()
    drawing = next(d for d in DRAWINGS if d.name == "left_out")
    figure = drawing.draw(points_of(table), fits)
    assert [axes.get_title() for axes in figure.axes] == ["medical"]
    assert not any("Without natural" in caveat for caveat in findings(fits)[0].caveats)


def test_a_caption_names_the_interval_only_where_it_is_drawn():
    drawing = next(d for d in DRAWINGS if d.name == "left_out")
    full = fit_scaling_laws(synthetic_table(num_natural=5, num_medical=5, trial_std=0.3))
    assert "The bar on top is the 95 % interval." in drawing.describe(None, full)
    bare = tuple(
        replace(law, coefficients=tuple(replace(k, interval=None) for k in law.coefficients))
        for law in full.laws
    )
    assert "The bar on top" not in drawing.describe(None, replace(full, laws=bare))


def test_predicting_better_than_the_label_is_a_difference_with_its_interval(published):
    answer = findings(published)[1].answer
    assert "K_F with 1/d predicts neither better nor worse, as far as told, than the bare label" in answer
    assert "difference of squared errors in log loss: 95 % interval" in answer


def test_under_the_null_better_than_the_label_is_said_as_rarely_as_it_should():
    said = 0
    for seed in range(40):
        table = synthetic_table(
            num_natural=4,
            num_medical=7,
            size_slope=0,
            sharpness_slope=0,
            dataset_std=0.8,
            trial_std=0.3,
            seed=seed,
        )
        found = fit_levels_only(table).versus_label
        said += found.interval is not None and found.interval[1] < 0
    # At 2.5 % (one side of 95 %), 5 or more of 40 happen about twice in a thousand times.
    assert said <= 5


def fit_levels_only(table):
    scale = SharpnessScale(comparable=True, policy="refuse", note="")
    return fit_level(
        points_of(table), ("inverse_d", "log_sharpness"), response="test_loss", model="pooled", subset="all",
        scale=scale, seed=0,
    )  # fmt: skip


def test_the_bare_label_is_tested_by_exact_permutation_over_dataset_means():
    table = published_table()
    for model, with_prostate, without in (("resnet34", 0.30, 0.005), ("vgg13", 0.70, 0.014)):
        rows = table[table["model"] == model]
        for part, expected in ((rows, with_prostate), (rows[rows["dataset"] != "prostate"], without)):
            gap = (
                fit_scaling_laws(part, sharpness_policy="ignore")
                .level("is_medical")
                .coefficient("is_medical")
            )
            assert gap.exact
            assert gap.permutation_p == pytest.approx(expected, abs=5e-3)


def test_sharpness_beyond_the_label_cannot_be_told_from_the_published_numbers():
    table = published_table()
    rows = table[(table["model"] == "resnet34") & (table["dataset"] != "prostate")]
    fits = fit_scaling_laws(rows, sharpness_policy="ignore")
    found = fits.level("inverse_d", "log_sharpness", "is_medical").coefficient("log_sharpness")
    assert found.value == pytest.approx(-0.35, abs=0.1)
    assert found.std_error == pytest.approx(0.79, abs=0.02)
    assert "shows no established change" in findings(fits)[1].answer


def test_claims_are_adjusted_by_holm_and_the_rest_is_called_exploratory(published):
    p = {"a": 0.01, "b": 0.02, "c": 0.4}
    found = {claim.key: claim for claim in adjust(p)}
    assert found["a"].adjusted_p == pytest.approx(0.03)
    assert found["b"].adjusted_p == pytest.approx(0.04)
    assert found["c"].adjusted_p == pytest.approx(0.4)
    assert [found[key].established for key in p] == [True, True, False]
    assert "Everything else in this report is exploratory." in family(published)
    assert family(published).startswith("0 of 5 headline questions")


def test_adjusted_claims_are_those_of_statsmodels():
    random = np.random.default_rng(0)
    for size in (1, 2, 5, 9):
        p = {
            str(i): float(value) for i, value in enumerate(random.choice([0.001, 0.01, 0.02, 0.4, 1.0], size))
        }
        claims = adjust(p)
        assert [claim.key for claim in claims] == list(p)
        expected = multipletests(list(p.values()), method="holm")[1]
        assert [claim.adjusted_p for claim in claims] == pytest.approx(list(expected))


def test_the_law_is_an_upper_bound_and_only_a_slower_fall_contradicts_it():
    def answer(slope):
        table = synthetic_table(
            num_natural=6,
            num_medical=6,
            size_slope=slope,
            trial_std=0.01,
            train_sizes=(250, 1000, 4000, 16000),
        )
        # Far from guessing, which holds nothing down there.
        return findings(fit_scaling_laws(table.assign(test_loss=table["test_loss"] / 100)))[3].answer

    assert "nothing contradicts the bound" in answer(3.0)
    assert "this contradicts it" in answer(0.3)


def test_losses_of_guessing_are_counted_flagged_and_left_out_on_request(published):
    assert (published.at_chance.num_at_chance, published.at_chance.num_points) == (49, 132)
    assert any(
        "49 of 132 points have a loss at or above guessing" in text for text in findings(published)[3].caveats
    )
    table = published_table()
    table = table[table["model"] == "resnet34"]
    assert fit_scaling_laws(table, sharpness_policy="ignore").at_chance.num_at_chance == 21
    medical = ("brats", "dbc", "oai", "chexpert", "mura", "rsna", "prostate")
    flagged = fit_scaling_laws(table, sharpness_policy="ignore").at_chance.by_dataset
    assert sum(flagged.get(name, (0, 6))[0] for name in medical) == 18
    without = fit_scaling_laws(table, sharpness_policy="ignore", leave_out_chance=True)
    assert without.num_used == 66 - 21
    assert any("left out on request" in e.reason and e.count == 21 for e in without.excluded)


def test_a_pooled_exponent_of_one_dataset_counts_subsets_not_points():
    rng = np.random.default_rng(2)
    hits = 0
    for seed in range(50):
        table = synthetic_table(num_natural=1, num_medical=0, models=tuple("abcdef"), seed=seed,
                                train_sizes=(500, 750, 1000, 1250, 1500, 1750), size_slope=0.0)  # fmt: skip
        shared = dict(zip(sorted(table["train_size"].unique()), rng.normal(0, 0.3, 6), strict=True))
        noise = table["train_size"].map(shared) + rng.normal(0, 0.1, len(table))
        found = fit_train_size(
            points_of(table.assign(test_loss=np.exp(noise))), model="pooled", dataset="natural0"
        )
        hits += found.interval[0] <= 0 <= found.interval[1]
    # 95 % of 50; fewer than 42 happen less than once in a thousand times.
    assert hits >= 42


def test_equal_properties_or_losses_are_said_in_words_not_in_column_names():
    table = synthetic_table(num_natural=4, num_medical=4, trial_std=0.2)
    same = fit_scaling_laws(table.assign(d_data_mle=8.0, label_sharpness=1e-4))
    assert (
        same.level("d_data_mle", subset="natural").reason == "d_data does not vary enough over these datasets"
    )
    assert "1/d, log K_F and the domain label do not vary enough" in findings(same)[1].answer
    flat = fit_scaling_laws(table.assign(test_loss=0.5))
    assert flat.level("is_medical").reason == "the losses are the same for all datasets"
    assert "0 to 0" not in " ".join(finding.answer for finding in findings(flat))


def test_one_domain_is_not_compared_with_its_label_and_mixed_modes_are_not_compared():
    table = synthetic_table(num_natural=6, num_medical=0, trial_std=0.2)
    assert "bare label" not in findings(fit_scaling_laws(table))[1].answer
    modes = np.where(np.arange(len(table)) % 2 == 0, "corrected", "as_released")
    mixed = fit_scaling_laws(table.assign(data_mode=modes))
    assert "share no model, train size and data mode" in mixed.level("d_data_mle", subset="natural").reason


def test_curves_that_are_flat_only_at_guessing_do_not_contradict_the_bound():
    table = synthetic_table(num_natural=6, num_medical=6, train_sizes=(10, 30, 100, 1000, 4000, 16000))
    d = table.groupby("dataset")["d_data_mle"].transform("max")
    noise = np.random.default_rng(0).normal(0, 0.01, len(table))

    def fits_of(exponent, start=1.0):
        """Losses that fall as N^(-exponent / d) from N = 100 on, where they are at a share of guessing."""
        fall = exponent / d * np.log(np.maximum(table["train_size"], 100) / 100)
        return fit_scaling_laws(
            table.assign(d_data_mle=d, test_loss=start * np.log(2) * np.exp(noise - fall))
        )

    near = fits_of(1.2)
    assert near.exponent().interval is None
    assert near.exponent().reason == (
        "0 datasets with two train sizes and d_data whose losses are clear of guessing, at least 3 needed"
    )
    assert (near.exponent().num_curves, near.exponent().num_at_guessing) == (12, 12)
    assert near.claim("exponent_below_bound") is None
    assert "contradicts it" not in findings(near)[3].answer
    late = fits_of(12.0)
    assert late.exponent().value == pytest.approx(12, abs=0.1)
    assert late.exponent().num_points == (12 - late.exponent().num_at_guessing) * 3
    assert late.exponent().num_at_guessing == (d[::6] > 12 / np.log(3) * 11.07 / 6).sum()
    assert "this contradicts it" in findings(fits_of(0.5, start=0.1))[3].answer


def bent(table):
    """The same table, its losses bent so that none passes guessing."""
    return table.assign(test_loss=np.log(2) * np.tanh(table["test_loss"] / np.log(2)))


def test_slopes_that_guessing_flattens_are_refused_with_the_share_that_lies_there():
    table = synthetic_table(num_natural=6, num_medical=6, dataset_std=0.5, trial_std=0.1)
    clear = fit_scaling_laws(table.assign(test_loss=table["test_loss"] / 100))
    assert clear.level("is_medical").status == "ok"
    held = bent(table.assign(test_loss=table["test_loss"] * 2))
    num = ((held["test_loss"] > 0.8 * np.log(2)) & (held["test_loss"] < 1.05 * np.log(2))).sum()
    fits = fit_scaling_laws(held)
    where = f"the losses of {num} of 36 points lie at guessing"
    reason = f"{where}, which flattens slopes by an unknown amount"
    for fit in (fits.level("is_medical"), fits.law("predicted_form")):
        assert (fit.status, fit.reason) == ("refused", reason)
    assert f"Natural and medical losses are not compared ({reason})." in findings(fits)[0].answer
    assert fits.claim("sharpness_beyond_label") is None


def test_the_share_at_guessing_is_a_count_of_points_with_the_weighted_share_beside_it():
    pairs = synthetic_table(num_natural=1, num_medical=0, class_pairs=("0-1", "2-3"), train_sizes=(500,))
    single = synthetic_table(num_natural=0, num_medical=1, train_sizes=(500,))
    points = points_of(pd.concat([pairs.assign(test_loss=0.01), single.assign(test_loss=0.69)]))
    assert flattened(points).startswith(
        "the losses of 1 of 3 points lie at guessing (50%, each dataset's pairs as one), which flattens"
    )


def test_losses_that_pass_guessing_freely_are_not_held_down_by_it():
    table = synthetic_table(num_natural=6, num_medical=6, dataset_std=1.0, trial_std=0.3)
    fits = fit_scaling_laws(table.assign(test_loss=table["test_loss"] * 2))
    assert fits.at_chance.num_at_chance > 10
    assert fits.level("is_medical").status == "ok"
    assert fits.exponent().num_at_guessing == 0


def test_losses_lost_to_divergence_contradict_no_bound():
    table = synthetic_table(num_natural=6, num_medical=6, train_sizes=(100, 300, 1000, 4000, 16000))
    d = table.groupby("dataset")["d_data_mle"].transform("max")
    slow = table.assign(
        d_data_mle=d,
        test_loss=0.3
        * np.exp(-0.3 / d * np.log(table["train_size"]))
        * np.exp(np.random.default_rng(0).normal(0, 0.01, len(table))),
    )
    assert "this contradicts it" in findings(fit_scaling_laws(slow))[3].answer
    gone = slow["train_size"].isin([100, 4000])
    lost = slow.assign(test_loss=slow["test_loss"].mask(gone), status=np.where(gone, "diverged", "done"))
    fits = fit_scaling_laws(lost)
    assert next(f for f in fits.sensitivity if f.dimension == "N past guessing").status == "not_enough_data"
    assert fits.claim("exponent_below_bound").adjusted_p == 1
    assert "contradicts it" not in findings(fits)[3].answer


@pytest.mark.filterwarnings("error")
def test_losses_that_are_all_the_same_give_no_slope_and_no_interval():
    table = synthetic_table().assign(test_loss=0.3)
    fits = fit_scaling_laws(table)
    same = "the losses are the same everywhere"
    assert {fit.reason for fit in fits.laws if fit.law.startswith("loss_on_d_data")} == {same}
    assert all(fit.status != "ok" for fit in (*fits.laws, *fits.levels, *fits.exponents, *fits.train_size))
    assert {fit.reason for fit in fits.comparisons} == {same}
    assert {fit.reason for fit in fits.train_size} == {"the losses are the same at every N"}
    assert findings(fits)[3].answer == "The exponent of N cannot be told: the losses are the same at every N."


def test_losses_that_are_the_same_within_datasets_have_no_exponent_but_a_height():
    table = synthetic_table(dataset_std=0.3)
    table["test_loss"] = table.groupby("dataset")["test_loss"].transform("mean")
    fits = fit_scaling_laws(table)
    assert fits.exponent().reason == "the losses are the same at every N"
    assert fits.level("is_medical").status == "ok"
