"""A decoder-only transformer over bytes, as they are built today, in six sizes.

Each layer adds to the residual stream what grouped-query attention and then a SwiGLU network make
of it, both behind an RMSNorm; positions are rotary; the embedding's table, which stays dense, also
gives the logits. All kernels are matrices (inputs, outputs). Scanned, the layers lie in one stack,
so that kernels are (layers, inputs, outputs): one layer is compiled, however many there are, and
only the stream between layers is kept for the gradient.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.devices import along_batch

BYTES = 256


class Size(NamedTuple):
    """Of a decoder: `heads` ask, `groups` of them share keys and values; `dtype` computes.

    Parameters are float32 in any case.
    """

    width: int
    depth: int
    heads: int
    groups: int
    hidden: int
    dtype: Any = jnp.float32


# The shapes of the two largest are those of Llama 3.2 1B and of Mistral 7B, without their words.
SIZES = {
    "decoder1m": Size(192, 3, 6, 2, 384),
    "decoder4m": Size(256, 6, 8, 4, 640),
    "decoder25m": Size(512, 8, 8, 4, 1408),
    "decoder350m": Size(1024, 28, 16, 8, 3072, jnp.bfloat16),
    "decoder1b": Size(2048, 16, 32, 8, 8192, jnp.bfloat16),
    "decoder7b": Size(4096, 32, 32, 8, 14336, jnp.bfloat16),
}


class Decoder(nnx.Module):
    """Logits (batch, length, 256) of the byte after each of (batch, length)."""

    def __init__(self, size: Size, scanned: bool = False, *, rngs: nnx.Rngs):
        self.embedding = nnx.Embed(BYTES, size.width, dtype=size.dtype, rngs=rngs)
        self.layers: Any = _stack(size, rngs) if scanned else _list(size, rngs)
        self.norm = _norm(size, rngs)
        self.scanned = scanned
        self.scale = math.sqrt(size.width)  # the table's rows have norm 1, the stream's entries too

    def __call__(self, tokens: jax.Array, train: bool = False) -> jax.Array:
        stream = along_batch(self.scale * self.embedding(tokens))
        if self.scanned:
            stream = _through(self.layers, stream)
        else:
            for layer in self.layers:
                stream = layer(stream)
        return self.embedding.attend(self.norm(stream)).astype(jnp.float32)


def _list(size: Size, rngs: nnx.Rngs) -> nnx.List:
    return nnx.List(Layer(size, rngs=rngs) for _ in range(size.depth))


def _stack(size: Size, rngs: nnx.Rngs) -> "Layer":
    """All layers as one, each parameter with an axis of layers in front."""
    of_rngs = nnx.vmap(lambda rngs: Layer(size, rngs=rngs))
    return nnx.split_rngs(splits=size.depth)(of_rngs)(rngs)


def _through(layers: "Layer", stream: jax.Array) -> jax.Array:
    graph, stacked = nnx.split(layers)

    # Inside a loop nothing is computed twice by mistake, which is what prevent_cse is against.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def one(stream, weights):
        return nnx.merge(graph, weights)(stream), None

    return jax.lax.scan(one, stream, stacked)[0]


class Layer(nnx.Module):
    """Attention, then SwiGLU, both added to the stream (batch, length, width)."""

    def __init__(self, size: Size, *, rngs: nnx.Rngs):
        self.attention_norm, self.attention = _norm(size, rngs), Attention(size, rngs=rngs)
        self.mlp_norm, self.mlp = _norm(size, rngs), SwiGLU(size, rngs=rngs)

    def __call__(self, stream: jax.Array) -> jax.Array:
        stream = along_batch(stream + self.attention(self.attention_norm(stream)))
        return along_batch(stream + self.mlp(self.mlp_norm(stream)))


class Attention(nnx.Module):
    """Each byte looks at itself and at those before it."""

    def __init__(self, size: Size, *, rngs: nnx.Rngs):
        self.of_head = size.width // size.heads
        shared = size.groups * self.of_head
        # In a stack, kernels named query, key, value or out would look like Flax's own, which have
        # an axis of heads.
        self.queries = _linear(size, size.width, size.width, rngs)
        self.keys = _linear(size, size.width, shared, rngs)
        self.values = _linear(size, size.width, shared, rngs)
        self.mixed = _linear(size, size.width, size.width, rngs, _to_stream(size))

    def __call__(self, features: jax.Array) -> jax.Array:
        query, key, value = map(
            self._by_head, (self.queries(features), self.keys(features), self.values(features))
        )
        found = jax.nn.dot_product_attention(rotated(query), rotated(key), value, is_causal=True)
        return self.mixed(found.reshape(*features.shape[:2], -1))

    def _by_head(self, features):
        # As many heads as there are: some may have left with their weights.
        return features.reshape(*features.shape[:2], -1, self.of_head)


def rotated(features: jax.Array, base: float = 10_000.0) -> jax.Array:
    """Turns pairs of features (batch, length, heads, size) by angles that grow with the position.

    The product of a query and a key, both turned, depends on their distance alone (RoFormer, 2021,
    equation 16); the pairs are entries i and i + size / 2.
    """
    _, length, _, size = features.shape
    frequencies = base ** (-jnp.arange(0, size, 2, dtype=jnp.float32) / size)
    angles = jnp.outer(jnp.arange(length, dtype=jnp.float32), frequencies)[None, :, None]
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    left, right = jnp.split(features.astype(jnp.float32), 2, axis=-1)
    turned = (left * cos - right * sin, right * cos + left * sin)
    return jnp.concatenate(turned, axis=-1).astype(features.dtype)


class SwiGLU(nnx.Module):
    """A hidden layer whose units are products with a gate (Shazeer, 2020)."""

    def __init__(self, size: Size, *, rngs: nnx.Rngs):
        self.gate = _linear(size, size.width, size.hidden, rngs)
        self.up = _linear(size, size.width, size.hidden, rngs)
        self.down = _linear(size, size.hidden, size.width, rngs, _to_stream(size))

    def __call__(self, features: jax.Array) -> jax.Array:
        return self.down(nnx.silu(self.gate(features)) * self.up(features))


def _norm(size: Size, rngs: nnx.Rngs) -> nnx.RMSNorm:
    return nnx.RMSNorm(size.width, dtype=size.dtype, rngs=rngs)


def _linear(size: Size, inputs: int, outputs: int, rngs: nnx.Rngs, scale: float = 1.0):
    """A linear layer without bias whose outputs start with variance `scale`."""
    init = nnx.initializers.variance_scaling(scale, "fan_in", "normal")
    return nnx.Linear(
        inputs, outputs, use_bias=False, dtype=size.dtype, kernel_init=init, rngs=rngs
    )


def _to_stream(size: Size) -> float:
    """The variance with which 2 * depth terms add up to 1 (GPT-2's way)."""
    return 1 / (2 * size.depth)
