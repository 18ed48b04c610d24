"""Joules of a trial: the GPU's counter, or the reason why they are missing."""

import ctypes
from types import SimpleNamespace

import pytest
import torch

from tasks.trials.isolation import EnergyMeter, NvmlGpu


class Nvml:
    """A replacement for NVIDIA's library, which is missing on machines without a GPU."""

    def __init__(self, counts, code=0):
        self.counts, self.code, self.asked = list(counts), code, None

    def nvmlInit_v2(self):
        return 0

    def nvmlDeviceGetHandleByUUID(self, uuid, handle):
        self.asked = uuid
        return 0

    def nvmlDeviceGetTotalEnergyConsumption(self, handle, count):
        count._obj.value = self.counts.pop(0)
        return self.code

    def nvmlDeviceGetMemoryInfo(self, handle, memory_info):
        memory_info[:] = 40 * 2**30, 37 * 2**30, 3 * 2**30  # total, free, used
        return self.code


def no_library(name):
    raise OSError(f"{name}: cannot open shared object file")


METERS = {
    "the difference of two readings, in joules": ("cuda", [2**40, 2**40 + 12_345], 0, 12.345, ""),
    "a GPU that does not count": (
        "cuda",
        [0],
        3,
        None,
        "the GPU's energy cannot be read: NVML returned the error code 3",
    ),
    "a machine without NVML": ("cuda", None, 0, None, "libnvidia-ml.so.1: cannot open"),
    "a CPU": ("cpu", None, 0, None, "the trial ran on a CPU, whose energy isweep does not measure"),
}
"""Device, what the counter shows, NVML's error code (3: not supported), joules, words why there are
none."""


@pytest.mark.parametrize("name", METERS)
def test_energy_is_the_gpus_counter_or_missing_with_a_reason(name, monkeypatch):
    device, counts, code, joules, note = METERS[name]
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="ab-12")
    )
    nvml = Nvml(counts or [], code)
    monkeypatch.setattr(ctypes, "CDLL", (lambda name: nvml) if counts else no_library)
    read_joules, read_note = EnergyMeter(torch.device(device)).read()
    assert read_joules == joules
    assert note in read_note
    assert bool(read_note) == (joules is None)
    assert nvml.asked in (None, b"GPU-ab-12")


def test_the_used_memory_of_a_mig_slice_is_read_by_its_uuid(monkeypatch):
    nvml = Nvml([])
    monkeypatch.setattr(ctypes, "CDLL", lambda name: nvml)
    assert NvmlGpu("MIG-1").held_bytes() == 3 * 2**30
    assert nvml.asked == b"MIG-1"
    nvml.code = 3
    with pytest.raises(OSError, match="NVML returned the error code 3"):
        NvmlGpu("MIG-1").held_bytes()
