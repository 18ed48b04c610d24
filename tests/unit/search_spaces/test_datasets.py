"""The tables: every row usable, pairs that make the paper's grid, published numbers as they were read."""

from importlib.resources import files

import pandas as pd
import pytest

from search_spaces.datasets import DATASETS, MADE
from search_spaces.published import read_published
from tasks.sources import source_for


@pytest.mark.parametrize("row", [*DATASETS.values(), *MADE.values()], ids=lambda row: row.name)
def test_every_row_has_a_source_and_sound_pairs_and_says_what_it_is(row):
    source_for(row.source)
    used = [label for pair in row.class_pairs for label in pair]
    assert len(set(used)) == len(used)
    assert set(used) <= set(range(len(row.label_names)))
    assert row.origin == "real" or row.description.startswith(row.origin.upper())


@pytest.mark.parametrize("name", ["d_data", "d_repr", "fgsm_loss_gain", "label_sharpness", "test_loss"])
def test_published_tables_are_those_that_pandas_reads(name):
    rows = read_published(name)
    theirs = pd.read_csv(files("search_spaces.published") / f"{name}.csv", dtype=str, keep_default_na=False)
    assert rows == theirs.to_dict("records")
    assert rows
    assert not {"", None} & set(rows[0])
