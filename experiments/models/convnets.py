"""Conv2, Conv4, Conv6 and Conv8."""

import jax
from flax import nnx

from experiments.models import layers


class ConvNet(nnx.Module):
    """Conv2, Conv4, Conv6 and Conv8 of the lottery-ticket and supermask papers, no BatchNorm.

    Pairs of 3x3 convolutions of 64, 128, 256 and 512 channels, each pair followed by pooling, then
    linear layers of 256, 256 and `classes`. For CIFAR-10 they have 4,300,992, 2,425,024, 2,261,184
    and 5,275,840 weights.

    Raises:
        ValueError: `depth` is not 2, 4, 6 or 8.
        UsageError: pooling would leave no pixel of the images.
    """

    def __init__(
        self,
        depth: int,
        classes: int,
        image_shape: tuple[int, int, int] = (32, 32, 3),
        bias: bool = False,
        *,
        rngs: nnx.Rngs,
    ):
        if depth not in (2, 4, 6, 8):
            raise ValueError(f"depth must be 2, 4, 6 or 8, got {depth}")
        shrink = 2 ** (depth // 2)
        layers.require_pixels(f"ConvNet of depth {depth}", image_shape, shrink)
        height, width, channels = image_shape
        self.convs = nnx.List()
        for outputs in (64, 128, 256, 512)[: depth // 2]:
            self.convs.append(layers.conv(channels, outputs, 3, padding=1, bias=bias, rngs=rngs))
            self.convs.append(layers.conv(outputs, outputs, 3, padding=1, bias=bias, rngs=rngs))
            channels = outputs
        flat = (height // shrink) * (width // shrink) * channels
        self.fc1 = layers.linear(flat, 256, bias=bias, rngs=rngs)
        self.fc2 = layers.linear(256, 256, bias=bias, rngs=rngs)
        self.fc3 = layers.linear(256, classes, bias=bias, rngs=rngs)

    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        features = images
        for index, conv in enumerate(self.convs):
            features = nnx.relu(conv(features))
            if index % 2 == 1:
                features = layers.halve(features)
        hidden = nnx.relu(self.fc1(layers.flatten(features)))
        return self.fc3(nnx.relu(self.fc2(hidden)))
