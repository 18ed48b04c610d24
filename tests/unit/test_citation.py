"""The citation files have the package's metadata of pyproject.toml."""

import json
import tomllib
from pathlib import Path

from ruamel.yaml import YAML

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
AUTHORS = [author["name"] for author in PROJECT["authors"]]


def test_the_citation_file_repeats_the_projects_metadata():
    citation = YAML(typ="safe").load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert citation["title"] == PROJECT["name"]
    assert citation["abstract"] == PROJECT["description"]
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
    assert [author["name"] for author in citation["authors"]] == AUTHORS
    assert citation["preferred-citation"]["url"] == PROJECT["urls"]["Paper"]


def test_codemeta_repeats_the_projects_metadata():
    codemeta = json.loads((ROOT / "codemeta.json").read_text(encoding="utf-8"))
    assert codemeta["name"] == PROJECT["name"]
    assert codemeta["description"] == PROJECT["description"]
    assert codemeta["version"] == PROJECT["version"]
    assert codemeta["license"].removeprefix("https://spdx.org/licenses/") == PROJECT["license"]
    assert codemeta["runtimePlatform"] == f"Python {PROJECT['requires-python']}"
    assert [author["name"] for author in codemeta["author"]] == AUTHORS
    assert codemeta["referencePublication"] == PROJECT["urls"]["Paper"]
