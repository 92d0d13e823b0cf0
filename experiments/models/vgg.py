"""VGG-19."""

import jax
from flax import nnx

from experiments.models import layers


class VGG19(nnx.Module):
    """VGG-19 with BatchNorm and one linear layer: 20,024,000 weights for CIFAR-10.

    No layer has a bias. For CIFAR-100 it has 20,070,080 weights.

    Raises:
        UsageError: the images are smaller than 32x32 pixels.
    """

    def __init__(
        self,
        classes: int,
        image_shape: tuple[int, int, int] = (32, 32, 3),
        *,
        rngs: nnx.Rngs,
    ):
        layers.require_pixels("VGG19", image_shape, 32)
        height, width, channels = image_shape
        self.stages = nnx.List()
        for outputs, repeats in ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4)):
            stage = nnx.List()
            for _ in range(repeats):
                stage.append(layers.ConvNorm(channels, outputs, 3, rngs=rngs))
                channels = outputs
            self.stages.append(stage)
        flat = (height // 32) * (width // 32) * channels
        self.classifier = layers.linear(flat, classes, bias=False, rngs=rngs)

    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        features = images
        for stage in self.stages:
            for layer in stage:
                features = nnx.relu(layer(features, train))
            features = layers.halve(features)
        return self.classifier(layers.flatten(features))
