"""Comparison of `isweep power` with the real analysis, on the same simulated tables.

`isweep power` simulates tables with the shape of a sweep, and answers their questions. It makes
two simplifications: no loss is at chance level, and the question on attacks counts as a test
without an effect. This benchmark draws the same tables and analyzes them with
:func:`fit_scaling_laws`, as `isweep fit` does. If the two disagree on a table, the reason is one of
the simplifications, or an error.

The tables have one of four conditions:

- No loss is at chance level, and there are no attacks. `isweep power` and the analysis must then
  agree on every table.
- There are attacks. The loss that they add has a correlation of 0.8 with K_F.
- 5 % or 20 % of the losses are at chance level.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import numpy as np
import pandas as pd
from harness import Result, run

from orchestrator.analysis.answers import Answer
from orchestrator.analysis.fits import fit_scaling_laws
from orchestrator.analysis.headline import ATTACKS, EXPONENT, SHARPNESS
from orchestrator.analysis.power import EFFECTS, Design, DrawnTable, draw_table, drawn_answers
from orchestrator.results import columns as c

DESIGNS = {
    "24 datasets": (12, 12),
    "48 datasets": (24, 24),
}
"""Design -> its natural and its medical datasets."""
NETWORKS = ("a", "b")
TRAIN_SIZES = (100, 300, 1000)
QUESTIONS = (SHARPNESS, EXPONENT)
"""Questions whose claim is true under the law."""
CLEAR_LOSS = 0.05
"""Largest test loss in nat of a table whose losses are clear of chance level, ln 2 = 0.69."""
SEED = 20261201


@dataclass(frozen=True)
class Condition:
    """Properties of a simulated table that `isweep power` leaves out.

    Attributes:
        name: Name of the condition in the result.
        share_at_chance: Share of the losses at chance level.
        correlation: Correlation of log K_F with the loss that attacks add, over the datasets of a
            domain. None means that there are no attacks.
    """

    name: str
    share_at_chance: float = 0.0
    correlation: float | None = None


CONDITIONS = (
    Condition("as simulated"),
    Condition("attacks that go with K_F, r = 0.8", correlation=0.8),
    Condition("5 % of losses at chance level", share_at_chance=0.05),
    Condition("20 % of losses at chance level", share_at_chance=0.20),
)


def results_table(
    design: Design, drawn: DrawnTable, condition: Condition, rng: np.random.Generator
) -> pd.DataFrame:
    """Return a simulated table in the format of a sweep's results: one row per trial.

    All losses are scaled by one factor. It makes the largest loss :data:`CLEAR_LOSS`, or moves
    the condition's share of the losses to chance level.
    """
    log_losses = drawn.log_loss - drawn.log_loss.max() + np.log(CLEAR_LOSS)
    if condition.share_at_chance:
        highest = np.quantile(log_losses, 1 - condition.share_at_chance)
        log_losses = np.minimum(log_losses - highest + np.log(np.log(2)), np.log(np.log(2)))
    names = np.array([name for name, _, _ in design.datasets])
    table = pd.DataFrame(
        {
            c.DATASET: names[design.dataset],
            c.DOMAIN: np.array(design.domains)[design.dataset],
            c.MODEL: np.array(design.models)[design.model],
            c.TRAIN_SIZE: np.array(design.train_sizes)[design.size],
            c.TEST_LOSS: np.exp(log_losses),
            c.D_DATA_MLE: drawn.d,
            c.LABEL_SHARPNESS: np.exp(drawn.log_sharpness),
        }
    )
    table[c.CLASS_PAIR] = [f"{pair}-other" for pair in design.subset]
    table[c.TRIAL_ID] = [f"trial{number}" for number in range(len(table))]
    table = table.assign(
        seed=0,
        status=c.DONE,
        data_mode="corrected",
        image_size=32,
        channels=1,
        sharpness_channels=1,
        sharpness_pixel_range=255.0,
    )
    if condition.correlation is not None:
        table["fgsm_8_loss_gain"] = _gains(design, drawn, condition.correlation, rng)
    return table


def _gains(
    design: Design, drawn: DrawnTable, correlation: float, rng: np.random.Generator
) -> np.ndarray:
    """Return the loss that an attack adds to each point.

    Over the datasets of a domain, this loss has the given correlation with log K_F. The rest is
    random.
    """
    sharpness = pd.Series(drawn.log_sharpness)
    by_domain = sharpness.groupby(np.array(design.medical))
    standard = (sharpness - by_domain.transform("mean")) / by_domain.transform("std")
    of_datasets = rng.normal(0, 1, len(design.domains))[design.dataset]
    of_trials = rng.normal(0, 0.1, len(sharpness))
    mixed = correlation * standard + np.sqrt(1 - correlation**2) * of_datasets
    return np.asarray(5 + mixed + of_trials)


def decided(answers: tuple[Answer, ...], key: str) -> bool:
    """Return whether a question is decided."""
    return any(answer.is_decided for answer in answers if answer.question.key == key)


def power_differences(
    *,
    tables: int = 100,
    designs: tuple[str, ...] = tuple(DESIGNS),
    conditions: tuple[str, ...] = tuple(condition.name for condition in CONDITIONS),
) -> Result:
    """Compare the power by `isweep power` with the share of tables that the analysis decides."""
    rows = []
    for name in designs:
        num_natural, num_medical = DESIGNS[name]
        for number, condition in enumerate(CONDITIONS):
            if condition.name not in conditions:
                continue
            rows += _compared(name, num_natural, num_medical, condition, number, tables)
            print(rows[-2:], file=sys.stderr, flush=True)
    return {
        "effect": "law",
        "tables": tables,
        "ours": rows,
        "theirs": "fit_scaling_laws on the same draws, as results tables",
        "ratio": None,
    }


def _compared(
    name: str,
    num_natural: int,
    num_medical: int,
    condition: Condition,
    number: int,
    num_tables: int,
) -> list[Result]:
    """Return a row per question: how often `isweep power` and the analysis decide it, and differ."""
    datasets = [(f"natural{k}", c.NATURAL, 1) for k in range(num_natural)]
    datasets += [(f"medical{k}", c.MEDICAL, 1) for k in range(num_medical)]
    design = Design(datasets, NETWORKS, TRAIN_SIZES, has_attacks=condition.correlation is not None)
    truth = EFFECTS["law"].truth
    stated = {question.key: 0 for question in QUESTIONS}
    real = dict(stated)
    differ = dict(stated)
    attacks = 0
    for k in range(num_tables):
        seed = [SEED, num_natural + num_medical, k]
        drawn = draw_table(design, truth, np.random.default_rng(seed))
        simulated = drawn_answers(design, truth, np.random.default_rng(seed))
        rng = np.random.default_rng([*seed, number])
        answers = fit_scaling_laws(results_table(design, drawn, condition, rng)).answers
        attacks += decided(answers, ATTACKS.key)
        for question in QUESTIONS:
            by_power = decided(simulated, question.key)
            by_analysis = decided(answers, question.key)
            stated[question.key] += by_power
            real[question.key] += by_analysis
            differ[question.key] += by_power != by_analysis
    return [
        {
            "design": name,
            "condition": condition.name,
            "question": question.key,
            "stated power": stated[question.key] / num_tables,
            "decided by the analysis": real[question.key] / num_tables,
            "tables that differ": differ[question.key],
            "attacks decided": attacks / num_tables,
        }
        for question in QUESTIONS
    ]


if __name__ == "__main__":
    run(power_differences)
