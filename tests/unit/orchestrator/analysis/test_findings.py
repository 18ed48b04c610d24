"""What the answers say: nothing without an interval, and nothing that chance would say often."""

import re

import numpy as np
import pandas as pd
import pytest

from orchestrator.analysis.figures import dataset_properties
from orchestrator.analysis.findings import family, findings, summary
from orchestrator.analysis.fits import fit_scaling_laws, prepare, t_power
from orchestrator.analysis.number_formats import interval, number
from orchestrator.analysis.published import published_table
from orchestrator.analysis.tables import seen_table
from orchestrator.analysis.verdicts import decided
from tests.synthetic import synthetic_table

QUESTIONS = ("dimension", "sharpness", "exponent", "attacks", "representation")


def answers(table, **options):
    return dict(zip(QUESTIONS, findings(fit_scaling_laws(table, **options)), strict=True))


@pytest.fixture(scope="module")
def published():
    return fit_scaling_laws(published_table(), sharpness_policy="ignore")


def clear_law(**about):
    """Twelve datasets with a law far from guessing and little scatter."""
    table = synthetic_table(
        num_natural=6, num_medical=6, train_sizes=(250, 1000, 4000, 16000), **about
    )
    return table.assign(test_loss=table["test_loss"] / 100)


def test_a_claim_has_its_direction_factor_interval_and_the_p_value_that_decides():
    found = answers(clear_law(trial_std=0.02, dataset_std=0.02))["sharpness"]
    assert found.verdict == "established"
    said = re.search(
        r"log test loss rises with K_F: doubling K_F multiplies the loss by ([\d.]+) \(95 % "
        r"interval "
        r"([\d.]+) to ([\d.]+)\); the law's form would give 2; adjusted p .* "
        r"The slope on log K_F is ([\d.]+) \(",
        found.answer,
    )
    factor, low, high, slope = map(float, said.groups())
    assert factor == pytest.approx(2**slope, rel=5e-3)
    assert low < 2 < high


def test_without_a_claim_the_estimate_its_interval_and_the_power_are_said():
    table = synthetic_table(num_natural=4, num_medical=7, dataset_std=0.8, trial_std=0.3, seed=1)
    table["test_loss"] /= 100
    fits = fit_scaling_laws(table)
    found = findings(fits)[1]
    assert found.verdict == "not established"
    assert (
        "no change of log test loss with K_F is established: doubling K_F multiplies"
        in found.answer
    )
    error = fits.find("headline").estimate("log_sharpness").std_error
    expected = t_power(1.0, error, 11 - 4)
    said = re.search(
        r"the law's form would give 2; .*; that would show in at most (\d+)% of such studies",
        found.line,
    )
    assert int(said[1]) == round(100 * expected)
    claim = fits.claim("sharpness_beyond_label")
    assert f"adjusted p = {claim.adjusted_p:.2g}" in found.answer


def test_a_slope_on_d_data_is_taken_at_equal_n():
    """Losses rise with d at every N, while d's estimate grows with N as the loss falls."""
    rng = np.random.default_rng(0)
    table = synthetic_table(num_natural=8, num_medical=7, train_sizes=(250, 1000, 4000, 16000))
    true_d = table.groupby("dataset")["d_data_mle"].transform("mean")
    log_loss = 0.05 * true_d - 0.5 * np.log(table["train_size"]) + rng.normal(0, 0.05, len(table))
    grown = true_d * (table["train_size"] / 250) ** 0.25
    table = table.assign(d_data_mle=grown, test_loss=np.exp(log_loss))
    for _, rows in table.groupby("domain"):
        assert np.polyfit(rows["d_data_mle"], np.log(rows["test_loss"]), 1)[0] < 0
    found = findings(fit_scaling_laws(table))[0]
    assert (
        "log test loss rises with d_data: going from the lowest to the highest d_data"
        in found.answer
    )
    fitted = table.loc[table["train_size"] == 16000, "d_data_mle"]
    assert f"({number(fitted.min())} to {number(fitted.max())})" in found.answer


@pytest.mark.parametrize(
    ("slope", "said"),
    [
        (3.0, "the loss falls with N, and nothing contradicts the bound"),
        (
            0.3,
            "the loss falls more slowly with N than the bound allows, which contradicts the bound",
        ),
        (-2.0, "the loss rises with N, which contradicts the bound"),
    ],
)
def test_the_law_is_an_upper_bound_and_a_loss_that_rises_is_said_to_rise(slope, said):
    found = answers(clear_law(size_slope=slope, trial_std=0.01))["exponent"]
    assert found.badge == f"{'yes' if slope > 1 else 'no'}, established"
    assert f": {said}. The bound asks for " in found.answer
    said_of_n = (
        r"doubling N multiplies the loss by ([\d.]+) \(95 % .*\) at the median d_data, ([\d.]+); "
        r".* The bound asks for ([\d.]+) or less"
    )
    factor = re.search(said_of_n, found.answer)
    times, d_data, bound = map(float, factor.groups())
    assert bound == pytest.approx(2 ** (-1 / d_data), rel=2e-3)
    stated = float(
        re.search(r"log N / d has slope (−?[\d.]+) \(", found.answer)[1].replace("−", "-")
    )
    assert times == pytest.approx(2 ** (-stated / d_data), rel=5e-3)


def test_a_slope_below_the_bound_that_could_not_be_tested_past_guessing_is_no_yes():
    table = clear_law(size_slope=0.4, trial_std=0.01)
    over_fitted = table["dataset"].isin(sorted(table["dataset"].unique())[:10])
    means = table.groupby("dataset")["test_loss"].transform("mean")
    found = answers(
        table.assign(test_loss=table["test_loss"] / means * np.where(over_fitted, 1.0, 0.2))
    )
    assert found["exponent"].badge == "it falls, established"
    assert "contradicts" not in found["exponent"].answer


def test_losses_lost_to_divergence_contradict_no_bound():
    table = synthetic_table(num_natural=6, num_medical=6, train_sizes=(100, 300, 1000, 4000, 16000))
    d = table.groupby("dataset")["d_data_mle"].transform("max")
    noise = np.random.default_rng(0).normal(0, 0.01, len(table))
    losses = 0.3 * np.exp(noise - 0.3 / d * np.log(table["train_size"]))
    slow = table.assign(d_data_mle=d, test_loss=losses)
    assert "contradicts the bound" in answers(slow)["exponent"].answer
    gone = slow["train_size"].isin([100, 4000])
    lost = slow.assign(
        test_loss=slow["test_loss"].mask(gone), status=np.where(gone, "diverged", "done")
    )
    fits = fit_scaling_laws(lost)
    assert fits.find("exponent", variant="N past guessing").status == "not_enough_data"
    assert fits.claim("exponent_below_bound").adjusted_p == 1
    assert "contradicts the bound" not in findings(fits)[2].answer.replace(
        "nothing contradicts", ""
    )


def test_attacks_are_claimed_with_their_sign_given_the_label():
    table = synthetic_table(num_natural=6, num_medical=6, models=("a", "b"))
    found = answers(table)["attacks"]
    assert found.verdict == "established"
    said = re.search(
        r"rises with K_F in (\d+) of 8 combinations.*r = ([\d.]+) \(95 % interval ([\d.]+) to",
        found.answer,
    )
    assert 0 < float(said[3]) < float(said[2]) <= 1
    gains = [name for name in table if name.endswith("loss_gain")]
    opposed = answers(table.assign(**{name: -table[name] for name in gains}))["attacks"]
    assert opposed.verdict == "not established"
    assert "The estimate is of a fall, against what the law expects." in opposed.answer
    assert re.search(
        r"the largest is r = −.*; for a rise, adjusted p = 1, above 0.05; r = 0.8", opposed.answer
    )
    # Sharper labels and larger gains of one domain alone are no relation.
    label = np.where(table["domain"] == "medical", 10.0, 1.0) * np.random.default_rng(0).uniform(
        0.9, 1.1, len(table)
    )
    assert (
        answers(table.assign(**dict.fromkeys(gains, label)))["attacks"].verdict == "not established"
    )


def test_an_attack_that_is_not_established_says_what_it_could_have_found():
    rng = np.random.default_rng(1)
    table = synthetic_table(num_natural=4, num_medical=4, models=("a",))
    table = table.assign(
        **{n: rng.normal(5, 1, len(table)) for n in table if n.endswith("loss_gain")}
    )
    answer = answers(table)["attacks"].answer
    assert "For none of 4 combinations of attack, epsilon and model is it established" in answer
    assert re.search(r"r = 0.8 would show in at most \d+% of such studies", answer)


def test_what_cannot_be_tested_says_what_to_add():
    found = answers(synthetic_table(num_natural=2, num_medical=1).drop(columns="fgsm_8_loss_gain"))
    assert found["dimension"].verdict == found["sharpness"].verdict == "cannot be tested"
    assert found["sharpness"].to_add == "add 2 natural datasets with d_data, K_F and losses"
    assert found["attacks"].to_add == "add 2 natural datasets with K_F and attacks at equal N"
    bare = synthetic_table(num_natural=3, num_medical=3)
    bare = bare[[name for name in bare if not name.startswith("fgsm")]]
    assert answers(bare)["attacks"].short == "no attack was run"
    mixed = bare.assign(image_size=np.where(bare["dataset"] == "natural0", 32, 64))
    assert (
        answers(mixed)["sharpness"].to_add == "measure K_F at one image size and number of channels"
    )


@pytest.mark.parametrize(("natural", "medical", "to_add"), [(2, 2, 2), (3, 2, 1), (2, 3, 1)])
def test_what_to_add_lets_datasets_change_places_often_enough(natural, medical, to_add):
    """Two and three can in 12 ways, of which none has a p-value of 0.05; two and four in 48."""
    found = answers(synthetic_table(num_natural=natural, num_medical=medical, trial_std=0.1))
    for name in ("sharpness", "attacks"):
        assert found[name].verdict == "cannot be tested"
        assert found[name].to_add.startswith(f"add {to_add} ")


def test_k_f_that_is_the_same_everywhere_leaves_the_question_on_d():
    table = synthetic_table(num_natural=4, num_medical=4, trial_std=0.1).assign(
        label_sharpness=1e-4
    )
    found = answers(table)
    assert found["dimension"].verdict != "cannot be tested"
    assert found["sharpness"].short == "K_F is the same for all datasets"
    assert family(fit_scaling_laws(table)).startswith("0 of 2 headline questions")


def test_shares_are_counts_of_points_with_the_share_of_datasets_beside():
    table = synthetic_table(num_natural=3, num_medical=1, models=("a",))
    table["d_repr_mle"] = table["d_data_mle"] * np.where(table["dataset"] == "natural0", 2.0, 0.5)
    found = answers(table)["representation"]
    assert (
        "d_repr is at or below d_data at 9 of 12 points (each dataset counting once: 75%"
        in found.answer
    )
    assert found.caveats[0] == "Above it are most often natural0 (100%)."
    never = answers(table.assign(d_repr_mle=1e9))["representation"]
    assert "at 0 of 12 points (each dataset counting once: 0%)" in never.answer
    of_one_dataset = findings(fit_scaling_laws(table[table["dataset"] == "natural1"]))
    (one,) = (finding for finding in of_one_dataset if "d_repr" in finding.short)
    assert one.short == "at 3 of 3 points d_repr is at or below d_data"


def test_the_published_table_says_what_its_answers_hang_on(published):
    found = dict(zip(QUESTIONS, findings(published), strict=True))
    assert found["exponent"].caveats[0] == (
        "Hangs most on prostate, which carries 49% of the weight: without it, the slope is 1.78 "
        "instead of "
        "9.47."
    )
    assert (
        "without it, the slope on log K_F is 0.111 instead of 1.01" in found["sharpness"].caveats[0]
    )
    assert "without it, the slope on 1/d is −8.28 instead of −29.3" in found["dimension"].caveats[0]
    rows = published_table().dropna(subset=["fgsm_2_loss_gain"]).set_index("dataset")
    said = re.fullmatch(
        r"Hangs most on (\w+): without it, r is ([\d.]+) instead of 0.636\.",
        *found["attacks"].caveats,
    )
    kept = rows.drop(index=said[1])[["fgsm_2_loss_gain", "label_sharpness", "domain"]]
    moved = kept.drop(columns="domain") - kept.groupby("domain").transform("mean")
    assert float(said[2]) == pytest.approx(moved.corr().iloc[0, 1], abs=5e-4)
    # The unequal scales of K_F stand where K_F is asked about.
    assert any(
        "K_F is compared over unequal scales as it stands" in text
        for text in found["sharpness"].caveats
    )


def test_the_published_table_answers_from_the_published_loss_gains(published):
    found = findings(published)[3]
    assert found.verdict == "not established"
    assert (
        "r = 0.636 (95 % interval 0.0104 to 0.904) for FGSM at 2/255 on a model not stated"
        in found.answer
    )


def test_claims_are_counted_and_the_rest_is_called_exploratory(published):
    """As many as there are verdicts; the exponent's has two tests behind it."""
    assert family(published).startswith(
        "0 of 4 headline questions that could be tested are answered"
    )
    assert "over their 5 tests (Holm)" in family(published)
    assert family(published).endswith("in this report, compression too, is exploratory.")


def test_the_published_answers_fit_a_terminal(published):
    lines = summary(published)
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80
    text = " ".join(lines)
    assert text.count("NOT ESTABLISHED: ") == text.count(" of such studies.") == 4
    assert "153 of 261 points lie at guessing" in text


@pytest.mark.parametrize("num", [1, 2, 6])
def test_a_summary_never_needs_more_than_its_lines(num):
    table = synthetic_table(num_natural=num, num_medical=num, models=("a", "b"), trial_std=0.3)
    table.loc[table.index[0], "test_loss"] = 0.0
    names = table["dataset"] + "_of_a_hospital_that_has_a_long_name"
    lines = summary(
        fit_scaling_laws(table.assign(dataset=names, data_mode=["x", "y"] * (len(table) // 2)))
    )
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80


def test_a_narrow_summary_counts_remarks_and_cuts_no_answer(published):
    lines = summary(published, width=50)
    text = "".join("".join(lines).split())
    assert all("".join(finding.line.split()) in text for finding in findings(published))
    assert lines[-1].endswith("more, in the report.")


def test_what_was_seen_is_a_row_a_dataset():
    table = synthetic_table(num_natural=2, num_medical=1, models=("a", "b"))
    hard = table["dataset"] == "medical0"
    table = table.assign(
        test_loss=np.where(hard, 0.6, 0.1),
        d_data_mle=np.where(table["dataset"] == "natural1", 20.0, 10.0),
        label_sharpness=np.where(hard, 1e-3, 1e-4),
        fgsm_8_loss_gain=np.where(hard, 9.0, 1.0),
    )
    fits = fit_scaling_laws(table)
    shown = seen_table(fits)
    assert shown.note.startswith(
        "At the largest train size the mean test loss is 0.1 (natural0) to 0.6 (medical0)."
    )
    again = pd.concat(
        [table.assign(class_pair="0-1"), table.assign(class_pair="2-3", label_sharpness=3e-4)]
    )
    seeds = [
        again.assign(seed=k, trial_id=f"{k}" + again["trial_id"] + again["class_pair"])
        for k in range(3)
    ]
    stopped = pd.concat(seeds).query(
        "seed == 0 or class_pair == '0-1'"
    )  # as one that stopped halfway
    fits = fit_scaling_laws(stopped)
    assert seen_table(fits).rows[1][3] == "0.0002"  # a mean over pairs, not over trials
    figure, _ = dataset_properties(prepare(stopped).points, fits)
    bars = [sorted(bar.get_width() for bar in axes.patches) for axes in figure.axes]
    assert bars == [
        sorted(d.d_data for d in fits.datasets),
        sorted(d.label_sharpness for d in fits.datasets),
    ]
    assert shown.header == (
        "dataset",
        "domain",
        "d_data",
        "K_F",
        "largest N",
        "loss there",
        "gained by FGSM at 8/255",
    )
    assert shown.rows[0] == (
        "medical0",
        "medical",
        "10",
        "0.001",
        "1,750",
        "0.6 (at guessing)",
        "9",
    )


def test_an_interval_shows_the_figures_that_tell_its_ends_apart():
    assert interval((0.99961, 1.00012)) == "0.9996 to 1"
    assert interval((-2e-9, 3.14159)) == "−2.00e−09 to 3.14"
    assert interval((1.0, 1.0 + 1e-12)) == "1, without scatter"
    assert interval(None) == "–"


@pytest.mark.parametrize(
    ("p", "adjusted_p", "bounds", "said"),
    [
        (0.1, 0.2, (-1.0, 2.0), "adjusted p = 0.2, above 0.05"),
        (0.046, 0.18, (1.0, 2.0), "p = 0.046 alone; adjusted p = 0.18, above 0.05, decides"),
        (
            0.06,
            0.18,
            (1.0, 2.0),
            (
                "p = 0.06 alone (by resampling, unlike the interval); adjusted p = 0.18, above "
                "0.05, "
                "decides"
            ),
        ),
        (0.01, 0.03, (-1.0, 2.0), "adjusted p = 0.03, but the interval holds 0"),
        (0.01, 0.03, None, "adjusted p = 0.03, but without an interval"),
        (1e-6, 1e-5, (1.0, 2.0), "adjusted p < 0.001"),
        (None, None, (1.0, 2.0), "not tested"),
    ],
)
def test_what_is_not_established_says_why(p, adjusted_p, bounds, said):
    """An interval that leaves 0 out stands beside the p that it belongs to, not beside another
    alone."""
    assert decided(p, adjusted_p, bounds) == said


def test_equal_losses_and_properties_are_said_in_words():
    table = synthetic_table(num_natural=4, num_medical=4, trial_std=0.2)
    same = answers(table.assign(d_data_mle=8.0, label_sharpness=1e-4))
    assert "1/d and the domain label do not vary enough" in same["sharpness"].answer
    flat = answers(table.assign(test_loss=0.5))
    assert flat["exponent"].answer == "This cannot be tested: the losses are the same at every N."
    assert "0 to 0" not in " ".join(finding.answer for finding in flat.values())


def test_slopes_that_guessing_flattens_are_refused():
    table = synthetic_table(num_natural=6, num_medical=6, dataset_std=0.5, trial_std=0.1)
    held = table.assign(test_loss=np.log(2) * np.tanh(table["test_loss"] * 2 / np.log(2)))
    found = answers(held)["sharpness"]
    assert re.search(
        r"the losses of \d+ of 36 points lie at guessing, which flattens slopes", found.answer
    )
    assert found.to_add == "train until losses leave guessing"
