"""The command about the machine and what runs on it."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter
from rich.markup import escape

from orchestrator.cli.options import CLUSTER, Place
from orchestrator.cli.printing import emit, stdout


def doctor(
    *,
    address: Annotated[str | None, Parameter(group=CLUSTER, metavar="HOST:PORT")] = None,
    place: Place = Place(),
) -> int:
    """Check machine, cluster, storage, MLflow, versions, security; exit code 3 when a check fails.

    Args:
        address: Also check this Ray cluster.
        place: Where everything lies.
    """
    from orchestrator.running.doctor import run_checks

    checks = run_checks(place.root, place.mlflow_uri, address)

    def show() -> None:
        for check in checks:
            mark = "[green]ok[/]  " if check["ok"] else "[red]no[/]  "
            stdout.print(f"{mark}{check['name']}: {escape(check['detail'])}", soft_wrap=True)
            if not check["ok"]:
                stdout.print(f"    fix: {escape(check['fix'])}", soft_wrap=True)

    emit(place, checks, show)
    return 0 if all(check["ok"] for check in checks) else 3
