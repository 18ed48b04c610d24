"""Build steps: wheels hold their commit; an editable install is a plain path.

The commit lets results that were made on a cluster say which code made them.
"""

from __future__ import annotations

import json
import subprocess
import warnings
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.editable_wheel import editable_wheel

HERE = Path(__file__).parent


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(HERE), *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


class BuildWithCommit(build_py):
    """Write ``orchestrator/commit.json`` into the build, never into the checkout."""

    def run(self) -> None:
        """Build as usual, then add the commit where there is one."""
        super().run()
        if self.editable_mode or not (HERE / ".git").exists():
            return
        commit = {
            "commit": _git("rev-parse", "HEAD"),
            "dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
        }
        target = Path(self.build_lib) / "orchestrator" / "commit.json"
        target.write_text(json.dumps(commit), encoding="utf-8")


class EditableByPath(editable_wheel):
    """Install an editable package as a path entry, not as a finder.

    A finder comes after the current folder. There a clone named ``isweep`` would be imported as an
    empty namespace in place of the package that lies inside it.
    """

    def finalize_options(self) -> None:
        """Choose the plain path unless another mode is asked for."""
        super().finalize_options()
        self.mode = self.mode or "compat"

    def run(self) -> None:
        """Install without setuptools' ten lines of stars, which read like an error."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Compat editable")
            super().run()


setup(cmdclass={"build_py": BuildWithCommit, "editable_wheel": EditableByPath})
