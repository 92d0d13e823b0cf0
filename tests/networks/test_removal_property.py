"""Random small networks and random groups: without them it computes what the masked one does."""

import itertools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp

pytestmark = pytest.mark.usefixtures("relaxed_promotion")

BATCH, TIME = 2, 4


class Layers:
    """Functions of (batch, time, width), whose weights come in the order of their calls."""

    def __init__(self, weight):
        self.weight = weight

    def dense(self, x, width):
        return x @ self.weight(x.shape[-1], width)

    def wide(self, x):
        return self.dense(x, 12) + self.weight(1, 1, 12)

    def narrow(self, x):
        return self.dense(x, 6)

    def biased(self, x):
        return jnp.tanh(self.dense(x, 10) + self.weight(1, 1, 10))

    def activated(self, x):
        return jax.nn.gelu(x)

    def squashed(self, x):
        return jax.nn.sigmoid(x)

    def residual(self, x):
        return x + self.dense(jnp.tanh(self.dense(x, 8)), x.shape[-1])

    def gated(self, x):
        return x * jax.nn.sigmoid(self.dense(x.mean(1, keepdims=True), x.shape[-1]))

    def joined(self, x):
        return jnp.concatenate([x, jax.nn.relu(self.dense(x, 4))], -1)

    def halves(self, x):
        a, b = jnp.split(x, 2, axis=-1)
        return a * jax.nn.silu(b)

    def sliced(self, x):
        return x[:, :, 1:-1]

    def padded(self, x):
        return jnp.pad(x, ((0, 0), (1, 1), (0, 0)))[:, 1:-1]

    def scaled(self, x):
        return x * self.weight(1, 1, x.shape[-1]) - 0.5 * self.weight(1, 1, x.shape[-1])

    def root_mean_square(self, x):
        return x * jax.lax.rsqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-2)

    def normalized(self, x):
        return (x - x.mean(-1, keepdims=True)) / (1 + x.std(-1, keepdims=True))

    def soft(self, x):
        return jax.nn.softmax(x, -1)

    def pooled(self, x):
        return jax.lax.reduce_window(
            x, -jnp.inf, jax.lax.max, (1, 2, 1), (1, 1, 1), ((0, 0), (0, 1), (0, 0))
        )

    def convolved(self, x):
        numbers = ("NWC", "WIO", "NWC")
        kernel = self.weight(3, x.shape[-1], 6)
        return jax.lax.conv_general_dilated(x, kernel, (1,), "SAME", dimension_numbers=numbers)

    def grouped(self, x):
        numbers, width = ("NWC", "WIO", "NWC"), x.shape[-1]
        return jax.lax.conv_general_dilated(
            x,
            self.weight(3, 2, 2 * width),
            (1,),
            "SAME",
            dimension_numbers=numbers,
            feature_group_count=width // 2,
        )

    def heads(self, x):
        q, k, v = (self.dense(x, 8).reshape(BATCH, TIME, 2, 4) for _ in range(3))
        scores = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k))
        return jnp.einsum("bhqk,bkhd->bqhd", scores, v).reshape(BATCH, TIME, 8)

    def turned(self, x):
        x = x.reshape(BATCH, TIME, 2, -1).transpose(0, 1, 3, 2)
        return x.reshape(BATCH, TIME, -1)

    def blocks(self, x):
        x = x.reshape(BATCH, TIME, 2, -1)
        return (x * self.weight(1, 1, 2, 1) + x[:, :, ::-1]).reshape(BATCH, TIME, -1)

    def doubled(self, x):
        return jnp.repeat(x, 2, axis=-1)

    def summed(self, x):
        return jnp.tanh(x) * jnp.cumsum(x, 1) + x.sum(-1, keepdims=True)

    def flattened(self, x):
        flat = self.dense(x.reshape(BATCH, -1), 6)
        return jnp.broadcast_to(flat[:, None], (BATCH, TIME, 6))


NAMES = [name for name in vars(Layers) if not name.startswith("_") and name != "dense"]


def network(names):
    """The function and parameters of such layers between two dense ones."""

    def run(weight, x):
        layers = Layers(weight)
        x = layers.dense(x, 8)
        for name in names:
            if x.shape[-1] % 2 == 0 and 4 <= x.shape[-1] <= 48:
                x = getattr(layers, name)(x)
        return layers.dense(x, 3) + weight(1, 1, 3)

    def apply(params, x):
        weights = iter(params)
        return run(lambda *_: next(weights), x)

    random = np.random.default_rng(len(names))
    params = []

    def new(*shape):
        params.append(np.float32(random.normal(size=shape) / max(shape) ** 0.5))
        return jnp.zeros(shape)

    jax.eval_shape(lambda x: run(new, x), jnp.ones((BATCH, TIME, 5)))
    return apply, list(map(jnp.asarray, params))


LISTS = st.lists(st.sampled_from(NAMES), min_size=1, max_size=5)
INPUTS = np.float32(np.random.default_rng(0).normal(size=(BATCH, TIME, 5)))


def some_groups(channels, data):
    """Not all of any family."""
    for family in channels.groups:
        numbers = st.sets(st.integers(1, family.size - 1)) if family.size > 1 else st.just(set())
        gone = data.draw(numbers, label=family.name)
        yield jnp.array([number not in gone for number in range(family.size)])


@hypothesis.settings(max_examples=15)
@hypothesis.given(LISTS, st.data())
def test_equals_the_masked_network(names, data):
    """Groups that the mask prunes in passing, as others take all of them along, leave as well."""
    apply, params = network(names)
    channels = jp.channel_groups(apply, params, INPUTS)
    keep = tuple(some_groups(channels, data))
    small = jp.shrink(apply, params, jp.channel_mask(params, channels, keep), INPUTS)
    assert small.difference < 1e-5
    assert not any((left & ~stay).any() for left, stay in zip(small.keep, keep, strict=True))


@hypothesis.settings(max_examples=15)
@hypothesis.given(LISTS, st.sampled_from(["keep", "complete"]), st.data())
def test_parts_of_groups(names, partial, data):
    """Whatever else the mask prunes of some groups: what leaves wasn't heard."""
    apply, params = network(names)
    channels = jp.channel_groups(apply, params, INPUTS)
    parts = [
        family._replace(places=tuple(data.draw(st.lists(st.sampled_from(family.places)))))
        for family in channels.groups
    ]
    some = channels._replace(groups=tuple(part for part in parts if part.places))
    mask = jp.channel_mask(params, some, tuple(some_groups(some, data)))
    small = jp.shrink(apply, params, mask, INPUTS, partial=partial)
    assert small.difference < 1e-5


WIDTHS = (5, 7, 6, 3)
FUNCTIONS = [jax.nn.relu, jnp.tanh, jax.nn.gelu, jax.nn.sigmoid, jnp.cos, lambda x: x]


@hypothesis.settings(max_examples=6)
@hypothesis.given(
    st.tuples(*[st.sampled_from(FUNCTIONS)] * 2),
    st.tuples(*[st.sets(st.integers(0, width - 2)) for width in WIDTHS[1:-1]]),
    st.integers(0, 2**32 - 1),
)
def test_dense_layers_with_biases_are_never_refused(functions, dead, seed):
    """Kernels of any neurons are pruned, in any number of layers."""
    random = np.random.default_rng(seed)
    layers = [
        {
            "kernel": random.normal(size=sizes) / sizes[0] ** 0.5,
            "bias": random.normal(size=sizes[1:]),
        }
        for sizes in itertools.pairwise(WIDTHS)
    ]
    for layer, neurons in zip(layers, dead, strict=False):
        layer["kernel"][:, sorted(neurons)] = 0
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), layers)
    mask = [{"kernel": layer["kernel"] != 0, "bias": None} for layer in params]

    def apply(params, x, functions=functions):
        for layer, function in zip(params, (*functions, lambda x: x), strict=True):
            x = function(x @ layer["kernel"] + layer["bias"][None])
        return x

    small = jp.shrink(apply, params, mask, INPUTS[0])
    widths = [width - len(neurons) for width, neurons in zip(WIDTHS[1:], [*dead, ()], strict=True)]
    assert [layer["bias"].size for layer in small.params] == widths
    masked, shrunk = apply(params, INPUTS[1]), small.apply(small.params, INPUTS[1])
    np.testing.assert_allclose(masked, shrunk, rtol=1e-5, atol=1e-5)
