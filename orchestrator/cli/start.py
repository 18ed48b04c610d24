"""Commands to begin with and to tidy up with: what can be named, a first sweep file, what lies in a root."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Group, Parameter
from rich.filesize import decimal
from rich.markup import escape

from orchestrator.cli.options import File, OwnOptions, Place, whole
from orchestrator.cli.printing import emit, grid, line, stderr, stdout, tell
from search_spaces.errors import ConfigError

DRAFT = Group("Sweep file", sort_key=1)


def init(
    source: Path | None = None,
    /,
    *,
    out: Annotated[File, Parameter(group=DRAFT)] = None,
    domain: Annotated[Literal["natural", "medical"] | None, Parameter(group=DRAFT)] = None,
    device: Annotated[Literal["auto", "cpu", "gpu"], Parameter(group=DRAFT)] = "auto",
    own: OwnOptions = OwnOptions(),
    place: Place = Place(),
) -> None:
    """Write a sweep file for your images that runs as it is; prints its path last.

    Args:
        source: Your images: a folder, a table or a file of arrays. Without it, an example on digits.
        out: File to write (default: the source's name with .yaml, here).
        domain: What the images are of (default: guessed).
        device: Sizes for trainings on a CPU or a GPU (default: what this machine has).
        own: What own data leave open.
    """
    from orchestrator.planning.checks import draft_sweep

    to = out or Path(f"{source.absolute().name.split('.')[0] if source else 'first'}.yaml")
    if to.exists():
        raise ConfigError("No file is written over", f"{to} exists", "name another with --out, or remove it")
    if to.suffix not in (".yaml", ".yml") or not to.absolute().parent.is_dir():
        raise ConfigError("--out must be a .yaml file in a folder that exists", str(to), "e.g. mine.yaml")
    gpu = device == "gpu" or (device == "auto" and any(Path("/dev").glob("nvidia[0-9]*")))
    text = draft_sweep(source, to, domain=domain, gpu=gpu, said=own.said())
    to.write_text(text, encoding="utf-8")
    named = str(to) if "/" in str(to) else f"./{to}"
    hints = [place.hint("plan", named), place.hint("run", named)]

    def show() -> None:
        tell(f"{text}\nWhat it will do: {hints[0]}\nDo it:           {hints[1]}")
        line(str(to))

    emit(place, {"sweep_file": str(to), "text": text, "next": hints}, show)


def models(*, place: Place = Place()) -> None:
    """List the networks that a sweep file can name."""
    from search_spaces.models import MODELS, about

    rows = [
        {"model": row.name, "library": row.library, "architecture": row.architecture, "about": about(row)}
        for row in MODELS.values()
    ]
    more = "Also: torchvision:NAME, timm:NAME, or a function of your own; see docs/trials.md."
    emit(place, rows, lambda: _show(rows, ("model", "about"), more))


def recipes(*, place: Place = Place()) -> None:
    """List the training recipes that a sweep file can name, those that isweep tune wrote among them."""
    from search_spaces.recipes import RECIPES, recipe_spec

    rows: list[dict[str, Any]] = []
    for name, (about, *_) in RECIPES.items():
        usual = recipe_spec(name, "", "")
        pixels = "0 to 255" if usual.input_scale == 1 else f"0 to {255 * usual.input_scale:.4g}"
        numbers = {"epochs": usual.epochs, "rate": f"{usual.learning_rate:g}", "batch": usual.batch_size}
        rows.append({"recipe": name, **numbers, "pixels": pixels, "about": about})
    for path in sorted(place.paths.recipes.glob("tuned-*.yaml")):
        blank = dict.fromkeys(("epochs", "rate", "batch", "pixels"), "")
        rows.append({"recipe": path.stem, **blank, "about": f"found by isweep tune: {path}"})
    more = "Change a recipe in the sweep file: recipe: {from: demo, epochs: 40}; see docs/trials.md."
    emit(place, rows, lambda: _show(rows, ("recipe", "epochs", "rate", "batch", "pixels", "about"), more))


def presets(*, place: Place = Place()) -> None:
    """List the sweeps that ship with the package."""
    from orchestrator.planning.plan import plan_sweep
    from orchestrator.planning.sweep_file import load_sweep, preset_names

    rows = []
    for name in preset_names():
        sweep = load_sweep(name)
        trials = len(plan_sweep(sweep).trials)
        rows.append({"preset": name, "trials": trials, "about": " ".join(sweep.description.split())})
    emit(place, rows, lambda: _show(rows, ("preset", "trials", "about"), "Run one with: isweep run NAME"))


def _show(rows: list[dict[str, Any]], names: tuple[str, ...], more: str) -> None:
    table = grid(*names)
    for column in table.columns:
        column.overflow, column.no_wrap = "fold", column.header != "about"
    for row in rows:
        table.add_row(*(escape(str(row[name])) for name in names))
    stdout.print(table)
    line(more)


def ls(*, place: Place = Place()) -> None:
    """List what lies in a root: sweeps, prepared data, recipes, with their size on disk."""
    paths = place.paths
    found = []
    for name in paths.sweep_names():
        num = sum(1 for _ in (paths.sweep(name).folder / "trials").glob("*/result.json"))
        found.append(("sweep", paths.sweep(name).folder, f"{num} result files"))
    found += [("prepared data", folder, "") for folder in sorted((paths.root / "prepared").glob("[!.]*/"))]
    found += [("recipe", path, "") for path in sorted(paths.recipes.glob("*.yaml"))]
    more = (("MLflow's store", paths.mlflow_database, ""), ("log of all commands", paths.log, ""))
    found += [row for row in more if row[1].exists()]
    rows: list[dict[str, Any]] = [
        {
            "what": what,
            "name": path.stem if what == "recipe" else path.name,
            "path": str(path),
            "bytes": _size(path),
            "about": about,
        }
        for what, path, about in found
    ]

    def show() -> None:
        if not rows:
            return line(f"Nothing lies in {paths.root} yet; begin with: {place.hint('run', 'demo')}")
        table = grid("what", "name", "size", "")
        for row in rows:
            table.add_row(row["what"], escape(row["name"]), decimal(row["bytes"]), row["about"])
        stdout.print(table)
        return line(f"In {paths.root}; remove a sweep or prepared data with: {place.hint('rm', 'NAME')}")

    emit(place, rows, show)


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.lstat().st_size for file in files if file.is_file() or file.is_symlink())


def rm(name: str, /, *, yes: bool = False, place: Place = Place()) -> None:
    """Remove a sweep with its results, or prepared data, from the root; asks first.

    Args:
        name: Of a sweep, or of prepared data, as isweep ls prints it.
        yes: Do not ask.
    """
    from orchestrator.running.locks import exclusive
    from tasks.atomic import remove_folder

    if place.storage:
        rule = "isweep rm removes what lies in the root"
        raise ConfigError(rule, f"--storage {place.storage}", "remove the sweep's folder there yourself")
    paths = place.paths
    sweeps, data = paths.sweep_names(), sorted((paths.root / "prepared").glob("[!.]*/"))
    known = {folder.name: folder for folder in (*data, *(paths.sweep(one).folder for one in sweeps))}
    if name not in known:
        holds = f"it holds: {', '.join([*sweeps, *(one.name for one in data)]) or 'nothing'}"
        rule = f"{paths.root} must hold what is removed"
        raise ConfigError(rule, name, f"{holds}; see {place.hint('ls')}")
    folder, what = known[name], f"prepared data {name}"
    if name in sweeps:
        num = sum(1 for _ in (folder / "trials").glob("*/result.json"))
        what = f"sweep {name} with the results of {num} trials"
    if not yes:
        if not (stdout.is_terminal and stderr.is_terminal):
            raise ConfigError("isweep rm asks before it removes", "no terminal to ask on", "give --yes")
        question = f"Remove {what}, {decimal(_size(folder))}? This cannot be undone. [y/N] "
        if stderr.input(escape(question)).strip().lower() not in ("y", "yes"):
            raise KeyboardInterrupt("Nothing was removed.")
    with exclusive(paths.lock, f"isweep rm {name}"):
        remove_folder(folder)
    said = f"removed {what}" + "; MLflow keeps its runs" * (name in sweeps)
    emit(place, {"removed": str(folder)}, lambda: line(said))


def ui(
    sweep: Annotated[str | None, Parameter(name="SWEEP")] = None,
    /,
    *,
    port: Annotated[int | None, whole(1, 65536, "from 1 to 65535"), Parameter(metavar="PORT")] = None,
    place: Place = Place(),
) -> None:
    """Serve MLflow's page on this machine alone, with addresses that answer a question; Ctrl-C ends it.

    Args:
        sweep: Name of a sweep of the root (default: all).
        port: Of 127.0.0.1 (default: 5000, or any free one).
    """
    from orchestrator.results.mlflow_pages import free_port, served, sweep_pages
    from orchestrator.results.tracking import mlflow_uri

    paths = place.paths
    uri = mlflow_uri(paths, place.mlflow_uri)
    names = paths.sweep_names()
    if uri == f"sqlite:///{paths.mlflow_database}" and not paths.mlflow_database.exists():
        raise ConfigError(
            "MLflow has nothing to show yet", f"no {paths.mlflow_database}", "run a sweep first"
        )
    if sweep is not None and sweep not in names:
        known = ", ".join(names) or "none"
        raise ConfigError(f"No sweep of that name ran in {paths.root}", sweep, f"sweeps there: {known}")

    def show() -> None:
        line(f"MLflow: {address}")
        for experiment, links in pages.items():
            line(experiment, *(f"  {question}: {link}" for question, link in links.items()))
        if not pages:
            line("No sweep has runs there; isweep reconcile SWEEP sends what is missing.")
        tell("Ctrl-C ends it.")

    try:
        with served(uri, free_port(port), paths.root / "mlflow-ui.log") as address:
            pages: dict[str, dict[str, str]] = {}
            for name in [sweep] if sweep else names:
                pages |= sweep_pages(address, name)
            emit(place, {"address": address, "pages": pages}, show)
            sys.stdout.flush()
            while not uri.startswith("http"):
                time.sleep(1)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("MLflow's page has ended; what it showed is kept.") from None
