"""NNX modules of shapes, and networks that have lost some of their groups."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import jaxprune as jp
from tests.networks import nets

TRAINED = (nnx.Param, nnx.BatchStat)


def every_other(family):
    return list(range(family.size)[1::2])


def pruned(apply, params, inputs, numbers=every_other):
    """The network without the groups whose numbers a function chooses from each family."""
    channels = jp.channel_groups(apply, params, inputs)
    removed = ([*numbers(family)] for family in channels.groups)
    keep = tuple(
        ~np.isin(np.arange(family.size), numbers)
        for family, numbers in zip(channels.groups, removed, strict=True)
    )
    return jp.shrink(apply, params, jp.channel_mask(params, channels, keep), inputs)


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * float(jnp.max(jnp.abs(a))))


def filled(leaf):
    """Values in the place of a shape: zeros of integers, a key of keys."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.key(0)
    return jnp.zeros(leaf.shape, leaf.dtype)


def abstract(net, *sizes):
    """A network of shapes, which costs no initialisation."""
    return nnx.eval_shape(lambda: net(*sizes))


def of_shapes(model):
    """The module with values that are nowhere zero, and `(apply, params)`."""
    graph, params, rest = nnx.split(model, TRAINED, ...)
    params, rest = nets.shaken(params), jax.tree.map(filled, rest)
    apply = lambda params, x: nnx.merge(graph, params, rest, copy=True)(x)
    return nnx.merge(graph, params, rest, copy=True), (apply, params)


def shrunk_nnx(model, inputs, numbers=every_other):
    """The module and its smaller network."""
    model, (apply, params) = of_shapes(model)
    return model, pruned(apply, params, inputs, numbers)


class Layers(nnx.Module):
    """Layers, and a function of them and the input."""

    def __init__(self, layers, call):
        self.layers = nnx.List(layers)
        self.call = call

    def __call__(self, x):
        return self.call(self.layers, x)


def in_turn(layers, x):
    for layer in layers:
        x = nnx.relu(layer(x))
    return x


def batch_norm(width):
    rngs = nnx.Rngs(0)
    norm = nnx.BatchNorm(width, use_running_average=True, rngs=rngs)
    return Layers([nnx.Linear(3, width, rngs=rngs), norm, nnx.Linear(width, 2, rngs=rngs)], in_turn)
