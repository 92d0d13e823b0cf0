"""Networks of the kinds that lose channels, at their real sizes or small ones of the same form.

Each entry of `NETWORKS` is a function that returns `(apply, params, inputs)`; none of the
parameters is zero.
"""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments import models


def shaken(params):
    """Parameters of these shapes, random and nowhere zero; scales and variances lie about one."""
    random = np.random.default_rng(1)

    def new(leaf):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        if leaf.ndim < 2:
            return jnp.asarray(random.uniform(0.5, 1.5, leaf.shape), leaf.dtype)
        fan = max(leaf.size // leaf.shape[-1], 1)
        return jnp.asarray(random.standard_normal(leaf.shape) * fan**-0.5, leaf.dtype)

    return jax.tree.map(new, params)


def of_nnx(model: nnx.Module, inputs):
    """Weights and running averages are the parameters."""
    graph, params, rest = nnx.split(model, (nnx.Param, nnx.BatchStat), ...)
    apply = lambda params, inputs: nnx.merge(graph, params, rest, copy=True)(inputs)
    return apply, shaken(params), inputs


def of_linen(model: nn.Module, inputs):
    """All collections are parameters."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), inputs)
    return model.apply, shaken(shapes), inputs


def noise(*shape: int):
    return jax.random.normal(jax.random.key(0), shape)


def classifier(name: str, pixels: int, channels: int = 3, classes: int = 10, batch: int = 2):
    """One of the runner's models."""
    with jax.default_device(jax.devices("cpu")[0]):
        model = models.build(name, classes, (pixels, pixels, channels), nnx.Rngs(0))
    return of_nnx(model, noise(batch, pixels, pixels, channels))


class Function(nn.Module):
    """A Linen network that is one function of layers."""

    function: Callable[[Any], Any]

    @nn.compact
    def __call__(self, x):
        return self.function(x)


def _norm(x):
    return nn.BatchNorm(use_running_average=True)(x)


def mobilenet():
    """MobileNet v1 for small images: depthwise, then pointwise convolutions."""

    def function(x):
        x = nn.relu6(_norm(nn.Conv(32, (3, 3), use_bias=False)(x)))
        for width, stride in ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1)):
            inputs = x.shape[-1]
            depthwise = nn.Conv(inputs, (3, 3), stride, feature_group_count=inputs, use_bias=False)
            x = nn.relu6(_norm(depthwise(x)))
            x = nn.relu6(_norm(nn.Conv(width, (1, 1), use_bias=False)(x)))
        return nn.Dense(10)(x.mean((1, 2)))

    return of_linen(Function(function), noise(2, 32, 32, 3))


def densenet():
    """DenseNet-40 with 12 new channels a layer, which are concatenated."""

    def function(x):
        x = nn.Conv(24, (3, 3), use_bias=False)(x)
        for stage in range(3):
            if stage:
                x = nn.Conv(x.shape[-1], (1, 1), use_bias=False)(nn.relu(_norm(x)))
                x = nn.avg_pool(x, (2, 2), (2, 2))
            for _ in range(12):
                new = nn.Conv(12, (3, 3), use_bias=False)(nn.relu(_norm(x)))
                x = jnp.concatenate([x, new], -1)
        return nn.Dense(10)(nn.relu(_norm(x)).mean((1, 2)))

    return of_linen(Function(function), noise(2, 32, 32, 3))


class Block(nnx.Module):
    """A layer of a vision transformer."""

    def __init__(self, width: int, heads: int, hidden: int, rngs: nnx.Rngs):
        self.norms = nnx.List([nnx.LayerNorm(width, rngs=rngs) for _ in range(2)])
        self.attention = nnx.MultiHeadAttention(heads, width, decode=False, rngs=rngs)
        self.up = nnx.Linear(width, hidden, rngs=rngs)
        self.down = nnx.Linear(hidden, width, rngs=rngs)

    def __call__(self, x):
        x = x + self.attention(self.norms[0](x))
        return x + self.down(nnx.gelu(self.up(self.norms[1](x))))


class VisionTransformer(nnx.Module):
    """ViT, with the mean over patches in the place of a class token."""

    def __init__(self, depth: int, width: int, heads: int, patch: int, classes: int, rngs):
        self.patches = nnx.Conv(3, width, (patch, patch), (patch, patch), rngs=rngs)
        places = (224 // patch) ** 2
        self.positions = nnx.Param(jnp.zeros((1, places, width)))
        self.blocks = nnx.List([Block(width, heads, 4 * width, rngs) for _ in range(depth)])
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.head = nnx.Linear(width, classes, rngs=rngs)

    def __call__(self, images):
        x = self.patches(images)
        x = x.reshape(len(x), -1, x.shape[-1]) + self.positions[...]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


def vit():
    """ViT-B/16: 86 million parameters."""
    make = lambda: VisionTransformer(12, 768, 12, 16, 1000, nnx.Rngs(0))
    return of_nnx(make(), noise(1, 224, 224, 3))


def _rotated(x):
    time, half = x.shape[1], x.shape[-1] // 2
    angles = jnp.arange(time)[:, None] * 1e4 ** -(jnp.arange(half)[None] / half)
    cos, sin = (f(angles)[None, :, None] for f in (jnp.cos, jnp.sin))
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def _decoder_layer(x, heads: int, groups: int, size: int):
    """Grouped-query attention from one fused matrix, then SwiGLU."""
    batch, time, width = x.shape
    dense = functools.partial(nn.Dense, use_bias=False)
    fused = dense((heads + 2 * groups) * size)(nn.RMSNorm()(x))
    fused = fused.reshape(batch, time, heads + 2 * groups, size)
    q, k, v = jnp.split(fused, (heads, heads + groups), axis=2)
    k, v = (jnp.repeat(y, heads // groups, axis=2) for y in (_rotated(k), v))
    scores = jnp.einsum("bqhd,bkhd->bhqk", _rotated(q), k) * size**-0.5
    scores = jnp.where(jnp.tri(time, dtype=bool), scores, -1e9)
    y = jnp.einsum("bhqk,bkhd->bqhd", nn.softmax(scores), v)
    x = x + dense(width)(y.reshape(batch, time, heads * size))
    y = nn.RMSNorm()(x)
    y = nn.silu(dense(3 * width)(y)) * dense(3 * width)(y)
    return x + dense(width)(y)


def decoder(tied: bool):
    """Four layers of a decoder of width 256, with 8 query heads on 4 of keys and values."""

    def function(words):
        embed = nn.Embed(1000, 256)
        x = embed(words)
        for _ in range(4):
            x = _decoder_layer(x, 8, 4, 32)
        x = nn.RMSNorm()(x)
        return embed.attend(x) if tied else nn.Dense(1000, use_bias=False)(x)

    words = jax.random.randint(jax.random.key(0), (2, 32), 0, 1000)
    return of_linen(Function(function), words)


class StackedLayer(nn.Module):
    """One of layers that a scan runs through."""

    @nn.compact
    def __call__(self, x, _):
        return _decoder_layer(x, 8, 4, 32), None


def stacked():
    """The layers of the decoder stacked in one array each, in a scan."""

    def function(words):
        x = nn.Embed(1000, 256)(words)
        layers = nn.scan(
            StackedLayer, variable_axes={"params": 0}, split_rngs={"params": True}, length=4
        )
        x, _ = layers()(x, None)
        return nn.Dense(1000, use_bias=False)(nn.RMSNorm()(x))

    words = jax.random.randint(jax.random.key(0), (2, 32), 0, 1000)
    return of_linen(Function(function), words)


def recurrent():
    """A GRU and an LSTM, each in a scan over time."""

    def function(x):
        x = nn.RNN(nn.OptimizedLSTMCell(128))(nn.RNN(nn.GRUCell(128))(x))
        return nn.Dense(10)(x[:, -1])

    return of_linen(Function(function), noise(2, 20, 40))


def equinox():
    """A convolutional network of Equinox, channels first."""
    keys = jax.random.split(jax.random.key(0), 4)
    model = eqx.nn.Sequential(
        [
            eqx.nn.Conv2d(3, 32, 3, padding=1, key=keys[0]),
            eqx.nn.Lambda(jax.nn.relu),
            eqx.nn.MaxPool2d(2, 2),
            eqx.nn.Conv2d(32, 64, 3, padding=1, key=keys[1]),
            eqx.nn.GroupNorm(8, 64),
            eqx.nn.Lambda(jax.nn.relu),
            eqx.nn.AvgPool2d(2, 2),
            eqx.nn.Lambda(jnp.ravel),
            eqx.nn.Linear(4096, 128, key=keys[2]),
            eqx.nn.Lambda(jax.nn.gelu),
            eqx.nn.Linear(128, 10, key=keys[3]),
        ]
    )
    params, static = eqx.partition(model, eqx.is_inexact_array)
    apply = lambda params, x: jax.vmap(eqx.combine(params, static))(x)
    return apply, shaken(params), noise(2, 3, 32, 32)


NETWORKS = {
    "LeNet-300-100 (NNX)": functools.partial(classifier, "lenet300100", 28, 1),
    "LeNet-5 (NNX)": functools.partial(classifier, "lenet5", 28, 1),
    "VGG-19 (NNX)": functools.partial(classifier, "vgg19", 32),
    "ResNet-32 (NNX)": functools.partial(classifier, "resnet32", 32),
    "ResNet-50 (NNX)": functools.partial(classifier, "resnet50", 224, classes=1000, batch=1),
    "MobileNet, depthwise (Linen)": mobilenet,
    "DenseNet-40, concatenated (Linen)": densenet,
    "ViT-B/16 (NNX)": vit,
    "decoder, fused and grouped queries, tied (Linen)": functools.partial(decoder, True),
    "decoder, fused and grouped queries, untied (Linen)": functools.partial(decoder, False),
    "decoder, layers stacked in a scan (Linen)": stacked,
    "GRU and LSTM in scans (Linen)": recurrent,
    "convolutional net, GroupNorm (Equinox)": equinox,
}
