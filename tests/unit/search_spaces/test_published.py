from importlib.resources import files

import numpy as np
import pandas as pd
import pytest

from search_spaces.published import read_published

TABLES = sorted(
    path.name.removesuffix(".csv")
    for path in files("search_spaces.published").iterdir()
    if path.name.endswith(".csv")
)


def test_all_published_tables_are_there():
    assert TABLES == ["d_data", "d_repr", "fgsm_loss_gain", "label_sharpness", "test_loss"]


@pytest.mark.parametrize("name", TABLES)
def test_tables_are_those_that_pandas_reads(name):
    rows = read_published(name)
    theirs = pd.read_csv(files("search_spaces.published") / f"{name}.csv", dtype=str, keep_default_na=False)
    assert rows == theirs.to_dict("records")
    assert not np.isin(["", None], list(rows[0])).any()
