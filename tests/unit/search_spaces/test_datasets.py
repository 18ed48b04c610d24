"""The table of datasets: every row usable, pairs that make the paper's grid."""

from __future__ import annotations

import pytest

from search_spaces.datasets import DATASETS, STUDY_DATASETS, dataset_spec, own_dataset_spec
from search_spaces.errors import ConfigError
from search_spaces.sweeps import OwnSourceSpec
from tasks.sources import source_for


@pytest.mark.parametrize("row", DATASETS.values(), ids=lambda row: row.name)
def test_every_row_has_a_source_and_sound_pairs(row):
    source_for(row.source)
    for first, second in row.class_pairs:
        assert first != second
        assert max(first, second) < len(row.label_names)
    used = [label for pair in row.class_pairs for label in pair]
    assert len(set(used)) == len(used)


def test_the_paper_grid_has_972_trials():
    natural = [name for name in STUDY_DATASETS if dataset_spec(name).domain == "natural"]
    cells = sum(max(1, len(dataset_spec(name).class_pairs)) for name in STUDY_DATASETS)
    assert len(STUDY_DATASETS) == 11
    assert len(natural) == 4
    assert 6 * 6 * cells == 972


def test_semi_synthetic_and_generated_say_so():
    assert dataset_spec("mri_lesion").description.startswith("SEMI-SYNTHETIC")
    assert "semi-synthetic" in dataset_spec("mri_lesion").modality
    assert dataset_spec("manifold_d4").description.startswith("GENERATED")


def test_unknown_names_are_told():
    with pytest.raises(ConfigError, match="did you mean 'mnist5k'"):
        dataset_spec("mnist5")


def test_own_data_row():
    own = OwnSourceSpec(kind="folder", path="x", domain="medical", modality="skin", title="My lesions")
    row = own_dataset_spec("mine", own)
    assert (row.source, row.domain, row.title) == ("folder", "medical", "My lesions")
