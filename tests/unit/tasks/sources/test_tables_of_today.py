"""Tables as the Hub, challenges and people write them; oracles are the plain CSV of the same images."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest

from search_spaces.errors import ConfigError, DataError
from tasks.sources import own_kind_of
from tests.unit.tasks.sources.conftest import picture, png
from tests.unit.tasks.sources.test_no_silent_wrong_label import save_arrays
from tests.unit.tasks.sources.test_own_formats import IMAGES, LABELS, image_rows, write_parquet

Records = list[dict[str, object]]


def as_csv(records: Records) -> bytes:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, dict.fromkeys(key for record in records for key in record))
    writer.writeheader()
    writer.writerows(records)
    return stream.getvalue().encode()


def as_jsonl(records: Records) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def as_parquet(records: Records) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    stream = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(records), stream)
    return stream.getvalue()


FORMATS = {"csv": as_csv, "jsonl": as_jsonl, "parquet": as_parquet}


def write_images(folder: Path, count: int = 10) -> Records:
    folder.mkdir(parents=True)
    records: Records = []
    for number in range(count):
        (folder / f"{number}.png").write_bytes(png(picture(number)))
        records.append({"file_name": f"{number}.png", "label": "cat" if number % 2 else "dog"})
    return records


@pytest.mark.parametrize("ending", FORMATS)
class TestImageFolder:
    def test_metadata_in_the_folder(self, prepare, tmp_path, ending):
        records = [record | {"age": 3.5, "boxes": "x"} for record in write_images(tmp_path / "raw")]
        if ending != "csv":
            records = [record | {"boxes": [[1, 2], [3, 4]]} for record in records]
        (tmp_path / "raw" / f"metadata.{ending}").write_bytes(FORMATS[ending](records))
        assert own_kind_of(tmp_path / "raw") == "csv"
        data = prepare("csv", tmp_path / "raw")
        assert (data.label_names, data.labels.tolist()) == (("cat", "dog"), [1, 0] * 5)
        assert data.record.excluded == {}
        (tmp_path / "raw" / f"metadata.{ending}").rename(tmp_path / "raw" / f"mine.{ending}")
        assert own_kind_of(tmp_path / "raw" / f"mine.{ending}") == "csv"
        assert prepare("csv", tmp_path / "raw" / f"mine.{ending}", name="b").labels.tolist() == [1, 0] * 5

    def test_metadata_in_each_split(self, prepare, tmp_path, ending):
        for split, count in (("train", 6), ("validation", 2), ("test", 4)):
            records = write_images(tmp_path / "raw" / split, count)
            (tmp_path / "raw" / split / f"metadata.{ending}").write_bytes(FORMATS[ending](records))
        assert own_kind_of(tmp_path / "raw") == "csv"
        data = prepare("csv", tmp_path / "raw", max_skipped_share=0.5, for_training=False)
        # Folders in the order of their names.
        assert data.splits.tolist() == [2] * 4 + [1] * 6
        assert data.labels.tolist() == [1, 0] * 5
        assert data.record.excluded == {"validation split": 2}

    def test_several_labels_are_none(self, prepare, tmp_path, ending):
        records = write_images(tmp_path / "raw")
        many = "several values" if ending == "csv" else ["cat", "dog"]
        (tmp_path / "raw" / f"metadata.{ending}").write_bytes(
            FORMATS[ending]([record | {"label": many} for record in records])
        )
        with pytest.raises(DataError, match=r"a row must have one label.*10 with several labels"):
            prepare("csv", tmp_path / "raw")

    def test_damage_is_refused(self, prepare, tmp_path, ending):
        records = write_images(tmp_path / "raw")
        body = FORMATS[ending](records)
        path = tmp_path / "raw" / f"metadata.{ending}"
        path.write_bytes(body[: len(body) - 20] + b"\xff\xfe" * 4)
        with pytest.raises(DataError, match=r"must be UTF-8 text|one JSON object a line|whole Parquet file"):
            prepare("csv", path)

    def test_missing_labels_are_refused(self, prepare, tmp_path, ending):
        records = write_images(tmp_path / "raw")
        records[3]["label"] = None
        (tmp_path / "raw" / f"metadata.{ending}").write_bytes(FORMATS[ending](records))
        with pytest.raises(DataError, match="every row needs a label; found: blank: 1, first"):
            prepare("csv", tmp_path / "raw")


class TestSplitsOfTables:
    def test_a_column_that_denies_its_folder_is_refused(self, prepare, tmp_path):
        for split in ("train", "test"):
            records = [record | {"split": "train"} for record in write_images(tmp_path / "raw" / split)]
            (tmp_path / "raw" / split / "metadata.csv").write_bytes(as_csv(records))
        with pytest.raises(
            DataError, match="column split must say what the folder says; found: 10 rows in test"
        ):
            prepare("csv", tmp_path / "raw")

    def test_tables_on_top_and_in_splits_are_refused(self, prepare, tmp_path):
        records = write_images(tmp_path / "raw" / "train")
        (tmp_path / "raw" / "train" / "metadata.csv").write_bytes(as_csv(records))
        (tmp_path / "raw" / "metadata.csv").write_bytes(as_csv(records))
        with pytest.raises(DataError, match=r"one table in each split; found: metadata\.csv, train/"):
            prepare("csv", tmp_path / "raw")

    def test_a_split_without_a_table_is_counted(self, prepare, tmp_path):
        for split in ("train", "test"):
            records = write_images(tmp_path / "raw" / split)
            if split == "train":
                (tmp_path / "raw" / split / "metadata.csv").write_bytes(as_csv(records))
        record = prepare("csv", tmp_path / "raw", for_training=False).record
        assert record.excluded == {"image without a row in the manifest": 10}

    def test_a_folder_called_as_another_class_is_flagged(self, prepare, class_folder):
        lines = ["path,label"] + [f"cat/{i}.png,{'dog' if i == 0 else 'cat'}" for i in range(5)]
        lines += [f"dog/{i}.png,dog" for i in range(5, 10)]
        (class_folder / "t.csv").write_text("\n".join(lines))
        assert prepare("csv", class_folder / "t.csv").record.flags == {
            "row whose folder is called as another class": 1
        }


ISIC = ("MEL", "NV", "BCC")


def one_hot(folder: Path, cells: list[tuple[str, ...]]) -> Path:
    """As ISIC 2018's ground truth: ``image`` and a column of ``0.0`` and ``1.0`` for each class."""
    lines = [f"image,{','.join(ISIC)}"] + [f"{i}.png,{','.join(row)}" for i, row in enumerate(cells)]
    (folder / "GroundTruth.csv").write_text("\n".join(lines))
    return folder / "GroundTruth.csv"


ROWS = [tuple("1.0" if place == number % 3 else "0.0" for place in range(3)) for number in range(9)]


class TestOneHot:
    def test_they_are_proposed_and_taken_on_word(self, prepare, tmp_path):
        write_images(tmp_path / "raw", 9)
        table = one_hot(tmp_path / "raw", ROWS)
        with pytest.raises(DataError, match=r"0 and 1 in MEL, NV, BCC.*label_columns: \[MEL, NV, BCC\]"):
            prepare("csv", table)
        data = prepare("csv", table, label_columns=ISIC)
        assert data.label_names == ("BCC", "MEL", "NV")
        assert data.labels.tolist() == [1, 2, 0] * 3
        assert data.record.flags == {"column image read as path": 9}

    @pytest.mark.parametrize(
        ("cells", "message"),
        [
            (("0.0", "0.0", "0.0"), "1 rows of no class, 0 of several, 0 with other cells"),
            (("1.0", "1.0", "0.0"), "0 rows of no class, 1 of several, 0 with other cells"),
            (("1.0", "0.3", "0.0"), "0 rows of no class, 0 of several, 1 with other cells"),
            (("1.0", "", "0.0"), "0 rows of no class, 0 of several, 1 with other cells"),
        ],
    )
    def test_no_class_or_several_are_refused(self, prepare, tmp_path, cells, message):
        write_images(tmp_path / "raw", 10)
        table = one_hot(tmp_path / "raw", [*ROWS, cells])
        with pytest.raises(DataError, match=message):
            prepare("csv", table, label_columns=ISIC)

    def test_a_column_of_another_name_is_the_label_on_word(self, prepare, tmp_path):
        records = [{"file_name": r["file_name"], "dx": r["label"]} for r in write_images(tmp_path / "raw")]
        (tmp_path / "raw" / "t.csv").write_bytes(as_csv(records))
        with pytest.raises(DataError, match="no label among file_name, dx; call it label, or name it"):
            prepare("csv", tmp_path / "raw" / "t.csv")
        data = prepare("csv", tmp_path / "raw" / "t.csv", label_columns=("dx",))
        assert data.label_names == ("cat", "dog")
        with pytest.raises(DataError, match="must have the columns file_name, age; found: no age"):
            prepare("csv", tmp_path / "raw" / "t.csv", label_columns=("age",), name="b")

    def test_parquet_with_images_takes_one(self, prepare, tmp_path):
        rows = image_rows()
        path = write_parquet(tmp_path / "a.parquet", rows | {"dx": rows.pop("label")})
        with pytest.raises(DataError, match=r"must have columns image and label.*label_columns"):
            prepare("parquet", path)
        assert prepare("parquet", path, label_columns=("dx",)).labels.tolist() == LABELS.tolist()
        with pytest.raises(DataError, match="must name one column"):
            prepare("parquet", path, label_columns=("dx", "image"), name="b")

    def test_other_kinds_do_not_ask(self, prepare, tmp_path):
        path = save_arrays(tmp_path / "a", "npz", images=IMAGES, labels=LABELS)
        with pytest.raises(ConfigError, match="label_columns is for kind csv or dicom_csv"):
            prepare("npz", path, label_columns=("dx",))


@pytest.mark.parametrize("mark", ["|", ", ", ";", "+"])
def test_a_list_of_classes_is_no_class(prepare, tmp_path, mark):
    """NIH ChestX-ray14 joins findings by ``|``."""
    records = write_images(tmp_path / "raw")
    records[0]["label"] = f"cat{mark}dog"
    (tmp_path / "raw" / "t.csv").write_bytes(as_csv(records))
    with pytest.raises(DataError, match="a label must be one class, not a list of them; found: 1:"):
        prepare("csv", tmp_path / "raw" / "t.csv")
    kept = {f"cat{mark}dog": f"cat{mark}dog"}
    assert prepare("csv", tmp_path / "raw" / "t.csv", label_map=kept).record.num_images == 10


def test_a_parquet_of_images_beside_file_names_is_one_of_images(tmp_path):
    rows = image_rows(filename=[f"{i}.png" for i in range(12)])
    assert own_kind_of(write_parquet(tmp_path / "a.parquet", rows)) == "parquet"
    assert np.array(LABELS).tolist() == rows["label"]
