"""Small networks of our own, for short trainings on a CPU.

A network is one function here, and one row in :mod:`search_spaces.models` with the function's name
as its architecture. A function takes keyword arguments only. It returns a module that maps float
pixels ``(num_images, in_channels, image_size, image_size)`` to logits ``(num_images,
num_outputs)``.
"""

from __future__ import annotations

from torch import Tensor, nn

_MAX_POOLS = (nn.MaxPool2d, nn.AdaptiveMaxPool2d)


def small_cnn(*, num_outputs: int, in_channels: int, image_size: int) -> nn.Module:
    """Return three convolutions with batch norm, and one linear layer."""
    return PoolsFirst(
        *_stage(in_channels, 8, nn.MaxPool2d(2)),
        *_stage(8, 16, nn.MaxPool2d(2)),
        # The maximum over a coarse grid, not the mean of the image: a small lesion must not be
        # averaged away.
        *_stage(16, 32, nn.AdaptiveMaxPool2d(4)),
        nn.Flatten(),
        nn.Dropout(0.0),
        nn.Linear(16 * 32, num_outputs),
    )


def _stage(num_in: int, num_out: int, pool: nn.Module) -> list[nn.Module]:
    convolution = nn.Conv2d(num_in, num_out, 3, padding=1, bias=False)
    return [convolution, nn.BatchNorm2d(num_out), nn.ReLU(inplace=True), pool]


class PoolsFirst(nn.Sequential):
    """A sequence of layers that pools before each ReLU while it trains.

    The order changes no number and no gradient: a ReLU keeps the order of numbers, and passes no
    gradient where the largest is not above 0. But only a quarter of the values reach the ReLU.
    """

    def forward(self, images: Tensor) -> Tensor:
        """Return the output of the last layer."""
        layers = list(self)
        if self.training:
            for index in range(1, len(layers)):
                relu, pool = layers[index - 1 : index + 1]
                if isinstance(relu, nn.ReLU) and isinstance(pool, _MAX_POOLS):
                    layers[index - 1 : index + 1] = [pool, relu]
        for layer in layers:
            images = layer(images)
        return images


def small_mlp(*, num_outputs: int, in_channels: int, image_size: int) -> nn.Module:
    """Return two hidden layers of 128 and 64 units."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(in_channels * image_size**2, 128),
        nn.ReLU(inplace=True),
        nn.Linear(128, 64),
        nn.ReLU(inplace=True),
        nn.Dropout(0.0),
        nn.Linear(64, num_outputs),
    )
