"""Plain fits of one learning curve, without a prior: a power law, and a power law with a floor.

Both are fitted to log losses by least squares (M1 and M2 of Alabdulmohsin, Neyshabur & Zhai
2022, arXiv 2209.06640). The fit with a floor tries all rates and floors of a fixed grid.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

RATES = np.linspace(0.02, 3.0, 60)
"""Rates of the grid. A rate is the exponent of 1 / N."""
FLOOR_SHARES = np.concatenate([[0.0], np.linspace(0.02, 0.995, 50)])
"""Floors of the grid, as shares of the smallest measured loss."""


def power_law(sizes: Array, log_losses: Array, train_size: float) -> float:
    """Return the log loss at a train size, from a linear fit of log loss on log N.

    Args:
        sizes: Train sizes of the curve, ``(num_sizes,)``.
        log_losses: Log losses of the curve, ``(num_sizes,)``.
        train_size: N of the predicted log loss.
    """
    coefficients = np.polyfit(np.log(sizes), log_losses, 1)
    return float(np.polyval(coefficients, np.log(train_size)))


def floored_power_law(sizes: Array, log_losses: Array, train_size: float) -> float:
    """Return the log loss at a train size, from a fit of loss = factor · N^(−rate) + floor.

    Args:
        sizes: Train sizes of the curve, ``(num_sizes,)``.
        log_losses: Log losses of the curve, ``(num_sizes,)``.
        train_size: N of the predicted log loss.
    """
    losses = np.exp(log_losses)
    log_powers = -RATES * np.log(sizes)[:, None]  # (num_sizes, num_rates)
    floors = FLOOR_SHARES * losses.min()
    log_excess = np.log(losses[:, None] - floors)  # (num_sizes, num_floors)
    # For a given rate and floor, the best log factor is a mean of log (loss − floor) + rate ·
    # log N, so no search is needed.
    log_factors = log_excess.mean(axis=0)[None, :] - log_powers.mean(axis=0)[:, None]
    fitted = np.log(np.exp(log_factors[None] + log_powers[:, :, None]) + floors)
    errors = ((log_losses[:, None, None] - fitted) ** 2).sum(axis=0)
    rate, floor = np.unravel_index(int(errors.argmin()), errors.shape)
    power = np.exp(log_factors[rate, floor] - RATES[rate] * np.log(train_size))
    return float(np.log(power + floors[floor]))
