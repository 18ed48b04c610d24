"""A file of the user that has the name of a module is named, with a remedy."""

from __future__ import annotations

import re

import pytest

from orchestrator.machine.hidden_modules import check_libraries, hint_on_python_modules
from search_spaces.errors import SetupError


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    return folder


@pytest.fixture
def folder_in_pythonpath(tmp_path, monkeypatch):
    folder = tmp_path / "modules"
    folder.mkdir()
    monkeypatch.setenv("PYTHONPATH", f"/absent:{folder}")
    return folder


@pytest.mark.parametrize("name", ["numpy.py", "torch/__init__.py"])
def test_a_file_that_hides_a_library_is_named(name, empty_folder):
    file = empty_folder / name
    file.parent.mkdir(exist_ok=True)
    check_libraries()  # a folder without __init__.py hides nothing
    file.touch()
    message = f"^Python would import {re.escape(name)} instead of the library"
    with pytest.raises(SetupError, match=message) as error:
        check_libraries()
    assert error.value.hint == "Rename this file, or run the command in another folder"


def test_a_file_in_a_folder_of_pythonpath_is_named(folder_in_pythonpath):
    (folder_in_pythonpath / "yaml.py").touch()
    message = rf"{re.escape(str(folder_in_pythonpath))}/yaml.py instead of the library yaml"
    with pytest.raises(SetupError, match=message) as error:
        check_libraries()
    assert error.value.hint == "Rename this file, or remove its folder from PYTHONPATH"


def test_a_library_that_pip_installed_into_a_folder_of_pythonpath_is_no_such_file(
    folder_in_pythonpath,
):
    (folder_in_pythonpath / "sklearn").mkdir()
    (folder_in_pythonpath / "sklearn" / "__init__.py").touch()
    installed = folder_in_pythonpath / "scikit_learn-1.7.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: scikit-learn\nVersion: 1.7\n")
    check_libraries()


def test_a_file_that_hides_a_module_of_python_is_a_hint(empty_folder):
    (empty_folder / "train.py").touch()
    assert hint_on_python_modules() == ""
    (empty_folder / "random.py").touch()
    check_libraries()
    assert hint_on_python_modules() == (
        "Ray's processes import random.py instead of Python's module random: "
        "rename this file, or run the command in another folder"
    )
