"""Sentences and numbers of an estimate, as ``isweep plan`` prints them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from search_spaces.errors import plural


def amount(value: float) -> str:
    """Spell an amount to two figures, without exponents: ``17,000``, ``0.45``, ``under 0.001``."""
    rounded = float(f"{value:.2g}")
    small = "0" if value == 0 else "under 0.001"
    return (
        small if abs(value) < 1e-3 else f"{rounded:,.0f}" if abs(rounded) >= 10 else f"{rounded:g}"
    )


def roughly(value: float) -> str:
    """Spell an estimate in a sentence: ``about 17,000``, ``under 0.001``, ``0``."""
    found = amount(value)
    return found if found.startswith("under") or found == "0" else f"about {found}"


def estimate_text(result: dict[str, Any]) -> str:
    """Return what an estimate says, in sentences."""
    left = plural(result["trials_left"], "trial")
    largest = f"largest trial {amount(result['memory_bytes'] / 2**30)} GiB"
    hours, cluster, cpus = result["cpu_hours"], result["cluster"], result["num_cpus"]
    until = f"{roughly(hours)} h" if hours >= 2 else f"{roughly(max(1.0, 60 * hours))} min"
    cores = f"{until} on {plural(cpus, 'CPU')}"
    begin, assumed = f"left: {left}, {cores}; {largest}", f" ({result['assumptions']})"
    if not result["trials_left"]:
        return "left: 0 trials"
    if cluster is None:
        return f"{begin}{assumed}. No GPU is here, and none was named: --gpu h100 plans for one"
    gpus = f"{cluster['num_gpus']} {cluster['gpu']}" + ("s" if cluster["num_gpus"] > 1 else "")
    shares = ", ".join(f"{name} {share:g}" for name, share in cluster["shares"].items())
    named = ", ".join(
        f"{name} {amount(size / 2**30)} of "
        f"{amount(min(cluster['shares'][name], 1.0) * cluster['gpu_data']['memory_gib'])} GiB"
        for name, size in cluster["too_large"].items()
    )
    too_large = named and (
        f"\nmore memory than the share has: {named}; such trials end out of memory and start again "
        "with "
        "twice the share, up to a whole GPU; then they fail, or pass batches in parts where no "
        "batch norm "
        "forbids it: choose a larger GPU, or a smaller recipe.batch_size"
    )
    if result["refused"]:
        name = result["refused"][0]
        return (
            f"{begin}. On {gpus} a run is refused: recipe {name} computes in bfloat16, which it "
            "has not: "
            "--set recipe.precision=float32, or another GPU"
        )
    if not cluster["gpu_data"]["timed"]:
        unknown = "the time cannot be known: isweep gpu-check measures it"
        return f"{begin}. On {gpus} {unknown}{assumed}{too_large}"
    return (
        f"left: {left}, {roughly(result['gpu_hours'])} GPU-hours or {cores}; {largest}. On {gpus}: "
        f"{amount(result['hours_one_at_a_time'])} h one trial at a time, "
        f"{amount(cluster['hours'])} h where "
        "trials share GPUs and fill each other's gaps, under MPS, "
        f"{100 * cluster['utilisation']:.0f} % "
        f"used, {roughly(cluster['dollars'])} $ and {amount(cluster['kilowatt_hours'])} kWh; "
        f"share of a GPU: {shares or 'none'}{assumed}{too_large}"
    )


def extras_text(found: Mapping[str, Any]) -> str:
    """Say what :func:`extras` found."""
    shares = {kind: share for kind, share in found["attack_shares"].items() if share}
    words = (
        f"attacks: {sum(shares.values()):.0%} of training"
        if found["attack_shares"]
        else "nothing is trained"
    )
    if len(shares) > 1:
        words += f" ({', '.join(f'{kind} {one:.0%}' for kind, one in shares.items())})"
    parts = [f"kept weights: {amount(found['weights_bytes'] / 2**30)} GiB in all"]
    if kept := found["predictions_bytes"]:
        parts.append(f"kept predictions: {amount(kept / 2**30)} GiB in all")
    parts.append(words)
    if found["num_measured"]:
        parts.append(
            f"{found['num_measured']} trained networks are only measured, none of them trained "
            "again"
        )
    if found["num_retrained"]:
        parts.append(
            f"{found['num_retrained']} networks are trained again: their weights were not kept"
        )
    parts += [
        f"costs of {name} are guessed from its weights: {w}"
        for name, w in found["uncounted"].items()
    ]
    return "; ".join(parts)
