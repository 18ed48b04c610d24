"""What the answers say: nothing without an interval, and nothing that chance would say often."""

import re

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from orchestrator.analysis.answers import Answer, Question
from orchestrator.analysis.figures.of_sweeps import dataset_properties, loss_gain_on_sharpness
from orchestrator.analysis.findings import family, findings, summary, what_was_found
from orchestrator.analysis.fits import fit_scaling_laws, prepare
from orchestrator.analysis.headline import ATTACKS, BELOW_BOUND
from orchestrator.analysis.inference import max_correlation_test
from orchestrator.analysis.law_fits.detection import (
    LargestCorrelation,
    TTest,
    datasets_needed,
    t_power,
)
from orchestrator.analysis.law_fits.estimates import slope_estimates
from orchestrator.analysis.limits import SweepFacts
from orchestrator.analysis.number_formats import interval, number, p_equals
from orchestrator.analysis.published import published_table
from orchestrator.analysis.tables.of_fits import fit_tables
from orchestrator.analysis.tables.of_trials import seen_table
from search_spaces.datasets import ImageOrigin
from tests.synthetic import synthetic_table

QUESTIONS = ("dimension", "sharpness", "fall", "exponent", "attacks", "representation")


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


def test_a_claim_has_its_direction_factor_and_interval():
    found = answers(clear_law(trial_std=0.02, dataset_std=0.02))["sharpness"]
    assert found.verdict == "supported"
    assert found.claim == "The loss rises with K_F."
    said = re.search(
        r"^Datasets with twice the K_F have ([\d.]+) times the loss \(95 % interval ([\d.]+) to "
        r"([\d.]+); adjusted p .*\)\..* 12 datasets .* The slope on log K_F is ([\d.]+) \(",
        found.answer,
    )
    factor, low, high, slope = map(float, said.groups())
    assert factor == pytest.approx(2**slope, rel=5e-3)
    assert low < 2 < high


def test_without_a_claim_the_estimate_its_interval_p_power_and_the_datasets_needed_are_said():
    table = synthetic_table(num_natural=4, num_medical=7, dataset_std=0.8, trial_std=0.3, seed=1)
    table["test_loss"] /= 100
    fits = fit_scaling_laws(table)
    found = findings(fits)[1]
    estimate = fits.headline().estimate("log_sharpness")
    value, low, high = (2**bound for bound in (estimate.value, *estimate.interval))
    (answer,) = [one for one in fits.answers if one.question.key == "sharpness_beyond_label"]
    assert found.verdict == "undecided"
    assert found.sentences[:2] == (
        "No relation was detected.",
        f"Estimate: datasets with twice the K_F have {number(value)} times the loss (95 % interval "
        f"{interval((low, high))}; adjusted p = {answer.adjusted_p:.2g}).",
    )
    tested = f"Tested against 0, two-sided: p = {answer.p_value:.2g} before correction for 5 tests."
    assert tested in found.details
    needed = int(re.search(r"About (\d+) such datasets would make it 80 of 100", found.answer)[1])

    def power(num_datasets):
        """The power over new datasets: the spread of their log K_F is chi-squared."""
        degrees = num_datasets - 4
        spreads = np.linspace(0.01, stats.chi2.ppf(1 - 1e-7, degrees + 1), 4001)
        errors = estimate.std_error * np.sqrt((11 - 4 + 1) / spreads)
        powers = power_by_scipy(1.0, errors, degrees, 0.05 / 5)
        return np.trapezoid(
            stats.chi2.pdf(spreads, degrees + 1) * np.nan_to_num(powers, nan=1.0), spreads
        )

    assert power(needed - 1) < 0.8 <= power(needed) + 0.001
    today = power_by_scipy(1.0, estimate.std_error, 11 - 4, 0.05 / 5)
    assert t_power(1.0, estimate.std_error, 11 - 4, 0.05 / 5) == pytest.approx(today)
    shown = (
        f"At a significance level of 1 %, at most {round(100 * today)} of 100 such studies would "
        "detect"
    )
    assert f"{shown} the law's slope of 1" in found.answer


def power_by_scipy(effect, error, degrees, level):
    """The power of a two-sided t test by the noncentral t distribution of scipy.stats."""
    bound = stats.t.isf(level / 2, degrees)
    of_estimate = stats.nct(degrees, effect / error)
    return of_estimate.sf(bound) + of_estimate.cdf(-bound)


def test_the_datasets_needed_detect_the_effect_in_80_of_100_drawn_studies():
    """Studies of new datasets with normal properties, by the fit and permutation of the answers."""
    spread, scatter = 0.6, 0.9
    expected_error = scatter / (spread * np.sqrt(8 - 4 + 1))
    needed = datasets_needed(1.0, expected_error, 8, 4, level=0.01)
    rng = np.random.default_rng(0)
    is_medical = np.arange(needed) % 2
    blocks = np.where(is_medical, "medical", "natural").tolist()
    terms = ("inverse_d", "log_sharpness", "is_medical")
    num_detected = 0
    for _ in range(300):
        inverse_d = rng.normal(0, 0.07, needed)
        log_sharpness = 0.9 * is_medical + 2 * inverse_d + rng.normal(0, spread, needed)
        heights = log_sharpness + rng.normal(0, scatter, needed)
        _, slope, _ = slope_estimates(
            heights,
            np.column_stack([inverse_d, log_sharpness, is_medical]),
            terms,
            blocks,
            tested={"log_sharpness"},
            skip_permutation_above=0.01,
        )
        num_detected += slope.p <= 0.01
    assert num_detected / 300 == pytest.approx(0.8, abs=0.05)


def test_an_interval_without_the_null_that_decides_nothing_says_why(published):
    found = dict(zip(QUESTIONS, findings(published), strict=True))["dimension"]
    assert found.verdict == "undecided"
    assert found.sentences[0].startswith("From d_data = ")
    assert found.sentences[1] == "The interval is not adjusted; the adjusted p decides."


def test_where_all_losses_fall_it_is_said_whatever_is_known_of_one_exponent():
    """The slopes on log N by least squares with dummies, and the signs by the binomial law."""
    table = clear_law(trial_std=0.3, dataset_std=0.3, seed=3)
    fits = fit_scaling_laws(table)
    rows = table.assign(x=np.log(table["train_size"]), y=np.log(table["test_loss"]))
    slopes = []
    for _, of_dataset in rows.groupby("dataset"):
        centred = of_dataset[["x", "y"]] - of_dataset.groupby("model")[["x", "y"]].transform("mean")
        slopes.append((centred["x"] * centred["y"]).sum() / (centred["x"] ** 2).sum())
    assert [*fits.fall().by_dataset.values()] == pytest.approx(slopes)
    num_falling = int((np.array(slopes) < 0).sum())
    assert fits.fall().sign_p == pytest.approx(stats.binomtest(num_falling, 12).pvalue)
    mean = np.mean(slopes)
    bounds = stats.t.interval(0.95, 11, mean, stats.sem(slopes))
    factor, low, high = (2**value for value in (mean, *bounds))
    found = findings(fits)[2]
    counted = "all 12 datasets" if num_falling == 12 else f"{num_falling} of 12 datasets"
    assert (found.verdict, found.sentences[0]) == (
        "described",
        f"The loss fell from N = 250 to 16,000 in {counted}.",
    )
    assert f"{number(factor)} times the loss (95 % interval {interval((low, high))})" in found.line


def test_a_steep_fall_of_sets_that_differ_in_d_is_never_called_no_fall():
    """Slopes of −1 whatever d: one exponent b does not describe them, and all losses fall."""
    table = clear_law(trial_std=0.01)
    sizes = table["train_size"]
    losses = 50 * np.exp(np.random.default_rng(0).normal(0, 0.01, len(table))) / sizes
    d_data = table.groupby("dataset")["d_data_mle"].transform("first")
    spread = np.where(table["dataset"] == "natural0", 0.3, 1.0)
    found = answers(table.assign(test_loss=losses, d_data_mle=d_data * spread))
    assert found["fall"].sentences[0].endswith("in all 12 datasets.")
    assert "Exact sign test, two-sided: p < 0.001, not adjusted." in found["fall"].details
    assert "No fall" not in " ".join(one.answer for one in found.values())


def test_a_correlations_power_counts_its_level_its_side_and_the_largest_of_many():
    """Against draws: how often the largest of several permuted correlations is exceeded."""
    rng = np.random.default_rng(4)
    responses, x = rng.normal(size=(10, 3)), rng.normal(size=10)
    test = max_correlation_test(responses, x, [""] * 10, range(3))
    largest = []
    for _ in range(4000):
        permuted = rng.permutation(x)
        r = max(np.corrcoef(response, permuted)[0, 1] for response in responses.T)
        largest.append(np.arctanh(r) * np.sqrt(10 - 3))
    for k, critical in enumerate(test.criticals, start=1):
        assert np.mean(np.array(largest) > critical) == pytest.approx(0.05 / k, abs=0.012)
    power = LargestCorrelation(
        num_correlations=3, degrees=7, interval_critical=1.96, criticals=(1.5, 2.5)
    )
    shift = np.arctanh(0.8) * np.sqrt(7)
    assert power.power(0.8, 1) == pytest.approx(stats.norm.cdf(shift - 1.96))
    assert power.power(0.8, 2) == pytest.approx(stats.norm.cdf(shift - 2.5))


@pytest.mark.parametrize("num_tests", [1, 5, 9])
def test_a_detectable_effect_is_detected_in_80_of_100_studies_at_the_level_of_the_verdict(
    num_tests,
):
    test = TTest(std_error=2.0, degrees=9)
    effect = test.detectable(num_tests)
    assert power_by_scipy(effect, 2.0, 9, 0.05 / num_tests) == pytest.approx(0.8)


def test_no_sentence_of_a_finding_is_long(published):
    """A reader keeps 25 words in mind; numbers and signs count as words here."""
    tables = [clear_law(trial_std=0.02), clear_law(size_slope=0.3), synthetic_table(num_natural=2)]
    for fits in (published, *map(fit_scaling_laws, tables)):
        texts = [what for found in findings(fits) for what in (found.answer, *found.notes)]
        texts += [*what_was_found(fits), family(fits), *fits.caveats]
        sentences = re.split(r"(?<=[.!?;]) ", " ".join(texts))
        assert [text for text in sentences if len(text.split()) > 25] == []


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
    assert found.claim == "The loss rises with d_data."
    assert "The factor compares the highest d_data with the lowest." in found.details
    fitted = table.loc[table["train_size"] == 16000, "d_data_mle"]
    span = f"{number(fitted.min())} to {number(fitted.max())}"
    assert found.answer.startswith(f"From d_data = {span} the loss is ")


@pytest.mark.parametrize(
    ("slope", "verdict", "said"),
    [
        (3.0, "supported", "The loss falls faster with N than the law's bound"),
        (0.3, "contradicted", "The loss falls more slowly with N than the law's bound allows"),
        (-2.0, "contradicted", "The loss rises with N, which contradicts the law's bound"),
    ],
)
def test_the_law_is_an_upper_bound_and_a_loss_that_rises_is_said_to_rise(slope, verdict, said):
    found = answers(clear_law(size_slope=slope, trial_std=0.01))["exponent"]
    assert found.verdict == verdict
    assert found.answer.startswith(f"{said}. In N^(−b/d), b is ")
    factor = re.search(
        r"At this b and the median d_data, ([\d.]+), doubling N goes with ([\d.]+) times the loss "
        r"\(95 % .*\)\. The bound allows a factor of ([\d.]+) or less",
        found.answer,
    )
    d_data, times, bound = map(float, factor.groups())
    assert bound == pytest.approx(2 ** (-1 / d_data), rel=2e-3)
    stated = re.search(r"b is (−?[\d.]+) \(95", found.answer)[1].replace("−", "-")
    assert times == pytest.approx(2 ** (-float(stated) / d_data), rel=5e-3)


def test_a_slope_below_the_bound_that_could_not_be_tested_above_chance_level_is_undecided():
    table = clear_law(size_slope=0.4, trial_std=0.01)
    over_fitted = table["dataset"].isin(sorted(table["dataset"].unique())[:10])
    means = table.groupby("dataset")["test_loss"].transform("mean")
    losses = table["test_loss"] / means * np.where(over_fitted, 1.0, 0.2)
    found = answers(table.assign(test_loss=losses, test_accuracy=np.nan))["exponent"]
    assert found.verdict == "supported"
    assert "The loss falls with N; whether too slowly for the law's bound is" in found.answer
    assert "contradict" not in found.answer


def test_losses_lost_to_divergence_contradict_no_bound():
    table = synthetic_table(num_natural=6, num_medical=6, train_sizes=(100, 300, 1000, 4000, 16000))
    d = table.groupby("dataset")["d_data_mle"].transform("max")
    noise = np.random.default_rng(0).normal(0, 0.01, len(table))
    losses = 0.3 * np.exp(noise - 0.3 / d * np.log(table["train_size"]))
    slow = table.assign(d_data_mle=d, test_loss=losses)
    slow = slow.assign(test_accuracy=np.nan)
    assert answers(slow)["exponent"].verdict == "contradicted"
    gone = slow["train_size"].isin([100, 4000])
    lost = slow.assign(
        test_loss=slow["test_loss"].mask(gone), status=np.where(gone, "diverged", "done")
    )
    fits = fit_scaling_laws(lost)
    assert fits.exponent(variant="N above chance level").status == "not_enough_data"
    assert fits.answer(BELOW_BOUND).adjusted_p == 1
    assert findings(fits)[3].verdict != "contradicted"


def test_attacks_are_claimed_with_their_sign_given_the_label():
    table = synthetic_table(num_natural=6, num_medical=6, models=("a", "b"))
    found = answers(table)["attacks"]
    assert found.verdict == "supported"
    assert found.claim == "Attacks raise the loss more where labels are sharper."
    said = re.search(
        r"of 8 correlations is r = ([\d.]+) \(95 % interval for all 8 ([\d.]+) to",
        found.answer,
    )
    assert 0 < float(said[2]) < float(said[1]) <= 1
    assert re.search(r"significant in \d of 8 combinations", found.answer)
    gains = [name for name in table if name.endswith("loss_gain")]
    opposed = answers(table.assign(**{name: -table[name] for name in gains}))["attacks"]
    assert opposed.verdict == "undecided"
    assert "The largest of 8 correlations is r = −" in opposed.line
    assert opposed.line.endswith("The law expects a rise.")
    # Sharper labels and larger gains of one domain alone are no relation.
    label = np.where(table["domain"] == "medical", 10.0, 1.0) * np.random.default_rng(0).uniform(
        0.9, 1.1, len(table)
    )
    assert answers(table.assign(**dict.fromkeys(gains, label)))["attacks"].verdict == "undecided"


def test_an_attack_that_is_undecided_says_what_it_could_have_found():
    rng = np.random.default_rng(1)
    table = synthetic_table(num_natural=4, num_medical=4, models=("a",))
    table = table.assign(
        **{n: rng.normal(5, 1, len(table)) for n in table if n.endswith("loss_gain")}
    )
    answer = answers(table)["attacks"].answer
    assert answer.startswith(
        "No relation was detected. Estimate: the largest of 4 correlations is r = "
    )
    assert re.search(r"of 1 %, .* 100 such studies would detect a correlation of 0.8", answer)


def test_what_cannot_be_tested_says_what_to_add():
    found = answers(synthetic_table(num_natural=2, num_medical=1).drop(columns="fgsm_8_loss_gain"))
    assert found["dimension"].verdict == found["sharpness"].verdict == "not testable"
    assert found["sharpness"].to_add == "add 2 natural datasets with d_data, K_F and losses"
    assert found["attacks"].to_add == "add 3 natural datasets with K_F and attacks at equal N"
    bare = synthetic_table(num_natural=3, num_medical=3)
    bare = bare[[name for name in bare if not name.startswith("fgsm")]]
    assert answers(bare)["attacks"].sentences == ("This cannot be tested: no attack was run.",)
    mixed = bare.assign(image_size=np.where(bare["dataset"] == "natural0", 32, 64))
    assert (
        answers(mixed)["sharpness"].to_add == "measure K_F at one image size and number of channels"
    )


@pytest.mark.parametrize(("natural", "medical", "to_add"), [(2, 2, 2), (3, 2, 1), (2, 3, 1)])
def test_what_to_add_lets_datasets_change_places_often_enough(natural, medical, to_add):
    """Two and three can in 12 ways, of which none has a p-value of 0.05; two and four in 48."""
    found = answers(synthetic_table(num_natural=natural, num_medical=medical, trial_std=0.1))
    for name in ("sharpness", "attacks"):
        assert found[name].verdict == "not testable"
        assert found[name].to_add.startswith(f"add {to_add} ")


def test_k_f_that_is_the_same_everywhere_leaves_the_question_on_d():
    table = synthetic_table(num_natural=4, num_medical=4, trial_std=0.1).assign(
        label_sharpness=1e-4
    )
    found = answers(table)
    assert found["dimension"].verdict != "not testable"
    assert "K_F is the same for all datasets" in found["sharpness"].line
    assert family(fit_scaling_laws(table)).startswith("The verdicts rest on 3 tests, adjusted")


def test_shares_are_counts_of_points_with_the_share_of_datasets_beside():
    table = synthetic_table(num_natural=3, num_medical=1, models=("a",))
    table["d_repr_mle"] = table["d_data_mle"] * np.where(table["dataset"] == "natural0", 2.0, 0.5)
    found = answers(table)["representation"]
    assert found.answer.startswith(
        "At 9 of 12 points, the dimension of the network's last hidden layer (d_repr) is at most "
        "d_data. The median d_repr / d_data is 0.5. The bound d_repr ≲ d_data is approximate. "
        "With each dataset counting once, that is 75%"
    )
    assert found.notes[0] == "d_repr is most often above d_data in natural0 (100%)."
    never = answers(table.assign(d_repr_mle=1e9))["representation"]
    assert never.answer.startswith("At 0 of 12 points, the dimension of the network's last")
    of_one_dataset = findings(fit_scaling_laws(table[table["dataset"] == "natural1"]))
    (note,) = (note for note in of_one_dataset[-1].notes if "d_repr" in note)
    assert note.startswith("At 3 of 3 points, the dimension of the network's last")


def test_the_share_of_points_below_d_data_is_counted_for_each_network():
    table = synthetic_table(num_natural=3, num_medical=1, models=("a", "b"))
    table["d_repr_mle"] = table["d_data_mle"] * np.where(table["model"] == "a", 2.0, 0.5)
    fits = fit_scaling_laws(table)
    found = answers(table)["representation"]
    assert "That is 0 of 12 for a and 12 of 12 for b." in found.line
    (representations,) = [one for one in fit_tables(fits) if one.key == "representations"]
    rows = {row[0]: row[2] for row in representations.rows}
    assert rows == {"pooled": "12 of 24", "a": "0 of 12", "b": "12 of 12"}


@pytest.mark.parametrize(
    ("slope", "trial_std", "said"),
    [
        (1.5, 0.1, "the data are compatible with the law's rate"),
        (3.0, 0.01, "b differs from the law's rate"),
        (0.3, 0.01, "b differs from the law's rate"),
    ],
)
def test_the_short_answer_compares_the_exponent_with_the_law(slope, trial_std, said):
    table = clear_law(size_slope=slope, trial_std=trial_std)
    adjusted_p = fit_scaling_laws(table).answer(BELOW_BOUND).adjusted_p
    assert (
        f"Against b = 1, adjusted {p_equals(adjusted_p)}: {said}."
        in answers(table)["exponent"].line
    )


def test_a_wide_interval_of_the_exponent_is_said_to_allow_no_fall_too():
    """With losses that scatter by a factor, b could be 1, and could be 0."""
    table = clear_law(size_slope=1.0, trial_std=1.0, seed=1)
    fits = fit_scaling_laws(table)
    low, high = fits.answer(BELOW_BOUND).interval
    assert low < 0 < 1 < high
    assert "compatible with the law's rate, but also with no fall (b = 0)." in (
        answers(table)["exponent"].line
    )
    precise = answers(clear_law(size_slope=1.5, trial_std=0.1))["exponent"].line
    assert "compatible with the law's rate." in precise


@pytest.mark.parametrize("fastest", [0.5, 2.0])
def test_datasets_whose_loss_falls_faster_than_the_law_are_counted(fastest):
    """Losses N^(−b/d) with a known b for each of twelve datasets; the sign test by scipy."""
    table = clear_law(trial_std=0.0)
    names = sorted(table["dataset"].unique())
    exponents = dict(zip(names, np.linspace(0.25, fastest, 12), strict=True))
    d_data = table.groupby("dataset")["d_data_mle"].transform("first")
    b = table["dataset"].map(exponents)
    losses = 0.1 * table["train_size"] ** (-b / d_data)
    table = table.assign(d_data_mle=d_data, test_loss=losses)
    num_above = int((np.linspace(0.25, fastest, 12) > 1).sum())
    p_value = stats.binomtest(num_above, 12).pvalue
    found = answers(table)["exponent"]
    assert found.line.endswith(
        f"b is above 1 in {num_above} of 12 datasets (exact sign test: {p_equals(p_value)}, not "
        "adjusted)."
    )
    assert (
        f"The b of single datasets ranges from 0.25 ({names[0]}) to {fastest:g} ({names[-1]})."
        in found.details
    )


def test_a_false_verdict_is_said_to_be_likelier_with_dependent_datasets():
    table = synthetic_table(num_natural=4, num_medical=3, trial_std=0.1)
    assert "It can be higher here" not in family(fit_scaling_laws(table))
    shown = {
        "natural0": "digits",
        "natural1": "digits",
        "medical0": "one brain",
        "medical1": "one brain",
        "medical2": "one brain",
        "natural2": "flowers",
    }
    origins = {name: ImageOrigin(collection=things) for name, things in shown.items()}
    fits = fit_scaling_laws(table, facts=SweepFacts(origins=origins))
    assert (
        "at most 5 %. It can be higher here: medical0, medical1 and medical2 are not independent, "
        "nor are natural0 and natural1. Intervals" in family(fits)
    )
    assert any("medical2 are not independent: all show one brain." in one for one in fits.caveats)


def test_trials_of_several_versions_of_the_code_are_a_remark():
    table = synthetic_table(trial_std=0.1)
    one = fit_scaling_laws(table.assign(code_version="a"))
    assert not any("versions" in text for text in one.caveats)
    is_odd = np.arange(len(table)) % 2 == 1
    two = fit_scaling_laws(table.assign(code_version=np.where(is_odd, "b", "a")))
    assert "The trials come from 2 versions of the code." in two.caveats


def test_the_figure_on_attacks_shows_the_correlation_of_the_verdict():
    table = synthetic_table(num_natural=6, num_medical=6, models=("a", "b"))
    fits = fit_scaling_laws(table)
    answer = fits.answer(ATTACKS)
    drawn = loss_gain_on_sharpness(prepare(table).points, fits)
    titles = [axes.get_title() for axes in drawn.figure.axes]
    shown = f"r = {number(answer.value)} ({interval(answer.interval)})"
    assert any(shown in title for title in titles)
    assert "hold for all networks and attacks at once" in drawn.caption


def test_the_two_factors_for_a_doubling_of_n_are_told_apart(published):
    found = dict(zip(QUESTIONS, findings(published), strict=True))
    (factor,) = re.findall(
        r"Doubling N went with ([\d.]+) times", " ".join(findings(published)[2].sentences)
    )
    assert f"In the factor of the question before, {factor}, every dataset counts once." in (
        found["exponent"].answer
    )


def test_the_published_table_names_the_most_influential_dataset_of_each_answer(published):
    found = dict(zip(QUESTIONS, findings(published), strict=True))
    assert "Without prostate, the most influential dataset, b is 1.78." in found["exponent"].answer
    assert "prostate has 49% of the weight." in found["exponent"].answer
    assert "without" not in found["dimension"].notes[0]
    assert "This rests on one dataset: without prostate, the slope on 1/d is −8.28." in (
        found["dimension"].line
    )
    assert "the slope on log K_F is 0.111." in found["sharpness"].answer
    rows = published_table().dropna(subset=["fgsm_2_loss_gain"]).set_index("dataset")
    said = re.search(
        r"[Ww]ithout (\w+), (?:the most influential dataset, )?r is ([\d.]+)\.",
        found["attacks"].answer,
    )
    others = rows.drop(index=said[1])[["fgsm_2_loss_gain", "label_sharpness", "domain"]]
    residuals = others.drop(columns="domain") - others.groupby("domain").transform("mean")
    assert float(said[2]) == pytest.approx(residuals.corr().iloc[0, 1], abs=5e-4)
    # The unequal scales of K_F stand where K_F is asked about.
    assert any(
        "K_F is compared over unequal scales as it stands" in text
        for text in found["sharpness"].notes
    )


def test_the_published_table_answers_from_the_published_loss_gains(published):
    found = findings(published)[4]
    assert found.verdict == "undecided"
    assert "r = 0.636 (95 % interval 0.0104 to 0.904; adjusted p = " in found.line
    assert "the loss gained by FGSM at 2/255 on a model not stated." in found.details[0]


def test_tests_are_counted_and_the_rest_is_called_exploratory(published):
    """The question on the fall with N has two tests behind it."""
    assert family(published).startswith("The verdicts rest on 5 tests, adjusted together (Holm)")
    assert family(published).endswith("Everything else here is exploratory.")


def test_the_published_answers_fit_a_terminal(published):
    lines = summary(published)
    assert len(lines) <= 39
    assert max(map(len, lines)) <= 80
    text = " ".join(" ".join(lines).split())
    assert text.count("UNDECIDED: ") == 4
    assert text.count("adjusted p = ") == 5
    assert "In 153 of 261 points the loss is at least 80% of the loss of guessing" in text


def test_a_summary_with_details_has_every_sentence_and_remark(published):
    text = "".join("".join(summary(published, with_details=True)).split())
    for finding in findings(published):
        for part in (finding.answer, *finding.notes):
            assert "".join(part.split()) in text
    for caveat in published.caveats:
        assert "".join(caveat.split()) in text


def test_the_first_screen_says_in_three_sentences_what_was_done_found_and_means(published):
    assert what_was_found(published) == (
        "7 kinds of network were trained 261 times on 11 datasets.",
        findings(published)[2].sentences[0],
        "All 4 tested questions are undecided: the data neither show nor exclude these relations.",
    )
    clear = what_was_found(fit_scaling_laws(clear_law(trial_std=0.02, dataset_std=0.02)))
    assert clear[1].startswith("Found: The loss rises with ")
    single = what_was_found(fit_scaling_laws(synthetic_table(num_natural=1, num_medical=0)))
    assert "1 dataset" in single[0]


@pytest.mark.parametrize("num", [1, 2, 6])
def test_a_summary_never_needs_more_than_its_lines(num):
    table = synthetic_table(num_natural=num, num_medical=num, models=("a", "b"), trial_std=0.3)
    table.loc[table.index[0], "test_loss"] = 0.0
    names = table["dataset"] + "_of_a_hospital_that_has_a_long_name"
    lines = summary(
        fit_scaling_laws(table.assign(dataset=names, data_mode=["x", "y"] * (len(table) // 2)))
    )
    assert len(lines) <= 39
    assert max(map(len, lines)) <= 80


def test_a_narrow_summary_counts_remarks_and_cuts_no_answer(published):
    lines = summary(published, width=40)
    text = "".join("".join(lines).split())
    assert all("".join(finding.line.split()) in text for finding in findings(published))
    assert lines[-1].endswith("more, in the report.")


def test_what_was_seen_is_a_row_a_dataset():
    table = synthetic_table(num_natural=2, num_medical=1, models=("a", "b"))
    hard = table["dataset"] == "medical0"
    table = table.assign(
        test_loss=np.where(hard, 0.6, 0.1),
        test_accuracy=np.where(hard, 0.5, 0.9),
        d_data_mle=np.where(table["dataset"] == "natural1", 20.0, 10.0),
        label_sharpness=np.where(hard, 1e-3, 1e-4),
        fgsm_8_loss_gain=np.where(hard, 9.0, 1.0),
    )
    fits = fit_scaling_laws(table)
    shown = seen_table(fits)
    assert shown.note.startswith(
        "At the largest train size the geometric mean of the test loss is 0.1 (natural0) to 0.6 "
        "(medical0)."
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
    figure = dataset_properties(prepare(stopped).points, fits).figure
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
        "0.6 (at chance level)",
        "9",
    )


def test_an_interval_shows_the_figures_that_tell_its_ends_apart():
    assert interval((0.99961, 1.00012)) == "0.9996 to 1"
    assert interval((-2e-9, 3.14159)) == "−2.00e−09 to 3.14"
    assert interval((1.0, 1.0 + 1e-12)) == "1, without scatter"
    assert interval(None) == "–"


@pytest.mark.parametrize(
    ("value", "p", "adjusted_p", "bounds", "verdict"),
    [
        (1.5, 0.001, 0.01, (1.0, 2.0), "supported"),
        (-1.5, 0.001, 0.01, (-2.0, -1.0), "contradicted"),
        (1.5, 0.046, 0.18, (1.0, 2.0), "undecided"),
        (1.5, 0.01, 0.03, (-1.0, 2.0), "undecided"),
        (1.5, 0.01, 0.03, None, "undecided"),
        (1.5, None, None, (1.0, 2.0), "not testable"),
        (None, None, None, None, "not testable"),
    ],
)
def test_a_verdict_needs_the_adjusted_p_and_the_interval(value, p, adjusted_p, bounds, verdict):
    """An unknown p-value or interval decides nothing."""
    answer = Answer(
        question=Question(key="any"),
        value=value,
        p_value=p,
        adjusted_p=adjusted_p,
        interval=bounds,
    )
    assert answer.verdict == verdict


def test_equal_losses_and_properties_are_said_in_words():
    table = synthetic_table(num_natural=4, num_medical=4, trial_std=0.2)
    same = answers(table.assign(d_data_mle=8.0, label_sharpness=1e-4))
    assert "1/d and the domain label vary too little, or only together" in same["sharpness"].answer
    flat = answers(table.assign(test_loss=0.5, test_accuracy=np.nan))
    assert flat["exponent"].answer == "This cannot be tested: the losses are the same at every N."
    assert "0 to 0" not in " ".join(finding.answer for finding in flat.values())


def test_slopes_that_chance_level_flattens_are_refused():
    table = synthetic_table(num_natural=6, num_medical=6, dataset_std=0.5, trial_std=0.1)
    bent = np.log(2) * np.tanh(table["test_loss"] * 2 / np.log(2))
    found = answers(table.assign(test_loss=bent, test_accuracy=0.5))["sharpness"]
    assert re.search(
        r"the losses of \d+ of 36 points are at chance level, which flattens slopes", found.answer
    )
    assert found.to_add == "train until losses fall below chance level"
