"""Both ways to N:M masks, of which each compiler takes its own, give the same ones."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune.patterns import nm


def abs_or_least(x):
    return jnp.where(jnp.isnan(x), -jnp.inf, jnp.abs(x))


@pytest.mark.parametrize("shape", [(24,), (48, 10), (3, 16, 24), (2, 3, 24, 48)])
@pytest.mark.parametrize(("n", "m"), [(1, 2), (2, 4), (3, 8), (1, 1)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_shifts_and_entries_agree(shape, n, m, dtype):
    scores = jnp.round(2 * jax.random.normal(jax.random.key(0), shape)).astype(dtype)  # with ties
    scores = scores.at[(1,) * len(shape)].set(jnp.nan).at[(0,) * len(shape)].set(-jnp.inf)
    for axis in range(len(shape)):
        if shape[axis] % m == 0:
            ways = (
                functools.partial(way, n=n, axis=axis, m=m, scores=abs_or_least)
                for way in (nm._by_shifts, nm._by_entries)
            )
            np.testing.assert_array_equal(*(jax.jit(way)(scores) for way in ways))


@pytest.mark.parametrize(
    ("shape", "axis"), [((1024, 3), 0), ((16, 512), 1), ((3, 512), 1), ((512,), 0)]
)
def test_long_blocks(shape, axis):
    scores = jnp.round(3 * jax.random.normal(jax.random.key(1), shape))
    np.testing.assert_array_equal(
        nm._by_shifts(scores, 2, axis, 4, abs_or_least),
        nm._by_entries(scores, 2, axis, 4, abs_or_least),
    )
