"""The analysis of the fifth registration equals slow reference code; its preset is as registered."""

from collections import Counter

import numpy as np
import pytest
from scipy.optimize import curve_fit
from scipy.stats import linregress

from benchmarks.findings_numbers import COMMON, HARDER, LAW, LevelTable, level_table, log_error
from orchestrator.planning.sweep_file import load_sweep

SIZES = [80, 135, 225, 380, 640]
PAIRS = [f"{a}{b}" for a in range(10) for b in range(a + 1, 10) if b - a in (1, 2, 3, 7, 8, 9)]


def random_table(power=1.0, noise=0.1, seed=0):
    """Return a table whose slopes are proportional to d^(-power), its log losses and its d."""
    rng = np.random.default_rng(seed)
    d = np.array([7.0, 8.0, 12.0, 22.0]) * np.exp(rng.normal(0, 0.05, (len(PAIRS), 4)))
    slope = 0.4 * (d / 11) ** -power
    loss = np.array([-3, -2, -1.2, -0.8])[:, None] - slope[..., None] * np.log(SIZES)
    loss += rng.normal(0, noise, loss.shape)
    return LevelTable(loss, d, np.zeros_like(d), PAIRS, SIZES), loss, d


def centered_curves(loss):
    x = -np.log(np.array(SIZES, dtype=float))
    return loss - loss.mean(axis=2, keepdims=True), x - x.mean()


@pytest.mark.parametrize("equal", [False, True])
@pytest.mark.parametrize("other_levels", [False, True])
@pytest.mark.parametrize("rule", [COMMON, LAW, HARDER, "1/d"])
def test_a_rules_share_is_its_error_on_held_out_curves(rule, other_levels, equal):
    """The reference stacks the centered curves and fits them by least squares."""
    table, loss, d = random_table()
    y, x = centered_curves(loss)
    scale = np.ones(4)
    if equal:  # every level is scaled to the same sum of squares
        scale = 1 / np.sqrt((y**2).sum(axis=(0, 2)))
        y = y * scale[:, None]
    constant = np.ones_like(d) * scale
    height = table.height * scale
    terms = {COMMON: [constant], HARDER: [constant, height]}.get(rule, [scale / d])
    errors = 0.0
    for pair, name in enumerate(PAIRS):
        for level in range(4):
            training_curves = [
                (other_pair, other_level)
                for other_pair, other_name in enumerate(PAIRS)
                for other_level in range(4)
                if not set(other_name) & set(name) and not (other_levels and other_level == level)
            ]
            columns = []
            for term in terms:
                columns.append(np.concatenate([term[curve] * x for curve in training_curves]))
            target = np.concatenate([y[curve] for curve in training_curves])
            weights = np.linalg.lstsq(np.stack(columns, axis=1), target)[0]
            if rule == "1/d":
                weights = np.ones(1)
            slope = 0.0
            for weight, term in zip(weights, terms, strict=True):
                slope = slope + weight * term[pair, level]
            errors += ((y[pair, level] - slope * x) ** 2).sum()
    share = table.share(rule, np.arange(len(PAIRS)), other_levels=other_levels, equal=equal)
    assert share == pytest.approx(errors / (y**2).sum(), rel=1e-9)


def test_a_slope_for_each_level_has_no_share_for_a_new_level():
    table, _, _ = random_table()
    assert "share, new level" not in table.rivals()["a slope for each level"]


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_the_power_of_d_is_that_of_the_levels_means(power):
    table, loss, d = random_table(power)
    y, x = centered_curves(loss)
    slope = y @ x / (x @ x)
    every = np.arange(len(PAIRS))
    on_log_d = linregress(np.log(d).mean(axis=0), np.log(slope.mean(axis=0)))
    assert table.power_of_d(every) == pytest.approx(-on_log_d.slope, rel=1e-9)
    assert table.power_of_d(every) == pytest.approx(power, abs=0.15)


@pytest.mark.parametrize("power", [0.0, 1.0])
def test_the_power_at_equal_height_is_scipys_weighted_least_squares(power):
    table, loss, d = random_table(power)
    y, x = centered_curves(loss)
    slope = (y @ x / (x @ x)).ravel()
    height = loss.mean(axis=2).ravel()
    sigma = np.tile(np.sqrt((y**2).sum(axis=(0, 2))), len(PAIRS))
    center = np.exp(np.log(d).mean())

    def model(regressor_values, scale, power_of_d, on_height):
        d_values, heights = regressor_values
        return scale * (d_values / center) ** -power_of_d * np.exp(on_height * heights)

    start = (slope.mean(), power, 0.0)
    regressors = (d.ravel(), height - height.mean())
    (_, expected, _), _ = curve_fit(model, regressors, slope, start, sigma=sigma)
    assert table.power_at_equal_height(np.arange(len(PAIRS))) == pytest.approx(expected, abs=1e-3)


def test_exponents_by_level_are_those_of_the_law():
    table, _, d = random_table(noise=1e-6)
    b = table.exponents(np.arange(len(PAIRS)))
    assert b == pytest.approx(np.full(4, 0.4 * 11), rel=1e-3)
    assert table.stays()["level 6"]["value"] == pytest.approx(0, abs=1e-3)
    flat, _, d = random_table(power=0.0, noise=1e-6)
    # One slope for all: b is the slope times d, weighted by 1 / d².
    expected = 0.4 * (1 / d).sum(axis=0) / (1 / d**2).sum(axis=0)
    assert flat.exponents(np.arange(len(PAIRS))) == pytest.approx(expected, rel=1e-3)


def test_answers_distinguish_the_laws_in_clean_tables():
    for power, sign in ((1.0, -1), (0.0, 1)):
        table, _, _ = random_table(power, noise=0.02)
        answers = table.answers()
        for name in ("new pairs", "new pairs and level"):
            gain = answers[f"b/d less one slope, {name}"]
            assert gain["value"] * sign > 0
            assert gain["adjusted_p"] < 0.05
        bounds = answers["power of d against 0"]
        assert bounds["low"] - 0.02 <= power <= bounds["high"] + 0.02


def test_rows_are_averaged_to_points_as_registered():
    rows = [
        {
            "dataset": f"mnist_{pair}_{level}",
            "train_size": str(size),
            "seed": str(seed),
            "status": "done",
            "test_loss": str(np.exp(-size / 1000 - seed)),
            "test_accuracy": str(1 - 17 / 340 * (seed + 1)),
            "d_data_mle": f"{int(level) + size}",
            "d_data_twonn": f"{2 * size}",
            "label_sharpness": "0.5",
        }
        for pair in ("02", "13")
        for level in "0246"
        for size in SIZES
        for seed in (0, 1)
    ]
    table = level_table(rows)
    assert table.pairs == ["02", "13"]
    assert table.d.tolist() == [[640, 642, 644, 646]] * 2
    assert table.height[0, 0] == pytest.approx(-np.mean(SIZES) / 1000 - 0.5)
    assert level_table(rows, seed="1").height[0, 0] == pytest.approx(-np.mean(SIZES) / 1000 - 1)
    assert level_table(rows, d="twonn").d[0, 0] == 1280
    # 17 and 34 of 340 test images are wrong.
    expected = (np.log(17.5 / 341) + np.log(34.5 / 341)) / 2
    assert level_table(rows, log_error).height[0, 0] == pytest.approx(expected)
    assert level_table(rows, levels="04").d.shape == (2, 2)
    assert level_table(rows, skip=1).height[0, 0] == pytest.approx(-np.mean(SIZES[1:]) / 1000 - 0.5)


def test_the_preset_of_longer_training_differs_in_epochs_and_seeds_only():
    short = load_sweep("dimension-moved")
    long = load_sweep("dimension-moved-longer")
    assert (short.seeds, long.seeds) == ((0, 1), (0,))
    assert [dict(sweep.recipe.changes)["epochs"] for sweep in (short, long)] == [(15,), (60,)]
    changed_keys = {"name", "description", "seeds", "recipe"}
    assert short.model_dump(exclude=changed_keys) == long.model_dump(exclude=changed_keys)


def test_the_preset_is_the_registrations_design():
    sweep = load_sweep("dimension-moved")
    digit_counts = Counter()
    factors = Counter()
    for dataset in sweep.datasets:
        parameters = dict(dataset.generated.parameters)
        _, pair, level = dataset.name.split("_")
        assert parameters["set"] == 1
        assert (parameters["first"], parameters["second"]) == (int(pair[0]), int(pair[1]))
        assert parameters.get("factors", 0) == int(level)
        factors[level] += 1
        digit_counts.update(pair)
    assert factors == dict.fromkeys("0246", 30)
    assert set(digit_counts.values()) == {6 * 4}
    assert sweep.train_sizes == tuple(SIZES)
    assert {dataset.name.split("_")[1] for dataset in sweep.datasets} == set(PAIRS)
