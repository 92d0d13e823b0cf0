"""DeepHoyer's links as a table, and how the tests of it train and compare."""

import functools
import re
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding

import jaxprune as jp


def gaussian(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def weights():
    return {
        "dense": {"kernel": gaussian(8, 4), "bias": jnp.ones(4)},
        "head": [gaussian(4, 8, seed=1)],
    }


def kernels(params):
    """The leaves that the links press, None elsewhere."""
    return jax.tree.map(lambda p: p if p.ndim == 2 else None, params)


def gradients():
    return jax.tree.map(lambda p: jnp.cos(3 * p), weights())


class Row(NamedTuple):
    """A link of any strength, and the penalty that it stands for."""

    make: Callable[..., optax.GradientTransformation]
    penalty: Callable


lasso = functools.partial(jp.group_lasso, axis="outputs")
both = functools.partial(jp.group_hoyer_square, axis=("inputs", "outputs"))
ROWS = {
    "hoyer_square": Row(jp.add_hoyer_square, jp.hoyer_square),
    "normalized": Row(
        functools.partial(jp.add_hoyer_square, normalized=True),
        functools.partial(jp.hoyer_square, normalized=True),
    ),
    "group_hoyer_square": Row(jp.add_group_hoyer_square, both),
    "group_hoyer_square of columns": Row(
        functools.partial(jp.add_group_hoyer_square, axis=(0,), normalized=True),
        functools.partial(jp.group_hoyer_square, axis="outputs", normalized=True),
    ),
    "l1": Row(functools.partial(jp.add_penalty, jp.l1), jp.l1),
    "transformed_l1": Row(functools.partial(jp.add_penalty, jp.transformed_l1), jp.transformed_l1),
    "group_lasso": Row(functools.partial(jp.add_penalty, lasso), lasso),
}
every_link = pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
MAIN = ("hoyer_square", "group_hoyer_square", "l1")
main_links = pytest.mark.parametrize("row", [ROWS[name] for name in MAIN], ids=MAIN)


@functools.cache
def pressure(penalty):
    """The gradient of a penalty, zero where a leaf isn't pressed."""

    def gradient(params):
        of_kernels = jax.grad(penalty)(kernels(params))
        fill = lambda p, g: jnp.zeros_like(p) if g is None else g
        return jax.tree.map(fill, params, of_kernels)

    return jax.jit(gradient)


def pressed(row, grads, strength, params):
    add = lambda g, h: g + jnp.float32(strength) * h
    return jax.tree.map(add, grads, pressure(row.penalty)(params))


def once(tx, grads, params):
    return jax.jit(tx.update)(grads, tx.init(params), params)[0]


def train(tx, params, steps=4):
    state = tx.init(params)

    @jax.jit
    def step(params, state):
        grads = jax.tree.map(lambda p: 0.1 * jnp.cos(3 * p), params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(steps):
        params, state = step(params, state)
    return params, state


close = functools.partial(chex.assert_trees_all_close, rtol=1e-5, atol=1e-6)

every_kind_of_mesh = pytest.mark.parametrize(
    "kind", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"]
)


def sharded(tree, kind):
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind, kind))
    spec = lambda leaf: jax.P("x", "y") if leaf.ndim == 2 else jax.P("y")
    return jax.tree.map(lambda leaf: jax.device_put(leaf, NamedSharding(mesh, spec(leaf))), tree)


def assert_nothing_is_gathered(compiled):
    collectives = r"all-gather|all-to-all|collective-permute|collective-broadcast"
    assert not re.search(rf"({collectives})(-start)?\(", compiled.as_text())
