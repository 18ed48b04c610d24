"""The GPUs of this machine that a sweep can use, and the model of GPU for which plans are made."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from orchestrator.machine.gpus import nvidia_smi, torch_gpus
from orchestrator.machine.gpus.records import Gpu
from orchestrator.machine.gpus.visible import gpus_are_simulated, hides_all_gpus, visible_gpus
from orchestrator.planning.costs.gpu_checks import read_checks
from orchestrator.planning.costs.gpu_models import GpuModel, listed_gpu_model
from search_spaces.errors import ConfigError, SetupError


class PlannedGpus(NamedTuple):
    """The GPUs of a machine as plans use them.

    Attributes:
        model: model of GPU for which hours and memory are predicted, or None if the machine
            has no GPU.
        number: number of GPUs.
    """

    model: GpuModel | None
    number: int


class _SmiRow(NamedTuple):
    """A row of the output of ``nvidia-smi``. It describes one GPU.

    Attributes:
        name: name of the GPU as NVIDIA's driver reports it.
        uuid: UUID of the GPU, for example ``GPU-1a2b...``.
        memory_mib: total memory in MiB. If the GPU shares the machine's memory (GB10), this
            text is not a number.
        mig_mode: ``Enabled`` if the GPU is divided into MIG slices.
    """

    name: str
    uuid: str
    memory_mib: str
    mig_mode: str

    @property
    def has_memory_size(self) -> bool:
        """True if the row contains the size of the GPU's memory."""
        return self.memory_mib.isdigit()

    @property
    def is_complete(self) -> bool:
        """True if the row contains all facts that plans need. Otherwise torch must describe
        the GPU.
        """
        if not self.has_memory_size:
            return False
        if self.mig_mode == "Enabled":
            return False  # nvidia-smi describes the whole GPU, not its slices
        # For a GPU that no table lists, plans need its compute capability and its number of
        # processors, which only torch knows.
        return listed_gpu_model(self.name) is not None

    def as_gpu(self) -> Gpu:
        """Return the GPU that the row describes. The row must contain a memory size."""
        return Gpu(self.name, self.uuid, int(self.memory_mib) * nvidia_smi.MIB)


def gpus_here() -> list[Gpu]:
    """Return this machine's visible GPUs and MIG slices.

    Torch takes seconds to start. It is used only if the facts from ``nvidia-smi`` are not
    enough.

    If ``CUDA_VISIBLE_DEVICES`` contains numbers, do not use the UUIDs of the result. They may
    belong to other GPUs of the same model (:func:`_from_nvidia_smi`).
    """
    ids = visible_gpus()
    if gpus_are_simulated() or ids == []:
        return []
    fields = "name,uuid,memory.total,mig.mode.current"
    rows = list(map(_SmiRow._make, nvidia_smi.query(fields)))
    if not rows and not nvidia_smi.has_devices():
        return []
    gpus = _from_nvidia_smi(rows, ids)
    if gpus is not None:
        return gpus
    described = torch_gpus.describe(os.environ.get("CUDA_VISIBLE_DEVICES"))
    if described.gpus:
        return list(described.gpus)
    # Torch can use no GPU. The caller must see that there are GPUs: each trial then reports
    # why torch cannot use them.
    return [row.as_gpu() for row in rows if row.has_memory_size]


def _from_nvidia_smi(rows: list[_SmiRow], ids: list[str] | None) -> list[Gpu] | None:
    """Return the GPUs that CUDA uses, as ``nvidia-smi`` describes them.

    CUDA may number the GPUs in another order than ``nvidia-smi``. The UUID for a number may
    therefore belong to another GPU of the same model. The models and the number of the GPUs
    are correct.

    Args:
        rows: all GPUs of the machine.
        ids: numbers or UUIDs of the visible GPUs. None means all GPUs.

    Returns:
        The GPUs, or None if torch must describe them. This is necessary in three cases: there
        are no rows, a row is not complete, or ``ids`` contains numbers and the machine has
        several models of GPU.
    """
    gpus = []
    for row in rows:
        if not row.is_complete:
            return None
        gpus.append(row.as_gpu())
    if not gpus:
        return None
    if ids is None:
        return gpus
    num_models = len({gpu.name for gpu in gpus})
    chosen = []
    for gpu_id in ids:
        if gpu_id.isdigit() and num_models > 1:
            return None
        gpu = _gpu_with_id(gpus, gpu_id)
        if gpu is None:
            break  # CUDA stops at the first number or UUID that matches no GPU
        chosen.append(gpu)
    return chosen


def _gpu_with_id(gpus: list[Gpu], gpu_id: str) -> Gpu | None:
    """Return the GPU that has the number ``gpu_id``, or a UUID that begins with ``gpu_id``.
    Return None if there is no such GPU.
    """
    if gpu_id.isdigit():
        number = int(gpu_id)
        return gpus[number] if number < len(gpus) else None
    return next((gpu for gpu in gpus if gpu.uuid.startswith(gpu_id)), None)


def check_driver() -> None:
    """Check that NVIDIA's driver answers if the kernel lists GPUs.

    Without this check, trials would silently run on CPUs.

    Raises:
        ConfigError: ``CUDA_VISIBLE_DEVICES`` selects no GPU of this machine.
        SetupError: the driver does not answer.
    """
    if gpus_are_simulated() or hides_all_gpus() or not nvidia_smi.has_devices() or gpus_here():
        return
    value = os.environ.get("CUDA_VISIBLE_DEVICES")
    listing = nvidia_smi.run("-L")
    if listing.output and value:
        gpus = ", ".join(listing.output.splitlines())
        raise ConfigError(
            f"CUDA_VISIBLE_DEVICES={value} contains a GPU that this machine does not have, or "
            "contains the same GPU twice",
            hint=f"Set the variable to numbers or UUIDs from this list: {gpus}. To use all "
            "GPUs, unset the variable. To run on CPUs, run `export CUDA_VISIBLE_DEVICES=`",
        )
    version = nvidia_smi.driver_version()
    driver = f"driver {version}" if version else "driver"
    restart = "Restart the machine if the driver was updated since the last start"
    if nvidia_smi.is_wsl_with_gpu():
        restart = "Type `wsl --shutdown` in Windows, and start Linux again"
    raise SetupError(
        f"This machine has a GPU, but NVIDIA's {driver} does not answer. The error of "
        f"nvidia-smi: {listing.error or 'no GPU is listed'}",
        hint=f"{restart}. In a container, request the driver capabilities `compute,utility`. To "
        "run on CPUs, run `export CUDA_VISIBLE_DEVICES=`",
    )


def weakest_gpu_model(check_folders: Iterable[Path]) -> PlannedGpus:
    """Return the model of GPU for plans on this machine, and the number of GPUs.

    If the machine has several models, the result combines them. Speed and memory are those of
    the model with the least memory. The compute capability is the lowest of all models.

    Args:
        check_folders: folders with files of ``isweep gpu-check``.
    """
    checks = read_checks(check_folders)
    models = [gpu.model(checks) for gpu in gpus_here()]
    if not models:
        return PlannedGpus(None, 0)
    smallest = min(models, key=lambda model: (model.memory_gib, model.half_tflops))
    oldest = min(models, key=lambda model: model.capability)
    return PlannedGpus(replace(smallest, capability=oldest.capability), len(models))
