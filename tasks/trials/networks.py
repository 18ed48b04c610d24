"""Build isweep's small networks, which can be trained on a CPU in a short time.

Each network has one function in this module, and one row in :mod:`search_spaces.models`. The
field ``architecture`` of the row is the name of the function. The functions take only keyword
arguments. Each function returns a module that maps float pixels ``(num_images, in_channels,
image_size, image_size)`` to logits ``(num_images, num_outputs)``.
"""

from __future__ import annotations

from torch import Tensor, nn

_MAX_POOLS = (nn.MaxPool2d, nn.AdaptiveMaxPool2d)


def small_cnn(*, num_outputs: int, in_channels: int, image_size: int) -> nn.Module:
    """Return a network of three convolutions with batch norm and one linear layer."""
    return PoolsFirst(
        *_stage(in_channels, 8, nn.MaxPool2d(2)),
        *_stage(8, 16, nn.MaxPool2d(2)),
        # The last pooling returns the maximum in each cell of a grid of 4 x 4 cells. If it
        # returned the mean, a small lesion would hardly change the output.
        *_stage(16, 32, nn.AdaptiveMaxPool2d(4)),
        nn.Flatten(),
        nn.Dropout(0.0),
        nn.Linear(16 * 32, num_outputs),
    )


def _stage(num_in: int, num_out: int, pool: nn.Module) -> list[nn.Module]:
    convolution = nn.Conv2d(num_in, num_out, 3, padding=1, bias=False)
    return [convolution, nn.BatchNorm2d(num_out), nn.ReLU(inplace=True), pool]


class PoolsFirst(nn.Sequential):
    """A sequence of layers in which, during training, each max-pooling runs before its ReLU.

    This order is faster, because the ReLU then processes only a quarter of the values. The
    outputs are the same in both orders, because a ReLU does not change which number is the
    largest. The gradients are the same too, because a ReLU passes no gradient if the maximum
    is not above 0.
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
    """Return a network with two hidden layers of 128 and 64 units."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(in_channels * image_size**2, 128),
        nn.ReLU(inplace=True),
        nn.Linear(128, 64),
        nn.ReLU(inplace=True),
        nn.Dropout(0.0),
        nn.Linear(64, num_outputs),
    )
