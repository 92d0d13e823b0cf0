"""The networks of the pruning papers, as Flax NNX modules.

Every model takes float images (batch, height, width, channels) and a `train` flag, which only
BatchNorm looks at, and returns logits (batch, classes). The weights that the papers prune are the
leaves named `kernel`; biases and BatchNorm parameters stay dense and are not counted.

In functional style a model is split once, `graphdef, params, rest = nnx.split(model, nnx.Param,
...)`, and merged in the loss with `nnx.merge(graphdef, params, rest, copy=True)`; the copy is what
lets BatchNorm update its running statistics under `jax.grad`.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

_kaiming_normal = nnx.initializers.variance_scaling(2.0, "fan_in", "normal")


def _fan_in_uniform(fan_in: int) -> nnx.initializers.Initializer:
    bound = 1 / math.sqrt(fan_in)

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def _linear(inputs: int, outputs: int, *, bias: bool, rngs: nnx.Rngs) -> nnx.Linear:
    return nnx.Linear(
        inputs,
        outputs,
        use_bias=bias,
        kernel_init=_kaiming_normal,
        bias_init=_fan_in_uniform(inputs),
        rngs=rngs,
    )


def _conv(
    inputs: int,
    outputs: int,
    width: int,
    *,
    strides: int = 1,
    padding: int,
    bias: bool,
    rngs: nnx.Rngs,
) -> nnx.Conv:
    return nnx.Conv(
        inputs,
        outputs,
        (width, width),
        strides=strides,
        padding=padding,
        use_bias=bias,
        kernel_init=_kaiming_normal,
        bias_init=_fan_in_uniform(inputs * width * width),
        rngs=rngs,
    )


def _halve(images: jax.Array) -> jax.Array:
    """The maximum of each 2x2 window; an odd last row or column is left out.

    As a reduction over axes of a reshaped array: the gradient of `nnx.max_pool` takes longer on a
    CPU than that of the convolutions.
    """
    batch, height, width, channels = images.shape
    even = images[:, : height // 2 * 2, : width // 2 * 2]
    return even.reshape(batch, height // 2, 2, width // 2, 2, channels).max((2, 4))


def _flatten(images: jax.Array) -> jax.Array:
    return images.reshape(images.shape[0], -1)


def _require_pixels(model: str, image_shape: tuple[int, int, int], smallest: int) -> None:
    height, width, _ = image_shape
    if min(height, width) < smallest:
        raise ValueError(
            f"{model} needs images of at least {smallest}x{smallest} pixels, got {height}x{width}: "
            "its pooling would leave none"
        )


class LeNet300100(nnx.Module):
    """Fully connected, 300 and 100 hidden units: 266,200 weights for MNIST."""

    def __init__(self, classes: int, inputs: int, bias: bool = False, *, rngs: nnx.Rngs):
        self.fc1 = _linear(inputs, 300, bias=bias, rngs=rngs)
        self.fc2 = _linear(300, 100, bias=bias, rngs=rngs)
        self.fc3 = _linear(100, classes, bias=bias, rngs=rngs)

    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        hidden = nnx.relu(self.fc1(_flatten(images)))
        return self.fc3(nnx.relu(self.fc2(hidden)))


class LeNet5(nnx.Module):
    """The Caffe variant, 20-50-500 with biases: 430,500 weights for MNIST.

    Raises:
        ValueError: the images are smaller than 16x16 pixels.
    """

    def __init__(
        self,
        classes: int,
        image_shape: tuple[int, int, int] = (28, 28, 1),
        *,
        rngs: nnx.Rngs,
    ):
        _require_pixels("LeNet5", image_shape, 16)
        height, width = (((size - 4) // 2 - 4) // 2 for size in image_shape[:2])
        self.conv1 = _conv(image_shape[2], 20, 5, padding=0, bias=True, rngs=rngs)
        self.conv2 = _conv(20, 50, 5, padding=0, bias=True, rngs=rngs)
        self.fc1 = _linear(height * width * 50, 500, bias=True, rngs=rngs)
        self.fc2 = _linear(500, classes, bias=True, rngs=rngs)

    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        features = _halve(nnx.relu(self.conv1(images)))
        features = _halve(nnx.relu(self.conv2(features)))
        return self.fc2(nnx.relu(self.fc1(_flatten(features))))


class ConvNet(nnx.Module):
    """Conv2, Conv4, Conv6 and Conv8 of the lottery-ticket and supermask papers, no BatchNorm.

    Pairs of 3x3 convolutions of 64, 128, 256 and 512 channels, each pair followed by pooling, then
    linear layers of 256, 256 and `classes`. For CIFAR-10 they have 4,300,992, 2,425,024, 2,261,184
    and 5,275,840 weights.

    Raises:
        ValueError: `depth` is not 2, 4, 6 or 8, or pooling would leave no pixel of the images.
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
        _require_pixels(f"ConvNet of depth {depth}", image_shape, shrink)
        height, width, channels = image_shape
        self.convs = nnx.List()
        for outputs in (64, 128, 256, 512)[: depth // 2]:
            self.convs.append(_conv(channels, outputs, 3, padding=1, bias=bias, rngs=rngs))
            self.convs.append(_conv(outputs, outputs, 3, padding=1, bias=bias, rngs=rngs))
            channels = outputs
        flat = (height // shrink) * (width // shrink) * channels
        self.fc1 = _linear(flat, 256, bias=bias, rngs=rngs)
        self.fc2 = _linear(256, 256, bias=bias, rngs=rngs)
        self.fc3 = _linear(256, classes, bias=bias, rngs=rngs)

    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        features = images
        for index, conv in enumerate(self.convs):
            features = nnx.relu(conv(features))
            if index % 2 == 1:
                features = _halve(features)
        hidden = nnx.relu(self.fc1(_flatten(features)))
        return self.fc3(nnx.relu(self.fc2(hidden)))


class ConvNorm(nnx.Module):
    """A convolution without bias, then BatchNorm; the image shrinks by the strides alone."""

    def __init__(self, inputs: int, outputs: int, width: int, strides: int = 1, *, rngs: nnx.Rngs):
        # 'SAME' pads strided windows on one side only: a 3x3 convolution would then look half a
        # stride away from the pixels that the 1x1 convolution of the shortcut sees.
        self.conv = _conv(
            inputs, outputs, width, strides=strides, padding=width // 2, bias=False, rngs=rngs
        )
        self.norm = nnx.BatchNorm(outputs, momentum=0.9, rngs=rngs)

    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        return self.norm(self.conv(images), use_running_average=not train)


class VGG19(nnx.Module):
    """VGG-19 with BatchNorm and one linear layer: 20,024,000 weights for CIFAR-10.

    No layer has a bias. For CIFAR-100 it has 20,070,080 weights.

    Raises:
        ValueError: the images are smaller than 32x32 pixels.
    """

    def __init__(
        self,
        classes: int,
        image_shape: tuple[int, int, int] = (32, 32, 3),
        *,
        rngs: nnx.Rngs,
    ):
        _require_pixels("VGG19", image_shape, 32)
        height, width, channels = image_shape
        self.stages = nnx.List()
        for outputs, repeats in ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4)):
            stage = nnx.List()
            for _ in range(repeats):
                stage.append(ConvNorm(channels, outputs, 3, rngs=rngs))
                channels = outputs
            self.stages.append(stage)
        flat = (height // 32) * (width // 32) * channels
        self.classifier = _linear(flat, classes, bias=False, rngs=rngs)

    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        features = images
        for stage in self.stages:
            for layer in stage:
                features = nnx.relu(layer(features, train))
            features = _halve(features)
        return self.classifier(_flatten(features))


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
    """ResNet-20, 32 or 56 for small images.

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
        self.classifier = _linear(inputs, classes, bias=False, rngs=rngs)

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
        self.classifier = _linear(inputs, classes, bias=True, rngs=rngs)

    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        features = nnx.relu(self.stem(images, train))
        features = nnx.max_pool(features, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for block in self.blocks:
            features = block(features, train)
        return self.classifier(features.mean((1, 2)))


def _lenet300100(classes: int, image_shape: tuple[int, int, int], **options: Any) -> LeNet300100:
    return LeNet300100(classes, math.prod(image_shape), **options)


_MODELS = {
    "lenet300100": _lenet300100,
    "lenet5": LeNet5,
    "conv2": functools.partial(ConvNet, 2),
    "conv4": functools.partial(ConvNet, 4),
    "conv6": functools.partial(ConvNet, 6),
    "conv8": functools.partial(ConvNet, 8),
    "resnet20": functools.partial(CifarResNet, 20, 16),
    "resnet32": functools.partial(CifarResNet, 32, 32),
    "resnet56": functools.partial(CifarResNet, 56, 16),
    "vgg19": VGG19,
    "resnet18": functools.partial(ImageNetResNet, 18),
    "resnet50": functools.partial(ImageNetResNet, 50),
}


def build(
    name: str,
    classes: int,
    image_shape: tuple[int, int, int],
    rngs: nnx.Rngs,
    **options: Any,
) -> nnx.Module:
    """Makes the model `name` for images of `image_shape` = (height, width, channels).

    Args:
        name: 'lenet300100', 'lenet5', 'conv2', 'conv4', 'conv6', 'conv8', 'resnet20',
            'resnet32' (of doubled widths), 'resnet56', 'vgg19', 'resnet18' or 'resnet50'.
        classes: number of logits.
        image_shape: shape of one image, such as (32, 32, 3).
        rngs: source of the initial weights.
        **options: `bias` of lenet300100 and conv2 to conv8.

    Raises:
        ValueError: unknown `name`, an `image_shape` that has not three entries, or images too small
            for the pooling of the model.
        TypeError: an option that the model does not have.
    """
    if name not in _MODELS:
        raise ValueError(f"unknown model {name!r}: choose one of {', '.join(_MODELS)}")
    if len(image_shape) != 3:
        raise ValueError(f"image_shape must be (height, width, channels), got {image_shape}")
    return _MODELS[name](classes, image_shape, rngs=rngs, **options)
