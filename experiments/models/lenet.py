"""The two LeNets."""

import math

import jax
from flax import nnx

from experiments.models import layers


class LeNet300100(nnx.Module):
    """Fully connected, 300 and 100 hidden units: 266,200 weights for MNIST."""

    def __init__(
        self,
        classes: int,
        image_shape: tuple[int, int, int] = (28, 28, 1),
        bias: bool = False,
        *,
        rngs: nnx.Rngs,
    ):
        self.fc1 = layers.linear(math.prod(image_shape), 300, bias=bias, rngs=rngs)
        self.fc2 = layers.linear(300, 100, bias=bias, rngs=rngs)
        self.fc3 = layers.linear(100, classes, bias=bias, rngs=rngs)

    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        hidden = nnx.relu(self.fc1(layers.flatten(images)))
        return self.fc3(nnx.relu(self.fc2(hidden)))


class LeNet5(nnx.Module):
    """The Caffe variant, 20-50-500 with biases: 430,500 weights for MNIST.

    Raises:
        UsageError: the images are smaller than 16x16 pixels.
    """

    def __init__(
        self,
        classes: int,
        image_shape: tuple[int, int, int] = (28, 28, 1),
        *,
        rngs: nnx.Rngs,
    ):
        layers.require_pixels("LeNet5", image_shape, 16)
        height, width = (((size - 4) // 2 - 4) // 2 for size in image_shape[:2])
        self.conv1 = layers.conv(image_shape[2], 20, 5, padding=0, bias=True, rngs=rngs)
        self.conv2 = layers.conv(20, 50, 5, padding=0, bias=True, rngs=rngs)
        self.fc1 = layers.linear(height * width * 50, 500, bias=True, rngs=rngs)
        self.fc2 = layers.linear(500, classes, bias=True, rngs=rngs)

    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        features = layers.halve(nnx.relu(self.conv1(images)))
        features = layers.halve(nnx.relu(self.conv2(features)))
        return self.fc2(nnx.relu(self.fc1(layers.flatten(features))))
