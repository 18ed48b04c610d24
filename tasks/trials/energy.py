"""How many joules a card used, by its own counter (NVML, which comes with NVIDIA's driver)."""

from __future__ import annotations

import ctypes

import torch


class EnergyMeter:
    """Counts from when it is made.

    Attributes:
        note: why nothing is counted; empty where it is.
    """

    def __init__(self, device: torch.device) -> None:
        self.note = ""
        self._start: int | None = None
        if device.type != "cuda":
            self.note = "no card: the energy of a CPU is not counted"
            return
        try:
            uuid = torch.cuda.get_device_properties(device).uuid
            self._card = _Card(f"GPU-{uuid}")
            self._start = self._card.millijoules()
        except (OSError, AttributeError) as error:  # no NVML, or one without this
            self.note = f"the card's energy cannot be read: {error}"

    def joules(self) -> float | None:
        """Return what was used since; None where it is not counted."""
        if self._start is None:
            return None
        try:
            return (self._card.millijoules() - self._start) / 1000
        except OSError as error:
            self.note = f"the card's energy cannot be read: {error}"
            return None


class _Card:
    """NVML's view of one card, by UUID: device numbers of torch and of the driver need not agree."""

    def __init__(self, uuid: str) -> None:
        self._nvml = ctypes.CDLL("libnvidia-ml.so.1")
        self._handle = ctypes.c_void_p()
        _checked(self._nvml.nvmlInit_v2())
        _checked(self._nvml.nvmlDeviceGetHandleByUUID(uuid.encode(), ctypes.byref(self._handle)))

    def millijoules(self) -> int:
        """Return the card's counter, which starts when the driver is loaded."""
        found = ctypes.c_ulonglong()
        _checked(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle, ctypes.byref(found)))
        return int(found.value)


def _checked(code: int) -> None:
    if code:
        raise OSError(f"NVML gave error {code}")
