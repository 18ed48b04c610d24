"""Files of the user that hide a Python module from isweep or from Ray's workers by their name.

Python searches a folder in ``PYTHONPATH`` before the folders of installed libraries. Ray's
workers search the current folder first, too. With a file ``numpy.py`` in such a folder, Python
imports this file instead of the library.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from search_spaces.errors import SetupError

LIBRARIES = {
    "numpy": "numpy",
    "pandas": "pandas",
    "ray": "ray",
    "sklearn": "scikit-learn",
    "scipy": "scipy",
    "torch": "torch",
    "torchvision": "torchvision",
    "timm": "timm",
    "mlflow": "mlflow",
    "optuna": "optuna",
    "PIL": "pillow",
    "pydantic": "pydantic",
    "yaml": "PyYAML",
}
"""Modules that isweep or Ray's workers import. The values are the names under which pip
installs them."""


@dataclass(frozen=True)
class HidingFile:
    """A file that Python imports instead of a module.

    Attributes:
        path: path of the file.
        module: name of the module.
        remedy: what the user can do, as the end of a sentence.
    """

    path: Path
    module: str
    remedy: str


def check_libraries() -> None:
    """Check that no file hides a library.

    Raises:
        SetupError: A file in the current folder or in a folder in ``PYTHONPATH`` has the name
            of a library.
    """
    for file in _hiding_files(LIBRARIES):
        raise SetupError(
            f"Python would import {file.path} instead of the library {file.module}",
            hint=f"Rename this file, or {file.remedy}",
        )


def hint_on_python_modules() -> str:
    """Return a hint on a file that hides a module of Python itself, for example ``random.py``.

    Ray's processes may fail with such a file. The text is empty if there is no such file.
    """
    for file in _hiding_files(sorted(sys.stdlib_module_names)):
        return (
            f"Ray's processes import {file.path} instead of Python's module {file.module}: "
            f"rename this file, or {file.remedy}"
        )
    return ""


def _hiding_files(modules: Iterable[str]) -> Iterator[HidingFile]:
    """Yield the files and packages that have the name of one of the modules.

    A module that pip installed into the folder, for example with ``pip install --target``, is
    not such a file.
    """
    remedies = {Path(): "run the command in another folder"}
    for entry in filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)):
        remedies.setdefault(Path(entry), "remove its folder from PYTHONPATH")
    for folder, remedy in remedies.items():
        for module in modules:
            for path in (folder / f"{module}.py", folder / module / "__init__.py"):
                if path.is_file() and not _is_installed_in(folder, module):
                    yield HidingFile(path, module, remedy)


def _is_installed_in(folder: Path, module: str) -> bool:
    """Return whether pip installed a library into a folder."""
    distribution = LIBRARIES.get(module, module)
    return any(metadata.distributions(name=distribution, path=[str(folder)]))
