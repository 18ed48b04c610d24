"""Every file of the packages that is no Python module is part of the wheel."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"][
    "setuptools"
]
BUILT = {"orchestrator/commit.json"}
"""Files that the build itself writes."""


def test_the_wheel_contains_every_data_file_of_the_packages():
    in_wheel = {
        path
        for package, patterns in SETUPTOOLS["package-data"].items()
        for pattern in patterns
        for path in (ROOT / package).glob(pattern)
    }
    in_folders = {
        path
        for package in SETUPTOOLS["package-data"]
        for path in (ROOT / package).rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc")
    }

    missing = {str(path.relative_to(ROOT)) for path in in_folders - in_wheel} - BUILT

    assert missing == set()
