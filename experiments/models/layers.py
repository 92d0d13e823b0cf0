"""Layers that the networks of the pruning papers are made of, and how their weights start."""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.usage import UsageError

_kaiming_normal = nnx.initializers.variance_scaling(2.0, "fan_in", "normal")


def _fan_in_uniform(fan_in: int) -> nnx.initializers.Initializer:
    bound = 1 / math.sqrt(fan_in)

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def linear(inputs: int, outputs: int, *, bias: bool, rngs: nnx.Rngs) -> nnx.Linear:
    """A linear layer with the initial weights of the papers."""
    return nnx.Linear(
        inputs,
        outputs,
        use_bias=bias,
        kernel_init=_kaiming_normal,
        bias_init=_fan_in_uniform(inputs),
        rngs=rngs,
    )


def conv(
    inputs: int,
    outputs: int,
    width: int,
    *,
    strides: int = 1,
    padding: int,
    bias: bool,
    rngs: nnx.Rngs,
) -> nnx.Conv:
    """A convolution with square windows and the initial weights of the papers."""
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


def halve(images: jax.Array) -> jax.Array:
    """The maximum of each 2x2 window; an odd last row or column is left out.

    As a reduction over axes of a reshaped array: the gradient of `nnx.max_pool` takes longer on a
    CPU than that of the convolutions.
    """
    batch, height, width, channels = images.shape
    even = images[:, : height // 2 * 2, : width // 2 * 2]
    return even.reshape(batch, height // 2, 2, width // 2, 2, channels).max((2, 4))


def flatten(images: jax.Array) -> jax.Array:
    """One row of features an image, channels last."""
    return images.reshape(images.shape[0], -1)


def require_pixels(model: str, image_shape: tuple[int, int, int], smallest: int) -> None:
    """Raises a UsageError if the images are too small for the pooling of the model."""
    height, width, _ = image_shape
    if min(height, width) < smallest:
        raise UsageError(
            f"{model} needs images of at least {smallest}x{smallest} pixels, got {height}x{width}: "
            "its pooling would leave none"
        )


class ConvNorm(nnx.Module):
    """A convolution without bias, then BatchNorm; the image shrinks by the strides alone."""

    def __init__(self, inputs: int, outputs: int, width: int, strides: int = 1, *, rngs: nnx.Rngs):
        # 'SAME' pads strided windows on one side only: a 3x3 convolution would then look half a
        # stride away from the pixels that the 1x1 convolution of the shortcut sees.
        self.conv = conv(
            inputs, outputs, width, strides=strides, padding=width // 2, bias=False, rngs=rngs
        )
        self.norm = nnx.BatchNorm(outputs, momentum=0.9, rngs=rngs)

    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        return self.norm(self.conv(images), use_running_average=not train)
