"""Images inside Parquet files and WebDataset tars: configs, shards, class names, damage."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from search_spaces.errors import DataError
from tasks.sources import own_kind_of
from tests.raw_trees.own import image_cells, pictures, save_parquet, save_tar, write_webdataset
from tests.unit.tasks.sources.conftest import picture, png

IMAGES = pictures()
LABELS = np.arange(12) % 2

SHARDS = pytest.mark.parametrize("name", ["skin-{}-000000", "{}_000000", "{}/000000", "{}-000000"])


def image_rows(**more: object) -> dict[str, list[object]]:
    return {"image": image_cells(), "label": LABELS.tolist(), **more}


def half(rows: dict[str, list[object]], part: slice) -> dict[str, list[object]]:
    return {key: values[part] for key, values in rows.items()}


def write_shard(path: Path, rows: range, *, as_json: bool = False) -> Path:
    columns: dict[str, list[object]] = {
        "label": [int(LABELS[r]) if as_json else str(LABELS[r]) for r in rows]
    }
    if as_json:
        columns["group"] = [f"p{row // 3}" for row in rows]
    return write_webdataset(path.parent, columns, name=path.name, first=rows.start)


class TestShards:
    @SHARDS
    @pytest.mark.parametrize("kind", ["webdataset", "table"])
    def test_the_split_in_a_name_or_folder_is_taken(self, prepare, tmp_path, name, kind):
        root = tmp_path / "raw"
        for split, first, stop in (("train", 0, 6), ("test", 6, 10), ("val", 10, 12)):
            path = root / name.format(split)
            path.parent.mkdir(parents=True, exist_ok=True)
            if kind == "table":
                save_parquet(path.with_suffix(".parquet"), half(image_rows(), slice(first, stop)))
            else:
                write_shard(path.with_suffix(".tar"), range(first, stop))
        assert own_kind_of(root) == kind
        data = prepare(kind, root)
        assert sorted(data.splits.tolist()) == [1] * 6 + [2] * 4
        assert data.record.excluded == {"validation split": 2}

    def test_a_name_with_two_splits_is_refused(self, prepare, tmp_path):
        with pytest.raises(DataError, match="a file's name must say one split"):
            prepare("webdataset", write_shard(tmp_path / "train-test.tar", range(12)))

    def test_a_patient_on_both_sides_is_refused(self, prepare, tmp_path):
        for split in ("train", "test"):
            write_shard(tmp_path / "raw" / f"{split}.tar", range(6), as_json=True)
        with pytest.raises(DataError, match="no group may be in train and test; found: 2, first"):
            prepare("webdataset", tmp_path / "raw")


class TestParquet:
    def test_one_file(self, prepare, tmp_path):
        path = save_parquet(tmp_path / "a.parquet", image_rows())
        assert own_kind_of(path) == "table"
        data = prepare("table", path)
        np.testing.assert_array_equal(data.read(0, 12)[:, 0], IMAGES)
        assert data.labels.tolist() == LABELS.tolist()

    def test_folder_of_the_hub(self, prepare, tmp_path):
        rows = image_rows(patient_id=[f"p{row // 2}" for row in range(12)])
        for split, part in (("train", slice(0, 6)), ("test", slice(6, 10)), ("validation", slice(10, 12))):
            name = f"data/{split}-00000-of-00001.parquet"
            save_parquet(
                tmp_path / "hub" / name, {key: values[part] for key, values in rows.items()}, ["no", "yes"]
            )
        assert own_kind_of(tmp_path / "hub") == "table"
        data = prepare("table", tmp_path / "hub")
        assert data.label_names == ("no", "yes")
        assert sorted(data.splits.tolist()) == [1] * 6 + [2] * 4
        assert data.record.num_groups == 5
        assert data.record.excluded == {"validation split": 2}

    @pytest.mark.parametrize(
        ("rows", "message"),
        [
            ({"image": [b"x", b"y"]}, "must have columns image and label.*it has image"),
            ({"label": [0, 1]}, "must have the columns path, label; found: no path among label"),
            ({"image": [b"x"], "label": [[0, 1]]}, "one label, as text or number; found: several"),
        ],
    )
    def test_what_is_not_there_is_named(self, prepare, tmp_path, rows, message):
        with pytest.raises(DataError, match=message):
            prepare("table", save_parquet(tmp_path / "a.parquet", rows))

    def test_an_unlabelled_row_of_named_classes(self, prepare, tmp_path):
        """``datasets`` writes -1 where there is no label: refused, or a class on purpose."""
        rows = image_rows() | {"label": [-1, *LABELS.tolist()[1:]]}
        path = save_parquet(tmp_path / "a.parquet", rows, ["no", "yes"])
        with pytest.raises(DataError, match="numbers of the class names, 0 to 1; found: 1: row 0 of"):
            prepare("table", path)
        assert prepare("table", path, label_map={"-1": "unsure"}).label_names == ("no", "unsure", "yes")

    def test_a_label_beyond_the_names_is_refused(self, prepare, tmp_path):
        with pytest.raises(DataError, match="numbers of the class names, 0 to 0; found: 6: row 1"):
            prepare("table", save_parquet(tmp_path / "a.parquet", image_rows(), ["no"]))

    @pytest.mark.parametrize("place", [0, 300, -30])
    def test_damage_is_refused_or_skipped(self, prepare, tmp_path, place):
        path = save_parquet(tmp_path / "a.parquet", image_rows())
        body = bytearray(path.read_bytes())
        body[place] ^= 0xFF
        path.write_bytes(body)
        # A data page carries no checksum by default, so only what cannot be decoded is noticed.
        try:
            num_images = prepare("table", path, max_skipped_share=0.9).num_images
        except DataError as error:
            num_images, message = 0, str(error)
        assert num_images > 6 or "whole" in message or "unusable" in message

    @pytest.mark.parametrize("names", [None, ["yes", "no"]])
    def test_files_with_other_class_names_are_refused(self, prepare, tmp_path, names):
        """Else 0 and 1 of one file become classes beside the other's "no" and "yes"."""
        root = tmp_path / "raw"
        root.mkdir()
        save_parquet(root / "train.parquet", half(image_rows(), slice(0, 6)), ["no", "yes"])
        save_parquet(root / "test.parquet", half(image_rows(), slice(6, 12)), names)
        with pytest.raises(DataError, match="all files must give the labels the same names"):
            prepare("table", root)

    @pytest.mark.parametrize("config", ["default", "data"])
    def test_folders_as_the_hub_converts_a_set(self, prepare, tmp_path, config):
        for split, first, stop in (("partial-train", 0, 6), ("test", 6, 10), ("validation", 10, 12)):
            rows = half(image_rows(), slice(first, stop))
            save_parquet(tmp_path / "raw" / config / split / "0000.parquet", rows)
        assert own_kind_of(tmp_path / "raw") == "table"
        data = prepare("table", tmp_path / "raw")
        assert sorted(data.splits.tolist()) == [1] * 6 + [2] * 4
        assert data.record.excluded == {"validation split": 2}

    @pytest.mark.parametrize("name", ["{}/train/0000.parquet", "{}/train-00000-of-00001.parquet"])
    def test_of_two_configs_one_must_be_named(self, prepare, tmp_path, name):
        for config in ("full", "small"):
            save_parquet(tmp_path / "raw" / name.format(config), image_rows())
        with pytest.raises(DataError, match="must hold one config of a set with splits; found: full, small"):
            prepare("table", tmp_path / "raw")


class TestWebDataset:
    @pytest.mark.parametrize("ending", [".tar", ".tar.gz"])
    def test_one_shard(self, prepare, tmp_path, ending):
        path = write_shard(tmp_path / f"a{ending}", range(12))
        assert own_kind_of(path) == "webdataset"
        data = prepare("webdataset", path)
        np.testing.assert_array_equal(data.read(0, 12)[:, 0], IMAGES)
        assert data.labels.tolist() == LABELS.tolist()

    def test_shards_with_splits_and_groups(self, prepare, tmp_path):
        for name, rows in (
            ("train-000000", range(6)),
            ("train-000001", range(6, 9)),
            ("test-000000", range(9, 12)),
        ):
            write_shard(tmp_path / "shards" / f"{name}.tar", rows, as_json=True)
        assert own_kind_of(tmp_path / "shards") == "webdataset"
        data = prepare("webdataset", tmp_path / "shards")
        assert sorted(data.splits.tolist()) == [1] * 9 + [2] * 3
        assert data.record.num_groups == 4

    def test_samples_without_an_image_are_counted(self, prepare, tmp_path):
        more = [("y.cls", b"1"), ("about.json", b"{}"), ("README", b"x")]
        path = save_tar(tmp_path / "a.tar", [*shard_members(range(12)), *more])
        record = prepare("webdataset", path, max_skipped_share=0.5).record
        assert record.skipped == {"no image": 1}
        assert record.excluded == {"neither image nor label": 2}
        path = save_tar(tmp_path / "b.tar", [*shard_members(range(12)), ("x.png", png(picture(3)))])
        with pytest.raises(DataError, match="every row needs a label; found: blank in 1: "):
            prepare("webdataset", path, name="b")

    def test_two_labels_for_one_sample_are_refused(self, prepare, tmp_path):
        members = [*shard_members(range(12)), ("000000.json", json.dumps({"label": 1}).encode())]
        path = save_tar(tmp_path / "a.tar", members)
        with pytest.raises(DataError, match="must give one label; found: two in "):
            prepare("webdataset", path)

    def test_the_owners_test_images_stay_test_images(self, prepare, tmp_path):
        """A split in the .json of a sample: dropped in silence at ef865cd, so that a sweep trained on it."""
        columns = {
            "label": LABELS.tolist(),
            "split": ["train", "test", "val"] * 4,
            "lesion_id": list(range(12)),
        }
        data = prepare("webdataset", write_webdataset(tmp_path, columns), for_training=False)
        assert data.splits.tolist() == [1, 2] * 4
        assert data.record.excluded == {"validation split": 4}
        assert "columns not used: lesion_id" in data.record.flags

    def test_a_split_of_its_own_may_not_deny_the_shards(self, prepare, tmp_path):
        columns = {"label": LABELS.tolist(), "split": ["test"] * 12}
        path = write_webdataset(tmp_path, columns, name="train-0.tar")
        with pytest.raises(DataError, match=r"must say what the folder or file says; found: .* in 12: "):
            prepare("webdataset", path)


def shard_members(rows: range) -> list[tuple[str, bytes]]:
    pairs = [(f"{row:06d}", png(IMAGES[row]), str(LABELS[row]).encode()) for row in rows]
    return [(f"{key}.{ending}", body) for key, image, label in pairs
            for ending, body in (("png", image), ("cls", label))]  # fmt: skip


def test_a_parquet_of_images_beside_file_names_is_one_of_images(tmp_path):
    rows = image_rows(filename=[f"{i}.png" for i in range(12)])
    assert own_kind_of(save_parquet(tmp_path / "a.parquet", rows)) == "table"
    assert np.array(LABELS).tolist() == rows["label"]
