"""A simulated ``mlflow.tracking.MlflowClient`` in memory, with the methods that a tracker calls.

``tests/unit/orchestrator/results/test_tracking.py`` runs the same tests on it and on MLflow itself.
"""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from mlflow.entities import FileInfo, Metric
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, RESOURCE_DOES_NOT_EXIST
from mlflow.store.entities import PagedList

CONDITION = re.compile(r"(tags|attribute)\.`?([\w.]+)`? = '(.*)'")


class SimulatedClient:
    """Experiments, runs and artifacts as in MLflow: params never change, and all points are stored."""

    tracking_uri = "memory:"

    def __init__(self) -> None:
        self.experiments: dict[str, SimpleNamespace] = {}
        self.runs: dict[str, dict[str, Any]] = {}
        self.num_created = 0

    def get_experiment_by_name(self, name: str) -> Any:
        return next(
            (experiment for experiment in self.experiments.values() if experiment.name == name),
            None,
        )

    def create_experiment(self, name: str, place: str | None = None, tags: Any = None) -> str:
        if self.get_experiment_by_name(name) is not None:
            raise MlflowException("RESOURCE_ALREADY_EXISTS")
        key = str(len(self.experiments) + 1)
        self.experiments[key] = SimpleNamespace(
            experiment_id=key,
            name=name,
            tags=dict(tags or {}),
            lifecycle_stage="active",
            artifact_location=place,
        )
        return key

    def get_experiment(self, experiment_id: str) -> Any:
        return self.experiments[experiment_id]

    def set_experiment_tag(self, experiment_id: str, name: str, value: str) -> None:
        self.experiments[experiment_id].tags[name] = value

    def create_run(
        self,
        experiment_id: str,
        start_time: int | None = None,
        tags: Any = None,
        run_name: str | None = None,
    ) -> Any:
        key = f"run{self.num_created:04d}"  # a new key even if earlier runs are restored
        self.num_created += 1
        named = {"mlflow.runName": run_name} if run_name else {}
        self.runs[key] = {
            "experiment": experiment_id,
            "info": {
                "run_id": key,
                "status": "RUNNING",
                "start_time": start_time or 10**13,
                "end_time": None,
                "lifecycle_stage": "active",
            },
            "tags": {**(tags or {}), **named},
            "params": {},
            "points": [],
            "artifacts": {},
            "inputs": [],
        }
        return self.get_run(key)

    def get_run(self, run_id: str) -> Any:
        run = self._run(run_id)
        last = sorted(run["points"], key=lambda point: (point.step, point.timestamp, point.value))
        data = SimpleNamespace(
            tags=dict(run["tags"]),
            params=dict(run["params"]),
            metrics={point.key: point.value for point in last},
        )
        inputs = SimpleNamespace(dataset_inputs=list(run["inputs"]))
        return SimpleNamespace(info=SimpleNamespace(**run["info"]), data=data, inputs=inputs)

    def search_runs(self, experiments: list[str], query: str = "", **_: Any) -> Any:
        conditions = [CONDITION.fullmatch(part) for part in query.split(" and ") if part]
        requested_runs = (
            self.get_run(key)
            for key, stored in self.runs.items()
            if stored["experiment"] in experiments
        )
        active_runs = [run for run in requested_runs if run.info.lifecycle_stage == "active"]
        for match in conditions:
            assert match is not None, query
            kind, name, value = match.groups()
            active_runs = [run for run in active_runs if self._value(run, kind, name) == value]
        return PagedList(sorted(active_runs, key=lambda run: run.info.start_time), None)

    @staticmethod
    def _value(run: Any, kind: str, name: str) -> str | None:
        return run.data.tags.get(name) if kind == "tags" else getattr(run.info, name)

    def delete_run(self, run_id: str) -> None:
        self._run(run_id)["info"]["lifecycle_stage"] = "deleted"

    def update_run(self, run_id: str, status: str) -> None:
        self._run(run_id)["info"]["status"] = status

    def set_terminated(
        self, run_id: str, status: str = "FINISHED", end_time: int | None = None
    ) -> None:
        self._run(run_id)["info"] |= {"status": status, "end_time": end_time}

    def set_tag(self, run_id: str, name: str, value: str) -> None:
        self._run(run_id)["tags"][name] = value

    def log_metric(
        self, run_id: str, key: str, value: float, timestamp: int = 2_000, step: int = 0
    ) -> None:
        self.log_batch(run_id, [Metric(key, value, timestamp, step)])

    def log_batch(self, run_id: str, metrics: Any = (), params: Any = (), tags: Any = ()) -> None:
        run = self._run(run_id)
        for param in params:
            if run["params"].setdefault(param.key, param.value) != param.value:
                raise MlflowException(
                    "Changing param values is not allowed", INVALID_PARAMETER_VALUE
                )
        stored_points = {
            (point.key, point.value, point.timestamp, point.step) for point in run["points"]
        }
        run["points"] += [
            point
            for point in metrics
            if (point.key, point.value, point.timestamp, point.step) not in stored_points
        ]
        run["tags"].update({tag.key: tag.value for tag in tags})

    def get_metric_history(self, run_id: str, key: str) -> list[Metric]:
        return [point for point in self._run(run_id)["points"] if point.key == key]

    def log_inputs(self, run_id: str, datasets: Any) -> None:
        stored_inputs = self._run(run_id)["inputs"]
        stored_inputs += [
            dataset
            for dataset in datasets
            if dataset.dataset.digest
            not in {dataset_input.dataset.digest for dataset_input in stored_inputs}
        ]

    def log_artifact(self, run_id: str, path: str, artifact_path: str) -> None:
        artifacts = self._run(run_id)["artifacts"]
        artifacts[f"{artifact_path}/{Path(path).name}"] = Path(path).read_bytes()

    def list_artifacts(self, run_id: str, path: str) -> list[FileInfo]:
        names = [name for name in self._run(run_id)["artifacts"] if name.startswith(f"{path}/")]
        files = [FileInfo(name, False, 1) for name in names if "/" not in name[len(path) + 1 :]]
        folders = {f"{path}/{name[len(path) + 1 :].split('/')[0]}" for name in names} - {
            f.path for f in files
        }
        return files + [FileInfo(name, True, 0) for name in sorted(folders)]

    def _run(self, run_id: str) -> dict[str, Any]:
        if run_id not in self.runs:
            raise MlflowException(f"Run '{run_id}' not found", RESOURCE_DOES_NOT_EXIST)
        return self.runs[run_id]
