"""Positions of entries against NumPy's indices."""

import math

import numpy as np
import pytest

from jaxprune.trees import positions


@pytest.mark.parametrize("shape", [(), (7,), (3, 0, 2), (2, 3, 4), (1, 5, 1, 6)])
def test_positions_count_in_row_major_order(shape):
    expected = np.arange(math.prod(shape), dtype=np.uint32).reshape(shape)
    np.testing.assert_array_equal(positions.flat(shape), expected)
    row, column = positions.row_and_column(shape)
    _, columns = positions.rows_and_columns(shape)
    np.testing.assert_array_equal(row * np.uint32(columns) + column, expected)


def test_long_leaves_need_rows(monkeypatch):
    """With words of 4 bits, 2 x 3 x 5 x 2 entries are 6 rows of 10 columns."""
    monkeypatch.setattr(positions, "_WORD", 16)
    shape = (2, 3, 5, 2)
    assert positions.rows_and_columns(shape) == (6, 10)
    row, column = positions.row_and_column(shape)
    expected = np.arange(60).reshape(shape)
    np.testing.assert_array_equal(np.asarray(row) * 10 + np.asarray(column), expected)


@pytest.mark.parametrize("shape", [(80, 8192, 8192), (2**16, 2**17), (5, 2**31, 1), (7, 3, 2**30)])
def test_long_leaves_fit_two_words(shape):
    rows, columns = positions.rows_and_columns(shape)
    assert rows * columns == math.prod(shape)
    assert max(rows, columns) < 2**32


@pytest.mark.parametrize("shape", [(2**32,), (5, 2**31, 2**31)])
def test_what_two_words_do_not_hold_is_an_error(shape):
    with pytest.raises(ValueError, match="reshape it"):
        positions.rows_and_columns(shape)
