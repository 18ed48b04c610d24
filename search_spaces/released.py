"""What the released code of the study drew at random, so that its runs can be met (``docs/faults.md``, F8).

Its training script seeds Python's generator once with 1337 and draws two classes anew for every model,
natural dataset and train size, in the order of its loops. Nothing else in it draws from that generator, so
the pairs follow from the loops alone. One exception cannot be ruled out here: for ImageNet it draws again
when both classes together have fewer than N + 750 images, which would shift all later draws.
"""

from __future__ import annotations

import random
from functools import cache

from search_spaces.specs import ClassPair

RELEASED_SEED = 1337
RELEASED_MODELS = ("vgg13", "resnet18", "vgg16", "vgg19", "resnet34", "resnet50")
RELEASED_DATASETS = {"mnist": 10, "cifar10": 10, "svhn": 10, "imagenet": 1000}
RELEASED_TRAIN_SIZES = (500, 750, 1000, 1250, 1500, 1750)


@cache
def released_pairs() -> dict[tuple[str, str, int], ClassPair]:
    """Return the class pair of every (model, natural dataset, train size) of the released training script.

    The first class of a pair is label 0. ImageNet's pairs are indices into all 1,000 classes; whatever they
    are, the images are always tench and goldfish (F4).

    Example:
        >>> released_pairs()["vgg13", "mnist", 500]
        (9, 8)
    """
    generator = random.Random(RELEASED_SEED)
    pairs = {}
    for model in RELEASED_MODELS:
        for dataset, num_classes in RELEASED_DATASETS.items():
            for train_size in RELEASED_TRAIN_SIZES:
                first, second = generator.sample(range(num_classes), 2)
                pairs[model, dataset, train_size] = (first, second)
    return pairs
