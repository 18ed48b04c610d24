"""Text of an estimate, as ``isweep plan`` prints it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from search_spaces.errors import plural

MIN_SHOWN = 1e-3
"""An amount below this number is printed as ``under 0.001``."""
MIN_IN_HOURS = 2.0
"""A time of at least this many hours is printed in hours. A shorter time is printed in
minutes."""


START_HOURS = 20 / 3600
"""Hours to start Ray and the workers, to measure the images and to write the report. On a
machine with 2 cores, a sweep of 1,200 images needed 18 s besides its trials."""
SLOWEST_CPU = 4.0
"""Upper end of the range of times on a CPU, divided by the prediction, if no trial has finished.
In a sweep of 24 trials on two cores, the ratios were 1.3 to 3. Other programs on the machine
raise them."""


def amount(value: float) -> str:
    """Format an amount with two significant digits and no exponent, for example ``17,000``."""
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
    """Return an estimate as sentences.

    The first sentence contains the number of trials and the time.

    Args:
        document: Result of :func:`orchestrator.planning.estimate.estimate`, without ``text``.
    """
    if not document["trials_left"]:
        return "No trials are left"
    left = f"{plural(document['trials_left'], 'trial')} left"
    on_cpus = f"{_time_on_cpus(document)} on {plural(document['num_cpus'], 'CPU')}"
    memory = f"The largest trial needs {_gib(document['memory_bytes'])}."
    assumptions = f"Assumptions: {document['assumptions']}."
    cluster = document["cluster"]
    if cluster is None:
        no_gpu = "This machine has no GPU. To plan for a GPU, add, for example, `--gpu h100`."
        return f"{left}: {on_cpus}. {memory} {no_gpu} {assumptions}"
    gpus = f"{cluster['num_gpus']} {cluster['gpu']}"
    if cluster["num_gpus"] > 1:
        gpus += "s"
    if document["refused"]:
        recipe = document["refused"][0]
        return (
            f"{left}. The trials cannot run on {gpus}: the recipe {recipe} needs bfloat16, but a "
            f"{cluster['gpu']} cannot compute in bfloat16. Add `--set recipe.precision=float32`, "
            f"or plan for another GPU. Without a GPU, the trials take {on_cpus}. {memory}"
        )
    if not cluster["gpu_data"]["timed"]:
        return (
            f"{left}. The time of the trials on {gpus} is unknown. To measure the speed of a "
            f"{cluster['gpu']}, run `isweep gpu-check` on a machine with this GPU. Without a GPU, "
            f"the trials take {on_cpus}. {memory} {assumptions}{_too_large(cluster)}"
        )
    shares = ", ".join(f"{name} {share:g}" for name, share in cluster["shares"].items())
    return (
        f"{left}: {_time(cluster['hours'])} on {gpus} if trials share GPUs under MPS, "
        f"{_time(document['hours_one_at_a_time'])} with one trial at a time per GPU, or {on_cpus}. "
        f"With MPS, the trials take {roughly(document['gpu_hours'])} GPU-hours and use "
        f"{100 * cluster['utilisation']:.0f} % of the GPUs' time. {memory} "
        f"Share of a GPU per trial: {shares}. {assumptions}{_too_large(cluster)}"
    )


def _time_on_cpus(document: Mapping[str, Any]) -> str:
    """Return the time of a run on CPUs. It is a range if no trial on a CPU has finished."""
    hours = document["cpu_hours"]
    if document["corrections"]["core_seconds"]:
        return _time(START_HOURS + hours)
    shortest = START_HOURS + hours
    longest = START_HOURS + SLOWEST_CPU * hours
    if longest >= MIN_IN_HOURS:
        return f"about {amount(shortest)} to {amount(longest)} h"
    low = amount(max(1.0, 60 * shortest))
    high = amount(max(1.0, 60 * longest))
    if low == high:
        return f"about {low} min"
    return f"about {low} to {high} min"


def _time(hours: float) -> str:
    if hours >= MIN_IN_HOURS:
        return f"{roughly(hours)} h"
    return f"{roughly(max(1.0, 60 * hours))} min"


def _gib(num_bytes: float) -> str:
    return f"{amount(num_bytes / 2**30)} GiB"


def _too_large(cluster: Mapping[str, Any]) -> str:
    """Return a warning if a model needs more memory than its share of a GPU has.

    Otherwise return no text.
    """
    if not cluster["too_large"]:
        return ""
    models = []
    for name, num_bytes in cluster["too_large"].items():
        share = min(cluster["shares"][name], 1.0)
        has_gib = amount(share * cluster["gpu_data"]["memory_gib"])
        needs_gib = amount(num_bytes / 2**30)
        models.append(f"{name} needs {needs_gib} GiB, but its share has {has_gib} GiB")
    return (
        f"\nSome trials need more memory than their share of the GPU has: {'; '.join(models)}. "
        "If a trial runs out of memory, isweep starts the trial again with twice the share, up "
        "to a whole GPU. If a whole GPU is too small and the network has no batch norm, isweep "
        "splits the batches. If the network has batch norm, the trial fails, unless the sweep "
        "sets `resources.micro_batches: on`. Choose a larger GPU, or a smaller "
        "`recipe.batch_size`."
    )


def extras_text(document: Mapping[str, Any]) -> str:
    """Return the costs of a plan besides training, as text.

    Args:
        document: Result of :func:`orchestrator.planning.extra_costs.extras`.
    """
    parts = [f"stored weights: {_gib(document['weights_bytes'])} in total"]
    if document["predictions_bytes"]:
        parts.append(f"stored predictions: {_gib(document['predictions_bytes'])} in total")
    parts.append(_attacks_text(document["attack_shares"]))
    if document["num_measured"]:
        parts.append(
            f"{plural(document['num_measured'], 'finished trial')} will be measured again "
            "with stored weights, without training"
        )
    if document["num_retrained"]:
        parts.append(
            f"{plural(document['num_retrained'], 'finished trial')} will be trained again, "
            "because no weights were stored"
        )
    for name, reason in document["uncounted"].items():
        parts.append(f"the costs of {name} are guessed from its number of weights: {reason}")
    return "; ".join(parts)


def _attacks_text(attack_shares: Mapping[str, float]) -> str:
    if not attack_shares:
        return "no trial is trained"
    requested = {kind: share for kind, share in attack_shares.items() if share}
    text = f"attacks: {sum(requested.values()):.0%} as many operations as training"
    if len(requested) > 1:
        text += f" ({', '.join(f'{kind} {share:.0%}' for kind, share in requested.items())})"
    return text
