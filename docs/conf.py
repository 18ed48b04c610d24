"""The documentation as a site: ``make docs``. Warnings are errors; nothing is fetched while building."""

from __future__ import annotations

import os
import sys
from importlib import metadata
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
# Kernels that execute pages import this checkout too.
os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])

project = "isweep"
author = copyright = "The isweep maintainers"
version = release = metadata.version("isweep")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build"]
nitpicky = False

# Only pages with code cells are executed (tutorial.md, concepts.md), once per change, offline.
nb_execution_mode = "cache"
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_timeout = 900
nb_execution_show_tb = True
nb_merge_streams = True
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 4

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_default_options = {"members": True, "show-inheritance": False}
napoleon_google_docstring = True
napoleon_numpy_docstring = False

# A code block without a language is output or a command, not Python.
highlight_language = "text"
html_theme = "furo"
html_title = f"isweep {version}"
html_static_path = ["style.css"]
html_css_files = ["style.css"]


def write_commands(_: object) -> None:
    """Write the reference of the command line from the program's own help."""
    from orchestrator.cli.app import application

    text = application().generate_docs(output_format="markdown", heading_level=1)
    page = HERE / "reference" / "commands.md"
    if not page.exists() or page.read_text(encoding="utf-8") != text:
        page.write_text(text, encoding="utf-8")


def setup(app: object) -> None:
    """Generate pages before Sphinx looks for sources."""
    app.connect("builder-inited", write_commands)  # type: ignore[attr-defined]
