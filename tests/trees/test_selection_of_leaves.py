"""The cut of one leaf, against a stable argsort of its ranks: for any k, any ties, any zeros."""

import math

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune.trees import sampling, selection, wide

LAST = 2**32 - 1


def first_in_order(ranks, k):
    kept = np.zeros(ranks.size, bool)
    kept[np.argsort(-ranks.ravel().astype(np.int64), kind="stable")[:k]] = True
    return kept.reshape(ranks.shape)


@wide.counts_in_64_bits
def largest(leaf, k):
    return leaf.kept(selection.cut(leaf, jnp.uint64(k)))


@jax.jit
def largest_of_two(high, low, k):
    """Of ranks that no array holds: 16 bits of each of two."""
    return largest(selection.Ranked((high, low), lambda high, low: (high << 16) + low), k)


@st.composite
def halves_and_k(draw):
    """Few values, so that there are ties; with both ends of the range among them."""
    shape = draw(st.sampled_from([(0,), (), (1, 1), (7,), (3, 5), (2, 3, 4)]))
    size = math.prod(shape)
    values = st.sampled_from([0, 1, 2, 0x7FFF, 0xFFFF])
    of_size = st.lists(values, min_size=size, max_size=size)
    half = lambda: np.array(draw(of_size), np.uint32).reshape(shape)
    return half(), half(), draw(st.integers(0, size))


@hypothesis.settings(max_examples=300, deadline=None)
@hypothesis.given(halves_and_k())
def test_equals_stable_argsort(case):
    high, low, k = case
    kept = largest_of_two(high, low, np.uint32(k))
    np.testing.assert_array_equal(kept, first_in_order((high << 16) + low, k))


@pytest.mark.parametrize("zeros", [0, 1, 7, 8, 16, 31])
@pytest.mark.parametrize("k", [0, 1, 30, 63, 64])
def test_low_bits_that_are_zero_take_no_passes(zeros, k):
    drawn = np.random.default_rng(zeros).integers(0, LAST, 64, np.uint32, endpoint=True)
    ranks = np.append(drawn[:-1], np.uint32(LAST)) >> zeros << zeros
    leaf = selection.Ranked((jnp.asarray(ranks),), lambda ranks: ranks, zeros)
    np.testing.assert_array_equal(largest(leaf, k), first_in_order(ranks, k))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_orders_at_random_are_those_of_uniform_numbers(dtype):
    like, key = jnp.full((40, 50), jnp.nan, dtype), jax.random.key(3)
    leaf = sampling.at_random(like, key)
    ranks = np.asarray(leaf.ranks(*leaf.operands))
    uniform = np.asarray(sampling.open_uniform(like, key, sampling.counter_bits))
    np.testing.assert_array_equal(np.argsort(ranks, None), np.argsort(uniform, None))
    assert ranks.max() < 2**31 and not np.any(ranks & 0xFF)
    np.testing.assert_array_equal(largest(leaf, 900), first_in_order(ranks, 900))
