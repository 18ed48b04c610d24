"""Test the ledger of published claims: published numbers, a table that follows the law, falls
around the bound, and missing data."""

import json
import re
from itertools import combinations

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from orchestrator.analysis.claims import claim_line, ledger, why
from orchestrator.analysis.experiments.records import Arm
from orchestrator.analysis.findings import family, findings
from orchestrator.analysis.fits import fit_scaling_laws
from orchestrator.analysis.headline import strongest_attack, with_p_values
from orchestrator.analysis.law_fits.detection import t_power
from orchestrator.analysis.limits import SweepFacts
from orchestrator.analysis.number_formats import interval, per_cent_of
from orchestrator.analysis.number_formats import number as formatted
from orchestrator.analysis.published import published_table
from orchestrator.analysis.results_tables.points import POOLED
from orchestrator.analysis.results_tables.sharpness_scale import UNEQUAL_SCALES
from orchestrator.analysis.tables.latex import to_latex
from orchestrator.results import columns as c
from orchestrator.results.columns import attack_columns
from search_spaces.datasets import ImageOrigin
from tests.synthetic import synthetic_table


@pytest.fixture(scope="module")
def published():
    return ledger(published_table(), sweep="the published numbers", compare=False)


def entry(claims, number):
    return next(claim for claim in claims.entries if claim.question.source == number)


def test_medical_sets_have_sharper_labels_at_equal_channels():
    """Compare with a t test of two samples and with every choice of seven among eleven datasets."""
    table = published_table().assign(**{c.SHARPNESS_CHANNELS: 1})
    sharpness = table.groupby(c.DATASET)[[c.LABEL_SHARPNESS, c.DOMAIN]].first()
    logs = np.log(sharpness[c.LABEL_SHARPNESS])
    medical, natural = (logs[sharpness[c.DOMAIN] == name] for name in (c.MEDICAL, c.NATURAL))
    claim = entry(ledger(table, sweep="as if of one channel", compare=False), "Fig. 1")
    t_test = stats.ttest_ind(medical, natural)
    values = logs.to_numpy()
    distance = abs(medical.mean() - natural.mean())
    mean_differences = [
        abs(values[list(chosen)].mean() - np.delete(values, chosen).mean())
        for chosen in combinations(range(11), 7)
    ]
    exact = np.mean(np.array(mean_differences) >= distance - 1e-12)
    assert claim.value == pytest.approx(medical.mean() - natural.mean())
    assert claim.interval == pytest.approx(tuple(t_test.confidence_interval()))
    assert claim.p_value == pytest.approx(max(t_test.pvalue, exact))


def test_the_published_numbers_leave_the_law_undecided(published):
    for number in ("Fig. 2a", "Fig. 2b", "Thm 1", "Thm 3"):
        assert entry(published, number).verdict == "undecided"
    for number in ("Fig. 1", "Eq. 2"):  # natural sets on three channels, medical ones on one
        assert entry(published, number).verdict == "not testable"
        assert entry(published, number).reason == UNEQUAL_SCALES
    attacks = entry(published, "Thm 3")
    assert attacks.value == pytest.approx(0.741, abs=5e-4)
    assert attacks.interval[0] < 0 < attacks.adjusted_p - 0.05
    assert "(K_F of 224×224 pixels, 1 channel, " in claim_line(attacks)
    counts = "11 claims: 0 supported, 0 contradicted, 5 undecided, 1 described, 5 not testable."
    assert " ".join(published.lines()).replace("   ", " ").startswith(counts)


def test_the_approximate_bound_on_d_repr_is_described_without_a_test(published, law):
    """`isweep fit` describes it too: the theorem has no share as its null value."""
    share = entry(published, "Thm 5")
    assert share.verdict == "described"
    assert (share.p_value, share.adjusted_p, share.num_tests, share.power) == (None, None, 0, None)
    table = published_table()
    ratio = (table[c.D_REPR_MLE] / table[c.D_DATA_MLE]).dropna()
    by_dataset = (ratio <= 1).groupby(table[c.DATASET]).mean()
    assert share.value == pytest.approx(by_dataset.mean())
    line = claim_line(share)
    assert line.startswith("DESCRIBED  Thm 5 d_repr is at most about d_data. Share of points ")
    assert "mean over datasets: 84% (95 % interval 67% to 100%). The median d_repr / d_data" in line
    assert line.endswith(
        "The bound states no largest ratio d_repr / d_data, so a share does not test it."
    )
    for words in ("p =", "Against", "would detect"):
        assert words not in line
    claims = ledger(law, sweep="made", compare=False)
    described = [
        finding for finding in findings(fit_scaling_laws(law)) if "compress" in finding.question
    ]
    assert [finding.verdict for finding in described] == [entry(claims, "Thm 5").verdict]


@pytest.mark.long
def test_a_described_claim_does_not_make_the_other_tests_stricter(law):
    """Without d_repr neither Theorem 5 nor Theorem 4 has a number: only the latter is a test."""
    with_both = entry(ledger(law, sweep="made", compare=False), "Fig. 2b")
    without = law.assign(**{c.D_REPR_MLE: np.nan})
    assert entry(ledger(without, sweep="made", compare=False), "Fig. 2b").num_tests == (
        with_both.num_tests - 1
    )


@pytest.mark.long
def test_a_correlation_that_rests_on_one_dataset_names_its_attack_and_network(law):
    """The largest r without the dataset is that of an analysis of the table without it."""
    names = [f"natural{k}" for k in range(3)] + [f"medical{k}" for k in range(4)]
    table = law[law[c.DATASET].isin(names)]
    rng = np.random.default_rng(0)
    gains = {name: rng.random(len(table)) for name in table if name.endswith("loss_gain")}
    table = table.assign(**gains)
    answer = entry(ledger(table, sweep="made", compare=False), "Thm 3")
    best = strongest_attack(fit for fit in fit_scaling_laws(table).attacks if fit.model != POOLED)
    attack = attack_columns([best.response])[0].words
    dataset = answer.most_influential
    note = answer.note
    without = formatted(answer.left_out[dataset])
    assert f"ithout {dataset}, " in note
    assert f"this r ({attack}, {best.model}) is {without}. All " in note
    others = fit_scaling_laws(table[table[c.DATASET] != dataset]).attacks
    tested = [fit for fit in others if fit.status == "ok" and fit.model != POOLED]
    values = sorted(fit.estimates[0].value for fit in tested)
    smallest, largest = formatted(values[0]), formatted(values[-1])
    assert f"All {len(tested)} r then range from {smallest} to {largest}" in note
    assert note in claim_line(answer)


def test_families_are_named_only_if_they_are_used(published):
    assert "The p-values form two families (Holm)." in published.families
    only_loss = published_table().assign(
        **{c.D_REPR_MLE: np.nan, c.DOMAIN: c.NATURAL, c.LABEL_SHARPNESS: np.nan}
    )
    claims = ledger(only_loss, sweep="made", compare=False)
    assert {claim.family for claim in claims.entries if claim.num_tests} == {"headline questions"}
    assert claims.families == (
        "The p-values are adjusted together over the tests of isweep fit (Holm). If the tests' "
        "assumptions hold, the chance of any false claim is at most 5 %."
    )
    assert claims.families in claims.tables()[0].note
    nothing = published_table().query("dataset == 'brats'")
    assert ledger(nothing, sweep="made", compare=False).families == ""


@pytest.mark.long
def test_datasets_that_are_not_independent_are_named_as_in_fit(law):
    names = sorted(law[c.DATASET].unique())
    origin = ImageOrigin(collection="scans of one archive")
    facts = SweepFacts(origins={names[0]: origin, names[1]: origin})
    claims = ledger(law, sweep="made", compare=False, facts=facts)
    sentence = f"This chance can be higher: {names[0]} and {names[1]} are not independent."
    assert claims.families.endswith(f" {sentence}")
    assert sentence in family(fit_scaling_laws(law, facts=facts))
    assert "not independent" not in ledger(law, sweep="made", compare=False).families


def test_differences_of_domains_are_medical_minus_natural(published):
    for source in ("Fig. 2b", "Fig. 1", "2408.08381, 1"):
        assert "medical minus natural" in entry(published, source).question.estimand


def test_a_claim_that_rests_on_one_dataset_has_the_slope_without_it(published):
    steeper = entry(published, "Fig. 2a")
    without = published_table().query("dataset != 'prostate'")
    fit = fit_scaling_laws(without).headline().estimate("inverse_d")
    low, high = fit.interval
    assert low < 0 < high
    assert fit.value == pytest.approx(-6.83, abs=5e-3)
    end_of_note = f"his estimate rests on one dataset: without prostate, the estimate is −6.83 ({interval(fit.interval)})"
    assert steeper.note == f"t{end_of_note}"
    assert f" T{end_of_note}." in claim_line(steeper)


def test_a_claim_that_no_sweep_can_test_has_a_reason(published):
    assert (
        entry(published, "Thm 2").reason
        == "the Lipschitz constant of a network is not measured by a sweep"
    )
    assert entry(published, "2408.08381, 1").verdict == "not testable"


@pytest.fixture(scope="module")
def law():
    table = synthetic_table(num_natural=12, num_medical=12, trial_std=0.02, dataset_std=0.02)
    return table.assign(**{c.TEST_LOSS: table[c.TEST_LOSS] / 20})  # far below chance level


def test_a_table_that_follows_the_law_supports_it(law):
    claims = ledger(law, sweep="made")
    assert entry(claims, "Eq. 2").verdict == "supported"
    assert entry(claims, "Eq. 2").value == pytest.approx(1.0, abs=0.15)


@pytest.mark.parametrize(
    ("exponent", "verdict"), [(0.0, "contradicted"), (1.0, "undecided"), (2.0, "supported")]
)
def test_a_fall_is_compared_with_the_bound(law, exponent, verdict):
    """A fall at the bound is neither faster nor slower than the bound: it decides nothing."""
    table = law.assign(**{c.D_DATA_MLE: law.groupby(c.DATASET)[c.D_DATA_MLE].transform("first")})
    noise = np.random.default_rng(1).normal(0, 0.005, len(table))
    losses = 0.1 * table[c.TRAIN_SIZE] ** (-exponent / table[c.D_DATA_MLE]) * np.exp(noise)
    claim = entry(ledger(table.assign(**{c.TEST_LOSS: losses}), sweep="made"), "Thm 1")
    assert claim.value == pytest.approx(exponent, abs=0.1)
    assert claim.verdict == verdict


def test_no_claim_is_decided_over_base_datasets_that_share_images(law):
    """These base datasets are not independent, even if all of them follow the law."""
    names = sorted(law[c.DATASET].unique())
    arms = [Arm(name, name, "base") for name in names[2:]] + [Arm(names[0], names[2], "sharpness")]
    claims = ledger(law, sweep="made", arms=arms, compare=False)
    as_datasets = ledger(law, sweep="made", compare=False)
    assert {claim.verdict for claim in as_datasets.entries} > {"not testable"}
    assert {claim.verdict for claim in claims.entries} == {"not testable"}
    assert "the base datasets of an experiment share images" in entry(claims, "Eq. 2").reason
    assert claims.left_out == (
        "trials of conditions, which are compared with their base datasets (3)",
    )


@pytest.mark.long
def test_a_headline_question_has_one_verdict_in_the_ledger_and_in_fit(published, law):
    """Ledger and fit have the same estimate, p-value, adjusted p and verdict.

    The two questions on the exponent differ in their power: only one of them has an effect.
    """
    noise = np.exp(np.random.default_rng(3).normal(0, 2, len(law)))
    noisy = law.assign(**{c.TEST_LOSS: law[c.TEST_LOSS] * noise})
    for table in (published_table(), law, noisy):
        answers = fit_scaling_laws(table).answers
        entries = ledger(table, sweep="made", compare=False)
        numbers = ("Fig. 2a", "Eq. 2", None, "Thm 1", "Thm 3")
        for answer, number in zip(answers, numbers, strict=True):
            if number is not None:
                claim = entry(entries, number)
                fields = ["verdict", "value", "interval", "p_value", "adjusted_p", "num_tests"]
                if number != "Thm 1":
                    fields.append("power")
                for field in fields:
                    assert getattr(claim, field) == getattr(answer, field)


def test_claims_that_are_no_headline_question_are_adjusted_over_the_whole_ledger(published):
    with_p = [claim for claim in published.entries if claim.p_value is not None]
    with_p.sort(key=lambda claim: claim.p_value)
    largest = 0.0
    for rank, claim in enumerate(with_p):
        largest = max(largest, min(1.0, claim.p_value * (len(with_p) - rank)))
        if claim.question.source in ("Fig. 2b", "Thm 4"):
            assert claim.adjusted_p == pytest.approx(largest)
        else:
            assert claim.adjusted_p <= largest


@pytest.mark.long
def test_every_adjusted_p_has_its_number_of_tests(published, law):
    """Headline questions are one family; all other claims count every test of the ledger."""
    for table, claims in ((published_table(), published), (law, ledger(law, sweep="made"))):
        num_headline = len([*with_p_values(fit_scaling_laws(table).answers)])
        num_all = sum(claim.p_value is not None for claim in claims.entries)
        assert num_headline < num_all
        for claim in claims.entries:
            if claim.p_value is None:
                assert (claim.adjusted_p, claim.num_tests) == (None, 0)
                continue
            is_headline = claim.question.source not in ("Fig. 1", "Fig. 2b", "Thm 4")

            assert claim.num_tests == (num_headline if is_headline else num_all)
            family_name = "isweep fit" if is_headline else "this ledger"
            assert f" over {claim.num_tests} tests of {family_name}." in claim_line(claim)
            assert (
                claim.p_value <= claim.adjusted_p <= min(1, claim.num_tests * claim.p_value) + 1e-12
            )


@pytest.mark.long
def test_a_claim_has_the_same_power_in_the_ledger_and_the_findings(law):
    noise = np.exp(np.random.default_rng(3).normal(0, 2, len(law)))
    noisy = law.assign(**{c.TEST_LOSS: law[c.TEST_LOSS] * noise})
    claims = ledger(noisy, sweep="made", compare=False)
    fits = fit_scaling_laws(noisy)
    headline = fits.headline()
    error = headline.estimate("log_sharpness").std_error
    expected = t_power(1.0, error, headline.num_datasets - 4, 0.05 / 5)
    assert entry(claims, "Eq. 2").power == pytest.approx(expected)
    matches = [
        re.search(r"of 1 %, at most (\d+) of 100", finding.answer) for finding in findings(fits)[:2]
    ]
    percentages_of_ledger = [
        str(round(100 * entry(claims, number).power)) for number in ("Fig. 2a", "Eq. 2")
    ]
    assert [match and match[1] for match in matches] == percentages_of_ledger
    assert len([*with_p_values(fits.answers)]) == 5


def test_a_claim_whose_permutations_cannot_reach_the_level_names_the_smallest_p(law):
    """Four of eight datasets are medical in 70 ways, and every way has a mirror image."""
    names = [f"natural{k}" for k in range(4)] + [f"medical{k}" for k in range(4)]
    eight = law[law[c.DATASET].isin(names)]
    claim = entry(ledger(eight, sweep="made", compare=False), "Fig. 2b")
    assert claim.test.smallest_p == 2 / 70
    level = per_cent_of(0.05 / claim.num_tests)
    # Holm's correction by statsmodels: all p are 1, but for this one and the significant ones.
    for num_others in range(claim.num_tests):
        rest = [1.0] * (claim.num_tests - 1 - num_others)
        p_values = [2 / 70, *([0.0] * num_others), *rest]
        rejected, *_ = multipletests(p_values, 0.05, "holm")
        if rejected[0]:
            break
    assert why(claim) == (
        f"On its own, this result cannot be significant: Holm's strictest level is {level}, but "
        f"resampling cannot give a p below 0.029. First, {num_others} other tests of the family would "
        "have to be significant"
    )


def test_a_k_f_that_is_the_same_everywhere_decides_nothing(law):
    claims = ledger(law.assign(**{c.LABEL_SHARPNESS: 1e-4}), sweep="made", compare=False)
    for number in ("Fig. 1", "Eq. 2"):
        assert entry(claims, number).reason == "K_F is the same for all datasets"


def test_a_claim_line_has_the_estimate_its_meaning_and_its_power(published, law):
    """K_F was measured on unequal scales, so the line does not adjust for K_F."""
    line = claim_line(entry(published, "Fig. 2a"))
    assert (
        " Slope of log loss on 1/d_data, given the domain label (negative if the loss rises with d_data): "
        "−28.7 (95 % interval −40.3 to −17). The test against 0 (two-sided) gives p = 0.046, adjusted p = 0.14 over 4 "
        "tests of isweep fit. The interval is not adjusted for the number of tests. The adjusted p "
        "decides. At a significance level of 1.2 %, at most 4 of 100 such studies would detect a doubling of loss over the range of "
        "d_data."
    ) in line
    names = [f"natural{k}" for k in range(3)] + [f"medical{k}" for k in range(4)]
    seven_datasets = law[law[c.DATASET].isin(names)]
    rng = np.random.default_rng(0)
    gains = {
        name: rng.random(len(seven_datasets))
        for name in seven_datasets
        if name.endswith("loss_gain")
    }
    claims = ledger(seven_datasets.assign(**gains), sweep="made", compare=False)
    attacks = entry(claims, "Thm 3")
    critical_value = max(
        attacks.test.interval_critical, attacks.test.criticals[attacks.num_tests - 1]
    )
    power = stats.norm.cdf(np.arctanh(0.8) * np.sqrt(7 - 4) - critical_value)
    assert attacks.power == pytest.approx(power)
    assert "would detect a correlation of 0.8" in why(attacks)
    # With 3 and 3 datasets the smallest p is 1/36, above the level of each of several tests.
    six_datasets = seven_datasets.assign(**gains)[seven_datasets[c.DATASET] != "medical3"]
    attacks = entry(ledger(six_datasets, sweep="made", compare=False), "Thm 3")
    assert attacks.num_tests > 1
    assert attacks.power == 0
    claims_of_one_dataset = ledger(law[law[c.DATASET] == "natural0"], sweep="made", compare=False)
    assert entry(claims_of_one_dataset, "Thm 5").verdict == "described"
    assert entry(claims_of_one_dataset, "Thm 5").interval is None


def test_every_export_has_every_claim(published, law):
    claims = ledger(law, sweep="made")
    plain = json.loads(json.dumps(claims.to_json(), allow_nan=False))
    numbers = [claim.question.source for claim in published.entries]
    assert [entry_in_json["number"] for entry_in_json in plain["entries"]] == numbers
    for text in (claims.markdown(), "".join(map(to_latex, claims.tables()))):
        assert all(number in text for number in numbers)
    assert "Against every published quantity" in claims.markdown()
