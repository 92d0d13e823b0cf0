"""Two masks compared, against sets of positions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding

import jaxprune as jp
from jaxprune.trees import wide


def drawn(seed, density=0.5):
    random = np.random.default_rng(seed).random
    draw = lambda *shape: jnp.asarray(random(shape) < density)
    return {"a": [draw(7, 9), draw(16, 64)], "b": None, "c": draw(), "d": draw(0, 3)}


def kept(leaf):
    return set(np.flatnonzero(leaf))


@pytest.mark.parametrize("densities", [(0.5, 0.5), (0.9, 0.1), (0.0, 1.0), (0.0, 0.0)])
def test_counts_are_those_of_sets(densities):
    first, second = (drawn(seed, density) for seed, density in enumerate(densities))
    *rows, total = jp.overlaps(first, second)
    assert [row.path for row in rows] == ["a/0", "a/1", "c", "d"]
    pairs = zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)
    both = union = 0
    for row, (a, b) in zip(rows, pairs, strict=True):
        x, y = kept(a), kept(b)
        assert row[1:] == (a.shape, len(x & y), len(x - y), len(y - x), a.size)
        assert row.iou == (len(x & y) / len(x | y) if x | y else 1.0)
        assert row.churn == len(x ^ y) / max(a.size, 1)
        both, union = both + len(x & y), union + len(x | y)
    assert total.iou == (both / union if union else 1.0)
    assert (total.size, total.both + total.lost + total.gained) == (7 * 9 + 16 * 64 + 1, union)
    assert all(type(number) is int for row in rows for number in row[2:])


def test_none_in_one_mask_keeps_the_whole_leaf():
    some = jnp.array([True, False, False])
    assert jp.overlaps([some], [None])[0][2:] == (1, 0, 2, 3)
    assert jp.overlaps([None], [some])[0][2:] == (1, 2, 0, 3)
    assert jp.overlaps([None], [None]) == [("total", (), 0, 0, 0, 0)]
    assert jp.overlaps([None], [None])[0].iou == 1.0


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_on_a_mesh(kind):
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind, kind))
    put = lambda x: jax.device_put(x, NamedSharding(mesh, jax.P(None, ("x", "y"))))
    one, other = drawn(0)["a"][1], drawn(1)["a"][1]
    assert jp.overlaps([put(one)], [put(other)]) == jp.overlaps([one], [other])
    assert jp.overlaps([put(one)], [None]) == jp.overlaps([one], [None])


def test_counts_past_32_bits():
    """The sums are uint64; whether those hold is in test_wide.py."""
    shapes = jax.ShapeDtypeStruct((2**17, 2**16), bool)
    count = wide.counts_in_64_bits(lambda a, b: wide.exact_sums([[a & b, a & ~b, ~a & b]]))
    counted = jax.eval_shape(count, shapes, shapes)
    assert (counted.shape, counted.dtype) == ((1, 3), jnp.uint64)
    row = jp.Overlap("w", shapes.shape, both=2**32, lost=2**31, gained=2**31, size=2**33)
    assert (row.iou, row.churn) == (0.5, 0.5)


def test_masks_of_numpy():
    first = {"w": np.array([True, True, False]), "b": None}
    *_, total = jp.overlaps(first, {"w": np.array([True, False, True]), "b": None})
    assert (total.both, total.lost, total.gained) == (1, 1, 1)
