"""Joules of a trial: the GPU's counter, or a word why there is none."""

import ctypes
from types import SimpleNamespace

import pytest
import torch

from tasks.trials import isolation
from tasks.trials.isolation import EnergyMeter


class Nvml:
    """Stands in for NVIDIA's library, which is on no machine without a GPU."""

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


@pytest.fixture
def a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="ab-12"))


def test_the_difference_of_two_readings_is_in_joules(a_gpu, monkeypatch):
    nvml = Nvml([2**40, 2**40 + 12_345])
    monkeypatch.setattr(ctypes, "CDLL", lambda name: nvml)
    meter = EnergyMeter(torch.device("cuda"))
    assert (meter.joules(), meter.note, nvml.asked) == (12.345, "", b"GPU-ab-12")


def test_a_gpu_that_does_not_count_is_said_so(a_gpu, monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Nvml([0], code=3))  # NVML_ERROR_NOT_SUPPORTED
    meter = EnergyMeter(torch.device("cuda"))
    assert (meter.joules(), meter.note) == (None, "the GPU's energy cannot be read: NVML gave error 3")


def test_a_machine_without_nvml_is_said_so(a_gpu, monkeypatch):
    def missing(name):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(isolation.ctypes, "CDLL", missing)
    meter = EnergyMeter(torch.device("cuda"))
    assert meter.joules() is None
    assert "libnvidia-ml.so.1: cannot open" in meter.note


def test_a_cpu_has_none():
    meter = EnergyMeter(torch.device("cpu"))
    assert (meter.joules(), meter.note) == (None, "no GPU: the energy of a CPU is not counted")
