"""One table of links, for tests of each in every way in which people use a transformation."""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp


class Row(NamedTuple):
    """A link, the tree it updates, and what holds after `count` updates of it."""

    name: str
    make: Callable[[], optax.GradientTransformation]
    params: Callable[[], Any]
    holds: Callable[[Any, int], None]


def weights():
    """64 prunable weights in two kernels, and a bias that stays dense."""
    key = jax.random.key(0)
    return {
        "dense": {"kernel": jax.random.normal(key, (8, 4)), "bias": jnp.ones(4)},
        "head": {"kernel": 0.5 * jax.random.normal(key, (4, 8))},
    }


def probabilities():
    return jp.init_probabilities(weights(), value=0.5)


def logits():
    return jax.tree.map(jnp.zeros_like, probabilities())


def half_mask():
    return jp.top_k_mask(kernels(weights()), 32)


COSTS = {"dense": {"kernel": 1.0, "bias": None}, "head": {"kernel": 3.0}}  # 128 in all
SIZE = 64


def kernels(params):
    return {"dense": {**params["dense"], "bias": None}, "head": params["head"]}


def total(tree):
    return sum(np.asarray(leaf, np.float64).sum() for leaf in jax.tree.leaves(tree))


def pruned_are_zero(params, count):
    masked = jp.apply_mask(params, half_mask())
    chex.assert_trees_all_equal(params, masked)
    assert np.all(np.asarray(params["dense"]["bias"], np.float32) != 0)


def kept_exactly(kept: Callable[[int], int]):
    def holds(params, count):
        nonzero = jax.tree.map(lambda p: p != 0, kernels(params))
        assert jp.count(nonzero) == kept(count)
        assert np.all(np.asarray(params["dense"]["bias"], np.float32) != 0)

    return holds


def two_of_four(*axes):
    def holds(params, count):
        for kernel in jax.tree.leaves(kernels(params)):
            for axis in axes:
                groups = np.moveaxis(np.asarray(kernel) != 0, axis, 0).reshape(
                    -1, 4, kernel.shape[1 - axis]
                )
                assert np.all(groups.sum(1) == 2)
        assert np.all(np.asarray(params["dense"]["bias"], np.float32) != 0)

    return holds


def within_budget(budget: Callable[[int], float], costs=1.0):
    def holds(probs, count):
        for leaf in jax.tree.leaves(probs):
            assert np.all((leaf >= 0) & (leaf <= 1))
        rounding = 1e-6 if jax.tree.leaves(probs)[0].dtype == jnp.float32 else 2.0**-8
        price = costs if isinstance(costs, dict) else jax.tree.map(lambda p: costs, probs)
        spent = jax.tree.map(lambda p, c: c * np.asarray(p, np.float64), probs, price)
        assert total(spent) <= budget(count) * (1 + rounding)

    return holds


def expected_within_a_quarter(logits, count):
    probs = jax.tree.map(lambda a: jax.nn.sigmoid(np.asarray(a, np.float32)), logits)
    # Projected logits end at -10, which is a probability of 4.5e-5.
    rounding = 2e-4 if jax.tree.leaves(logits)[0].dtype == jnp.float32 else 2.0**-6
    assert total(probs) <= 0.25 * SIZE * (1 + rounding)


def rising_sparsity(step):
    return jnp.minimum(0.25 * step.astype(jnp.float32), 0.75)


def scheduled(count):
    """The density after `count` updates under the schedules above."""
    return 1 - min(0.25 * (count - 1), 0.75)


ROWS = [
    Row("keep_mask", lambda: jp.keep_mask(half_mask()), weights, pruned_are_zero),
    Row("top_k", lambda: jp.keep_sparse(0.75), weights, kept_exactly(lambda count: 16)),
    Row(
        "top_k_schedule",
        lambda: jp.keep_sparse(rising_sparsity),
        weights,
        kept_exactly(lambda count: round(SIZE * scheduled(count))),
    ),
    Row(
        "top_k_every_3",
        lambda: jp.keep_sparse(0.75, every=3),
        weights,
        kept_exactly(lambda count: 16),
    ),
    Row("nm", lambda: jp.keep_sparse("2:4"), weights, two_of_four(0)),
    Row(
        "transposable_every_3",
        lambda: jp.keep_sparse(jp.NM(2, 4, transposable=True), every=3),
        weights,
        two_of_four(0, 1),
    ),
    Row(
        "straight_through",
        lambda: jp.straight_through(optax.identity(), jp.keep_sparse("2:4"), decay=0.01),
        weights,
        two_of_four(0),
    ),
    Row(
        "probabilities",
        lambda: jp.project_probabilities(0.75),
        probabilities,
        within_budget(lambda count: 16),
    ),
    Row(
        "probabilities_schedule",
        lambda: jp.project_probabilities(rising_sparsity),
        probabilities,
        within_budget(lambda count: SIZE * scheduled(count)),
    ),
    Row(
        "probabilities_costs",
        lambda: jp.project_probabilities(0.75, costs=COSTS),
        probabilities,
        within_budget(lambda count: 32, COSTS),
    ),
    Row("logits", lambda: jp.project_logits(0.75), logits, expected_within_a_quarter),
]
FAST = ("keep_mask", "top_k", "probabilities")
BY_NAME = {row.name: row for row in ROWS}
every_link = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
every_link_some_slow = pytest.mark.parametrize(
    "row",
    [
        pytest.param(row, id=row.name, marks=[pytest.mark.slow] * (row.name not in FAST))
        for row in ROWS
    ],
)
weight_links = pytest.mark.parametrize("row", ROWS[:7], ids=lambda row: row.name)
mask_links = pytest.mark.parametrize(
    "row", [BY_NAME["keep_mask"], BY_NAME["top_k"]], ids=lambda row: row.name
)


def target(leaf):
    return np.random.default_rng(leaf.size).normal(size=leaf.shape).astype(leaf.dtype)


def distance(params):
    """A loss with the gradient params - target, the same bits on any number of devices."""
    return 0.5 * sum(jnp.sum((p - target(p)) ** 2) for p in jax.tree.leaves(params))


def step_of(tx, **extra_args):
    def step(params, state):
        updates, state = tx.update(jax.grad(distance)(params), state, params, **extra_args)
        return optax.apply_updates(params, updates), state

    return step


def sgd_then(link):
    return optax.chain(optax.sgd(0.1, momentum=0.9), link)


def train(tx, params, steps=5):
    step, state = jax.jit(step_of(tx)), tx.init(params)
    for _ in range(steps):
        params, state = step(params, state)
    return params, state
