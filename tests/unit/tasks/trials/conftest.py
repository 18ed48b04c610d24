"""A trial of a small network on drawn images, and what several tests do with one."""

import numpy as np
import pytest
import torch

from search_spaces.specs import (
    AttackSpec,
    ModelSpec,
    NetworkSpec,
    PreparedSpec,
    RecipeSpec,
    RepresentationSpec,
    SubsetSpec,
    TrialSpec,
)
from tasks.prepared.subsets import TrialData
from tasks.trials.models import build_model

torch.set_num_threads(1)  # work this small is only slowed by threads that wait for each other


def built(architecture, library="torchvision", **changes):
    """Build a network for images of one channel and two classes."""
    spec = ModelSpec(name="any", library=library, architecture=architecture)
    usual = {"num_outputs": 2, "in_channels": 1, "input_scale": 1.0, "dropout": None, "seed": 0}
    return build_model(spec, **{"image_size": 32, **usual, **changes})


def pixels_of(num_images, channels=1, side=32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(
        0, 256, (num_images, channels, side, side), generator=generator, dtype=torch.uint8
    )


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def equal(ours, theirs):
    return set(ours) == set(theirs) and all(torch.equal(ours[name], theirs[name]) for name in ours)


def network_spec(architecture="small_cnn", library="isweep", train_size=48, **changes):
    recipe = {
        "name": "test",
        "epochs": 10,
        "batch_size": 16,
        "learning_rate": 5e-3,
        "input_scale": 1 / 255,
    }
    prepared = PreparedSpec(dataset="made_up", image_size=12, channels=1)
    return NetworkSpec(
        model=ModelSpec(name=architecture, library=library, architecture=architecture),
        subset=SubsetSpec(prepared=prepared, test_size=20),
        train_size=train_size,
        recipe=RecipeSpec(**recipe | changes),
    )


def trial_spec(*network, num_neighbors=10, **changes):
    return TrialSpec(
        network=network_spec(*network, **changes),
        attacks=AttackSpec(epsilons=(0.5, 1.0, 2.0, 4.0, 8.0)),
        representation=RepresentationSpec(num_neighbors=num_neighbors),
    )


def bright_squares():
    """Bright squares on the left (0) or the right (1) over noise; read-only, as Ray hands arrays
    out."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 120, (80, 1, 12, 12), dtype=np.uint8)
    labels = (np.arange(80) % 2).astype(np.int64)
    for image, label in zip(images, labels, strict=True):
        image[0, 3:8, (1 + 6 * label) : (5 + 6 * label)] += 130
    for array in (images, labels):
        array.setflags(write=False)
    return TrialData(images[:60], labels[:60], images[60:], labels[60:], 2, "made up")


@pytest.fixture(scope="session")
def data():
    return bright_squares()


def numbers(result):
    """Return the numbers of a result that may not depend on when and beside what the trial ran."""
    history = [(row.epoch, row.train_loss, row.train_accuracy) for row in result.history]
    return (
        result.scores,
        result.d_repr,
        result.attacks,
        history,
        result.test_history,
        result.best_epoch,
    )


class Shelf:
    """A store in memory for the latest bytes."""

    def __init__(self):
        self.data = None
        self.num_saved = 0

    def read(self):
        return self.data

    def save(self, content):
        self.data, self.num_saved = content, self.num_saved + 1


class Killed(Exception):
    pass


def killed_at(epoch):
    def kill(record):
        if record.epoch == epoch:
            raise Killed(f"in epoch {epoch}")

    return kill
