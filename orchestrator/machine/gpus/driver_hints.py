"""Hints for the case that an NVIDIA driver, a version of torch and a GPU do not work together."""

from __future__ import annotations

OLDEST_DRIVER_BRANCH = {13: 580, 12: 525, 11: 450}
"""Oldest branch of NVIDIA's driver that works with each major version of CUDA. It works with
all minor versions of this major version (NVIDIA, "CUDA Compatibility", table 1)."""
LAST_CU126_TORCH = "2.14"
"""Last version of torch that has wheels for CUDA 12.6 (pytorch#190385)."""
FIRST_CAPABILITY_BEYOND_CU126 = 10.0
"""Lowest compute capability that CUDA 12.6 does not support: that of Blackwell GPUs (PyTorch's
RELEASE.md)."""
FIRST_CAPABILITY_OF_CU126 = 5.0
"""Lowest compute capability for which PyTorch's cu126 wheels have kernels: that of Maxwell
GPUs (PyTorch's RELEASE.md)."""
FIRST_CAPABILITY_OF_CUDA13 = 7.5
"""Lowest compute capability that CUDA 13 supports: that of Turing GPUs. The newest torch uses
CUDA 13."""
HINTS_BY_WORDS = {
    "stub library": "Remove the folder of CUDA's stubs from LD_LIBRARY_PATH",
    "MPS client": (
        "Start MPS again (`nvidia-cuda-mps-control -d`), or unset CUDA_MPS_PIPE_DIRECTORY"
    ),
    "system not yet initialized": "Start nvidia-fabricmanager: GPUs on an NVSwitch need it",
}
"""Hints for the case that torch cannot use a GPU. Each key is a part of CUDA's message. The
messages belong to cudaErrorStubLibrary, a dead MPS server, and cudaErrorSystemNotReady."""
UNKNOWN_ERROR = "CUDA unknown error"
"""Part of torch's message for cudaErrorUnknown. If the machine was suspended, new processes
get this message until the kernel module `nvidia_uvm` is loaded again (pytorch#49081)."""
RELOAD_MODULE_HINT = (
    "Type `sudo modprobe -r nvidia_uvm && sudo modprobe nvidia_uvm`, or restart the machine"
)
REINSTALL_TORCH = "pip uninstall --yes torch torchvision && pip install torch torchvision"
"""Command that replaces torch. The first part removes the installed torch. Otherwise pip would
not replace a torch of the same version, for example one without CUDA."""
REINSTALL_CU126_TORCH = f"{REINSTALL_TORCH} --index-url https://download.pytorch.org/whl/cu126"
"""Command that replaces torch by the last version with wheels for CUDA 12.6."""
WSL_DRIVER_HINT = (
    ". Linux runs inside Windows (WSL): install the driver in Windows, and do not install "
    "one in Linux. Then type `wsl --shutdown` in Windows"
)
"""Hint for WSL, which uses the driver of Windows. A driver in Linux would hide this driver
(NVIDIA, "CUDA on WSL User Guide", section "Getting Started with CUDA on WSL")."""
WSL_PACKAGES_HINT = (
    ". Linux runs inside Windows (WSL): if a package of NVIDIA's driver is installed in "
    "Linux, remove this package, because it hides the driver of Windows"
)


def driver_hint(
    driver: str,
    cuda: str | None,
    reason: str = "",
    capability: float = 0.0,
    *,
    is_wsl: bool = False,
) -> str:
    """Return a hint if the driver and torch do not work together.

    Args:
        driver: version of the driver, or an empty text if there is no driver.
        cuda: version of CUDA for which torch was built. It is None or an empty text for a
            torch without CUDA.
        reason: message of torch that says why it cannot use a GPU.
        capability: compute capability of the GPU, or 0 if it is unknown.
        is_wsl: True if Linux runs inside Windows (WSL).
    """
    for words, hint in HINTS_BY_WORDS.items():
        if words in reason:
            return hint
    # In WSL, Linux does not have this kernel module.
    if UNKNOWN_ERROR in reason and not is_wsl:
        return RELOAD_MODULE_HINT
    wsl_driver_hint = ""
    wsl_packages_hint = ""
    if is_wsl:
        wsl_driver_hint = WSL_DRIVER_HINT
        wsl_packages_hint = WSL_PACKAGES_HINT
    if not driver:
        return f"Install NVIDIA's driver{wsl_driver_hint}"
    if not cuda:
        return f"Install a torch with CUDA (`{REINSTALL_TORCH}`)"
    branch = int(driver.partition(".")[0])
    cuda_major = int(cuda.partition(".")[0])
    needed_branch = OLDEST_DRIVER_BRANCH.get(cuda_major, 0)
    if branch >= needed_branch:
        return (
            "Run `nvidia-smi`, and correct the error that it prints. The driver is new enough"
            f"{wsl_packages_hint}"
        )
    hint = (
        f"Install a driver of branch {needed_branch} or later for CUDA {cuda} (the present "
        f"driver is {driver})"
    )
    # The capability 0 is unknown.
    has_cu126_kernels = (
        not capability or FIRST_CAPABILITY_OF_CU126 <= capability < FIRST_CAPABILITY_BEYOND_CU126
    )
    if branch >= OLDEST_DRIVER_BRANCH[12] and has_cu126_kernels:
        hint += (
            f", or install torch {LAST_CU126_TORCH} or earlier from PyTorch's cu126 wheels, "
            "which work with the present driver"
        )
        if not capability:
            hint += ", but do not support GPUs of the series RTX 50 and B200"
        hint += f" (`{REINSTALL_CU126_TORCH}`)"
    return hint + wsl_driver_hint


def torch_hint(capability: float) -> str:
    """Return a hint that says which torch supports GPUs with this compute capability."""
    if capability >= FIRST_CAPABILITY_OF_CUDA13:
        return f"Install the newest torch (`{REINSTALL_TORCH}`)"
    if capability >= FIRST_CAPABILITY_OF_CU126:
        return (
            f"Install torch {LAST_CU126_TORCH} or earlier from PyTorch's cu126 wheels "
            f"(`{REINSTALL_CU126_TORCH}`)"
        )
    return "Use a newer GPU"
