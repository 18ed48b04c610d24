"""Results tables that follow the law with known parameters, for tests and benchmarks of the fits."""

from __future__ import annotations

from itertools import product

import numpy as np
import pandas as pd

from orchestrator.results import columns


def synthetic_table(
    *,
    num_natural: int = 5,
    num_medical: int = 7,
    models: tuple[str, ...] = ("resnet18",),
    train_sizes: tuple[int, ...] = (500, 1000, 1750),
    class_pairs: tuple[str, ...] = ("",),
    num_seeds: int = 1,
    size_slope: float = 1.0,
    sharpness_slope: float = 1.0,
    dataset_std: float = 0.0,
    trial_std: float = 0.0,
    seed: int = 0,
) -> pd.DataFrame:
    """Return a table of trials with log L = a − size_slope · log N / d_data
    + sharpness_slope · log K_F + errors.

    Args:
        num_natural: datasets called ``natural0``, ...
        num_medical: datasets called ``medical0``, ..., with K_F about twice as large as the natural
            ones.
        models: one intercept each, 0.1 apart.
        train_sizes: images.
        class_pairs: pairs of every dataset, each with its own d_data and K_F.
        num_seeds: trials per cell.
        size_slope: coefficient of −log N / d_data; 1 in theory.
        sharpness_slope: coefficient of log K_F; 1 in theory.
        dataset_std: standard deviation of an error that all trials of a dataset share, in log loss.
        trial_std: standard deviation of each trial's own error, in log loss.
        seed: decides properties and errors.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(num_natural + num_medical):
        domain = columns.NATURAL if number < num_natural else columns.MEDICAL
        name = f"{domain}{number if number < num_natural else number - num_natural}"
        shared = rng.normal(0, dataset_std)
        for pair in class_pairs:
            d_data = rng.uniform(6, 20)
            sharpness = np.exp(rng.normal(np.log(2e-4 if domain == columns.MEDICAL else 1e-4), 0.5))
            dataset_columns = {
                columns.DATASET: name,
                columns.DOMAIN: domain,
                columns.CLASS_PAIR: pair,
                columns.LABEL_SHARPNESS: sharpness,
            }
            for model_number, model in enumerate(models):
                # Each model has its own intercept.
                shared_error = shared + 0.1 * model_number
                for size, seed_number in product(train_sizes, range(num_seeds)):
                    trial_columns = {
                        columns.MODEL: model,
                        columns.TRAIN_SIZE: size,
                        columns.SEED: seed_number,
                        "d": d_data,
                        "shared": shared_error,
                    }
                    rows.append({**dataset_columns, **trial_columns})
    table = pd.DataFrame(rows)
    errors = table.pop("shared") + rng.normal(0, trial_std, len(table))
    # d_data rises with N, as estimates do on more points; a constant one would be an easier case.
    table[columns.D_DATA_MLE] = table.pop("d") * (table[columns.TRAIN_SIZE] / 1000.0) ** 0.05
    scaled = -np.log(table[columns.TRAIN_SIZE]) / table[columns.D_DATA_MLE]
    log_loss = (
        8 + size_slope * scaled + sharpness_slope * np.log(table[columns.LABEL_SHARPNESS]) + errors
    )
    table[columns.TEST_LOSS] = np.exp(log_loss)
    key = [columns.MODEL, columns.DATASET, columns.CLASS_PAIR, columns.TRAIN_SIZE, columns.SEED]
    table[columns.TRIAL_ID] = [
        "-".join(map(str, values)) for values in table[key].itertuples(index=False)
    ]
    return _with_other_measurements(table, rng)


def _with_other_measurements(table: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    noise = rng.normal(0, 0.3, (len(table), 2))
    gains = {}
    for epsilon in columns.FGSM_EPSILONS:
        gain = 2e4 * epsilon**0.7 * table[columns.LABEL_SHARPNESS] * np.exp(noise[:, 0])
        gains[f"fgsm_{epsilon}_loss_gain"] = gain
    d_repr = table[columns.D_DATA_MLE] * 0.7 * np.exp(noise[:, 1])
    return table.assign(
        sweep="synthetic",
        data_mode="corrected",
        status=columns.DONE,
        image_size=64,
        channels=1,
        test_accuracy=0.8,
        sharpness_channels=1,
        sharpness_pixel_range=255.0,
        code_version="0000000",
        d_repr_mle=d_repr,
        d_repr_twonn=d_repr * 1.1,
        d_data_twonn=table[columns.D_DATA_MLE] * 1.1,
        **gains,
    )
