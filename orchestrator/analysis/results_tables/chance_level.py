"""Detection of networks at chance level, and of over-confident networks.

If a network learned nothing about n classes, its loss is the chance loss, ln n nat. A network
is *at chance level* if its loss is at least 0.8 ln n, and its accuracy and AUROC are not well
above chance. If accuracy or AUROC is well above chance, the network has learned something.
Such a network can still have a loss of at least 0.8 ln n. It is then *over-confident* if its
loss is also larger than the loss of a network with the same accuracy whose confidence equals
this accuracy.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
from scipy import special

from orchestrator.analysis.number_formats import listing, number

AT_CHANCE_SHARE = 0.8
"""Smallest loss at chance level, as a share of the chance loss."""
LEARNED_ACCURACY = 1 / 3
"""Smallest accuracy of a network that has learned, as a share of the distance from chance to
100 %. With two classes and 100 test images, this accuracy is three standard errors above
chance."""
LEARNED_AUC = 0.75
"""Smallest AUROC of a network that has learned. It is halfway between chance, 0.5, and 1."""
FITTED_ACCURACY = 1 / 2
"""Smallest train accuracy of a network that fits its training images, as a share of the
distance from chance to 100 %. With two classes, this accuracy is 75 %. A network with a lower
accuracy is closer to guessing than to a perfect fit."""
UNKNOWN_NUM_CLASSES = 2.0
"""Number of classes that is assumed if a table does not contain it. The study's tasks have two
classes."""


def chance_loss(num_classes: Any) -> Any:
    """Return the chance loss, ln n nat. If n is unknown, 2 is used.

    Args:
        num_classes: A number or a column of numbers; None, NaN and 0 mean unknown.
    """
    if isinstance(num_classes, pd.Series):
        counts = num_classes.astype(float)
        return np.log(counts.where(counts > 0, UNKNOWN_NUM_CLASSES))
    is_known = not pd.isna(num_classes) and num_classes > 0
    return float(np.log(num_classes if is_known else UNKNOWN_NUM_CLASSES))


def chance_limits_in_words(class_counts: Iterable[int | None]) -> str:
    """Return the smallest loss at chance level for each number of classes.

    Args:
        class_counts: Number of classes of each dataset; None or 0 means unknown.

    Returns:
        Text such as ``0.555 for 2 classes``.
    """
    return _losses_in_words(class_counts, AT_CHANCE_SHARE)


def chance_losses_in_words(class_counts: Iterable[int | None]) -> str:
    """Return the chance loss for each number of classes, such as ``0.693 nat for 2 classes``.

    Args:
        class_counts: Number of classes of each dataset; None or 0 means unknown.
    """
    return _losses_in_words(class_counts, 1.0, unit=" nat")


def _losses_in_words(class_counts: Iterable[int | None], share: float, unit: str = "") -> str:
    """Return a share of the chance loss for each number of classes, as text."""
    counts = sorted({int(count or UNKNOWN_NUM_CLASSES) for count in class_counts})
    losses = []
    for count in counts or [int(UNKNOWN_NUM_CLASSES)]:
        losses.append(f"{number(share * np.log(count))}{unit} for {count} classes")
    return listing(losses)


def has_learned(accuracy: Any, auc: Any, num_classes: Any) -> Any:
    """Return whether accuracy or AUROC is well above chance. Unknown values are ignored."""
    chance = np.exp(-chance_loss(num_classes))
    is_accurate = accuracy >= chance + LEARNED_ACCURACY * (1 - chance)
    return is_accurate | (auc >= LEARNED_AUC)


def is_unfitted(train_accuracy: Any, num_classes: Any) -> Any:
    """Return whether a network does not fit its own training images; False if this is unknown.

    Args:
        train_accuracy: Share of the training images that are classified correctly: a number,
            or a column of numbers.
        num_classes: Number of classes; two if it is unknown.
    """
    chance = np.exp(-chance_loss(num_classes))
    return train_accuracy < chance + FITTED_ACCURACY * (1 - chance)


def is_at_chance_level(
    loss: float, num_classes: Any = None, *, accuracy: Any = None, auc: Any = None
) -> bool:
    """Return whether a network is at chance level.

    Args:
        loss: Test loss in nat.
        num_classes: Number of classes; two if it is unknown.
        accuracy: Test accuracy as a share; None if it is unknown.
        auc: Area under the ROC curve; None if it is unknown.
    """
    return _loss_is_at_chance(loss, num_classes) and not _learned(accuracy, auc, num_classes)


def is_over_confident(
    loss: float, num_classes: Any = None, *, accuracy: Any = None, auc: Any = None
) -> bool:
    """Return whether a network is over-confident.

    The loss must be at least 0.8 of the chance loss, and accuracy or AUROC must be well above
    chance. The loss must also be larger than the loss of a network with the same accuracy
    whose confidence equals this accuracy for every image. If the accuracy is unknown, the loss
    must be larger than the chance loss.

    Example:
        >>> is_over_confident(0.6, 2, accuracy=0.7), is_over_confident(0.65, 2, accuracy=0.7)
        (False, True)
    """
    if not (_loss_is_at_chance(loss, num_classes) and _learned(accuracy, auc, num_classes)):
        return False
    return loss > _calibrated_loss(accuracy, num_classes)


def _calibrated_loss(accuracy: Any, num_classes: Any) -> float:
    """Return the loss in nat of a network whose confidence equals its accuracy for every image.

    For accuracy a and n classes, this loss is -a ln a - (1 - a) ln((1 - a) / (n - 1)). If the
    accuracy is unknown or at most the chance accuracy, the chance loss is returned.
    """
    largest = chance_loss(num_classes)
    if accuracy is None or np.isnan(accuracy) or accuracy <= np.exp(-largest):
        return float(largest)
    error_rate = 1 - accuracy
    num_others = np.exp(largest) - 1
    return float(
        special.entr(accuracy) + special.entr(error_rate) + error_rate * np.log(num_others)
    )


def _loss_is_at_chance(loss: float, num_classes: Any) -> bool:
    return bool(loss >= AT_CHANCE_SHARE * chance_loss(num_classes))


def _learned(accuracy: Any, auc: Any, num_classes: Any) -> bool:
    known_accuracy = np.nan if accuracy is None else accuracy
    known_auc = np.nan if auc is None else auc
    return bool(has_learned(known_accuracy, known_auc, num_classes))


def reaches(shares: pd.Series, share: float = AT_CHANCE_SHARE) -> pd.Series:
    """Return a mask of the losses that are at least a share of the chance loss.

    Args:
        shares: The logarithm of the loss divided by the chance loss, for each point.
        share: The limit, as a share of the chance loss.
    """
    return pd.Series(shares >= np.log(share))
