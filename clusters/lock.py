"""Write ``constraints-cuda.txt`` or ``constraints-cpu.txt``: every package by version and hash.

Linux on x86-64. Versions are those of ``constraints.txt`` where it names one, and torch and
torchvision those below. The first is of a GPU node, for all supported Pythons in one file. The
second is of a machine without a GPU, for one Python, with PyTorch's own CPU builds: ``uv`` finds
them where ``UV_INDEX`` or ``UV_FIND_LINKS`` says.

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
    """What is locked for which machines.

    Attributes:
        what: For the first line of the file.
        build: Of torch, as its version ends.
        extras: Of the package.
        options: Of ``uv pip compile``.
    """

    what: str
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
    """Return the lines of the lock: uv resolves them without downloading what an index
    describes.
    """
    with tempfile.TemporaryDirectory() as folder:
        project, tested = Path(folder) / "pyproject.toml", Path(folder) / "tested.txt"
        text = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
        project.write_text(f'{text}\n[tool.uv]\nenvironments = ["{LINUX}"]\n', encoding="utf-8")
        versions = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8")
        tested.write_text(versions + TORCH.format(build=lock.build), encoding="utf-8")
        words = [
            "uv",
            "pip",
            "compile",
            str(project),
            "--quiet",
            "--python-version",
            "3.11",
            *lock.options,
        ]
        words += [word for extra in lock.extras for word in ("--extra", extra)]
        words += ["--constraint", str(tested), "--generate-hashes", "--no-annotate", "--no-header"]
        words += ["--no-emit-index-url", "--no-emit-find-links"]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    # An index is whoever installs' to choose.
    return re.sub(r"^--.*\n", "", done.stdout, flags=re.MULTILINE)


def main(name: str) -> None:
    """Write the lock called ``name``."""
    lock, target = LOCKS[name], f"constraints-{name}.txt"
    head = (
        f"# Every package of {lock.what}. Made with: make lock-{name}\n"
        f"# Install with: pip install --require-hashes --requirement {target}\n"
    )
    (REPOSITORY / target).write_text(head + resolve(lock), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
