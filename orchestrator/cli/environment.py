"""Commands about a root, what runs beside it, and the machine."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from orchestrator.cli.options import Address, File, Place, whole, writable
from orchestrator.cli.printing import cell, emit, grid, stderr, stdout, tell
from search_spaces.errors import ConfigError, unknown_name


def ls(*, place: Place = Place()) -> None:
    """List what lies in a root: sweeps, prepared data, recipes, with their size on disk."""
    from orchestrator.machine.root_contents import list_root

    paths, rows = place.paths, list_root(place.paths)
    table = grid("what", "name", "size", "")
    for row in rows:
        table.add_row(row["what"], cell(row["name"]), decimal(row["bytes"]), row["about"])
    remove = f"In {paths.root}; remove a sweep or prepared data with: {place.hint('rm', 'NAME')}"
    begin = f"Nothing lies in {paths.root} yet; begin with: {place.hint('run', 'demo')}"
    emit(place, rows, (table, remove) if rows else begin)


def rm(name: str, /, *, yes: bool = False, place: Place = Place()) -> None:
    """Remove a sweep with its results, or prepared data, from the root; asks first.

    Args:
        name: Of a sweep, or of prepared data, as isweep ls prints it.
        yes: Do not ask.
    """
    from orchestrator.machine.root_contents import list_root, remove_from_root

    if place.storage:
        rule = "isweep rm removes what lies in the root"
        raise ConfigError(
            rule, f"--storage {place.storage}", "remove the sweep's folder there yourself"
        )
    known = {row["name"]: row for row in list_root(place.paths) if row["removable"]}
    if name not in known:
        holds = f"it holds: {', '.join(known) or 'nothing'}; see {place.hint('ls')}"
        raise ConfigError(f"{place.paths.root} must hold what is removed", name, holds)
    row = known[name]
    what = f"{row['what']} {name}" + f" with {row['about']}" * bool(row["about"])
    if not yes:
        if not (stdout.is_terminal and stderr.is_terminal):
            raise ConfigError(
                "isweep rm asks before it removes", "no terminal to ask on", "give --yes"
            )
        question = f"Remove {what}, {decimal(row['bytes'])}? This cannot be undone. [y/N] "
        if stderr.input(escape(question)).strip().lower() not in ("y", "yes"):
            raise KeyboardInterrupt("Nothing was removed.")
    remove_from_root(place.paths, row["path"])
    said = f"removed {what}" + "; MLflow keeps its runs" * (row["what"] == "sweep")
    emit(place, {"removed": row["path"]}, said)


def ui(
    sweep: Annotated[str | None, Parameter(name="SWEEP")] = None,
    /,
    *,
    port: Annotated[int | None, whole(1, 65536), Parameter(metavar="PORT")] = None,
    place: Place = Place(),
) -> None:
    """Serve MLflow's page on this machine alone, with addresses that answer a question; Ctrl-C ends
    it.

    Args:
        sweep: Name of a sweep of the root (default: all).
        port: Of 127.0.0.1 (default: 5000, or any free one).
    """
    from orchestrator.results.mlflow_pages import free_port, served, sweep_pages
    from orchestrator.results.tracking import mlflow_uri

    paths = place.paths
    uri, names = mlflow_uri(paths, place.mlflow_uri), paths.sweep_names()
    if uri == f"sqlite:///{paths.mlflow_database}" and not paths.mlflow_database.exists():
        found = f"no {paths.mlflow_database}"
        raise ConfigError("MLflow has nothing to show yet", found, "run a sweep first")
    if sweep is not None and sweep not in names:
        raise unknown_name(f"sweep of {paths.root}", sweep, names)
    try:
        with served(uri, free_port(port), paths.root / "mlflow-ui.log") as address:
            pages: dict[str, dict[str, str]] = {}
            for name in [sweep] if sweep else names:
                pages |= sweep_pages(address, name)
            nothing = "No sweep has runs there; isweep reconcile SWEEP sends what is missing."
            said = [
                text
                for name, its in pages.items()
                for text in (name, *(f"  {question}: {page}" for question, page in its.items()))
            ]
            emit(place, {"address": address, "pages": pages}, f"MLflow: {address}", said or nothing)
            if not place.json:
                tell("Ctrl-C ends it.")
            sys.stdout.flush()
            while not uri.startswith("http"):
                time.sleep(1)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("MLflow's page has ended; what it showed is kept.") from None


def doctor(*, address: Address = None, launch: File = None, place: Place = Place()) -> int:
    """Check machine, cluster, storage, MLflow, versions, security, and say what to do about each
    fault.

    Exit code 3 when a check fails, 2 when nothing but the launch file is wrong.

    Args:
        address: Also check this Ray cluster, each of its nodes by a task that runs there.
        launch: Also check this file for `ray up`, before it starts anything.
    """
    from orchestrator.machine.doctor import LAUNCH_FILE, run_checks

    checks = run_checks(place.root, place.mlflow_uri, address, place.storage, launch)
    nodes = [check["node"] for check in checks if "node" in check]
    verdicts = list[Text]()
    for check in checks:
        mark, style = ("ok", "green") if check["ok"] else ("no", "red")
        fix = "" if check["ok"] else f"\n    fix: {check['fix']}"
        verdicts.append(Text.assemble((mark, style), f"  {check['name']}: {check['detail']}{fix}"))
    emit(place, checks, [node_table(nodes)] if nodes else (), verdicts)
    failed = {check["name"].startswith(LAUNCH_FILE) for check in checks if not check["ok"]}
    return 0 if not failed else 3 if False in failed else 2


def node_table(nodes: Iterable[Mapping[str, Any]]) -> Table:
    """Lay out a row per node."""
    versions = ("isweep", "ray", "torch")
    table = grid("node", "CPUs", "GPUs", "models", "driver", "CUDA", *versions, "disk")
    for node in nodes:
        table.add_row(
            escape(node["address"]) + (" (head)" if node["head"] else ""),
            f"{node['num_cpus']:g}",
            f"{node['num_gpus']:g}",
            ", ".join(node["gpus"]) or "-",
            node["driver"] or "-",
            node["cuda"] or "-",
            *(node["versions"].get(name, "?") for name in versions),
            f"{node['free_disk_bytes'] / 2**30:.0f} GiB" if node["versions"] else "?",
        )
    return table


def gpu_check(
    *,
    device: Annotated[str | None, Parameter(metavar="NUMBER|cpu")] = None,
    into: Annotated[Path | None, Parameter(metavar="DIR")] = None,
    place: Place = Place(),
) -> int:
    """Measure what the GPUs of this machine do: correctness, time, memory; some minutes each.

    Writes one file per GPU, which names neither the machine nor you. Plans of this root read it
    from then on, and it is what to send back. Exit code 1 when a part fails.

    Args:
        device: One GPU by its number; cpu tries the check itself. Without it all GPUs are checked.
        into: Where the files go, instead of the root's gpu folder.
    """
    from orchestrator.running.gpu_check import check, devices

    folder = writable((into or place.paths.root / "gpu") / "gpu-check.json", into_new=True).parent
    found = [check(its, folder, tell) for its in devices(device)]
    files, ok = [str(path) for path, _ in found], all(ok for _, ok in found)
    said = (f"{path}: send this file back, or keep it for plans" for path in files)
    emit(place, {"files": files, "ok": ok}, said)
    return 0 if ok else 1
