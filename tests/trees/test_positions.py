"""Positions of entries against NumPy's indices."""

import math

import jax
import numpy as np
import pytest

from jaxprune.trees import positions, wide


@pytest.mark.parametrize("shape", [(), (7,), (3, 0, 2), (2, 3, 4), (1, 5, 1, 6)])
def test_positions_count_in_row_major_order(shape):
    expected = np.arange(math.prod(shape), dtype=np.uint32).reshape(shape)
    np.testing.assert_array_equal(positions.flat(shape), expected)
    np.testing.assert_array_equal(positions.exact(shape), expected)


def test_positions_of_long_leaves_have_64_bits(monkeypatch):
    monkeypatch.setattr(positions, "_WORD", 16)  # as if words had 4 bits
    position = wide.counts_in_64_bits(positions.exact)((2, 3, 5, 2))
    assert position.dtype == np.uint64
    np.testing.assert_array_equal(position, np.arange(60).reshape(2, 3, 5, 2))


@pytest.mark.parametrize("shape", [(80, 8192, 8192), (2**33,), (5, 2**31, 2)])
def test_long_leaves_trace(shape):
    position = jax.eval_shape(lambda: wide.counts_in_64_bits(positions.exact)(shape))
    assert position.shape == shape
    assert position.dtype == np.uint64
