"""The order that costs less gives the numbers of the library's own, to the last bit."""

import copy
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from search_spaces.specs import RecipeSpec
from tasks.trials.isolation import deterministic
from tasks.trials.layer_order import pools_before_relus
from tasks.trials.training import train


def stack(pool: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(inplace=True), pool, nn.Conv2d(6, 4, 3))


def names(network: nn.Module) -> list[str]:
    return [type(layer).__name__ for layer in network.modules()]


def trained(network: nn.Module, pixels: torch.Tensor, order, *, half: bool) -> list[torch.Tensor]:
    """Weights after five steps, and what a gradient of the pixels is then."""
    optimiser = torch.optim.Adam(network.parameters(), 1e-2)
    with deterministic("cpu", num_threads=1), order:
        for _ in range(5):
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                loss = network(pixels).float().square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        asked = pixels.clone().requires_grad_()
        network(asked).square().mean().backward()
    assert asked.grad is not None
    return [*(parameter.detach() for parameter in network.parameters()), asked.grad]


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize(
    "pool",
    [nn.MaxPool2d(2), nn.MaxPool2d(3, 2), nn.MaxPool2d(3, 2, padding=1), nn.AdaptiveMaxPool2d(5)],
    ids=["whole windows", "overlapping", "padded", "adaptive"],
)
def test_weights_and_gradients_stay_the_same_to_the_last_bit(pool, half):
    torch.manual_seed(0)
    # Few values, so that many windows hold ties and many are black.
    pixels = torch.randint(0, 3, (8, 1, 14, 14)).float()
    plain = stack(pool)
    other = copy.deepcopy(plain)
    with pools_before_relus(other):
        assert names(other)[2:4] == [type(pool).__name__, "ReLU"]
    theirs = trained(plain, pixels, nullcontext(), half=half)
    ours = trained(other, pixels, pools_before_relus(other), half=half)
    assert all(map(torch.equal, theirs, ours))


@pytest.mark.parametrize("architecture", ["vgg11", "vgg11_bn", "alexnet", "squeezenet1_1"])
def test_torchvisions_networks_keep_their_numbers_and_the_names_of_their_weights(architecture):
    import torchvision

    torch.manual_seed(0)
    network = torchvision.models.get_model(architecture, num_classes=2).eval()
    pixels = torch.rand(2, 3, 64, 64)
    plain, weights, layers = network(pixels), list(network.state_dict()), names(network)
    with pools_before_relus(network):
        assert torch.equal(network(pixels), plain)
        assert list(network.state_dict()) == weights
        assert names(network) != layers
    assert names(network) == layers


def test_a_training_has_the_cheaper_order_and_leaves_the_librarys_whatever_happens():
    torch.manual_seed(0)
    network = nn.Sequential(*stack(nn.MaxPool2d(2)), nn.Flatten(), nn.Linear(36, 2))
    images, labels = torch.randint(0, 256, (8, 1, 10, 10), dtype=torch.uint8), torch.arange(8) % 2
    before, seen = names(network), []

    def look(record):
        seen.append(names(network))
        raise InterruptedError("in the middle")

    with pytest.raises(InterruptedError, match="in the middle"):
        train(network, images, labels, RecipeSpec(name="r", batch_size=4), seed=0, on_epoch=look)
    assert seen[0][2:4] == ["MaxPool2d", "ReLU"]
    assert names(network) == before


class Skipping(nn.Sequential):
    """Computes something else than its order."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self[1](pixels)


@pytest.mark.parametrize(
    "network",
    [
        nn.Sequential(nn.LeakyReLU(), nn.MaxPool2d(2)),
        nn.Sequential(nn.ReLU(), nn.AvgPool2d(2)),
        nn.Sequential(nn.ReLU(), nn.MaxPool2d(2, return_indices=True)),
        nn.ModuleList([nn.ReLU(), nn.MaxPool2d(2)]),
        nn.Sequential(nn.ReLU(), nn.MaxPool2d(2), Skipping(nn.ReLU(), nn.Flatten())),
    ],
    ids=["another activation", "mean", "indices", "no order", "somebody's own layer"],
)
def test_what_might_not_be_the_same_is_left(network):
    before = names(network)
    with pools_before_relus(network):
        assert names(network) == before
