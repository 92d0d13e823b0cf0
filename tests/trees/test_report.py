"""Rows and tables of a mask."""

import jax.numpy as jnp
import pytest

import jaxprune as jp


def example_mask():
    return {
        "conv": {"kernel": jnp.arange(2_400).reshape(40, 60) % 3 == 0, "bias": None},
        "head": [jnp.zeros((2, 5), bool), jnp.ones((), bool)],
    }


def test_layers():
    rows = jp.layers(example_mask())
    assert [tuple(row) for row in rows] == [
        ("conv/kernel", (40, 60), 800, 2_400),
        ("head/0", (2, 5), 0, 10),
        ("head/1", (), 1, 1),
    ]
    assert [row.density for row in rows] == [pytest.approx(1 / 3), 0.0, 1.0]
    assert all(type(row.kept) is int for row in rows)


def test_table():
    assert jp.table(example_mask()).splitlines() == [
        "layer        shape  kept  weights   density",
        "conv/kernel  40x60   800    2,400   33.333%",
        "head/0       2x5       0       10    0.000%",
        "head/1                 1        1  100.000%",
        "total                801    2,411   33.223%",
    ]


def test_lines_are_equally_long():
    assert len({len(line) for line in jp.table(example_mask()).splitlines()}) == 1


def test_empty_leaf():
    assert jp.layers([jnp.ones((0, 3), bool)])[0].density == 0.0


def test_nothing_prunable():
    assert jp.layers({"bias": None}) == []
    assert jp.table({"bias": None}).splitlines()[1].split() == ["total", "0", "0", "0.000%"]


@pytest.mark.parametrize("function", [jp.layers, jp.table])
def test_parameters_instead_of_a_mask_is_an_error_that_names_the_leaf(function):
    with pytest.raises(TypeError, match="'conv/kernel' is float32"):
        function({"conv": {"kernel": jnp.ones((2, 3))}})
