"""Chance level: losses near that of guessing, and over-confident networks.

A network that learned nothing of n classes has the chance loss, ln n nat. A network is *at chance
level* if its loss is at least 0.8 ln n, and its accuracy and AUROC are not well above chance. If
accuracy or AUROC is well above chance, the network has learned something and is *over-confident*:
its wrong predictions are as sure as its right ones.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

AT_CHANCE_SHARE = 0.8
"""Smallest share of the chance loss at which a loss is at chance level."""
LEARNED_ACCURACY = 1 / 3
"""Smallest accuracy of a network that has learned, as a share of the way from chance to 100 %.
With two classes and 100 test images it is three standard errors above chance."""
LEARNED_AUC = 0.75
"""Smallest AUROC of a network that has learned: halfway from chance to 1."""
UNKNOWN_NUM_CLASSES = 2.0
"""Number of classes if a table does not contain it: the study's tasks have two."""


def chance_loss(num_classes: Any) -> Any:
    """Return the chance loss, ln n nat; for unknown n, that of two classes.

    Args:
        num_classes: A number or a column of numbers; None, NaN and 0 mean unknown.
    """
    if isinstance(num_classes, pd.Series):
        counts = num_classes.astype(float)
        return np.log(counts.where(counts > 0, UNKNOWN_NUM_CLASSES))
    is_known = not pd.isna(num_classes) and num_classes > 0
    return float(np.log(num_classes if is_known else UNKNOWN_NUM_CLASSES))


def has_learned(accuracy: Any, auc: Any, num_classes: Any) -> Any:
    """Return whether accuracy or AUROC is well above chance; an unknown value is not."""
    chance = np.exp(-chance_loss(num_classes))
    is_accurate = accuracy >= chance + LEARNED_ACCURACY * (1 - chance)
    return is_accurate | (auc >= LEARNED_AUC)


def is_at_chance_level(
    loss: float, num_classes: Any = None, *, accuracy: Any = None, auc: Any = None
) -> bool:
    """Return whether a network is at chance level.

    Args:
        loss: Test loss in nat.
        num_classes: Number of classes; two if it is unknown.
        accuracy: Test accuracy, a share; None if it is unknown.
        auc: Area under the ROC curve; None if it is unknown.
    """
    return _loss_is_at_chance(loss, num_classes) and not _learned(accuracy, auc, num_classes)


def is_over_confident(
    loss: float, num_classes: Any = None, *, accuracy: Any = None, auc: Any = None
) -> bool:
    """Return whether a loss is that high although accuracy or AUROC is well above chance."""
    return _loss_is_at_chance(loss, num_classes) and _learned(accuracy, auc, num_classes)


def _loss_is_at_chance(loss: float, num_classes: Any) -> bool:
    return bool(loss >= AT_CHANCE_SHARE * chance_loss(num_classes))


def _learned(accuracy: Any, auc: Any, num_classes: Any) -> bool:
    known_accuracy = np.nan if accuracy is None else accuracy
    known_auc = np.nan if auc is None else auc
    return bool(has_learned(known_accuracy, known_auc, num_classes))


def reaches(shares: pd.Series, share: float = AT_CHANCE_SHARE) -> pd.Series:
    """Return which losses are at least a share of the chance loss; missing losses are not.

    Args:
        shares: Logarithm of each loss divided by its chance loss.
        share: The share of the chance loss.
    """
    return pd.Series(shares >= np.log(share))
