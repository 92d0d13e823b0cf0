"""Exact sums against Python's integers."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from jaxprune.trees import wide

words = st.sampled_from([0, 1, 2**16, 2**31, 2**32 - 1]) | st.integers(0, 2**32 - 1)


@wide.counts_in_64_bits
@jax.jit
def exact_sums(rows):
    return wide.exact_sums(rows)


def sums_of(rows):
    """What exact_sums must return, as nested lists of Python integers."""
    return [[int(np.asarray(x).astype(object).sum()) for x in row] for row in rows]


def random_rows(shapes, bits, seed=0):
    """Entries below 2**bits, the largest among them; boolean where one bit is enough."""
    random = np.random.default_rng(seed)

    def entries(shape, width):
        values = np.asarray(random.integers(0, 2**width, shape, np.uint64))
        values = np.where(random.random(shape) < 0.5, np.uint64(2**width - 1), values)
        return jnp.asarray(values.astype(bool if width == 1 else np.uint32))

    return [[entries(shape, width) for width in bits] for shape in shapes]


SHAPES = [(), (1,), (0,), (5,), (3, 0), (2, 3, 4), (70, 30), (1, 1)]


@pytest.mark.parametrize("bits", [(1,), (32,), (30, 1), (1, 1, 1), (7, 32, 13)], ids=str)
def test_exact_sums(bits):
    rows = random_rows(SHAPES, bits)
    assert exact_sums(rows).tolist() == sums_of(rows)


def test_a_million_large_entries():
    rows = [[jnp.full((1024, 1024), 2**32 - 1, jnp.uint32), jnp.ones((1024, 1024), bool)]]
    assert exact_sums(rows).tolist() == [[2**20 * (2**32 - 1), 2**20]]


@hypothesis.settings(max_examples=60)
@hypothesis.given(st.lists(words, min_size=10, max_size=10))
def test_exact_sums_of_any_words(values):
    leaf = jnp.array(values, jnp.uint32).reshape(2, 5)
    sums = exact_sums([[leaf, leaf % 2 == 1]])
    assert sums.tolist() == [[sum(values), sum(value % 2 for value in values)]]


def test_under_vmap():
    leaves = random_rows([(6, 4, 5)], (32,))[0][0]
    sums = wide.counts_in_64_bits(jax.vmap(lambda leaf: wide.exact_sums([[leaf]])[0, 0]))(leaves)
    assert sums.tolist() == [sums_of([[leaf]])[0][0] for leaf in leaves]


def test_inside_loops_and_branches():
    """Traced where x64 is off, and lowered there."""

    @wide.counts_in_64_bits
    def halves(leaf):
        return (wide.exact_sums([[leaf]])[0, 0] >> jnp.uint64(1)).astype(jnp.uint32)

    @jax.jit
    def run(leaf):
        add = lambda i, x: x + jax.lax.cond(i % 2 == 0, lambda: halves(leaf), lambda: jnp.uint32(7))
        return jax.lax.fori_loop(0, 4, add, jnp.uint32(0))

    leaf = jnp.full((3,), 2**31 + 2, jnp.uint32)
    assert int(run(leaf)) == 2 * (3 * (2**31 + 2) // 2 % 2**32) % 2**32 + 14
    assert jnp.arange(3).dtype == jnp.int32


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_sharded(axis_type):
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(axis_type, axis_type))
    specs = [jax.P("a", "b"), jax.P(("a", "b"), None), jax.P(None, "a", "b"), jax.P()]
    rows = random_rows([(16, 20), (40, 60), (7, 8, 6), (5,)], (32, 1))
    placed = [[jax.device_put(x, jax.NamedSharding(mesh, spec)) for x in row]
              for row, spec in zip(rows, specs, strict=True)]  # fmt: skip
    assert exact_sums(placed).tolist() == sums_of(rows)


@pytest.mark.parametrize("shape", [(64, 16384, 65536), (2**33,), (3, 2**31 - 1)])
def test_leaves_of_billions_trace(shape):
    leaf = jax.ShapeDtypeStruct(shape, jnp.uint32)
    sums = jax.eval_shape(exact_sums, [[leaf, leaf]])
    assert sums.shape == (1, 2)
    assert sums.dtype == jnp.uint64
