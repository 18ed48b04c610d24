"""Where and how a sweep runs, as the command line or a notebook says it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import Field

from orchestrator.running.cluster import Device, check_form


@dataclass(frozen=True)
class RunOptions:
    """Where and how to run; nothing here can change a result.

    Attributes:
        root: Folder of everything; None takes ``$ISWEEP_ROOT`` or ``./isweep-root``.
        storage: folder or URL of the result store; None keeps it below the root.
        address: Running Ray cluster; None starts a private one.
        num_cpus: CPUs of the private cluster.
        device: See :func:`orchestrator.running.cluster.trial_resources`.
        dashboard: Whether the private cluster serves its dashboard.
        mlflow_uri: MLflow store; None takes ``$MLFLOW_TRACKING_URI``, then SQLite below the root.
        tracking: False keeps MLflow out of it; the store still has everything.
        raw: Folders of raw downloads by dataset, for datasets that are not prepared yet.
        max_skipped_share: Largest share of a dataset's files that may be unusable.
    """

    root: str | None = None
    storage: str | None = None
    address: str | None = None
    num_cpus: Annotated[int, Field(ge=1)] | None = None
    device: Device = "auto"
    dashboard: bool = True
    mlflow_uri: str | None = None
    tracking: bool = True
    raw: dict[str, Path] = field(default_factory=dict)
    max_skipped_share: Annotated[float, Field(ge=0, le=1)] = 0.001

    def __post_init__(self) -> None:
        """Refuse an address that cannot be one while nothing has started yet.

        Raises:
            ConfigError: when it is neither ``host:port`` nor ``auto``.
        """
        if self.address is not None:
            check_form(self.address)
