"""Sentences and numbers of an estimate, as ``isweep plan`` prints them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from search_spaces.errors import plural

MIN_SHOWN = 1e-3
"""Smaller amounts are written as ``under 0.001``."""
MIN_IN_HOURS = 2.0
"""Hours from which a time is written in hours, and not in minutes."""


def amount(value: float) -> str:
    """Format an amount to two figures, without an exponent: ``17,000``, ``under 0.001``."""
    if value == 0:
        return "0"
    if abs(value) < MIN_SHOWN:
        return "under 0.001"
    rounded = float(f"{value:.2g}")
    if abs(rounded) >= 10:
        return f"{rounded:,.0f}"
    return f"{rounded:g}"


def roughly(value: float) -> str:
    """Format an estimate for a sentence: ``about 17,000``, ``under 0.001``, ``0``."""
    text = amount(value)
    if text == "0" or text.startswith("under"):
        return text
    return f"about {text}"


def estimate_text(document: Mapping[str, Any]) -> str:
    """Return what an estimate says; the first sentence is the answer.

    Args:
        document: What :func:`orchestrator.planning.estimate.estimate` made.
    """
    if not document["trials_left"]:
        return "No trials are left"
    left = f"{plural(document['trials_left'], 'trial')} left"
    on_cpus = f"{_time(document['cpu_hours'])} on {plural(document['num_cpus'], 'CPU')}"
    memory = f"The largest trial needs {_gib(document['memory_bytes'])}."
    assumed = f"Assumed: {document['assumptions']}."
    cluster = document["cluster"]
    if cluster is None:
        no_gpu = "This machine has no GPU. Plan for one with `--gpu h100`."
        return f"{left}: {on_cpus}. {memory} {no_gpu} {assumed}"
    gpus = f"{cluster['num_gpus']} {cluster['gpu']}"
    if cluster["num_gpus"] > 1:
        gpus += "s"
    if document["refused"]:
        recipe = document["refused"][0]
        return (
            f"{left}, but not on {gpus}: the recipe {recipe} needs bfloat16, which a "
            f"{cluster['gpu']} cannot compute. "
            "Use `--set recipe.precision=float32`, or another GPU. "
            f"Without a GPU the trials take {on_cpus}. {memory}"
        )
    if not cluster["gpu_data"]["timed"]:
        unknown = "the time is unknown until `isweep gpu-check` has measured this kind of GPU"
        return (
            f"{left}. On {gpus}, {unknown}. Without a GPU the trials take {on_cpus}. "
            f"{memory} {assumed}{_too_large(cluster)}"
        )
    shares = ", ".join(f"{name} {share:g}" for name, share in cluster["shares"].items())
    return (
        f"{left}: {_time(cluster['hours'])} on {gpus} if trials share GPUs under MPS, "
        f"{_time(document['hours_one_at_a_time'])} one trial at a time, or {on_cpus}. "
        f"That is {roughly(document['gpu_hours'])} GPU-hours, with the GPUs in use "
        f"{100 * cluster['utilisation']:.0f} % of the time. {memory} "
        f"Share of a GPU for a trial: {shares}. {assumed}{_too_large(cluster)}"
    )


def _time(hours: float) -> str:
    if hours >= MIN_IN_HOURS:
        return f"{roughly(hours)} h"
    return f"{roughly(max(1.0, 60 * hours))} min"


def _gib(num_bytes: float) -> str:
    return f"{amount(num_bytes / 2**30)} GiB"


def _too_large(cluster: Mapping[str, Any]) -> str:
    """Return a warning of models that need more memory than their share has, or nothing."""
    if not cluster["too_large"]:
        return ""
    models = []
    for name, num_bytes in cluster["too_large"].items():
        share = min(cluster["shares"][name], 1.0)
        share_gib = amount(share * cluster["gpu_data"]["memory_gib"])
        models.append(f"{name} needs {amount(num_bytes / 2**30)} of {share_gib} GiB")
    return (
        f"\nSome trials need more memory than their share of the GPU has: {', '.join(models)}. "
        "Such a trial runs out of memory and starts again with twice the share, up to a whole "
        "GPU. If a whole GPU is too small, a network without batch norm passes its batches in "
        "parts, and a trial of any other network fails. Choose a larger GPU, or a smaller "
        "recipe.batch_size."
    )


def extras_text(document: Mapping[str, Any]) -> str:
    """Return what a plan costs besides training.

    Args:
        document: What :func:`orchestrator.planning.extra_costs.extras` made.
    """
    parts = [f"kept weights: {_gib(document['weights_bytes'])} in all"]
    if document["predictions_bytes"]:
        parts.append(f"kept predictions: {_gib(document['predictions_bytes'])} in all")
    parts.append(_attacks_text(document["attack_shares"]))
    if document["num_measured"]:
        parts.append(
            f"{plural(document['num_measured'], 'finished trial')} will be measured again with "
            "the kept weights, without training"
        )
    if document["num_retrained"]:
        parts.append(
            f"{plural(document['num_retrained'], 'finished trial')} will be trained again, because "
            "no weights were kept"
        )
    for name, reason in document["uncounted"].items():
        parts.append(f"the costs of {name} are guessed from the size of its weights: {reason}")
    return "; ".join(parts)


def _attacks_text(attack_shares: Mapping[str, float]) -> str:
    if not attack_shares:
        return "nothing is trained"
    requested = {kind: share for kind, share in attack_shares.items() if share}
    text = f"attacks: {sum(requested.values()):.0%} of training"
    if len(requested) > 1:
        text += f" ({', '.join(f'{kind} {share:.0%}' for kind, share in requested.items())})"
    return text
