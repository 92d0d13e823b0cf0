"""Small networks of the kinds that lose channels, in Linen, NNX, Equinox and plain JAX.

Each is a function that returns `(apply, params, inputs)` with parameters that are nowhere zero.
"""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

from benchmarks.networks import of_linen as linen
from benchmarks.networks import of_nnx, shaken


def normal(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


IMAGES = normal(2, 8, 8, 3)
ROWS = normal(3, 5)
WORDS = jnp.array([[1, 4, 2, 0, 7], [3, 3, 8, 1, 2]])


class Small(nn.Module):
    """A network of one function of layers."""

    function: object

    @nn.compact
    def __call__(self, x):
        return self.function(x)


def norm(x):
    return nn.BatchNorm(use_running_average=True)(x)


def mlp():
    layers = [nn.Dense(8), nn.relu, nn.Dense(6), nn.tanh, nn.Dense(2)]
    return linen(nn.Sequential(layers), ROWS)


def lenet():
    def function(x):
        x = nn.max_pool(nn.relu(nn.Conv(4, (3, 3))(x)), (2, 2), (2, 2))
        x = nn.avg_pool(nn.relu(nn.Conv(6, (3, 3))(x)), (2, 2), (2, 2))
        return nn.Dense(3)(nn.relu(nn.Dense(8)(x.reshape(len(x), -1))))

    return linen(Small(function), IMAGES)


def vgg():
    def function(x):
        for width in (4, 6):
            x = nn.relu(norm(nn.Conv(width, (3, 3), use_bias=False)(x)))
            x = nn.max_pool(nn.gelu(norm(nn.Conv(width, (3, 3))(x))), (2, 2), (2, 2))
        return nn.Dense(3)(x.mean((1, 2)))

    return linen(Small(function), IMAGES)


def residual():
    def function(x):
        x = nn.relu(norm(nn.Conv(4, (3, 3), use_bias=False)(x)))
        for width, stride in ((4, 1), (6, 2)):
            y = nn.relu(norm(nn.Conv(width, (3, 3), stride, use_bias=False)(x)))
            y = norm(nn.Conv(width, (3, 3), use_bias=False)(y))
            if stride > 1:
                x = norm(nn.Conv(width, (1, 1), stride, use_bias=False)(x))
            x = nn.relu(x + y)
        return nn.Dense(3)(x.mean((1, 2)))

    return linen(Small(function), IMAGES)


def depthwise():
    def function(x):
        x = nn.relu6(norm(nn.Conv(4, (3, 3))(x)))
        x = nn.relu6(norm(nn.Conv(8, (3, 3), feature_group_count=4)(x)))
        x = nn.silu(norm(nn.Conv(6, (1, 1))(x)))
        x = nn.hard_swish(nn.Conv(6, (3, 3), feature_group_count=6)(x))
        return nn.Dense(3)(x.mean((1, 2)))

    return linen(Small(function), IMAGES)


def grouped():
    def function(x):
        x = nn.relu(nn.Conv(8, (3, 3))(x))
        x = nn.relu(nn.Conv(12, (3, 3), feature_group_count=4)(x))
        return nn.Conv(3, (1, 1))(x)

    return linen(Small(function), IMAGES)


def dense_net():
    def function(x):
        x = nn.Conv(4, (3, 3))(x)
        for _ in range(2):
            y = nn.Conv(3, (3, 3))(nn.relu(norm(x)))
            x = jnp.concatenate([x, y], -1)
        x = nn.avg_pool(nn.Conv(6, (1, 1))(nn.relu(norm(x))), (2, 2), (2, 2))
        return nn.Dense(3)(nn.relu(x).reshape(len(x), -1))

    return linen(Small(function), IMAGES)


def squeeze_excite():
    def function(x):
        x = nn.relu(nn.Conv(6, (3, 3))(x))
        gate = nn.sigmoid(nn.Dense(6)(nn.relu(nn.Dense(4)(x.mean((1, 2))))))
        return nn.Dense(3)((x * gate[:, None, None]).mean((1, 2)))

    return linen(Small(function), IMAGES)


def group_norm():
    def function(x):
        x = nn.relu(nn.GroupNorm(3)(nn.Conv(6, (3, 3))(x)))
        return nn.Dense(3)(x.mean((1, 2)))

    return linen(Small(function), IMAGES)


def vit():
    def function(x):
        x = nn.Conv(8, (4, 4), (4, 4))(x)
        x = x.reshape(len(x), -1, 8)
        x = x + nn.Embed(4, 8)(jnp.arange(4))[None]
        x = x + nn.MultiHeadDotProductAttention(2)(nn.LayerNorm()(x))
        y = nn.Dense(12)(nn.LayerNorm()(x))
        x = x + nn.Dense(8)(nn.gelu(y))
        return nn.Dense(3)(nn.LayerNorm()(x)[:, 0])

    return linen(Small(function), IMAGES)


def fused_qkv():
    """Heads of 4, in one matrix with their keys and values."""

    def function(x):
        x = nn.Dense(8)(x)
        qkv = nn.Dense(24)(x).reshape(*x.shape[:2], 3, 2, 4)
        q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        scores = nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k) * 4**-0.5)
        y = jnp.einsum("bhqk,bkhd->bqhd", scores, v).reshape(*x.shape[:2], 8)
        return nn.Dense(3)(x + nn.Dense(8, use_bias=False)(y))

    return linen(Small(function), normal(2, 5, 4))


def split_qkv():
    """Split into three before the heads are told apart."""

    def function(x):
        q, k, v = jnp.split(nn.Dense(24)(x), 3, axis=-1)
        q, k, v = (y.reshape(*x.shape[:2], 2, 4).transpose(0, 2, 1, 3) for y in (q, k, v))
        y = nn.softmax(q @ k.swapaxes(-1, -2) / 2.0) @ v
        return nn.Dense(3)(y.transpose(0, 2, 1, 3).reshape(*x.shape[:2], 8))

    return linen(Small(function), normal(2, 5, 4))


def rotated(x):
    """Rotary position embeddings of halves."""
    time, width = x.shape[1], x.shape[-1] // 2
    angles = jnp.arange(time)[:, None] * 10.0 ** -jnp.arange(width)[None].astype(jnp.float32)
    cos, sin = (f(angles)[None, :, None] for f in (jnp.cos, jnp.sin))
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def decoder():
    """Four query heads on two of keys and values, causal, SwiGLU, RMSNorm, tied embeddings."""

    def function(words):
        embed = nn.Embed(9, 8)
        x = embed(words)
        batch, time = words.shape
        y = nn.RMSNorm()(x)
        q = rotated(nn.Dense(16, use_bias=False)(y).reshape(batch, time, 4, 4))
        k = rotated(nn.Dense(8, use_bias=False)(y).reshape(batch, time, 2, 4))
        v = nn.Dense(8, use_bias=False)(y).reshape(batch, time, 2, 4)
        k, v = (jnp.repeat(a, 2, axis=2) for a in (k, v))
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / 2.0
        scores = jnp.where(jnp.tri(time, dtype=bool), scores, -1e9)
        y = jnp.einsum("bhqk,bkhd->bqhd", nn.softmax(scores), v).reshape(batch, time, 16)
        x = x + nn.Dense(8, use_bias=False)(y)
        y = nn.RMSNorm()(x)
        y = nn.silu(nn.Dense(12, use_bias=False)(y)) * nn.Dense(12, use_bias=False)(y)
        return embed.attend(nn.RMSNorm()(x + nn.Dense(8, use_bias=False)(y)))

    return linen(Small(function), WORDS)


def recurrent():
    """Two kinds of recurrent cells in scans."""

    def function(x):
        x = nn.RNN(nn.SimpleCell(4))(nn.RNN(nn.GRUCell(6))(x))
        return nn.Dense(2)(x[:, -1])

    return linen(Small(function), normal(2, 5, 3))


def nnx_residual():
    class Net(nnx.Module):
        def __init__(self):
            rngs = nnx.Rngs(0)
            conv = lambda *sizes: nnx.Conv(*sizes, (3, 3), rngs=rngs)
            self.convs = nnx.List([conv(3, 4), conv(4, 6), conv(6, 4)])
            self.norms = nnx.List([nnx.BatchNorm(n, rngs=rngs) for n in (4, 6, 4)])
            self.head = nnx.Linear(64, 2, rngs=rngs)

        def __call__(self, x):
            layers = [
                lambda x, c=c, n=n: n(c(x), use_running_average=True)
                for c, n in zip(self.convs, self.norms, strict=True)
            ]
            x = nnx.relu(layers[0](x))
            x = nnx.relu(x + layers[2](nnx.relu(layers[1](x))))
            x = nnx.max_pool(x, (2, 2), (2, 2))
            return self.head(x.reshape(len(x), -1))

    return of_nnx(Net(), IMAGES)


def nnx_attention():
    class Net(nnx.Module):
        def __init__(self):
            rngs = nnx.Rngs(0)
            self.embed = nnx.Embed(9, 8, rngs=rngs)
            self.norms = nnx.List([nnx.LayerNorm(8, rngs=rngs) for _ in range(2)])
            self.attention = nnx.MultiHeadAttention(2, 8, decode=False, rngs=rngs)
            self.up, self.down = nnx.Linear(8, 12, rngs=rngs), nnx.Linear(12, 8, rngs=rngs)
            self.head = nnx.Linear(8, 4, rngs=rngs)

        def __call__(self, words):
            x = self.embed(words)
            x = x + self.attention(self.norms[0](x))
            return self.head(x + self.down(nnx.gelu(self.up(self.norms[1](x)))))

    return of_nnx(Net(), WORDS)


def equinox():
    keys = jax.random.split(jax.random.key(0), 3)
    model = eqx.nn.Sequential(
        [
            eqx.nn.Conv2d(3, 4, 3, key=keys[0]),
            eqx.nn.Lambda(jax.nn.relu),
            eqx.nn.MaxPool2d(2, 2),
            eqx.nn.Lambda(jnp.ravel),
            eqx.nn.Linear(36, 6, key=keys[1]),
            eqx.nn.Lambda(eqx.nn.PReLU()),
            eqx.nn.Linear(6, 2, key=keys[2]),
        ]
    )
    params, static = eqx.partition(model, eqx.is_inexact_array)
    apply = lambda params, x: jax.vmap(eqx.combine(params, static))(x)
    return apply, shaken(params), IMAGES.transpose(0, 3, 1, 2)


NETS = [mlp, lenet, vgg, residual, depthwise, grouped, dense_net, squeeze_excite, group_norm, vit]
NETS += [fused_qkv, split_qkv, decoder, recurrent, nnx_residual, nnx_attention, equinox]
