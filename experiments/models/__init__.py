"""The networks of the pruning papers, as Flax NNX modules: a file a family, a line here a model.

Every classifier takes float images (batch, height, width, channels) and a `train` flag, which only
BatchNorm looks at, and returns logits (batch, classes); every decoder takes bytes as int32 (batch,
length) and returns logits (batch, length, 256). The weights that the papers prune are the leaves
named `kernel`; embeddings, biases and the parameters of norms stay dense and are not counted.

In functional style a model is split once, `graphdef, params, rest = nnx.split(model, nnx.Param,
...)`, and merged in the loss with `nnx.merge(graphdef, params, rest, copy=True)`; the copy is what
lets BatchNorm update its running statistics under `jax.grad`.
"""

import functools
from typing import Any

from flax import nnx

from experiments.models.convnets import ConvNet
from experiments.models.lenet import LeNet5, LeNet300100
from experiments.models.resnets import CifarResNet, ImageNetResNet
from experiments.models.transformer import SIZES, Decoder
from experiments.models.vgg import VGG19
from experiments.usage import UsageError, nearest

_CLASSIFIERS = {
    "lenet300100": LeNet300100,
    "lenet5": LeNet5,
    "conv2": functools.partial(ConvNet, 2),
    "conv4": functools.partial(ConvNet, 4),
    "conv6": functools.partial(ConvNet, 6),
    "conv8": functools.partial(ConvNet, 8),
    "resnet8": functools.partial(CifarResNet, 8, 16),
    "resnet20": functools.partial(CifarResNet, 20, 16),
    "resnet32": functools.partial(CifarResNet, 32, 32),
    "resnet56": functools.partial(CifarResNet, 56, 16),
    "vgg19": VGG19,
    "resnet18": functools.partial(ImageNetResNet, 18),
    "resnet50": functools.partial(ImageNetResNet, 50),
}
_DECODERS = {
    f"{name}{suffix}": functools.partial(Decoder, size, scanned=bool(suffix))
    for name, size in SIZES.items()
    for suffix in ("", "_scanned")
}


def build(
    name: str,
    classes: int,
    image_shape: tuple[int, int, int],
    rngs: nnx.Rngs,
    **options: Any,
) -> nnx.Module:
    """Makes the classifier `name` for images of `image_shape` = (height, width, channels).

    Args:
        name: 'lenet300100', 'lenet5', 'conv2', 'conv4', 'conv6', 'conv8', 'resnet8', 'resnet20',
            'resnet32' (of doubled widths), 'resnet56', 'vgg19', 'resnet18' or 'resnet50'.
        classes: number of logits.
        image_shape: shape of one image, such as (32, 32, 3).
        rngs: source of the initial weights.
        **options: `bias` of lenet300100 and conv2 to conv8.

    Raises:
        UsageError: unknown `name`, an `image_shape` that has not three entries, or images too small
            for the pooling of the model.
        TypeError: an option that the model does not have.
    """
    _check(name, _CLASSIFIERS)
    if len(image_shape) != 3:
        raise UsageError(f"image_shape must be (height, width, channels), got {image_shape}")
    return _CLASSIFIERS[name](classes, image_shape, rngs=rngs, **options)


def decoder(name: str, rngs: nnx.Rngs) -> nnx.Module:
    """Makes the decoder `name`.

    Args:
        name: 'decoder1m', 'decoder25m', 'decoder350m', 'decoder1b' or 'decoder7b', of about so many
            parameters; with `_scanned` behind it the layers lie in one stack and run in a loop.
        rngs: source of the initial weights.

    Raises:
        UsageError: unknown `name`.
    """
    _check(name, _DECODERS)
    return _DECODERS[name](rngs=rngs)


def _check(name: str, known: dict[str, Any]) -> None:
    if name not in known:
        raise UsageError(
            f"unknown model {name!r}: choose one of {', '.join(known)}{nearest(name, known)}"
        )
