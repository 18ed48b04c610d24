"""The released loop, transcribed by hand, and other libraries' code against ours: equal to the last
bit."""

import warnings
from copy import deepcopy

import pytest
import torch
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor

from search_spaces.fingerprint import derive_seed
from search_spaces.specs import RecipeSpec
from tasks.trials.representations import extract_features
from tasks.trials.training import train
from tests.unit.tasks.trials.conftest import built, equal, pixels_of
from tests.unit.tasks.trials.test_attacks import attacked


class PerItem(torch.utils.data.Dataset):
    """Images one by one, as the released data set hands them out: a float tensor and a label
    each."""

    def __init__(self, images, labels):
        self.images, self.labels = images, labels

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index].float(), self.labels[index]


def transcribed(network, images, labels, recipe, *, order_seed, dropout_seed):
    """Train as the released script does, given the seeds of batch order and dropout."""
    items = PerItem(images, labels)
    optimizer = torch.optim.Adam(
        network.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True
    )
    criterion = nn.CrossEntropyLoss()
    network.to(memory_format=torch.channels_last)
    order = torch.Generator().manual_seed(order_seed)
    losses = []
    torch.manual_seed(dropout_seed)
    for _ in range(recipe.epochs):
        network.train()
        rows = torch.randperm(len(items), generator=order).tolist()
        total = 0.0
        for start in range(0, len(rows), recipe.batch_size):
            batch = [items[row] for row in rows[start : start + recipe.batch_size]]
            inputs = torch.stack([image for image, _ in batch]).to(
                memory_format=torch.channels_last
            )
            targets = torch.stack([label for _, label in batch])
            optimizer.zero_grad()
            with torch.autocast(
                "cpu", dtype=torch.bfloat16, enabled=recipe.precision == "bfloat16"
            ):
                outputs = network(inputs)
            loss = criterion(outputs.float(), targets)
            loss.backward()
            optimizer.step()
            total += loss.item() * len(batch)
        losses.append(total / len(items))
    return losses


ONCE = ((1, "float32"), (3, "bfloat16"))
"""Each number of channels and each precision once."""
LOOPS = [
    *((("resnet18", 8, 1e-3), *setting) for setting in ONCE),
    pytest.param(("resnet18", 8, 1e-3), 1, "bfloat16", marks=pytest.mark.long),
    pytest.param(("resnet18", 8, 1e-3), 3, "float32", marks=pytest.mark.long),
    *(pytest.param(("resnet50", 6, 1e-3), *setting, marks=pytest.mark.long) for setting in ONCE),
    pytest.param(("vgg13", 6, 1e-4), 1, "float32", marks=pytest.mark.long),  # 129 million weights
    pytest.param(("vgg13", 6, 1e-4), 3, "bfloat16", marks=pytest.mark.long),
]


@pytest.mark.parametrize(
    ("network", "channels", "precision"),
    LOOPS,
    ids=lambda value: value[0] if isinstance(value, tuple) else str(value),
)
def test_training_is_the_released_loop_to_the_last_bit(network, channels, precision):
    architecture, batch_size, rate = network
    emulated = precision == "bfloat16" and not torch.ops.mkldnn._is_mkldnn_bf16_supported()
    if architecture != "resnet18" and emulated:
        pytest.skip("this processor emulates bfloat16, which takes minutes; ResNet-18 shows it")
    images, labels = pixels_of(16, channels), torch.arange(16) % 2
    if architecture == "vgg13":  # few steps take long enough
        images, labels = images[:8], labels[:8]
    settings = {
        "epochs": 2,
        "batch_size": batch_size,
        "learning_rate": rate,
        "precision": precision,
    }
    recipe = RecipeSpec(name="released", **settings)
    ours = built(architecture, in_channels=channels, seed=5)
    theirs = deepcopy(ours)
    seeds = {name: derive_seed(name.replace("_", " "), 7) for name in ("batch_order", "dropout")}
    expected = transcribed(
        theirs.network,
        images,
        labels,
        recipe,
        order_seed=seeds["batch_order"],
        dropout_seed=seeds["dropout"],
    )
    history = train(ours, images, labels, recipe, seed=7)
    assert [record.train_loss for record in history] == expected
    assert equal(ours.state_dict(), theirs.state_dict())


@pytest.mark.parametrize("epsilon", [0.5, 2.0, 8.0])
def test_fgsm_is_foolboxs_pixel_by_pixel(epsilon):
    foolbox = pytest.importorskip("foolbox")
    model, images = built("resnet18").eval(), pixels_of(6, seed=1).float()
    labels = torch.arange(6) % 2
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 255), device="cpu")
    attack = foolbox.attacks.LinfFastGradientAttack(random_start=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _, expected, _ = attack(
            wrapped, images, foolbox.criteria.Misclassification(labels), epsilons=epsilon
        )
    assert torch.equal(attacked("fgsm", model, images, labels, epsilon), expected)


@pytest.mark.parametrize(
    ("architecture", "node"),
    [
        ("resnet18", "layer4"),
        ("resnet50", "layer4"),
        pytest.param("vgg13", "classifier.3", marks=pytest.mark.long),
    ],
)
def test_features_are_those_of_torchvisions_extractor(architecture, node):
    model, images = built(architecture).eval(), pixels_of(5, seed=2).float()
    library = deepcopy(model.network)
    if architecture.startswith("vgg"):
        library.features.__class__ = nn.Sequential  # ours pools before its ReLUs in training
    extractor = create_feature_extractor(library, {node: "features"})
    pixels = images.to(memory_format=torch.channels_last)
    # The extractor returns the tensor itself, which VGG's ReLU then changes in place. Copies are
    # compared.
    for module in extractor.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    with torch.no_grad():
        expected = extractor(pixels)["features"].flatten(1)
    assert torch.equal(torch.from_numpy(extract_features(model, images)), expected)
