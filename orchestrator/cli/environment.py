"""Commands for the root, MLflow's page and the machine."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from orchestrator.cli.options import Address, File, Place, whole, writable
from orchestrator.cli.printing import cell, emit, grid, print_message, stderr, stdout
from search_spaces.errors import ConfigError, did_you_mean, unknown_name


def ls(*, place: Place = Place()) -> None:
    """List the sweeps, prepared data and recipes of a root, with their size on disk."""
    from orchestrator.machine.root_contents import list_root

    rows = list_root(place.paths)
    table = grid("what", "name", "size", "")
    for row in rows:
        table.add_row(row["what"], cell(row["name"]), decimal(row["bytes"]), row["about"])
    root = place.paths.root
    if rows:
        remove = place.hint("rm", "NAME")
        emit(
            place,
            rows,
            table,
            f"The root is {root}. Remove a sweep or prepared data with `{remove}`.",
        )
    else:
        begin = place.hint("run", "demo")
        emit(place, rows, f"The root {root} is empty. Start with `{begin}`.")


def rm(name: str, /, *, yes: bool = False, place: Place = Place()) -> None:
    """Ask for confirmation, then remove a sweep with its results, or prepared data.

    Args:
        name: Name of a sweep or of prepared data, as isweep ls prints it.
        yes: Do not ask for confirmation.
    """
    from orchestrator.machine.root_contents import list_root, remove_from_root

    if place.storage:
        raise ConfigError(
            f"`isweep rm` removes sweeps only from the root, not from --storage {place.storage}",
            hint="Remove the folder of the sweep with the tool of the storage provider, for "
            "example `aws s3 rm`",
        )
    removable = {row["name"]: row for row in list_root(place.paths) if row["removable"]}
    if name not in removable:
        hint = f"List the names with `{place.hint('ls')}`"
        if removable:
            hint = f"{did_you_mean(name, removable)}Choose one of {', '.join(removable)}. {hint}"
        raise ConfigError(
            f"The root {place.paths.root} has no sweep or prepared data named {name!r}", hint=hint
        )
    row = removable[name]
    description = f"{row['what']} {name}"
    if row["about"]:
        description += f" with {row['about']}"
    if not yes:
        if not (stdout.is_terminal and stderr.is_terminal):
            raise ConfigError(
                f"isweep cannot ask for confirmation before it removes {name}, because the command "
                "does not run in a terminal",
                hint=f"Add --yes to remove {name} without confirmation",
            )
        question = f"Remove {description}, {decimal(row['bytes'])}? This cannot be undone. [y/N] "
        if stderr.input(escape(question)).strip().lower() not in ("y", "yes"):
            raise KeyboardInterrupt("Nothing was removed.")
    remove_from_root(place.paths, row["path"])
    message = f"Removed {description}"
    if row["what"] == "sweep":
        message += ". MLflow keeps the runs of the sweep."
    emit(place, {"removed": row["path"]}, message)


def ui(
    sweep: Annotated[str | None, Parameter(name="SWEEP")] = None,
    /,
    *,
    port: Annotated[int | None, whole(1, 65536), Parameter(metavar="PORT")] = None,
    place: Place = Place(),
) -> None:
    """Serve MLflow's page until you press Ctrl-C, and print links to useful views.

    Args:
        sweep: Name of a sweep of the root (default: all sweeps).
        port: Port of 127.0.0.1 (default: 5000, or another port if 5000 is in use).
    """
    from orchestrator.results.mlflow_connection import mlflow_uri
    from orchestrator.results.mlflow_server import PORT, find_sweep_pages, free_port, serve_pages

    paths = place.paths
    uri = mlflow_uri(paths, place.mlflow_uri)
    names = paths.sweep_names()
    if uri == f"sqlite:///{paths.mlflow_database}" and not paths.mlflow_database.exists():
        raise ConfigError(
            f"MLflow has no runs, because the database {paths.mlflow_database} does not exist",
            hint=f"First run a sweep, for example `{place.hint('run', 'demo')}`",
        )
    if sweep is not None and sweep not in names:
        raise unknown_name("sweep", sweep, names, of=str(paths.root))
    if sweep is not None:
        names = [sweep]
    try:
        with serve_pages(uri, free_port(port), paths.root / "mlflow-ui.log") as address:
            pages: dict[str, dict[str, str]] = {}
            for name in names:
                pages |= find_sweep_pages(address, name)
            if port is None and not address.endswith(f":{PORT}"):
                print_message(f"Port {PORT} is in use, so MLflow's page has another port.")
            document = {"address": address, "pages": pages}
            emit(place, document, f"MLflow: {address}", _page_lines(pages))
            if not place.json:
                print_message("Press Ctrl-C to stop MLflow's page.")
            sys.stdout.flush()
            while not uri.startswith("http"):
                time.sleep(1)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("MLflow's page has stopped. MLflow keeps all runs.") from None


def _page_lines(pages: Mapping[str, Mapping[str, str]]) -> Iterator[str]:
    """Yield lines with the addresses of MLflow's pages, by sweep and title of the page."""
    if not pages:
        yield (
            "MLflow has no run of a sweep. To send the results of a sweep to MLflow, run "
            "`isweep reconcile SWEEP`."
        )
    for name, address_by_question in pages.items():
        yield name
        for question, address in address_by_question.items():
            yield f"  {question}: {address}"


def doctor(*, address: Address = None, launch: File = None, place: Place = Place()) -> int:
    """Check machine, cluster, storage, MLflow, versions and security, and print how to fix faults.

    The exit code is 3 if a check fails, and 2 if only the launch file is wrong.

    Args:
        address: Also check this Ray cluster, with a Ray task on each node.
        launch: Also check this launch file. Do this before you run `ray up` with the file.
    """
    from orchestrator.machine.doctor import LAUNCH_FILE, run_checks

    checks = run_checks(place.root, place.mlflow_uri, address, place.storage, launch)
    nodes = [check["node"] for check in checks if "node" in check]
    verdicts: list[Table | Text] = []
    if nodes:
        verdicts.append(node_table(nodes))
    for check in checks:
        line = f"  {check['name']}: {check['detail']}"
        if check["ok"]:
            verdicts.append(Text.assemble(("ok", "green"), line))
        else:
            verdicts.append(Text.assemble(("no", "red"), f"{line}\n    fix: {check['fix']}"))
    emit(place, checks, verdicts)
    failed_names = [check["name"] for check in checks if not check["ok"]]
    if not failed_names:
        return 0
    if all(name.startswith(LAUNCH_FILE) for name in failed_names):
        return 2
    return 3


def node_table(nodes: Iterable[Mapping[str, Any]]) -> Table:
    """Return a table with one row for each node of a cluster."""
    versions = ("isweep", "ray", "torch")
    table = grid("node", "CPUs", "GPUs", "models", "driver", "CUDA", *versions, "disk")
    for node in nodes:
        address = escape(node["address"])
        if node["head"]:
            address += " (head)"
        disk = "?"
        if node["versions"]:
            disk = f"{node['free_disk_bytes'] / 2**30:.0f} GiB"
        table.add_row(
            address,
            f"{node['num_cpus']:g}",
            f"{node['num_gpus']:g}",
            ", ".join(node["gpus"]) or "-",
            node["driver"] or "-",
            node["cuda"] or "-",
            *(node["versions"].get(name, "?") for name in versions),
            disk,
        )
    return table


def gpu_check(
    *,
    device: Annotated[str | None, Parameter(metavar="NUMBER|cpu")] = None,
    into: Annotated[Path | None, Parameter(metavar="DIR")] = None,
    place: Place = Place(),
) -> int:
    """Check correctness, time and memory of this machine's GPUs, in about 20 minutes per GPU.

    The command writes one file per GPU, without names of machines or users. `isweep plan` uses
    the files in the root's gpu folder. The exit code is 1 if a part of the check fails.

    Args:
        device: Number of one GPU to check (default: all GPUs), or cpu to try the command.
        into: Folder for the files (default: the root's gpu folder).
    """
    from orchestrator.machine.gpu_check import check, devices

    folder = writable((into or place.paths.root / "gpu") / "gpu-check.json", into_new=True).parent
    files = []
    has_passed = True
    for one_device in devices(device):
        path, is_ok = check(one_device, folder, print_message)
        files.append(str(path))
        has_passed = has_passed and is_ok
    lines = (
        f"{path}: `isweep plan` uses this file if it is in the root's gpu folder. If somebody "
        "asked you for the file, send it to them."
        for path in files
    )
    emit(place, {"files": files, "ok": has_passed}, lines)
    return int(not has_passed)
