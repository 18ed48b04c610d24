"""Write ``constraints-cuda.txt`` or ``constraints-cpu.txt``: every package by version and hash.

Both files are for Linux on x86-64. Their versions are those of ``constraints.txt`` if it names the
package, and those of :data:`TORCH` for torch and torchvision. ``constraints-cuda.txt`` is for GPU
nodes, with all supported versions of Python in one file. ``constraints-cpu.txt`` is for machines
without a GPU and one version of Python. It contains PyTorch's CPU builds, so set ``UV_INDEX`` or
``UV_FIND_LINKS`` to a place where ``uv`` finds them.

    python clusters/lock.py cuda
    python clusters/lock.py cpu
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
LINUX = "sys_platform == 'linux' and platform_machine == 'x86_64'"
TORCH = "torch==2.13.0{build}\ntorchvision==0.28.0{build}\n"


@dataclass(frozen=True)
class Lock:
    """A lock file.

    Attributes:
        machines: The machines of the file, for its first line.
        build: Suffix of torch's version, such as "+cpu".
        extras: Extras of isweep that the file includes.
        options: Options of ``uv pip compile``.
    """

    machines: str
    build: str
    extras: tuple[str, ...]
    options: tuple[str, ...]


LOCKS = {
    "cuda": Lock(
        "a CUDA node (Linux, x86-64, Python 3.11 to 3.13)", "", ("medical",), ("--universal",)
    ),
    "cpu": Lock(
        "a machine without a GPU (Linux, x86-64, Python 3.11)",
        "+cpu",
        ("demo", "formats", "medical", "postgres"),
        ("--python-platform", "x86_64-manylinux_2_28"),
    ),
}


def resolve(lock: Lock) -> str:
    """Return the lines of the lock file, as uv resolves them."""
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder) / "pyproject.toml"
        tested_versions = Path(folder) / "tested.txt"
        text = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
        project.write_text(f'{text}\n[tool.uv]\nenvironments = ["{LINUX}"]\n', encoding="utf-8")
        versions = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8")
        tested_versions.write_text(versions + TORCH.format(build=lock.build), encoding="utf-8")
        command = [
            "uv",
            "pip",
            "compile",
            str(project),
            "--quiet",
            "--python-version",
            "3.11",
            *lock.options,
        ]
        for extra in lock.extras:
            command += ["--extra", extra]
        command += [
            "--constraint",
            str(tested_versions),
            "--generate-hashes",
            "--no-annotate",
            "--no-header",
        ]
        command += ["--no-emit-index-url", "--no-emit-find-links"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    # Whoever installs the packages chooses the index.
    return re.sub(r"^--.*\n", "", done.stdout, flags=re.MULTILINE)


def main(name: str) -> None:
    """Write ``constraints-NAME.txt`` for a name in :data:`LOCKS`."""
    lock, target = LOCKS[name], f"constraints-{name}.txt"
    head = (
        f"# Every package of {lock.machines}. Made with: make lock-{name}\n"
        f"# Install with: pip install --require-hashes --requirement {target}\n"
    )
    (REPOSITORY / target).write_text(head + resolve(lock), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
