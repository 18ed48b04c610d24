"""All pairs of a set's classes: against slow formulas, and on tables whose law is known."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
from scipy import stats

from orchestrator.analysis import pairs as p
from search_spaces.errors import DataError

CLASSES, SIZES = range(6), (20, 60, 180)


def table(exponent=2.0, on_k=0.0, noise=0.0, class_noise=0.0, seed=0, classes=CLASSES):
    """Losses N^(-exponent / d) K_F^on_k, with noise of points, and of classes."""
    rng = np.random.default_rng(seed)
    own_d, own_k, own = rng.uniform(3, 7, 9), rng.normal(0, 0.5, 9), rng.normal(0, class_noise, 9)
    rows = []
    for a, b in combinations(classes, 2):
        d, log_k = own_d[a] + own_d[b], own_k[a] + own_k[b] + rng.normal(0, 0.3)
        for model in ("one", "two"):
            for size in SIZES:
                log_loss = (
                    -exponent / d * np.log(size) + on_k * log_k + own[a] + own[b] + rng.normal(0, noise)
                )
                rows.append(
                    {
                        "trial_id": f"{a}-{b}-{model}-{size}", "dataset": "set", "domain": "natural",
                        "class_pair": f"{a}-{b}", "model": model, "train_size": size, "status": "done",
                        "test_loss": np.exp(log_loss - 1), "test_accuracy": 0.9, "d_data_mle": d,
                        "label_sharpness": np.exp(log_k - 7), "r_hat_pred": np.exp(-on_k * log_k),
                    }
                )  # fmt: skip
    return pd.DataFrame(rows)


def slow(rows, formula, name):
    """A slope with its jackknife over classes, by least squares with dummies, class by class."""
    rows = rows.assign(
        y=np.log(rows["test_loss"]), x=-np.log(rows["train_size"]) / rows["d_data_mle"],
        k=np.log(rows["label_sharpness"]), inverse_d=1 / rows["d_data_mle"],
        curve=rows["class_pair"] + rows["model"],
    )  # fmt: skip
    held = rows["class_pair"].str.split("-", expand=True).astype(int)
    names = sorted(set(held.to_numpy().ravel()))
    value = smf.ols(formula, rows).fit().params[name]
    without = [smf.ols(formula, rows[(held != each).all(axis=1)]).fit().params[name] for each in names]
    error = np.sqrt((len(names) - 1) / len(names) * np.square(np.array(without) - value).sum())
    return value, value + error * np.array(stats.t.ppf([0.025, 0.975], len(names) - 1))


@pytest.mark.parametrize(
    ("question", "formula", "name"),
    [
        (p.EXPONENT, "y ~ x + C(curve)", "x"),
        (p.SHARPER_LOSS, "y ~ k + inverse_d + C(model):C(train_size)", "k"),
    ],
)
def test_a_number_is_that_of_least_squares_with_dummies_refitted_without_each_class(question, formula, name):
    rows = table(on_k=0.7, noise=0.2, class_noise=0.2)
    found = p.fit_pairs(rows).find(question)
    value, bounds = slow(rows, formula, name)
    assert found.value == pytest.approx(value, rel=1e-9)
    assert found.interval == pytest.approx(bounds, rel=1e-9)


def test_the_rule_that_made_the_curves_tells_pairs_that_it_has_not_seen():
    fit = p.fit_pairs(table(exponent=4.0, noise=0.02))
    assert min(fit.shares, key=fit.shares.__getitem__) in ("4/d", "b/d, b fitted")
    assert fit.shares["4/d"] < 0.2 * fit.shares[p.COMMON]
    assert fit.shares["no fall"] == pytest.approx(1)
    assert fit.find("4/d").value == pytest.approx(fit.shares["4/d"] - fit.shares[p.COMMON])
    assert "tail of the spectrum" not in fit.shares


def test_what_follows_k_f_is_established_and_its_sign_is_told():
    fit = p.fit_pairs(table(on_k=1.0, noise=0.05))
    loss, r_hat = fit.find(p.SHARPER_LOSS), fit.find(p.SHARPER_R_HAT)
    assert loss.established
    assert loss.value == pytest.approx(1, abs=0.1)
    assert r_hat.value == pytest.approx(-1, abs=0.1)


def test_heights_that_classes_share_are_not_taken_for_an_effect_of_k_f():
    fits = [
        p.fit_pairs(table(noise=0.1, class_noise=0.5, seed=seed)).find(p.SHARPER_LOSS) for seed in range(40)
    ]
    assert sum(one.established for one in fits) <= 2


def test_tables_that_are_not_pairs_of_one_set_are_refused():
    with pytest.raises(DataError, match="Pairs of 5 classes are needed"):
        p.fit_pairs(table(classes=range(4)))
    both = pd.concat([table(), table().assign(dataset="other", trial_id=lambda rows: rows["trial_id"] + "o")])
    with pytest.raises(DataError, match="Pairs are fitted of one dataset"):
        p.fit_pairs(both)
