"""Test the sentences of findings: a claim needs an interval and must not arise often by chance."""

import re

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from orchestrator.analysis.answers import Answer, Question
from orchestrator.analysis.claims import ledger
from orchestrator.analysis.figures.of_sweeps import dataset_properties, loss_gain_on_sharpness
from orchestrator.analysis.findings import (
    family,
    findings,
    next_steps,
    summary,
    what_was_found,
)
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
from orchestrator.analysis.number_formats import interval, number, p_equals, percent
from orchestrator.analysis.published import published_table
from orchestrator.analysis.results_tables.chance_level import is_unfitted
from orchestrator.analysis.sentences.of_datasets import of_representations
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


def clear_law(**options):
    """Return a table of twelve datasets that follow the law clearly, far below chance level."""
    table = synthetic_table(
        num_natural=6, num_medical=6, train_sizes=(250, 1000, 4000, 16000), **options
    )
    return table.assign(test_loss=table["test_loss"] / 100)


def test_a_claim_has_its_direction_factor_and_interval():
    finding = answers(clear_law(trial_std=0.02, dataset_std=0.02))["sharpness"]
    assert finding.verdict == "supported"
    assert finding.claim == "The loss rises with K_F."
    match = re.search(
        r"^Datasets with twice the K_F have ([\d.]+) times the loss at equal d_data and domain "
        r"\(95 % interval ([\d.]+) to "
        r"([\d.]+); adjusted p .*\)\..* 12 datasets .* The slope on log K_F is ([\d.]+) \(",
        finding.answer,
    )
    factor, low, high, slope = map(float, match.groups())
    assert factor == pytest.approx(2**slope, rel=5e-3)
    assert low < 2 < high


def test_without_a_claim_the_estimate_interval_p_power_and_datasets_needed_are_printed():
    table = synthetic_table(num_natural=4, num_medical=7, dataset_std=0.8, trial_std=0.3, seed=1)
    table["test_loss"] /= 100
    fits = fit_scaling_laws(table)
    finding = findings(fits)[1]
    estimate = fits.headline().estimate("log_sharpness")
    value, low, high = (2**bound for bound in (estimate.value, *estimate.interval))
    (answer,) = [
        candidate
        for candidate in fits.answers
        if candidate.question.key == "sharpness_beyond_label"
    ]
    assert finding.verdict == "undecided"
    assert finding.sentences[:2] == (
        "No relation was detected.",
        f"Estimate: datasets with twice the K_F have {number(value)} times the loss at equal "
        f"d_data and domain (95 % interval {interval((low, high))}; "
        f"adjusted p = {answer.adjusted_p:.2g}).",
    )
    test_sentence = f"The test against 0 (two-sided) gives p = {answer.p_value:.2g} before correction for 5 tests."
    assert test_sentence in finding.details
    num_needed = int(
        re.search(r"With about (\d+) such datasets, 80 of 100 studies", finding.answer)[1]
    )

    def power(num_datasets):
        """Return the power over new datasets: the spread of their log K_F is chi-squared."""
        degrees = num_datasets - 4
        spreads = np.linspace(0.01, stats.chi2.ppf(1 - 1e-7, degrees + 1), 4001)
        errors = estimate.std_error * np.sqrt((11 - 4 + 1) / spreads)
        powers = np.nan_to_num(power_by_scipy(1.0, errors, degrees, 0.05 / 5), nan=1.0)
        return np.trapezoid(stats.chi2.pdf(spreads, degrees + 1) * powers, spreads)

    assert power(num_needed - 1) < 0.8 <= power(num_needed) + 0.001
    present_power = power_by_scipy(1.0, estimate.std_error, 11 - 4, 0.05 / 5)
    assert t_power(1.0, estimate.std_error, 11 - 4, 0.05 / 5) == pytest.approx(present_power)
    power_clause = (
        f"At a significance level of 1 %, at most {round(100 * present_power)} of 100 such studies "
        "would detect"
    )
    assert f"{power_clause} the law's slope of 1" in finding.answer


def power_by_scipy(effect, error, degrees, level):
    """Return the power of a two-sided t test by the noncentral t distribution of scipy.stats."""
    bound = stats.t.isf(level / 2, degrees)
    distribution_of_t = stats.nct(degrees, effect / error)
    return distribution_of_t.sf(bound) + distribution_of_t.cdf(-bound)


@pytest.mark.long
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


def test_an_undecided_interval_without_the_null_value_is_explained(published):
    finding = dict(zip(QUESTIONS, findings(published), strict=True))["dimension"]
    assert finding.verdict == "undecided"
    assert finding.sentences[0].startswith("Datasets with d_data = ")
    assert finding.sentences[1] == (
        "The interval is not adjusted for the number of tests. The adjusted p decides."
    )


def test_a_fall_of_all_losses_is_described_even_if_no_exponent_is_established():
    """Take slopes on log N by least squares with dummies, and p by the binomial distribution."""
    table = clear_law(trial_std=0.3, dataset_std=0.3, seed=3)
    fits = fit_scaling_laws(table)
    rows = table.assign(x=np.log(table["train_size"]), y=np.log(table["test_loss"]))
    slopes = []
    for _, dataset_rows in rows.groupby("dataset"):
        centred = dataset_rows[["x", "y"]] - dataset_rows.groupby("model")[["x", "y"]].transform(
            "mean"
        )
        slopes.append((centred["x"] * centred["y"]).sum() / (centred["x"] ** 2).sum())
    assert [*fits.fall().by_dataset.values()] == pytest.approx(slopes)
    num_falling = int((np.array(slopes) < 0).sum())
    assert fits.fall().sign_p == pytest.approx(stats.binomtest(num_falling, 12).pvalue)
    mean = np.mean(slopes)
    bounds = stats.t.interval(0.95, 11, mean, stats.sem(slopes))
    factor, low, high = (2**value for value in (mean, *bounds))
    finding = findings(fits)[2]
    datasets_phrase = "all 12 datasets" if num_falling == 12 else f"{num_falling} of 12 datasets"
    assert (finding.verdict, finding.sentences[0]) == (
        "described",
        f"The loss fell from N = 250 to 16,000 in {datasets_phrase}.",
    )
    assert (
        f"{number(factor)} times the loss (95 % interval {interval((low, high))})" in finding.line
    )


def test_a_steep_fall_of_sets_that_differ_in_d_is_never_called_no_fall():
    """All slopes are −1 whatever d is: one b does not describe them, and all losses fall."""
    table = clear_law(trial_std=0.01)
    sizes = table["train_size"]
    losses = 50 * np.exp(np.random.default_rng(0).normal(0, 0.01, len(table))) / sizes
    d_data = table.groupby("dataset")["d_data_mle"].transform("first")
    spread = np.where(table["dataset"] == "natural0", 0.3, 1.0)
    findings_by_question = answers(table.assign(test_loss=losses, d_data_mle=d_data * spread))
    assert findings_by_question["fall"].sentences[0].endswith("in all 12 datasets.")
    assert (
        "A two-sided exact sign test of the datasets' slopes gives p < 0.001, not adjusted."
        in findings_by_question["fall"].details
    )
    assert "No fall" not in " ".join(finding.answer for finding in findings_by_question.values())


@pytest.mark.long
def test_the_power_of_the_largest_correlation_uses_its_level_and_is_one_sided():
    """Compare with draws: how often the largest of several permuted correlations is exceeded."""
    rng = np.random.default_rng(4)
    responses = rng.normal(size=(10, 3))
    x = rng.normal(size=10)
    correlation_test = max_correlation_test(responses, x, [""] * 10, range(3))
    drawn_statistics = []
    for _ in range(4000):
        permuted = rng.permutation(x)
        r = max(np.corrcoef(response, permuted)[0, 1] for response in responses.T)
        drawn_statistics.append(np.arctanh(r) * np.sqrt(10 - 3))
    for k, critical in enumerate(correlation_test.criticals, start=1):
        assert np.mean(np.array(drawn_statistics) > critical) == pytest.approx(0.05 / k, abs=0.012)
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
    """A reader remembers 25 words at most. Numbers and signs count as words here."""
    tables = [clear_law(trial_std=0.02), clear_law(size_slope=0.3), synthetic_table(num_natural=2)]
    for fits in (published, *map(fit_scaling_laws, tables)):
        texts = [*what_was_found(fits), family(fits), *fits.caveats]
        for finding in findings(fits):
            texts += [finding.answer, *finding.notes]
        sentences = re.split(r"(?<=[.!?;]) ", " ".join(texts))
        assert [sentence for sentence in sentences if len(sentence.split()) > 25] == []


def test_a_slope_on_d_data_is_taken_at_equal_n():
    """Losses rise with d at every N, while the estimate of d grows with N as the loss falls."""
    rng = np.random.default_rng(0)
    table = synthetic_table(num_natural=8, num_medical=7, train_sizes=(250, 1000, 4000, 16000))
    true_d = table.groupby("dataset")["d_data_mle"].transform("mean")
    log_loss = 0.05 * true_d - 0.5 * np.log(table["train_size"]) + rng.normal(0, 0.05, len(table))
    grown = true_d * (table["train_size"] / 250) ** 0.25
    table = table.assign(d_data_mle=grown, test_loss=np.exp(log_loss))
    for _, rows in table.groupby("domain"):
        assert np.polyfit(rows["d_data_mle"], np.log(rows["test_loss"]), 1)[0] < 0
    finding = findings(fit_scaling_laws(table))[0]
    assert finding.claim == "The loss rises with d_data."
    assert "The factor compares datasets with the highest and the lowest d_data." in finding.details
    d_at_largest_n = table.loc[table["train_size"] == 16000, "d_data_mle"]
    low, high = number(d_at_largest_n.min()), number(d_at_largest_n.max())
    assert finding.answer.startswith(f"Datasets with d_data = {high} have ")
    assert f" times the loss of datasets with {low}" in finding.answer


@pytest.mark.parametrize(
    ("slope", "verdict", "first_sentence"),
    [
        (3.0, "supported", "The loss falls faster with N than the law's bound"),
        (0.3, "contradicted", "The loss falls more slowly with N than the law's bound allows"),
        (-2.0, "contradicted", "The loss rises with N, which contradicts the law's bound"),
    ],
)
def test_the_law_is_an_upper_bound_and_a_rising_loss_is_called_rising(
    slope, verdict, first_sentence
):
    finding = answers(clear_law(size_slope=slope, trial_std=0.01))["exponent"]
    assert finding.verdict == verdict
    assert finding.answer.startswith(f"{first_sentence}. For a loss ∝ N^(−b/d), b is ")
    match = re.search(
        r"At this b and the median d_data, ([\d.]+), doubling N goes with ([\d.]+) times the loss "
        r"\(95 % .*\)\. The bound allows a factor of ([\d.]+) or less",
        finding.answer,
    )
    d_data, times, bound = map(float, match.groups())
    assert bound == pytest.approx(2 ** (-1 / d_data), rel=2e-3)
    b_text = re.search(r"b is (−?[\d.]+) \(95", finding.answer)[1].replace("−", "-")
    assert times == pytest.approx(2 ** (-float(b_text) / d_data), rel=5e-3)


def test_a_slope_below_the_bound_that_could_not_be_tested_above_chance_level_is_undecided():
    table = clear_law(size_slope=0.4, trial_std=0.01)
    over_fitted = table["dataset"].isin(sorted(table["dataset"].unique())[:10])
    means = table.groupby("dataset")["test_loss"].transform("mean")
    losses = table["test_loss"] / means * np.where(over_fitted, 1.0, 0.2)
    finding = answers(table.assign(test_loss=losses, test_accuracy=np.nan))["exponent"]
    assert finding.verdict == "supported"
    assert "The loss falls with N; it is undecided whether it falls too slowly" in finding.answer
    assert "contradict" not in finding.answer


def test_losses_missing_after_divergence_contradict_no_bound():
    table = synthetic_table(num_natural=6, num_medical=6, train_sizes=(100, 300, 1000, 4000, 16000))
    d = table.groupby("dataset")["d_data_mle"].transform("max")
    noise = np.random.default_rng(0).normal(0, 0.01, len(table))
    losses = 0.3 * np.exp(noise - 0.3 / d * np.log(table["train_size"]))
    slow = table.assign(d_data_mle=d, test_loss=losses)
    slow = slow.assign(test_accuracy=np.nan)
    assert answers(slow)["exponent"].verdict == "contradicted"
    has_diverged = slow["train_size"].isin([100, 4000])
    with_diverged = slow.assign(
        test_loss=slow["test_loss"].mask(has_diverged),
        status=np.where(has_diverged, "diverged", "done"),
    )
    fits = fit_scaling_laws(with_diverged)
    assert fits.exponent(variant="N above chance level").status == "not_enough_data"
    assert fits.answer(BELOW_BOUND).adjusted_p == 1
    assert findings(fits)[3].verdict != "contradicted"


def test_attacks_are_claimed_with_their_sign_given_the_label():
    table = synthetic_table(num_natural=6, num_medical=6, models=("a", "b"))
    finding = answers(table)["attacks"]
    assert finding.verdict == "supported"
    assert finding.claim == "Attacks raise the loss more where labels are sharper."
    match = re.search(
        r"The 8 correlations, one per attack and network, range from [\d.−]+ to ([\d.]+) "
        r"\(95 % interval of the largest one ([\d.]+) to",
        finding.answer,
    )
    assert 0 < float(match[2]) < float(match[1]) <= 1
    assert re.search(r"significant in \d of 8 combinations", finding.answer)
    gain_columns = [name for name in table if name.endswith("loss_gain")]
    opposed = answers(table.assign(**{name: -table[name] for name in gain_columns}))["attacks"]
    assert opposed.verdict == "undecided"
    assert "correlations, one per attack and network, range from −" in opposed.line
    assert opposed.line.endswith("The law expects a rise.")
    # Sharper labels and larger gains of one domain alone are no relation.
    level_of_domain = np.where(table["domain"] == "medical", 10.0, 1.0)
    gains = level_of_domain * np.random.default_rng(0).uniform(0.9, 1.1, len(table))
    domains_differ = table.assign(**dict.fromkeys(gain_columns, gains))
    assert answers(domains_differ)["attacks"].verdict == "undecided"


def test_an_undecided_attack_has_the_correlation_it_could_detect():
    rng = np.random.default_rng(1)
    table = synthetic_table(num_natural=4, num_medical=4, models=("a",))
    gain_columns = [name for name in table if name.endswith("loss_gain")]
    table = table.assign(**{name: rng.normal(5, 1, len(table)) for name in gain_columns})
    answer = answers(table)["attacks"].answer
    assert answer.startswith(
        "No relation was detected. Estimate: the 4 correlations, one per attack and network, "
        "range from "
    )
    assert re.search(r"of 1 %, .* 100 such studies would detect a correlation of 0.8", answer)


def test_a_question_that_cannot_be_tested_names_the_data_to_add():
    findings_by_question = answers(
        synthetic_table(num_natural=2, num_medical=1).drop(columns="fgsm_8_loss_gain")
    )
    assert (
        findings_by_question["dimension"].verdict
        == findings_by_question["sharpness"].verdict
        == "not testable"
    )
    assert (
        findings_by_question["sharpness"].to_add
        == "add 2 natural datasets with d_data, K_F and losses"
    )
    assert (
        findings_by_question["attacks"].to_add
        == "add 3 natural datasets with K_F and attacks at equal N"
    )
    without_attacks = synthetic_table(num_natural=3, num_medical=3)
    without_attacks = without_attacks[
        [name for name in without_attacks if not name.startswith("fgsm")]
    ]
    assert answers(without_attacks)["attacks"].sentences == (
        "This cannot be tested: no attack was run.",
    )
    with_mixed_sizes = without_attacks.assign(
        image_size=np.where(without_attacks["dataset"] == "natural0", 32, 64)
    )
    assert (
        answers(with_mixed_sizes)["sharpness"].to_add
        == "measure K_F at one image size and number of channels"
    )


@pytest.mark.long
@pytest.mark.parametrize(("natural", "medical", "to_add"), [(2, 2, 2), (3, 2, 1), (2, 3, 1)])
def test_the_data_to_add_allow_enough_permutations(natural, medical, to_add):
    """Two and three datasets have 12 permutations, too few for p = 0.05; two and four have 48."""
    findings_by_question = answers(
        synthetic_table(num_natural=natural, num_medical=medical, trial_std=0.1)
    )
    for name in ("sharpness", "attacks"):
        assert findings_by_question[name].verdict == "not testable"
        assert findings_by_question[name].to_add.startswith(f"add {to_add} ")


def test_with_one_k_f_everywhere_the_question_on_d_is_still_tested():
    table = synthetic_table(num_natural=4, num_medical=4, trial_std=0.1).assign(
        label_sharpness=1e-4
    )
    findings_by_question = answers(table)
    assert findings_by_question["dimension"].verdict != "not testable"
    assert "K_F is the same for all datasets" in findings_by_question["sharpness"].line
    assert family(fit_scaling_laws(table)).startswith("The verdicts rest on 3 tests, adjusted")


def test_a_share_has_its_count_of_points_and_the_mean_over_datasets():
    table = synthetic_table(num_natural=3, num_medical=1, models=("a",))
    table["d_repr_mle"] = table["d_data_mle"] * np.where(table["dataset"] == "natural0", 2.0, 0.5)
    finding = answers(table)["representation"]
    assert finding.answer.startswith(
        "At 9 of 12 points, the dimension of the network's last hidden layer (d_repr) is at most "
        "d_data. The median d_repr / d_data is 0.5. If all datasets have the same weight, d_repr is at most "
        "d_data at 75% of points"
    )
    assert finding.notes[0] == (
        "The share of points with d_repr above d_data is highest in natural0 (100%)."
    )
    finding_above = answers(table.assign(d_repr_mle=1e9))["representation"]
    assert finding_above.answer.startswith("At 0 of 12 points, the dimension of the network's last")
    of_one_dataset = findings(fit_scaling_laws(table[table["dataset"] == "natural1"]))
    (note,) = (note for note in of_one_dataset[-1].notes if "d_repr" in note)
    assert note.startswith("At 3 of 3 points, the dimension of the network's last")


@pytest.mark.long
def test_the_share_of_points_below_d_data_is_counted_for_each_network():
    table = synthetic_table(num_natural=3, num_medical=1, models=("a", "b"))
    table["d_repr_mle"] = table["d_data_mle"] * np.where(table["model"] == "a", 2.0, 0.5)
    fits = fit_scaling_laws(table)
    finding = answers(table)["representation"]
    counts = "At 0 of 12 points of a and 12 of 12 points of b, the dimension of the network's last hidden"
    assert finding.answer.startswith(counts)
    (representations,) = [
        fit_table for fit_table in fit_tables(fits) if fit_table.key == "representations"
    ]
    counts_by_model = {row[0]: row[2] for row in representations.rows}
    assert counts_by_model == {"pooled": "12 of 24", "a": "0 of 12", "b": "12 of 12"}


@pytest.mark.parametrize(
    ("slope", "trial_std", "conclusion"),
    [
        (1.5, 0.1, "the data are compatible with the law's rate"),
        (3.0, 0.01, "b differs from the law's rate"),
        (0.3, 0.01, "b differs from the law's rate"),
    ],
)
def test_the_short_answer_compares_the_exponent_with_the_law(slope, trial_std, conclusion):
    table = clear_law(size_slope=slope, trial_std=trial_std)
    adjusted_p = fit_scaling_laws(table).answer(BELOW_BOUND).adjusted_p
    line = answers(table)["exponent"].line
    assert f"Against the law's b = 1, adjusted {p_equals(adjusted_p)}: {conclusion}." in line


@pytest.mark.long
def test_an_exponent_whose_interval_contains_0_and_1_is_not_compared():
    """With losses that scatter by a factor, b could be 1, and could be 0."""
    table = clear_law(size_slope=1.0, trial_std=1.0, seed=1)
    fits = fit_scaling_laws(table)
    low, high = fits.answer(BELOW_BOUND).interval
    assert low < 0 < 1 < high
    line = answers(table)["exponent"].line
    assert "b is too uncertain." in line
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
    assert (
        f"b is above 1 in {num_above} of 12 datasets (exact sign test: {p_equals(p_value)}, not "
        "adjusted)." in found.details
    )
    assert (
        f"The b of single datasets ranges from 0.25 ({names[0]}) to {fastest:g} ({names[-1]})."
        in found.details
    )


def test_a_false_verdict_is_said_to_be_likelier_with_dependent_datasets():
    table = synthetic_table(num_natural=4, num_medical=3, trial_std=0.1)
    assert "This chance can be higher" not in family(fit_scaling_laws(table))
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
        "at most 5 %. This chance can be higher: medical0, medical1 and medical2 are not independent, "
        "nor are natural0 and natural1. Each dataset" in family(fits)
    )
    assert any("medical2 are not independent: all show one brain." in one for one in fits.caveats)


@pytest.mark.long
def test_trials_of_several_versions_of_the_code_are_a_remark():
    table = synthetic_table(trial_std=0.1)
    one = fit_scaling_laws(table.assign(code_version="a"))
    assert not any("versions" in text for text in one.caveats)
    is_odd = np.arange(len(table)) % 2 == 1
    two = fit_scaling_laws(table.assign(code_version=np.where(is_odd, "b", "a")))
    assert "The trials come from 2 versions of the code." in two.caveats


@pytest.mark.long
def test_the_figure_on_attacks_shows_the_correlation_of_the_verdict():
    table = synthetic_table(num_natural=6, num_medical=6, models=("a", "b"))
    fits = fit_scaling_laws(table)
    answer = fits.answer(ATTACKS)
    drawing = loss_gain_on_sharpness(prepare(table).points, fits)
    titles = [axes.get_title() for axes in drawing.figure.axes]
    correlation = f"r = {number(answer.value)} ({interval(answer.interval)})"
    assert any(correlation in title for title in titles)
    assert "hold for all networks and attacks together" in drawing.caption


def test_the_two_factors_for_a_doubling_of_n_are_distinguished(published):
    findings_by_question = dict(zip(QUESTIONS, findings(published), strict=True))
    (factor,) = re.findall(
        r"Doubling N went with ([\d.]+) times", " ".join(findings(published)[2].sentences)
    )
    assert (
        f"The previous answer has another factor, {factor}: there, all datasets have the same weight."
        in (findings_by_question["exponent"].answer)
    )
    # With one d for all datasets, both answers have the same factor.
    equal = answers(synthetic_table(models=("a", "b")).assign(d_data_mle=8.0))["exponent"].answer
    assert "doubling N goes with" in equal
    assert "another factor" not in equal


def test_the_published_table_names_the_most_influential_dataset_of_each_answer(published):
    findings_by_question = dict(zip(QUESTIONS, findings(published), strict=True))
    assert (
        "Without prostate, the most influential dataset, b is 1.78."
        in findings_by_question["exponent"].answer
    )
    assert "One dataset, prostate, has 49% of the weight in this b." in (
        findings_by_question["exponent"].sentences
    )
    assert "without" not in findings_by_question["dimension"].notes[0]
    assert "This estimate rests on one dataset: without prostate, the slope on 1/d is −8.28." in (
        findings_by_question["dimension"].line
    )
    assert "the slope on log K_F is 0.111." in findings_by_question["sharpness"].answer
    rows = published_table().dropna(subset=["fgsm_2_loss_gain"]).set_index("dataset")
    match = re.search(
        r"[Ww]ithout (\w+), (?:the most influential dataset, )?r of [^.]+ is ([\d.]+)\.",
        findings_by_question["attacks"].answer,
    )
    without_dataset = rows.drop(index=match[1])[["fgsm_2_loss_gain", "label_sharpness", "domain"]]
    residuals = without_dataset.drop(columns="domain") - without_dataset.groupby(
        "domain"
    ).transform("mean")
    assert float(match[2]) == pytest.approx(residuals.corr().iloc[0, 1], abs=5e-4)
    # The unequal scales of K_F stand where K_F is asked about.
    assert any(
        "K_F is compared between datasets although its scales differ" in text
        for text in findings_by_question["sharpness"].notes
    )


def test_the_published_table_answers_from_the_published_loss_gains(published):
    finding = findings(published)[4]
    assert finding.verdict == "undecided"
    assert "r = 0.636 (95 % interval 0.0104 to 0.904; adjusted p = " in finding.line
    assert "the loss gained by FGSM at 2/255 on a model not stated." in finding.details[0]


def test_tests_are_counted_and_the_rest_is_called_exploratory(published):
    """The question on the fall with N has two tests."""
    assert family(published).startswith("The verdicts rest on 5 tests, adjusted together (Holm)")
    assert family(published).endswith("All else is exploratory.")


def test_the_published_answers_fit_a_terminal(published):
    lines = summary(published)
    assert len(lines) <= 40
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


def test_the_first_screen_has_three_sentences_on_trials_results_and_their_meaning(published):
    assert what_was_found(published) == (
        "7 kinds of network were trained 261 times on 11 datasets.",
        findings(published)[2].sentences[0],
        "All 4 tested questions are undecided: the data neither show nor exclude these relations.",
    )
    fits_of_clear_law = fit_scaling_laws(clear_law(trial_std=0.02, dataset_std=0.02))
    sentences_of_clear_law = what_was_found(fits_of_clear_law)
    assert sentences_of_clear_law[1].startswith("Found: The loss rises with ")
    num_decided = sum(bool(finding.claim) for finding in findings(fits_of_clear_law))
    assert num_decided > 3
    num_more = num_decided - 2
    assert sentences_of_clear_law[2].endswith(f" {num_more} more effects were detected.")
    sentences_of_one_dataset = what_was_found(
        fit_scaling_laws(synthetic_table(num_natural=1, num_medical=0))
    )
    assert "1 dataset" in sentences_of_one_dataset[0]


@pytest.mark.parametrize("num_of_each_domain", [1, 2, 6])
def test_a_summary_fits_39_lines_of_80_columns(num_of_each_domain):
    table = synthetic_table(
        num_natural=num_of_each_domain,
        num_medical=num_of_each_domain,
        models=("a", "b"),
        trial_std=0.3,
    )
    table.loc[table.index[0], "test_loss"] = 0.0
    names = table["dataset"] + "_of_a_hospital_that_has_a_long_name"
    modes = ["x", "y"] * (len(table) // 2)
    lines = summary(fit_scaling_laws(table.assign(dataset=names, data_mode=modes)))
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 80


def test_a_narrow_summary_counts_remarks_and_cuts_no_answer(published):
    lines = summary(published, width=40)
    text = "".join("".join(lines).split())
    assert all("".join(finding.line.split()) in text for finding in findings(published))
    assert re.fullmatch(
        r"To see every number and \d+ more remarks, type: isweep fit SWEEP --all", lines[-1]
    )


def test_the_summary_of_the_data_has_one_row_for_each_dataset():
    table = synthetic_table(num_natural=2, num_medical=1, models=("a", "b"))
    is_hard = table["dataset"] == "medical0"
    table = table.assign(
        test_loss=np.where(is_hard, 0.6, 0.1),
        test_accuracy=np.where(is_hard, 0.5, 0.9),
        d_data_mle=np.where(table["dataset"] == "natural1", 20.0, 10.0),
        label_sharpness=np.where(is_hard, 1e-3, 1e-4),
        fgsm_8_loss_gain=np.where(is_hard, 9.0, 1.0),
    )
    fits = fit_scaling_laws(table)
    dataset_table = seen_table(fits)
    assert dataset_table.note.startswith(
        "At the largest train size the geometric mean of the test loss is 0.1 (natural0) to 0.6 "
        "(medical0)."
    )
    assert "classes), and accuracy and AUROC are not well above chance." in dataset_table.note
    two_pairs = pd.concat(
        [table.assign(class_pair="0-1"), table.assign(class_pair="2-3", label_sharpness=3e-4)]
    )
    three_seeds = [
        two_pairs.assign(seed=k, trial_id=f"{k}" + two_pairs["trial_id"] + two_pairs["class_pair"])
        for k in range(3)
    ]
    # A sweep that stopped halfway: the second pair has one seed.
    unfinished = pd.concat(three_seeds).query("seed == 0 or class_pair == '0-1'")
    fits = fit_scaling_laws(unfinished)
    assert seen_table(fits).rows[1][3] == "0.0002"  # a mean over pairs, not over trials
    figure = dataset_properties(prepare(unfinished).points, fits).figure
    bars = [sorted(bar.get_width() for bar in axes.patches) for axes in figure.axes]
    assert bars == [
        sorted(d.d_data for d in fits.datasets),
        sorted(d.label_sharpness for d in fits.datasets),
    ]
    assert dataset_table.header == (
        "dataset",
        "domain",
        "d_data",
        "K_F",
        "largest N",
        "loss at largest N",
        "loss gained by FGSM at 8/255",
    )
    assert dataset_table.rows[0] == (
        "medical0",
        "medical",
        "10",
        "0.001",
        "1,750",
        "0.6 (at chance level)",
        "9",
    )


def test_an_interval_shows_the_digits_in_which_its_ends_differ():
    assert interval((0.99961, 1.00012)) == "0.9996 to 1"
    assert interval((-2e-9, 3.14159)) == "−2.00e−09 to 3.14"
    assert interval((1.0, 1.0 + 1e-12)) == "1, without scatter"
    assert interval(None) == "–"
    assert interval((1.0041, 2.5423), null=1) == "1.004 to 2.54"


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


def test_equal_losses_and_equal_properties_are_explained():
    table = synthetic_table(num_natural=4, num_medical=4, trial_std=0.2)
    with_equal_properties = answers(table.assign(d_data_mle=8.0, label_sharpness=1e-4))
    assert (
        "1/d and the domain label vary too little, or only together"
        in with_equal_properties["sharpness"].answer
    )
    with_equal_losses = answers(table.assign(test_loss=0.5, test_accuracy=np.nan))
    assert (
        with_equal_losses["exponent"].answer
        == "This cannot be tested: the losses are the same at every N."
    )
    assert "0 to 0" not in " ".join(finding.answer for finding in with_equal_losses.values())


def test_slopes_that_chance_level_flattens_are_refused():
    table = synthetic_table(num_natural=6, num_medical=6, dataset_std=0.5, trial_std=0.1)
    flattened = np.log(2) * np.tanh(table["test_loss"] * 2 / np.log(2))
    finding = answers(table.assign(test_loss=flattened, test_accuracy=0.5))["sharpness"]
    assert re.search(
        r"the losses of \d+ of 36 points are at chance level, which flattens slopes", finding.answer
    )
    assert finding.to_add == "train until losses fall below chance level"


def with_unfitted_networks(table):
    """Let network b fit no training images at the smallest N: accuracy 0.74 of two classes."""
    smallest = table["train_size"].min()
    fails = (table["train_size"] == smallest) & (table["model"] == "b")
    return table.assign(num_classes=2, train_accuracy=np.where(fails, 0.74, 0.75))


def test_networks_that_do_not_fit_their_training_images_are_counted():
    table = synthetic_table(num_natural=3, num_medical=1, models=("a", "b"))
    table["d_repr_mle"] = table["d_data_mle"] * np.where(table["model"] == "a", 2.0, 0.5)
    of_fall = (
        "More training steps at larger N may contribute: at N = 500, 4 of 8 "
        "networks do not fit their training images."
    )
    of_count = (
        "Without networks that do not fit their training images, this holds at 8 of 20 points, "
        "and the median d_repr / d_data is 2."
    )
    of_limits = "In 4 of 24 points the network does not fit its own training images"
    fits = fit_scaling_laws(with_unfitted_networks(table))
    by_question = dict(zip(QUESTIONS, findings(fits), strict=True))
    assert of_fall in by_question["fall"].details
    fitted = table[~((table["model"] == "b") & (table["train_size"] == table["train_size"].min()))]
    slope = fit_scaling_laws(fitted).fall().estimates[0].value
    assert any(
        sentence.startswith(
            "Without networks that do not fit their training images, this factor is "
            f"{number(2**slope)} ("
        )
        for sentence in by_question["fall"].sentences
    )
    assert (
        by_question["representation"]
        .sentences[0]
        .startswith("At 0 of 12 points of a and 12 of 12 points of b")
    )
    assert of_count in by_question["representation"].sentences
    assert any(caveat.startswith(of_limits) for caveat in fits.caveats)
    fits = fit_scaling_laws(table.drop(columns="train_accuracy", errors="ignore"))
    text = " ".join([*(finding.answer for finding in findings(fits)), *fits.caveats])
    assert "training images, so" not in text
    assert "not fit" not in text


def test_without_any_network_that_fits_its_training_images_no_share_of_zero_points_is_given():
    table = synthetic_table(num_natural=3, num_medical=1, models=("a",))
    finding = answers(table.assign(num_classes=2, train_accuracy=0.6))["representation"]
    assert "No network here fits its training images." in finding.sentences
    assert "of 0" not in finding.answer


@pytest.mark.long
def test_the_exponent_is_given_with_d_by_twonn_too():
    """The exponent is proportional to d, so a TwoNN of 1.5 times the MLE makes it 1.5 times b."""
    table = clear_law(trial_std=0.3, seed=3)
    table = table.assign(d_data_twonn=1.5 * table["d_data_mle"])
    fits = fit_scaling_laws(table)
    estimate = fits.exponent().estimates[0]
    bounds = tuple(1.5 * bound for bound in estimate.interval)
    sentence = (
        f"With d by TwoNN, b is {number(1.5 * estimate.value)} ({interval(bounds)}; exploratory)."
    )
    assert sentence in answers(table)["exponent"].sentences
    claims = {
        claim.question.source: claim for claim in ledger(table, sweep="made", compare=False).entries
    }
    assert f"{claims['Thm 1'].note}.".endswith(sentence)
    assert "TwoNN" not in claims["Thm 4"].note
    first = table["dataset"] == table["dataset"].min()
    of_fewer = answers(table.assign(d_data_twonn=table["d_data_twonn"].mask(first)))["exponent"]
    assert "by TwoNN in 11 datasets, b is " in of_fewer.line
    without = answers(table.drop(columns="d_data_twonn"))["exponent"]
    assert "TwoNN" not in without.answer


def test_without_d_data_the_advice_is_to_measure_it_and_not_to_add_datasets():
    table = synthetic_table(num_natural=4, num_medical=4).assign(d_data_mle=np.nan)
    by_question = answers(table)
    for name in ("dimension", "sharpness", "exponent"):
        assert by_question[name].to_add == "measure d_data with the estimator `mle`"
    thm_1 = ledger(table, sweep="made", compare=False).entries[4]
    assert thm_1.reason == "no point has d_data"


def test_a_mean_slope_of_two_datasets_has_no_interval():
    finding = answers(synthetic_table(num_natural=2, num_medical=0))["fall"]
    assert "The mean slope of log loss on log N is " in finding.answer
    assert "interval" not in finding.answer


def test_the_first_remark_says_that_images_come_from_the_same_few_pictures():
    table = synthetic_table(num_natural=4, num_medical=4)
    origins = {"natural0": ImageOrigin(cut_from="two photographs")}
    fits = fit_scaling_laws(table, facts=SweepFacts(origins=origins))
    remark = "In 1 of 8 datasets, training and test images come from the same few pictures."
    assert fits.caveats[0] == remark
    assert f"- {remark}" in summary(fits)


@pytest.mark.parametrize(
    ("num_classes", "train_accuracy", "unfitted"),
    [(2, 0.74, True), (2, 0.76, False), (10, 0.54, True), (10, 0.56, False), (2, np.nan, False)],
)
def test_a_network_fits_its_training_images_from_halfway_between_chance_and_one(
    num_classes, train_accuracy, unfitted
):
    assert bool(is_unfitted(train_accuracy, num_classes)) is unfitted


def test_for_one_dataset_the_points_above_d_data_are_counted_if_they_are_most():
    table = synthetic_table(num_natural=1, num_medical=0, models=("a",))
    ratios = np.array([2.0, 2.0, 0.5])
    fits = fit_scaling_laws(table.assign(d_repr_mle=table["d_data_mle"] * ratios))
    sentence = (
        "At 2 of 3 points, the dimension of the network's last hidden layer (d_repr) is larger "
        "than d_data."
    )
    assert of_representations(fits).sentences[0] == sentence


def test_correlations_are_shown_without_the_dataset_that_decides_the_largest():
    """One dataset makes the largest r. Without it, numpy computes r again for every attack."""
    table = synthetic_table(num_natural=6, num_medical=0, models=("a",))
    rng = np.random.default_rng(0)
    names = sorted(table["dataset"].unique())
    outlier = names[0]
    sharpness = dict(zip(names, [100.0, 1.0, 1.1, 1.2, 1.3, 1.4], strict=True))
    gains = {}
    gain_columns = [name for name in table if name.endswith("loss_gain")]
    for column in gain_columns:
        gains[column] = dict(zip(names, rng.normal(size=6), strict=True))
    gains[gain_columns[0]][outlier] = 500.0
    mapped = {column: table["dataset"].map(values) for column, values in gains.items()}
    table = table.assign(label_sharpness=table["dataset"].map(sharpness), **mapped)
    finding = answers(table)["attacks"]
    others = names[1:]
    k_f = [sharpness[name] for name in others]
    expected = sorted(
        np.corrcoef(k_f, [values[name] for name in others])[0, 1] for values in gains.values()
    )
    smallest, largest = number(expected[0]), number(expected[-1])
    assert (
        f"This estimate rests on one dataset: without {outlier}, the {len(gains)} range from "
        f"{smallest} to {largest}."
    ) in finding.line


@pytest.mark.long
def test_the_heaviest_dataset_explains_an_uncertain_exponent():
    table = clear_law(size_slope=1.0, trial_std=1.0, seed=1)
    weights = fit_scaling_laws(table).exponent().estimates[0].weights
    heaviest = max(weights, key=weights.get)
    sentence = f"One dataset, {heaviest}, has {percent(weights[heaviest])} of the weight in this b."
    assert sentence in answers(table)["exponent"].sentences


def test_with_one_train_size_the_next_step_is_more_train_sizes():
    table = synthetic_table(num_natural=2, num_medical=2)
    of_one_size = fit_scaling_laws(table[table["train_size"] == 500])
    assert "add `--set 'train_sizes=[60,120,240]'` to" in next_steps(of_one_size)[-1]
    assert "`isweep init ./my-images`" in next_steps(fit_scaling_laws(table))[-1]
