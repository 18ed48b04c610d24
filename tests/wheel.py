"""Run README's commands from the wheel alone: a new environment, an empty folder, no checkout.

``make wheel-test`` installs the wheel with ``[demo]`` and its dependencies. ``python -m tests.wheel
dist --borrow SITE_PACKAGES`` is faster: it uses the dependencies of another environment."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path
from subprocess import PIPE

from tests.demo_page import RESULT, stages
from tests.integration.readme import write_own_files
from tests.unit.test_docs import ROOT, blocks, commands

NOT_RUN = ("isweep ui", "isweep tune", "isweep run paper")
"""Commands that are not run: the first serves until it is stopped, the others take long or need a
cluster."""


def main() -> None:
    """Run the commands one after another and stop at the first that fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dist", type=Path)
    parser.add_argument("--borrow", type=Path, help="site-packages with the dependencies")
    arguments = parser.parse_args()
    (wheel,) = arguments.dist.glob("isweep-*.whl")
    with tempfile.TemporaryDirectory(prefix="isweep-wheel-") as name:
        folder = Path(name) / "empty"
        folder.mkdir()
        isweep = install(wheel.absolute(), Path(name) / "env", arguments.borrow)
        write_own_files(folder)
        (text,) = [block for language, block in blocks(ROOT / "README.md") if language == "yaml"]
        (folder / "mine.yaml").write_text(text, encoding="utf-8")
        programs = Path(name) / "bin"
        programs.mkdir()
        (programs / "bash").symlink_to("/bin/bash")  # Ray starts its workers with bash
        environment = {"PATH": f"{isweep.parent}:{programs}", "HOME": name, "LANG": "C.UTF-8"}
        for line in ["isweep run demo", *commands(ROOT / "README.md")]:
            if line.startswith(NOT_RUN):
                continue
            print(f"$ {line}", flush=True)
            command = [isweep, *shlex.split(line)[1:]]
            if line == "isweep run demo":
                run = subprocess.run(
                    command, cwd=folder, env=environment, check=True, stderr=PIPE, text=True
                )
                print(run.stderr, flush=True)
                committed_output = "\n".join(json.loads(RESULT.read_text())["output"])
                assert stages(run.stderr) == stages(committed_output)
            else:
                subprocess.run(command, cwd=folder, env=environment, check=True)


def install(wheel: Path, folder: Path, borrow: Path | None) -> Path:
    """Create an environment with the wheel, and return the path of its ``isweep``."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    pip = [python, "-m", "pip", "install", "--quiet"]
    # PYTHONPATH has the checkout, which the environment must not import.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if borrow is None:
        requirements = [f"{wheel}[demo]", "--constraint", str(ROOT / "constraints.txt")]
        subprocess.run([*pip, *requirements], env=environment, check=True)
    else:
        subprocess.run([*pip, "--no-deps", str(wheel)], env=environment, check=True)
        site = Path(
            sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)})
        )
        (site / "borrowed.pth").write_text(f"{borrow.absolute()}\n", encoding="utf-8")
    return folder / "bin" / "isweep"


if __name__ == "__main__":
    sys.exit(main())
