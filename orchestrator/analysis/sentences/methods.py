"""A paragraph for the methods section of a paper, from the facts of a sweep.

Each sentence states a setting of the sweep or a fact of its stored results. The paragraph
omits settings that differ between trials. The sweep file contains all settings.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import attrgetter
from typing import Any

from orchestrator.analysis.number_formats import listing
from orchestrator.planning.plan import SweepPlan
from orchestrator.results.records import TrialRecord
from search_spaces.datasets import DATASETS, ORIGINS
from search_spaces.errors import plural
from search_spaces.specs import (
    AttackSpec,
    DatasetSpec,
    MeasureSpec,
    RecipeSpec,
    SubsetSpec,
    TrialSpec,
)

OPTIMIZERS = {
    "adam": "Adam with coupled weight decay",
    "adamw": "AdamW",
    "sgd": "stochastic gradient descent with momentum 0.9",
}
"""Name of an optimizer in a paper, by its name in a recipe."""
PRECISIONS = {
    "float32": "",
    "bfloat16": ", forward pass in bfloat16",
    "float16_unscaled": ", forward pass in float16 without scaling of gradients",
}
"""Text on the precision of a recipe, by name of the precision. It is empty for the usual
float32."""
MAX_LISTED = 12
"""Largest number of values that a sentence lists. If there are more values, the sentence gives
only their number."""


def methods_paragraph(
    plan: SweepPlan, records: Mapping[str, TrialRecord], *, has_groups: bool
) -> list[str]:
    """Return the sentences of the paragraph for a methods section.

    Args:
        plan: The plan of the sweep.
        records: Stored results by trial id. Results of trials that are not in the plan do not
            count.
        has_groups: True if the images of a prepared dataset form groups, such as patients.
    """
    done = [records[trial_id] for trial_id in plan.trials_by_id if trial_id in records]
    return [
        *_images(plan),
        *_subsets(plan, has_groups),
        *_training(plan.trials),
        *_measures(plan.measures, plan.largest_size),
        *_attacks(plan.trials),
        *_computation(len(plan.trials), done),
    ]


def _images(plan: SweepPlan) -> Iterator[str]:
    """Yield sentences on the datasets and the preparation of their images."""
    subsets = _distinct(plan.trials, "network.subset")
    experiment = plan.sweep.list_experiment_datasets()
    if experiment:
        worlds = _distinct(experiment, "base_name")
        yield (
            f"The networks learned to classify the images of {plural(len(worlds), 'base dataset')} "
            f"and of changed copies. The sweep file describes the changes."
        )
    else:
        titles = []
        for name in _distinct(subsets, "dataset"):
            titles.append(_title(name, plan.datasets.get(name)))
        yield f"The networks learned to classify the images of {_listed(titles, 'dataset')}."
    sides = _distinct(subsets, "prepared.image_size")
    if len(sides) == 1:
        yield f"The images have {sides[0]} × {sides[0]} pixels."
    if _has_faults(subsets):
        yield "The data were prepared with known faults of the study's released code."


def _has_faults(subsets: Iterable[SubsetSpec]) -> bool:
    """Return whether the preparation repeats faults of the released code on purpose."""
    is_released = "as_released" in _distinct(subsets, "prepared.data_mode")
    return is_released or any(_distinct(subsets, "prepared.faults"))


def _title(name: str, spec: DatasetSpec | None) -> str:
    """Return the title of a bundled dataset, or the name of a user's dataset."""
    if spec is not None and name in DATASETS and spec.description == DATASETS[name].description:
        return spec.title
    return name


def _subsets(plan: SweepPlan, has_groups: bool) -> Iterator[str]:
    """Yield sentences on the training images and the test images."""
    subsets = _distinct(plan.trials, "network.subset")
    if None not in _distinct(subsets, "class_pair"):
        verb = "is" if len(subsets) == 1 else "are"
        pairs = plural(len(subsets), "pair")
        yield f"Each task has two classes. There {verb} {pairs} of classes."
    train_sizes = []
    for train_size in sorted(_distinct(plan.trials, "network.train_size")):
        train_sizes.append(f"{train_size:,}")
    yield f"The networks were trained on {listing(train_sizes, 'or')} images."
    if _has_faults(subsets):
        # For each of the following sentences, a fault of the released code makes it wrong.
        return
    has_sizes = len(train_sizes) > 1
    if has_sizes:
        yield (
            "Training sets are stratified by class and nested: a larger training set contains "
            "the smaller ones."
        )
    else:
        yield "Training sets are stratified by class."
    test_sizes = _distinct(subsets, "test_size")
    if len(test_sizes) == 1:
        yield f"Each test set has {test_sizes[0]:,} other images."
        if has_sizes:
            yield "The test set of a dataset is the same for all train sizes."
    if has_groups:
        yield (
            "If a dataset lists groups of images, such as patients, no group is in both "
            "training and test set."
        )
    num_cut = 0
    for name in _distinct(subsets, "prepared.dataset"):
        # A user's dataset may have the same name as a bundled dataset, so descriptions are
        # compared.
        if name in ORIGINS and plan.datasets[name].description == DATASETS[name].description:
            num_cut += bool(ORIGINS[name].cut_from)
    if num_cut:
        # Without these words, the following sentence would contradict the sentence on groups.
        unlisted = ", which are not listed as groups" if has_groups else ""
        yield (
            f"In {plural(num_cut, 'dataset')}, training and test images were cut from the "
            f"same few pictures{unlisted}."
        )
    if plan.further_tests_by_dataset:
        yield "Each network was also tested on changed copies of the test images."


def _training(trials: Sequence[TrialSpec]) -> Iterator[str]:
    """Yield sentences on the networks and their training."""
    models = _distinct(trials, "network.model")
    names = _distinct(models, "name")
    yield f"The study has {_listed(names, 'network architecture')}."
    are_pretrained = _distinct(models, "pretrained")
    if len(are_pretrained) == 1:
        start = "pretrained" if are_pretrained[0] else "random"
        yield f"Training started from {start} weights."
    seeds = plural(len(_distinct(trials, "network.seed")), "random seed")
    yield f"Each network was trained with {seeds} on each training set."
    yield from _settings(trials)
    yield "Images were not augmented. All results were measured after the last epoch."


def _settings(trials: Sequence[TrialSpec]) -> Iterator[str]:
    """Yield a sentence on the settings of the training.

    If they differ, yield one for each network.
    """
    settings_by_model: defaultdict[str, set[str]] = defaultdict(set)
    for network in _distinct(trials, "network"):
        settings_by_model[network.model.name].add(_settings_of(network.recipe))
    distinct = set().union(*settings_by_model.values())
    if len(distinct) == 1:
        yield f"Each network was trained {distinct.pop()}."
    elif all(len(settings) == 1 for settings in settings_by_model.values()):
        for model, settings in settings_by_model.items():
            yield f"The network {model} was trained {settings.pop()}."
    else:
        names = _distinct(trials, "network.recipe.name")
        noun = "recipe" if len(names) == 1 else "recipes"
        recipes = f"isweep's {noun} {', '.join(names)}"
        yield f"The settings of the training differ between trials ({recipes})."


def _settings_of(recipe: RecipeSpec) -> str:
    """Return the settings of a recipe as words that end a sentence."""
    outputs = ""
    if recipe.num_outputs is not None:
        outputs = f", {plural(recipe.num_outputs, 'output')}"
    return (
        f"for {plural(recipe.epochs, 'epoch')} with {OPTIMIZERS[recipe.optimizer]} (learning "
        f"rate {recipe.learning_rate:g}, weight decay {recipe.weight_decay:g}, batch size "
        f"{recipe.batch_size}{PRECISIONS[recipe.precision]}{outputs})"
    )


def _measures(measures: Sequence[MeasureSpec], largest_size: int) -> Iterator[str]:
    """Yield sentences on intrinsic dimension and label sharpness."""
    measured = []
    for measure in measures:
        # The report uses the maximum likelihood estimate, also if there are other estimates.
        if "mle" in measure.estimators:
            measured.append(measure)
    for num_neighbors in _distinct(measured, "num_neighbors"):
        yield (
            "The intrinsic dimension of the training images is the maximum likelihood "
            f"estimate from {num_neighbors} nearest neighbors (Levina and Bickel 2004; mean "
            "over images as in MacKay and Ghahramani 2005)."
        )
    seeds = _distinct(measures, "sharpness_seeds")
    for sample_size in _distinct(measures, "sharpness_sample"):
        images = "training images with different labels"
        # If a training set is smaller than the sample, all its images are measured.
        if sample_size is not None and sample_size < largest_size:
            images = (
                "images with different labels, as a mean over "
                f"{plural(len(seeds[0]), 'sample')} of at most {sample_size:,} training images"
            )
        yield f"Label sharpness is 1 / the smallest distance between {images}."


def _attacks(trials: Sequence[TrialSpec]) -> Iterator[str]:
    """Yield a sentence for each attack."""
    for attacks in _distinct(trials, "attacks"):
        epsilons = []
        for epsilon in attacks.epsilons:
            epsilons.append(f"{epsilon:g}")
        for method in attacks.methods:
            yield (
                f"On the test images, {method.upper()}{_parameters(attacks, method)} changed "
                f"each pixel by at most {', '.join(epsilons)} (in 1/255 of the pixel range)."
            )


def _parameters(attacks: AttackSpec, method: str) -> str:
    """Return the parameters of an attack in parentheses; empty if the attack has none."""
    values = []
    for name, value in attacks.all_parameters(method).items():
        values.append(f"{name.removeprefix('num_').replace('_', ' ')} {value:g}")
    return f" ({', '.join(values)})" if values else ""


def _computation(num_planned: int, done: Sequence[TrialRecord]) -> Iterator[str]:
    """Yield sentences on the number of results, and on the software and devices."""
    yield f"Results exist for {len(done):,} of {plural(num_planned, 'planned training')}."
    if done:
        versions = ", ".join(sorted(_distinct(done, "provenance.code_version")))
        torch_versions = set()
        for record in done:
            torch_versions.add(record.provenance.packages.get("torch", "of unknown version"))
        devices = ", ".join(sorted(_distinct(done, "result.device")))
        num_split = sum(record.result.micro_batch is not None for record in done)
        if num_split:
            yield (
                f"For lack of memory, {plural(num_split, 'training')} split each batch into "
                "parts. In networks with batch norm, batch norm then used the statistics of each "
                "part."
            )
        yield (
            f"The trainings used isweep {versions} and PyTorch {', '.join(sorted(torch_versions))} "
            f"on {devices}."
        )


def _distinct(specs: Iterable[Any], field: str) -> list[Any]:
    """Return the distinct values of a field, such as ``network.seed``, in order of occurrence."""
    return list(dict.fromkeys(map(attrgetter(field), specs)))


def _listed(names: Sequence[str], noun: str) -> str:
    """Return the number of names with a noun, followed by the names if they are few."""
    count = plural(len(names), noun)
    return f"{count}: {', '.join(names)}" if len(names) <= MAX_LISTED else count
