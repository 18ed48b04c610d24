import pandas as pd
import pytest

from orchestrator.analysis.results_tables.csv_files import read_csv, write_csv
from search_spaces.errors import DataError


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "'=1", "'", "''x"])
def test_text_that_a_spreadsheet_would_run_is_escaped_and_read_back(tmp_path, text):
    table = pd.DataFrame({"trial_id": [text], "test_loss": [-0.5]})
    path = write_csv(table, tmp_path / "results.csv")
    cell = path.read_text(encoding="utf-8").splitlines()[1]
    assert cell.lstrip('"').startswith("'")
    read_back = read_csv(path)
    assert read_back["trial_id"].tolist() == [text]
    assert read_back["test_loss"].tolist() == [-0.5]


def test_numbers_keep_every_digit_and_signs_are_not_escaped(tmp_path):
    values = [-0.1, 1 / 3, 1e-300, float("nan")]
    path = write_csv(pd.DataFrame({"test_loss": values}), tmp_path / "results.csv")
    assert "'" not in path.read_text(encoding="utf-8")
    assert read_csv(path)["test_loss"].tolist()[:3] == values[:3]
    assert read_csv(path)["test_loss"].isna().tolist() == [False, False, False, True]


def test_whole_numbers_have_no_decimals_also_beside_missing_values(tmp_path):
    table = pd.DataFrame({"train_size": [220.0, float("nan")], "seed": [0.0, 1.0]})
    path = write_csv(table.assign(test_loss=[1.0, 2.0]), tmp_path / "results.csv")
    assert path.read_text(encoding="utf-8").splitlines()[1:] == ["220,0,1.0", ",1,2.0"]
    assert read_csv(path)["train_size"].isna().tolist() == [False, True]


def test_text_that_looks_like_a_number_or_a_missing_value_stays_text(tmp_path):
    table = pd.DataFrame({"class_pair": ["", "3-8"], "code_version": ["0012345", "nan"]})
    read_back = read_csv(write_csv(table, tmp_path / "results.csv"))
    assert read_back["class_pair"].tolist() == ["", "3-8"]
    assert read_back["code_version"].tolist() == ["0012345", "nan"]


def test_a_risky_column_name_is_escaped_too(tmp_path):
    path = write_csv(pd.DataFrame({"=x": [1.5]}), tmp_path / "results.csv")
    assert path.read_text(encoding="utf-8").startswith("'=x")
    assert read_csv(path).columns.tolist() == ["=x"]


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe\x00\x01"])
def test_a_file_that_is_no_table_is_refused(tmp_path, content):
    path = tmp_path / "results.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match="cannot be read as CSV:"):
        read_csv(path)
