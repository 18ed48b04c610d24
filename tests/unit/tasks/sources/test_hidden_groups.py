"""Unused columns whose values look like ids of patients, in tables as hospitals write them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from tasks.sources.own.hidden_groups import look_like_groups
from tasks.sources.tables import unused_flags
from tests.raw_trees.own import FORMS

QUESTION = "repeat like ids of patients: do its images belong together? call it group"
CLASSES = ("benign", "malignant", "normal")
NUM_DAYS = 40
"""Days on which images were taken: several patients come on one day."""


def hospital_table(num_patients=90, seed=0):
    """Return the slices of some patients in random order, with the columns of a usual export."""
    generator = np.random.default_rng(seed)
    rows = []
    for patient in range(num_patients):
        of_patient = {
            "label": str(generator.choice(CLASSES)),
            "pid": f"P{patient:04d}",
            "age": str(generator.integers(20, 90)),
            "sex": str(generator.choice(["F", "M"])),
            "scanner": f"scanner {generator.integers(14)}",
            "hospital": f"hospital {generator.integers(12)}",
            "date": f"2024-03-{generator.integers(1, NUM_DAYS):02d}",
            "split": str(generator.choice(["train", "test"])),
            "weight_kg": f"{generator.normal(75, 14):.1f}",
        }
        for series in range(2):
            for number in range(generator.integers(2, 6)):
                rows.append(
                    {
                        **of_patient,
                        "series": f"1.2.840.{patient}.{series}",
                        "image_number": str(number + 1),
                        "file": f"IM{len(rows):05d}.dcm",
                        "modality": "MR",
                        "comment": "",
                    }
                )
    return pd.DataFrame(rows).sample(frac=1, random_state=seed)


def columns_like_groups(table):
    return {name for name in table if look_like_groups(table[name], table["label"])}


@pytest.mark.parametrize("seed", range(20))
def test_only_patients_and_series_of_a_hospital_table_look_like_groups(seed):
    assert columns_like_groups(hospital_table(seed=seed)) == {"pid", "series"}


def test_a_few_patients_may_have_images_of_two_classes():
    table = hospital_table()
    of_two_classes = table["pid"].isin(["P0001", "P0002", "P0003"])
    table.loc[of_two_classes, "label"] = [CLASSES[k % 3] for k in range(of_two_classes.sum())]
    assert "pid" in columns_like_groups(table)


def test_few_values_are_not_asked_about():
    # Nine sites with one class each are too few to tell patients from sites.
    labels = [CLASSES[site % 3] for site in range(9) for _ in range(20)]
    sites = [f"site {site}" for site in range(9) for _ in range(20)]
    assert not look_like_groups(sites, labels)


def test_a_value_for_each_class_is_another_name_of_the_class():
    labels = [f"class {k % 40}" for k in range(400)]
    assert not look_like_groups([f"Klasse {label}" for label in labels], labels)


def test_nearly_all_images_of_one_class_show_nothing():
    # 99 % of the images are benign, so nearly every value has one label by chance.
    generator = np.random.default_rng(1)
    labels = ["malignant"] * 2 + ["benign"] * 198
    numbers = [str(number) for number in generator.integers(0, 80, 200)]
    assert not look_like_groups(numbers, labels)


def test_measurements_with_decimals_are_no_ids():
    table = hospital_table()
    in_decimals = [f"{int(pid[1:]) + 0.5}" for pid in table["pid"]]
    assert not look_like_groups(in_decimals, table["label"])


def test_unknown_ids_and_single_images_show_nothing():
    labels = [CLASSES[k % 2] for k in range(60)]
    assert not look_like_groups(["unknown", ""] * 30, labels)
    assert not look_like_groups([f"id {k}" for k in range(60)], labels)


@pytest.mark.parametrize("name", ["age", "PatientAge", "patient_sex", "Weight"])
def test_a_description_of_the_patient_is_never_asked_about(name):
    flags = unused_flags([name], like_groups=[name])
    assert flags == [f"columns not used: {name}"]


@pytest.mark.parametrize("form", ["csv", "xlsx", "jsonl", "parquet", "webdataset", "npz", "hdf5"])
def test_a_column_like_patients_is_asked_about_in_every_form_of_file(prepare, tmp_path, form):
    kind, write = FORMS[form]
    scans = [f"scan{row // 4}" for row in range(60)]
    columns = {
        "label": ["cat" if row // 4 % 2 else "dog" for row in range(60)],
        "scan": scans,
        "lens": [f"lens{row % 5}" for row in range(60)],
    }
    raw = write(tmp_path / "raw", columns)
    flags = prepare(kind, raw, for_training=False).record.flags
    assert flags[f"column scan not used, but its values {QUESTION}"] == 60
    assert flags["columns not used: lens"] == 60


def test_data_with_groups_are_not_asked_about_other_columns(prepare, tmp_path):
    kind, write = FORMS["csv"]
    columns = {
        "label": ["cat" if row // 4 % 2 else "dog" for row in range(60)],
        "group": [f"p{row // 4}" for row in range(60)],
        "scan": [f"scan{row // 2}" for row in range(60)],
    }
    raw = write(tmp_path / "raw", columns)
    flags = prepare(kind, raw, for_training=False).record.flags
    assert not any("belong together" in flag for flag in flags)
