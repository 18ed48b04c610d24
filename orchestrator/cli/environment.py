"""The commands about the machine and what runs on it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.markup import escape
from rich.table import Table

from orchestrator.cli.options import Address, File, Place
from orchestrator.cli.printing import emit, line, stdout, tell

TABLE_WIDTH = 200
"""A table of nodes is for reading across: a narrow terminal wraps it rather than cut columns away."""


def doctor(*, address: Address = None, launch: File = None, place: Place = Place()) -> int:
    """Check machine, cluster, storage, MLflow, versions, security, and say what to do about each fault.

    Exit code 3 when a check fails, 2 when nothing but the launch file is wrong.

    Args:
        address: Also check this Ray cluster, each of its nodes by a task that runs there.
        launch: Also check this file for `ray up`, before it starts anything.
    """
    from orchestrator.running.doctor import LAUNCH_FILE, run_checks

    checks = run_checks(place.root, place.mlflow_uri, address, place.storage, launch)

    def show() -> None:
        nodes = [check["node"] for check in checks if "node" in check]
        if nodes:
            stdout.print(_node_table(nodes), width=TABLE_WIDTH, crop=False)
        for check in checks:
            mark = "[green]ok[/]  " if check["ok"] else "[red]no[/]  "
            stdout.print(f"{mark}{check['name']}: {escape(check['detail'])}", soft_wrap=True)
            if not check["ok"]:
                line(f"    fix: {check['fix']}")

    emit(place, checks, show)
    failed = {check["name"].startswith(LAUNCH_FILE) for check in checks if not check["ok"]}
    return 0 if not failed else 3 if False in failed else 2


def gpu_check(
    *,
    device: Annotated[str | None, Parameter(metavar="NUMBER|cpu")] = None,
    into: Annotated[Path | None, Parameter(metavar="DIR")] = None,
    place: Place = Place(),
) -> int:
    """Measure what the GPUs of this machine do: correctness, time, memory; some minutes each.

    Writes one file per GPU, which names neither the machine nor you. Plans of this root read it from then on,
    and it is what to send back. Exit code 1 when a part fails.

    Args:
        device: One GPU by its number; cpu tries the check itself. Without it all GPUs are checked.
        into: Where the files go, instead of the root's gpu folder.
    """
    from orchestrator.running.gpu_check import check, devices

    found = [check(its, into or place.paths.root / "gpu", tell) for its in devices(device)]
    files, ok = [str(path) for path, _ in found], all(ok for _, ok in found)
    said = [f"{path}: send this file back, or keep it for plans" for path in files]
    emit(place, {"files": files, "ok": ok}, lambda: line(*said))
    return 0 if ok else 1


def _node_table(nodes: list[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False)
    names = ("node", "CPUs", "GPUs", "cards", "driver", "CUDA", "isweep", "ray", "torch")
    for name in (*names, "disk", "spill"):
        table.add_column(name, no_wrap=True)
    for node in nodes:
        said = bool(node["versions"])
        table.add_row(
            node["address"] + (" (head)" if node["head"] else ""),
            f"{node['num_cpus']:g}",
            f"{node['num_gpus']:g}",
            escape(", ".join(node["cards"])) or "-",
            node["driver"] or "-",
            node["cuda"] or "-",
            *(node["versions"].get(name, "?") for name in ("isweep", "ray", "torch")),
            *(
                f"{node[key] / 2**30:.0f} GiB" if said else "?"
                for key in ("free_disk_bytes", "free_spill_bytes")
            ),
        )
    return table
