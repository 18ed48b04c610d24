"""The published study's numbers as a results table, to test the fits on and to set a sweep beside.

The numbers were recovered from the authors' poster and figures (``search_spaces/published/README.md`` says
how far each can be trusted). The per-run d_data of natural datasets was published for all models together
only, so their mean over models stands for each model.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pandas as pd

from orchestrator.results import columns as c
from search_spaces.published import read_published

NATURAL_DATASETS = ("mnist", "cifar10", "svhn", "imagenet")
#: Most likely measured on three channels, the others on one; inferred from the bars' height, never stated.
RGB_DATASETS = ("cifar10", "svhn", "imagenet")

_KEY = [c.DATASET, c.TRAIN_SIZE]


@cache
def _read(name: str) -> pd.DataFrame:
    return pd.DataFrame(read_published(name)).apply(_numbers)


def _numbers(column: pd.Series) -> pd.Series:
    """Numbers where every cell is one or blank, text otherwise."""
    try:
        return pd.to_numeric(column)
    except ValueError:
        return column.where(column != "")


def published_table() -> pd.DataFrame:
    """Return one row per published (model, dataset, train size), in the form of a results table.

    All 396 combinations of six models, eleven datasets and six sizes are there; a loss that cannot be read
    from the figures is missing. ``d_repr_mle`` is from Fig. 5, ``d_repr_twonn`` (VGG13 only) from Fig. 4.
    """
    representation = _read("d_repr")
    mle = representation[representation["figure"] == 5]
    twonn = representation[representation["figure"] == 4]
    key = [c.MODEL, *_KEY]
    table = mle[[*key, "d_repr"]].rename(columns={"d_repr": c.D_REPR_MLE})
    table = table.merge(
        twonn[[*key, "d_repr"]].rename(columns={"d_repr": c.D_REPR_TWONN}), on=key, how="left"
    )
    table = table.merge(_read("test_loss")[[*key, c.TEST_LOSS]], on=key, how="left")
    table = table.merge(_read("d_data")[[*_KEY, "d_data"]].rename(columns={"d_data": c.D_DATA_MLE}), on=_KEY)
    table = table.merge(_read("label_sharpness")[[c.DATASET, c.LABEL_SHARPNESS]], on=c.DATASET)
    natural = table[c.DATASET].isin(NATURAL_DATASETS)
    channels = np.where(table[c.DATASET].isin(RGB_DATASETS), 3, 1)
    added: dict[str, Any] = {
        c.TRIAL_ID: [f"{m}-{d}-{n}" for m, d, n in table[key].itertuples(index=False)],
        c.SWEEP: "published",
        c.DOMAIN: np.where(natural, c.NATURAL, c.MEDICAL),
        c.CLASS_PAIR: "",
        c.SEED: 0,
        c.DATA_MODE: "as_released",
        c.STATUS: c.DONE,
        c.IMAGE_SIZE: 224,
        c.CHANNELS: channels,
        c.SHARPNESS_CHANNELS: channels,
        c.SHARPNESS_PIXEL_RANGE: 255.0,
    }
    return table.assign(**added)


def published_loss_gains() -> pd.DataFrame:
    """Return the published FGSM loss gain (nat) and K_F of each dataset; model and epsilon are not stated."""
    gains = _read("fgsm_loss_gain")[[c.DATASET, "loss_gain"]]
    return gains.merge(_read("label_sharpness")[[c.DATASET, c.LABEL_SHARPNESS]], on=c.DATASET)


def side_by_side(table: pd.DataFrame) -> pd.DataFrame:
    """Set a sweep's measures and losses beside the published ones, at equal dataset and train size.

    Returns:
        One row per (dataset, train size) that both have: ``d_data``, ``label_sharpness`` and, averaged over
        the models that both have, the geometric-mean ``test_loss``; each with a ``_published`` twin. Empty
        when nothing matches.
    """
    theirs = published_table()
    shared = table[table[c.MODEL].isin(set(theirs[c.MODEL]))]
    ours = _averages(table).join(_losses(shared), how="left")
    reference = theirs[theirs[c.MODEL].isin(set(shared[c.MODEL]))] if len(shared) else theirs.iloc[:0]
    published = _averages(theirs).join(_losses(reference), how="left")
    return ours.join(published.add_suffix("_published"), how="inner").reset_index()


def _averages(table: pd.DataFrame) -> pd.DataFrame:
    means = table.groupby(_KEY)[[c.D_DATA_MLE, c.LABEL_SHARPNESS]].mean()
    return means.rename(columns={c.D_DATA_MLE: "d_data"})


def _losses(table: pd.DataFrame) -> pd.Series:
    positive = table[table[c.TEST_LOSS] > 0]
    logs = positive.assign(**{c.TEST_LOSS: np.log(positive[c.TEST_LOSS])})
    means = logs.groupby(_KEY)[c.TEST_LOSS].mean()
    return pd.Series(np.exp(means), name=c.TEST_LOSS)
