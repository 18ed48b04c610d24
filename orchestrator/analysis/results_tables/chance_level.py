"""Chance level: which losses are no better than chance, and which networks are over-confident.

A network that learned nothing of n classes has the chance loss, ln n nat. A loss of at least 0.8
ln n is *at chance level*, unless the same network's accuracy or AUROC is well above chance: it then
learned, and is *over-confident*, since its wrong answers are as sure as its right ones.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

AT_CHANCE_SHARE = 0.8
"""A loss is at chance level from this share of the chance loss on."""
LEARNED_ACCURACY = 1 / 3
"""Share of the way from chance to a perfect accuracy from which on a network has learned: three
standard errors of chance with two classes and 100 test images."""
LEARNED_AUC = 0.75
"""AUROC from which on a network has learned: halfway from chance to a perfect one."""
UNKNOWN_NUM_CLASSES = 2.0
"""Classes of a table that does not say how many: the study's tasks have two."""


def chance_loss(num_classes: Any) -> Any:
    """Return the loss of chance, ln n nat; of two classes where n is not known.

    Args:
        num_classes: A number, or a column of them; None, NaN and 0 are not known.
    """
    if isinstance(num_classes, pd.Series):
        counts = num_classes.astype(float)
        return np.log(counts.where(counts > 0, UNKNOWN_NUM_CLASSES))
    is_known = not pd.isna(num_classes) and num_classes > 0
    return float(np.log(num_classes if is_known else UNKNOWN_NUM_CLASSES))


def has_learned(accuracy: Any, auc: Any, num_classes: Any) -> Any:
    """Return whether accuracy or AUROC is well above chance; unknown ones are not."""
    chance = np.exp(-chance_loss(num_classes))
    is_accurate = accuracy >= chance + LEARNED_ACCURACY * (1 - chance)
    return is_accurate | (auc >= LEARNED_AUC)


def is_at_chance_level(
    loss: float, num_classes: Any = None, *, accuracy: Any = None, auc: Any = None
) -> bool:
    """Return whether a test loss (nat) is no better than chance, and the network learned nothing.

    Args:
        loss: Test loss in nat.
        num_classes: Classes of the task; two if not known.
        accuracy: Test accuracy, if known.
        auc: Area under the ROC curve, if known.
    """
    return _loss_is_at_chance(loss, num_classes) and not _learned(accuracy, auc, num_classes)


def is_over_confident(
    loss: float, num_classes: Any = None, *, accuracy: Any = None, auc: Any = None
) -> bool:
    """Return whether a loss is at chance level although accuracy or AUROC is well above chance."""
    return _loss_is_at_chance(loss, num_classes) and _learned(accuracy, auc, num_classes)


def _loss_is_at_chance(loss: float, num_classes: Any) -> bool:
    return bool(loss >= AT_CHANCE_SHARE * chance_loss(num_classes))


def _learned(accuracy: Any, auc: Any, num_classes: Any) -> bool:
    known_accuracy = np.nan if accuracy is None else accuracy
    known_auc = np.nan if auc is None else auc
    return bool(has_learned(known_accuracy, known_auc, num_classes))


def reaches(shares: pd.Series, share: float = AT_CHANCE_SHARE) -> pd.Series:
    """Return which losses reach a share of the chance loss; missing ones do not.

    Args:
        shares: Logarithms of the share of the chance loss.
        share: The share.
    """
    return pd.Series(shares >= np.log(share))
