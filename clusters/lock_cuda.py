"""Write ``constraints-cuda.txt``: every package of a CUDA node, by version and hash.

Linux on x86-64, all supported Pythons in one file. Versions are those of ``constraints.txt`` where it names
one, torch and torchvision those below: the same releases that are tested on a CPU, in their CUDA builds.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
TORCH = ("torch==2.13.0", "torchvision==0.28.0")
ENVIRONMENT = "sys_platform == 'linux' and platform_machine == 'x86_64'"


def main() -> None:
    """Resolve by uv, without downloading a wheel."""
    target = REPOSITORY / "constraints-cuda.txt"
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder) / "pyproject.toml"
        text = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
        project.write_text(f'{text}\n[tool.uv]\nenvironments = ["{ENVIRONMENT}"]\n', encoding="utf-8")
        tested = Path(folder) / "tested.txt"
        tested.write_text(
            (REPOSITORY / "constraints.txt").read_text(encoding="utf-8") + "\n".join(TORCH), encoding="utf-8"
        )
        resolve = ["uv", "pip", "compile", str(project), "--extra", "medical", "--universal", "--quiet"]
        resolve += ["--python-version", "3.11", "--constraint", str(tested), "--generate-hashes"]
        lines = subprocess.run(
            [*resolve, "--no-annotate", "--no-header"], capture_output=True, text=True, check=True
        ).stdout
    head = (
        "# Every package of a CUDA node (Linux, x86-64, Python 3.11 to 3.13). Made with: make lock-cuda\n"
        "# Install with: pip install --require-hashes --requirement constraints-cuda.txt\n"
    )
    target.write_text(head + lines, encoding="utf-8")


if __name__ == "__main__":
    main()
