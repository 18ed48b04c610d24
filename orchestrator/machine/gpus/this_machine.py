"""The GPUs of this machine on which a sweep can run, and the GPU for which plans are made."""

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
    """The GPUs of a machine, as plans count them.

    Attributes:
        model: GPU model for which hours and memory are predicted, or None if the machine has no
            GPU.
        number: number of GPUs.
    """

    model: GpuModel | None
    number: int


class _SmiRow(NamedTuple):
    """A row about a GPU in the output of ``nvidia-smi``.

    Attributes:
        name: the driver's name of the GPU.
        uuid: UUID of the GPU, for example ``GPU-1a2b...``.
        memory_mib: total memory in MiB. A GPU that shares the machine's memory (GB10) has no
            number.
        mig_mode: ``Enabled`` if the GPU has slices (MIG).
    """

    name: str
    uuid: str
    memory_mib: str
    mig_mode: str

    @property
    def has_memory_size(self) -> bool:
        """True if the row has the GPU's memory as a number."""
        return self.memory_mib.isdigit()

    @property
    def is_complete(self) -> bool:
        """True if the row has all facts that plans need. If not, torch must describe the GPU."""
        if not self.has_memory_size:
            return False
        if self.mig_mode == "Enabled":
            return False  # nvidia-smi describes the whole GPU, not its slices
        # For a GPU that no table lists, plans need its compute capability and its number of
        # processors, which only torch knows.
        return listed_gpu_model(self.name) is not None

    def as_gpu(self) -> Gpu:
        """Return the GPU of a row that has a memory size."""
        return Gpu(self.name, self.uuid, int(self.memory_mib) * nvidia_smi.MIB)


def gpus_here() -> list[Gpu]:
    """Return this machine's visible GPUs and slices (MIG).

    Torch takes seconds to start, so torch is used only if ``nvidia-smi`` does not suffice.

    Do not use the UUIDs of these GPUs if ``CUDA_VISIBLE_DEVICES`` has numbers. The UUIDs may then
    belong to other GPUs of the same model, see :func:`_from_nvidia_smi`.
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
    # Torch can use no GPU. The caller must see that there are GPUs: each trial then reports why
    # torch cannot use them.
    return [row.as_gpu() for row in rows if row.has_memory_size]


def _from_nvidia_smi(rows: list[_SmiRow], ids: list[str] | None) -> list[Gpu] | None:
    """Return the GPUs that CUDA uses, according to ``nvidia-smi``.

    CUDA may number the GPUs in another order than ``nvidia-smi``. So the UUIDs for a number may be
    those of another GPU of the same model. The model and the count of the GPUs are right.

    Args:
        rows: all GPUs of the machine.
        ids: numbers or UUIDs of the visible GPUs. None means all GPUs.

    Returns:
        The GPUs, or None if torch must describe them: there are no rows, a row is not complete, or
        there are numbers and several models of GPU.
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
    """Return the GPU with this number, or with a UUID that begins with ``gpu_id``. If there is no
    such GPU, return None.
    """
    if gpu_id.isdigit():
        number = int(gpu_id)
        return gpus[number] if number < len(gpus) else None
    return next((gpu for gpu in gpus if gpu.uuid.startswith(gpu_id)), None)


def check_driver() -> None:
    """Check that NVIDIA's driver answers if the kernel has GPUs.

    Without this check, trials would run on CPUs without a message.

    Raises:
        ConfigError: ``CUDA_VISIBLE_DEVICES`` lists no GPU of this machine.
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
            "GPUs, unset the variable. To run on CPUs, set the variable to an empty value",
        )
    version = nvidia_smi.driver_version()
    driver = f"driver {version}" if version else "driver"
    restart = "Restart the machine if the driver was updated since the last start"
    if nvidia_smi.is_wsl_with_gpu():
        restart = "Type `wsl --shutdown` in Windows, and start Linux again"
    raise SetupError(
        f"This machine has a GPU, but NVIDIA's {driver} does not answer: nvidia-smi: "
        f"{listing.error or 'no GPU is listed'}",
        hint=f"{restart}. In a container, request the driver capabilities compute,utility. To "
        "run on CPUs, set CUDA_VISIBLE_DEVICES=",
    )


def weakest_gpu_model(check_folders: Iterable[Path]) -> PlannedGpus:
    """Return the GPU model for plans on this machine, and the number of GPUs.

    If the machine has several models, the returned model combines them. It has the speed and the
    memory of the model with the least memory, and the lowest compute capability of all models.

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
