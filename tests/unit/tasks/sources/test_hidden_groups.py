"""Unused columns whose values look like ids of patients, in tables as hospitals write them."""

from __future__ import annotations

import zipfile

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from search_spaces.errors import DataError
from tasks.sources.own.hidden_groups import look_like_groups
from tasks.sources.tables import flags_for_unused_columns
from tests.raw_trees.own import FORMS, image_cells
from tests.unit.tasks.sources.conftest import write_tree

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


def test_few_values_do_not_look_like_groups():
    # Nine sites with one class each are too few to distinguish patients from sites.
    labels = [CLASSES[site % 3] for site in range(9) for _ in range(20)]
    sites = [f"site {site}" for site in range(9) for _ in range(20)]
    assert not look_like_groups(sites, labels)


def test_a_value_for_each_class_is_another_name_of_the_class():
    labels = [f"class {k % 40}" for k in range(400)]
    assert not look_like_groups([f"Klasse {label}" for label in labels], labels)


def test_values_do_not_look_like_groups_if_nearly_all_images_have_one_class():
    # 99 % of the images are benign, so nearly every value has one label by chance.
    generator = np.random.default_rng(1)
    labels = ["malignant"] * 2 + ["benign"] * 198
    numbers = [str(number) for number in generator.integers(0, 80, 200)]
    assert not look_like_groups(numbers, labels)


def test_measurements_with_decimals_are_no_ids():
    table = hospital_table()
    in_decimals = [f"{int(pid[1:]) + 0.5}" for pid in table["pid"]]
    assert not look_like_groups(in_decimals, table["label"])


def test_unknown_ids_and_single_images_do_not_look_like_groups():
    labels = [CLASSES[k % 2] for k in range(60)]
    assert not look_like_groups(["unknown", ""] * 30, labels)
    assert not look_like_groups([f"id {k}" for k in range(60)], labels)


@pytest.mark.parametrize("name", ["age", "PatientAge", "patient_sex", "Weight"])
def test_a_description_of_the_patient_raises_no_question(name):
    flags = flags_for_unused_columns([name], group_like=[name])
    assert flags == [f"columns not used: {name}"]


@pytest.mark.parametrize("form", ["csv", "xlsx", "jsonl", "parquet", "webdataset", "npz", "hdf5"])
def test_a_column_like_patients_raises_a_question_in_every_format(prepare, tmp_path, form):
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


def test_other_columns_of_data_with_groups_raise_no_question(prepare, tmp_path):
    kind, write = FORMS["csv"]
    columns = {
        "label": ["cat" if row // 4 % 2 else "dog" for row in range(60)],
        "group": [f"p{row // 4}" for row in range(60)],
        "scan": [f"scan{row // 2}" for row in range(60)],
    }
    raw = write(tmp_path / "raw", columns)
    flags = prepare(kind, raw, for_training=False).record.flags
    assert not any("belong together" in flag for flag in flags)


SCAN_QUESTION = f"column scan not used, but its values {QUESTION}"


def test_ids_are_recognized_across_the_files_of_train_and_test(prepare, tmp_path):
    # In test, which is read first, each patient has one image: its table alone shows nothing.
    pixels = np.random.default_rng(0).integers(0, 256, (60, 8, 8), dtype=np.uint8)
    for split in ("train", "test"):
        (tmp_path / "raw" / split).mkdir(parents=True)
    lines = {"train": ["file_name,label,scan"], "test": ["file_name,label,scan"]}
    for row, image in enumerate(pixels):
        split = "test" if row % 4 == 0 else "train"
        Image.fromarray(image).save(tmp_path / "raw" / split / f"{row}.png")
        label = "cat" if row // 4 % 2 else "dog"
        lines[split].append(f"{row}.png,{label},scan{row // 4}")
    for split, table in lines.items():
        (tmp_path / "raw" / split / "metadata.csv").write_text("\n".join(table))
    flags = prepare("table", tmp_path / "raw", for_training=False).record.flags
    assert SCAN_QUESTION in flags


def save_npz(path, **more):
    images = np.random.default_rng(0).integers(0, 256, (60, 8, 8), dtype=np.uint8)
    labels = np.array(["cat" if row // 4 % 2 else "dog" for row in range(60)])
    np.savez(path, images=images, labels=labels, **more)
    return path


@pytest.mark.parametrize("shape", [(60,), (60, 1)])
def test_ids_of_floats_are_recognized(prepare, tmp_path, shape):
    ids = (np.arange(60) // 4).astype(float).reshape(shape)
    raw = save_npz(tmp_path / "raw.npz", scan=ids)
    assert SCAN_QUESTION in prepare("npz", raw, for_training=False).record.flags


def test_ids_of_parquet_floats_and_categories_are_recognized(prepare, tmp_path):
    ids = np.arange(60) // 4
    table = pd.DataFrame(
        {
            "image": image_cells(60),
            "label": ["cat" if number % 2 else "dog" for number in ids],
            "scan": ids.astype(float),
            "series": pd.Categorical([f"series{number}" for number in ids]),
        }
    )
    table.to_parquet(tmp_path / "own.parquet")
    flags = prepare("table", tmp_path / "own.parquet", for_training=False).record.flags
    assert SCAN_QUESTION in flags
    assert f"column series not used, but its values {QUESTION}" in flags


@pytest.mark.parametrize("kind", [pa.decimal128(10, 0), pa.string_view()], ids=str)
def test_ids_of_further_parquet_types_are_recognized(prepare, tmp_path, kind):
    ids = [str(row // 4) for row in range(60)]
    columns = {
        "image": pa.array(image_cells(60)),
        "label": pa.array(["cat" if row // 4 % 2 else "dog" for row in range(60)]),
        "scan": pa.array(ids, pa.string()).cast(kind),
    }
    pq.write_table(pa.table(columns), tmp_path / "own.parquet")
    flags = prepare("table", tmp_path / "own.parquet", for_training=False).record.flags
    assert SCAN_QUESTION in flags


def test_unused_members_that_are_no_arrays_are_only_listed(prepare, tmp_path):
    raw = save_npz(tmp_path / "raw.npz")
    with zipfile.ZipFile(raw, "a") as archive:
        archive.writestr("readme.txt", "read me")
    assert prepare("npz", raw, for_training=False).record.num_images == 60


def test_unused_groups_and_links_in_hdf5_are_only_listed(prepare, tmp_path):
    h5py = pytest.importorskip("h5py")
    with np.load(save_npz(tmp_path / "raw.npz")) as arrays:
        images, labels = arrays["images"], arrays["labels"]
    with h5py.File(tmp_path / "raw.h5", "w") as file:
        file["images"] = images
        file["labels"] = labels.astype("S3")
        file.create_group("meta")
        file["nowhere"] = h5py.SoftLink("/missing")
        file["empty"] = h5py.Empty("f")
    flags = prepare("hdf5", tmp_path / "raw.h5", for_training=False).record.flags
    assert flags == {"columns not used: empty, meta, nowhere": 60}


def test_an_unused_array_of_objects_is_only_listed(prepare, tmp_path):
    raw = save_npz(tmp_path / "raw.npz", meta=np.array({"made": 2024}, dtype=object))
    flags = prepare("npz", raw, for_training=False).record.flags
    assert "columns not used: meta" in flags


def test_two_spellings_of_the_same_column_are_refused(prepare, tmp_path):
    ids = np.arange(60) // 4
    raw = save_npz(tmp_path / "raw.npz", patient_id=ids, patientID=ids)
    with pytest.raises(DataError, match="could contain the group: patientID, patient_id"):
        prepare("npz", raw, for_training=False)


def test_labels_that_label_map_joins_are_one_class(prepare, tmp_path):
    kind, write = FORMS["csv"]
    spellings = {"cat": ("cat", "CAT 2"), "dog": ("dog", "DOG 2")}
    columns = {
        "label": [spellings["cat" if row // 4 % 2 else "dog"][row % 2] for row in range(60)],
        "scan": [f"scan{row // 4}" for row in range(60)],
    }
    raw = write(tmp_path / "raw", columns)
    label_map = {"CAT 2": "cat", "DOG 2": "dog"}
    flags = prepare(kind, raw, for_training=False, label_map=label_map).record.flags
    assert SCAN_QUESTION in flags


def test_class_names_that_label_map_joins_are_one_class(prepare, tmp_path):
    ids = np.arange(60) // 4
    images = np.random.default_rng(0).integers(0, 256, (60, 8, 8), dtype=np.uint8)
    np.savez(
        tmp_path / "raw.npz",
        images=images,
        labels=2 * (ids % 2) + np.arange(60) % 2,  # 0 and 1 are cats, 2 and 3 are dogs
        label_names=np.array(["cat", "CAT 2", "dog", "DOG 2"]),
        scan=ids,
    )
    label_map = {"CAT 2": "cat", "DOG 2": "dog"}
    data = prepare("npz", tmp_path / "raw.npz", for_training=False, label_map=label_map)
    assert SCAN_QUESTION in data.record.flags


IN_SUBFOLDERS = "If so, put all images of a patient into a subfolder of the class"


def pictures_named(root, names):
    """Write a folder per class: two classes in turn, three names of files each."""
    paths = []
    for number, name in enumerate(names):
        paths.append(f"{'cat' if number // 3 % 2 else 'dog'}/{name}.png")
    return write_tree(root, *paths)


@pytest.mark.parametrize(
    "form",
    ["patient_{:03}_{}", "P{:04}_{}", "sub-{:02}_ses-{}", "scan {1} of Patient-{0}", "case{} ({})"],
)
def test_file_names_with_a_word_for_patients_raise_a_question(prepare, tmp_path, form):
    names = [form.format(number // 3, number % 3) for number in range(12)]
    raw = pictures_named(tmp_path / "raw", names)
    flags = prepare("folder", raw, for_training=False).record.flags
    question = "file names look like patients: do images of one patient belong together?"
    assert flags == {f"{question} {IN_SUBFOLDERS}": 12}


@pytest.mark.parametrize("form", ["{:08}_{:03}", "scan-{}-view-{}", "{}.{}"])
def test_file_names_that_repeat_like_patients_raise_a_question(prepare, tmp_path, form):
    names = [form.format(100 + number // 3, number % 3) for number in range(60)]
    raw = pictures_named(tmp_path / "raw", names)
    flags = prepare("folder", raw, for_training=False).record.flags
    question = "file names repeat like ids of patients: do images of one patient belong together?"
    assert flags == {f"{question} {IN_SUBFOLDERS}": 60}


@pytest.mark.parametrize(
    "form", ["patient_{0}", "P{0:04}", "IMG_{0:04}", "{0}", "shop{0}_new", "doc{0}_p1"]
)
def test_file_names_with_different_numbers_raise_no_question(prepare, tmp_path, form):
    raw = pictures_named(tmp_path / "raw", [form.format(number) for number in range(60)])
    assert prepare("folder", raw, for_training=False).record.flags == {}


@pytest.mark.parametrize("form", ["{}_flip", "{}-mirrored", "aug_{}", "{}_rot_90"])
def test_names_of_changed_copies_raise_a_question(prepare, tmp_path, form):
    paths = []
    for name in ("1", "2", form.format("2")):
        paths += [f"cat/{name}.png", f"dog/{name}.png"]
    raw = write_tree(tmp_path / "raw", *paths)
    question = "file names look like changed copies of other images, such as mirrored ones"
    (flag,) = prepare("folder", raw, for_training=False).record.flags
    assert flag.startswith(question)


@pytest.mark.parametrize(
    ("form", "num_patients", "num_flagged"), [("p{:02}", 6, 12), ("p{:02}", 4, 0), ("{}", 6, 0)]
)
def test_classes_that_may_be_patients_raise_a_question(
    prepare, tmp_path, form, num_patients, num_flagged
):
    paths = []
    for number in range(num_patients):
        paths += [f"{form.format(number)}/{name}.png" for name in "ab"]
    raw = write_tree(tmp_path / "raw", *paths)
    flags = prepare("folder", raw, for_training=False).record.flags
    question = "class names look like patients of one class. If so, use the folder above"
    assert flags.get(question, 0) == num_flagged


def test_names_of_numbered_classes_raise_no_question(prepare, tmp_path):
    names = [f"{'cat' if number // 3 % 2 else 'dog'}_{number}_{number % 4}" for number in range(60)]
    raw = pictures_named(tmp_path / "raw", names)
    assert prepare("folder", raw, for_training=False).record.flags == {}


def test_images_with_a_group_raise_no_question(prepare, tmp_path):
    paths = []
    for number in range(12):
        class_name = "cat" if number // 3 % 2 else "dog"
        paths.append(f"{class_name}/a{number // 3}/P{number // 3:04}_{number % 3}.png")
    raw = write_tree(tmp_path / "raw", *paths)
    assert prepare("folder", raw, for_training=False).record.flags == {}


@pytest.mark.parametrize("form", ["P{:03}_{}.png", "P{:03}/{}.png"])
def test_names_in_a_table_of_paths_raise_a_question(prepare, tmp_path, form):
    paths = [form.format(number // 3, number) for number in range(12)]
    write_tree(tmp_path, *paths)
    lines = ["path,label"]
    for number, path in enumerate(paths):
        lines.append(f"{path},{'cat' if number // 3 % 2 else 'dog'}")
    (tmp_path / "table.csv").write_text("\n".join(lines))
    flags = prepare("table", tmp_path / "table.csv", for_training=False).record.flags
    question = "file names look like patients: do images of one patient belong together?"
    assert flags == {f"{question} If so, add a column `group`": 12}


def test_names_of_class_folders_raise_no_question(prepare, tmp_path):
    raw = write_tree(tmp_path / "raw", "case 1/", "case 2/")
    assert prepare("folder", raw, for_training=False).record.flags == {}
