"""What the tests of `regrow` share: parameters under a mask, and what must hold after a step."""

import chex
import jax
import jax.numpy as jnp
import optax
import pytest

import jaxprune as jp
from tests.methods.link_table import weights


def some_slow(cases, *fast):
    """Of a table all cases, of which those that aren't named run as slow tests."""
    marks = lambda name: [pytest.mark.slow] * (name not in fast)
    return [pytest.param(case, id=name, marks=marks(name)) for name, case in cases.items()]


def pruned(sparsity=0.5, params=None, dtype=jnp.float32):
    """Parameters, with a bias that stays dense, and the mask that they are zero under."""
    params = jax.tree.map(lambda p: p.astype(dtype), weights() if params is None else params)
    mask = jp.random_mask(jax.random.key(3), params, sparsity)
    return jp.apply_mask(params, mask), mask


def mask_of(state):
    """The mask in force, with None for what `masked` and `partition` hide from the link."""
    hidden = lambda leaf: isinstance(leaf, optax.MaskedNode)
    mask = optax.tree.get(state, "mask")
    return jax.tree.map(lambda leaf: None if hidden(leaf) else leaf, mask, is_leaf=hidden)


def falling(start, steps):
    """RigL's schedule; under strict promotion that of optax takes floats alone."""
    cosine = optax.cosine_decay_schedule(start, steps)
    return lambda count: cosine(jnp.float32(count))


def check_zero(params, state, first):
    """Pruned weights are exactly zero, and each leaf keeps as many as at first."""
    mask = mask_of(state)
    chex.assert_trees_all_equal(params, jp.apply_mask(params, mask))
    assert [row.kept for row in jp.layers(mask)] == [row.kept for row in jp.layers(first)]
    assert jp.problems(state) == []
