"""Residual networks: for small images, and for ImageNet."""

import math
from collections.abc import Sequence

import jax
from flax import nnx

from experiments.models.layers import ConvNorm, linear


class Residual(nnx.Module):
    """Convolutions beside a shortcut, which is a 1x1 convolution where the shape changes.

    `layers` has (outputs, width, strides) of each convolution.
    """

    def __init__(self, inputs: int, layers: Sequence[tuple[int, int, int]], *, rngs: nnx.Rngs):
        self.layers = nnx.List()
        channels = inputs
        for outputs, width, strides in layers:
            self.layers.append(ConvNorm(channels, outputs, width, strides, rngs=rngs))
            channels = outputs
        shrink = math.prod(strides for _, _, strides in layers)
        same_shape = shrink == 1 and channels == inputs
        self.shortcut = None if same_shape else ConvNorm(inputs, channels, 1, shrink, rngs=rngs)

    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        *inner_layers, last_layer = self.layers
        features = images
        for layer in inner_layers:
            features = nnx.relu(layer(features, train))
        shortcut = images if self.shortcut is None else self.shortcut(images, train)
        return nnx.relu(last_layer(features, train) + shortcut)


class CifarResNet(nnx.Module):
    """ResNet-8, 20, 32 or 56 for small images.

    Three stages of (depth - 2) / 6 basic blocks with `width`, twice and four times as many
    channels; no layer has a bias. For CIFAR-10 ResNet-20 and 56 have 270,896 and 851,504 weights,
    ResNet-32 with doubled widths 1,855,584 (1,867,104 for CIFAR-100).
    """

    def __init__(
        self,
        depth: int,
        width: int,
        classes: int,
        image_shape: tuple[int, int, int] = (32, 32, 3),
        *,
        rngs: nnx.Rngs,
    ):
        self.stem = ConvNorm(image_shape[2], width, 3, rngs=rngs)
        self.blocks = nnx.List()
        inputs = width
        for outputs, first_strides in ((width, 1), (2 * width, 2), (4 * width, 2)):
            for strides in (first_strides, *[1] * ((depth - 2) // 6 - 1)):
                layers = ((outputs, 3, strides), (outputs, 3, 1))
                self.blocks.append(Residual(inputs, layers, rngs=rngs))
                inputs = outputs
        self.classifier = linear(inputs, classes, bias=False, rngs=rngs)

    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        features = nnx.relu(self.stem(images, train))
        for block in self.blocks:
            features = block(features, train)
        return self.classifier(features.mean((1, 2)))


class ImageNetResNet(nnx.Module):
    """The ImageNet ResNets v1.5, of which the classifier alone has a bias.

    ResNet-18 of basic blocks has 11,678,912 weights, ResNet-50 of bottlenecks, with strides in
    their 3x3 convolutions, 25,502,912.
    """

    def __init__(
        self,
        depth: int,
        classes: int = 1000,
        image_shape: tuple[int, int, int] = (224, 224, 3),
        *,
        rngs: nnx.Rngs,
    ):
        self.stem = ConvNorm(image_shape[2], 64, 7, 2, rngs=rngs)
        self.blocks = nnx.List()
        inputs = 64
        all_repeats = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}[depth]
        for stage, repeats in enumerate(all_repeats):
            width = 64 * 2**stage
            for block in range(repeats):
                strides = 2 if stage and not block else 1
                if depth == 18:
                    layers = ((width, 3, strides), (width, 3, 1))
                else:
                    layers = ((width, 1, 1), (width, 3, strides), (4 * width, 1, 1))
                self.blocks.append(Residual(inputs, layers, rngs=rngs))
                inputs = layers[-1][0]
        self.classifier = linear(inputs, classes, bias=True, rngs=rngs)

    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        features = nnx.relu(self.stem(images, train))
        features = nnx.max_pool(features, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for block in self.blocks:
            features = block(features, train)
        return self.classifier(features.mean((1, 2)))
