"""Masks that change by a schedule, beside loops in numpy: AC/DC, and rising thresholds."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp
from tests.methods.link_table import kernels, step_of, target, weights
from tests.methods.test_regrowing import largest

RATE = 0.1


def flat(params):
    """The prunable weights, in the tree's order."""
    return np.concatenate(
        [np.asarray(p, np.float64).ravel() for p in jax.tree.leaves(kernels(params))]
    )


GOAL = np.concatenate([target(leaf).ravel() for leaf in jax.tree.leaves(kernels(weights()))])


def test_alternating_phases_are_those_of_a_loop_in_numpy():
    """SGD without momentum, where the two differences that the docstring names don't show."""
    schedule = jp.alternating_sparsity(0.75, begin=4, end=16, every=4)
    tx = optax.chain(optax.sgd(RATE), jp.keep_sparse(schedule, every=2))
    params = weights()
    state, step = tx.init(params), jax.jit(step_of(tx))
    weight, mask = flat(params), np.ones(64, bool)
    sparse = [False] * 4 + [True] * 4 + [False] * 4 + [True] * 10
    for count in range(22):
        starts = sparse[count] and not sparse[count - 1]
        if starts:
            mask = largest(np.abs(weight), 16)
        if not sparse[count]:
            mask = np.ones(64, bool)
        weight = np.where(mask, weight - RATE * (weight - GOAL), 0)
        params, state = step(params, state)
        np.testing.assert_allclose(flat(params), weight, atol=1e-5)
        assert (flat(params) == 0).sum() == (48 if sparse[count] else 0)
    assert jp.problems(state) == []


def test_a_rising_threshold_is_that_of_a_loop_in_numpy():
    schedule = jp.ramped_threshold(0.8, begin=2, turn=6, end=12)
    tx = optax.chain(optax.sgd(RATE), jp.keep_sparse(jp.Above(schedule), every=2))
    params = weights()
    state, step = tx.init(params), jax.jit(step_of(tx))
    weight, mask, kept = flat(params), np.ones(64, bool), []
    theta = 2 * 0.8 / (2 * 4 + 3 * 6)  # a step, as in the paper
    for count in range(16):
        if count % 2 == 0:
            gentle, steep = np.clip(count - 2, 0, 4), np.clip(count - 6, 0, 6)
            mask = mask & (np.abs(weight) >= theta * gentle + 1.5 * theta * steep)
        weight = np.where(mask, weight - RATE * (weight - GOAL), 0)
        params, state = step(params, state)
        np.testing.assert_allclose(flat(params), weight, atol=1e-5)
        kept.append(mask.sum())
    assert kept[0] == 64 > kept[6] > kept[12] > 0
    assert jp.problems(state) == []


def test_a_threshold_for_each_leaf():
    thresholds = {
        "dense": {"kernel": jp.Above(0.5), "bias": None},
        "head": {"kernel": jp.Above(lambda count: 0.0)},
    }
    params, tx = weights(), jp.keep_sparse(thresholds)
    updates, state = tx.update(optax.tree.zeros_like(params), tx.init(params), params)
    mask = optax.tree.get(state, "mask")
    np.testing.assert_array_equal(mask["dense"]["kernel"], np.abs(params["dense"]["kernel"]) >= 0.5)
    assert np.all(mask["head"]["kernel"])
    chex.assert_trees_all_equal(optax.apply_updates(params, updates), jp.apply_mask(params, mask))
    one = jp.keep_sparse(thresholds)
    hidden = optax.masked(one, {"dense": True, "head": False})
    updates, _ = hidden.update(optax.tree.zeros_like(params), hidden.init(params), params)
    chex.assert_trees_all_equal(updates["dense"]["kernel"] != 0, ~mask["dense"]["kernel"])


@pytest.mark.parametrize("wrong", [-0.1, np.nan])
def test_a_threshold_out_of_range_keeps_the_mask(wrong):
    tx = jp.keep_sparse(jp.Above(lambda count: jnp.float32(wrong)))
    params = weights()
    _, state = tx.update(params, tx.init(params), params)
    assert jp.count(optax.tree.get(state, "mask")) == 64
    assert "thresholds at 0 or above" in jp.problems(state)[0]
