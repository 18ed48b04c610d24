"""Bakes the commit into every wheel, so that results made on a cluster say which code made them."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

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


setup(cmdclass={"build_py": BuildWithCommit})
