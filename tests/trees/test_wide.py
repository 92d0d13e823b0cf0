"""64-bit arithmetic and exact sums against Python's integers."""

import math

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from jaxprune.trees import wide

EDGES = [0, 1, 2, 2**16, 2**31, 2**32 - 1, 2**32, 2**32 + 1, 2**63, 2**64 - 2**32, 2**64 - 1]
numbers = st.sampled_from(EDGES) | st.integers(0, 2**64 - 1)
words = st.sampled_from([0, 1, 2**16, 2**31, 2**32 - 1]) | st.integers(0, 2**32 - 1)


def wides(values):
    """A vector `Wide` of Python integers."""
    return wide.stack([wide.wide(value) for value in values])


def ints(a):
    """The Python integers of a vector `Wide`."""
    return [wide.to_int(wide.at(a, i)) for i in range(a.low.shape[0])]


@hypothesis.given(numbers)
def test_round_trip(value):
    assert wide.to_int(wide.wide(value)) == value


@hypothesis.given(numbers, numbers)
def test_arithmetic(x, y):
    a, b = wide.wide(x), wide.wide(y)
    assert wide.to_int(wide.add(a, b)) == (x + y) % 2**64
    assert wide.to_int(wide.subtract(a, b)) == (x - y) % 2**64
    assert bool(wide.less(a, b)) == (x < y)
    assert wide.to_int(wide.where(wide.less(a, b), a, b)) == min(x, y)
    assert_close_float(wide.difference(a, b), x - y)


def assert_close_float(actual, exact):
    """Within one unit in the last place of the nearest float32."""
    assert actual.dtype == jnp.float32
    assert abs(int(actual) - exact) <= 2 * float(np.spacing(np.float32(abs(exact))))


@hypothesis.given(numbers)
def test_to_float(value):
    assert_close_float(wide.to_float(wide.wide(value)), value)


below_two_to_the_64 = float(np.nextafter(np.float32(2.0**64), np.float32(0)))


@hypothesis.given(st.floats(0, below_two_to_the_64, width=32))
@hypothesis.example(below_two_to_the_64)
@hypothesis.example(2.0**32)
@hypothesis.example(float(np.nextafter(np.float32(2.0**32), np.float32(0))))
@hypothesis.example(0.9999999403953552)
def test_from_float_is_floor(x):
    assert wide.to_int(wide.from_float(jnp.float32(x))) == math.floor(x)


@hypothesis.settings(max_examples=50)
@hypothesis.given(st.lists(numbers, min_size=7, max_size=7))
def test_totals(values):
    assert wide.to_int(wide.total(wides(values))) == sum(values) % 2**64
    running = [sum(values[: i + 1]) % 2**64 for i in range(7)]
    assert ints(wide.running_total(wides(values))) == running


@pytest.mark.parametrize("value", [2**32 - 1, 2**48 - 1, 2**16 - 1])
def test_total_of_as_many_terms_as_allowed(value):
    word = lambda x: jnp.full((65_536,), x, jnp.uint32)
    terms = wide.Wide(word(value >> 32), word(value % 2**32))
    assert wide.to_int(wide.total(terms)) == value * 65_536
    assert ints(wide.at(wide.running_total(terms), jnp.array([9_999, 65_535]))) == [
        value * 10_000,
        value * 65_536,
    ]


@pytest.mark.parametrize("places", [0, 1, 15, 16, 31, 32, 33, 63])
def test_shift_left(places):
    shifted = wide._shift_left(jnp.array([0, 1, 2**31 + 5, 2**32 - 1], jnp.uint32), places)
    assert ints(shifted) == [(x << places) % 2**64 for x in [0, 1, 2**31 + 5, 2**32 - 1]]


def sums_of(rows):
    """What exact_sums must return, as nested lists of Python integers."""
    return [[int(np.asarray(x).astype(object).sum()) for x in row] for row in rows]


def lists(a):
    """A matrix `Wide` as nested lists of Python integers."""
    return [ints(wide.at(a, i)) for i in range(a.low.shape[0])]


def random_rows(shapes, bits, seed=0):
    """Entries below 2**bits, the largest among them; boolean where one bit is enough."""
    random = np.random.default_rng(seed)

    def entries(shape, width):
        values = np.asarray(random.integers(0, 2**width, shape, np.uint64))
        values = np.where(random.random(shape) < 0.5, np.uint64(2**width - 1), values)
        return jnp.asarray(values.astype(bool if width == 1 else np.uint32))

    return [[entries(shape, width) for width in bits] for shape in shapes]


BITS = [(1,), (32,), (30, 1), (1, 1, 1), (7, 32, 13)]
SHAPES = [(), (1,), (0,), (5,), (3, 0), (2, 3, 4), (70, 30), (1, 1)]


@pytest.mark.parametrize("bits", BITS, ids=str)
def test_exact_sums(bits):
    rows = random_rows(SHAPES, bits)
    assert lists(jax.jit(wide.exact_sums, static_argnums=1)(rows, bits)) == sums_of(rows)


# A reach of 2**12 for sums makes small leaves behave like leaves of billions: limbs of a few bits,
# and partial sums that are summed again.
LONG = [[(4_000,)], [(20, 300)], [(3, 2, 5, 7, 4), (90, 100), ()], [(2_047,), (2_049,)]]


@pytest.mark.parametrize("shapes", LONG, ids=str)
@pytest.mark.parametrize("bits", [(32, 1), (1, 1, 1)], ids=str)
def test_exact_sums_in_several_limbs_and_rounds(monkeypatch, shapes, bits):
    rows = random_rows(shapes, bits)
    with monkeypatch.context() as patched:
        patched.setattr(wide, "_WORD", 2**12)
        sums = jax.jit(wide.exact_sums, static_argnums=1)(rows, bits)
    assert lists(sums) == sums_of(rows)


def test_short_reach_does_make_rounds(monkeypatch):
    monkeypatch.setattr(wide, "_WORD", 2**12)
    assert wide._last_axes((9, 11, 40)) == (2, 40)
    assert wide._last_axes((3, 2, 5, 7, 4)) == (2, 140)
    assert wide._limb_bits(4_000) == 1
    assert wide._limb_bits(2_047) == 1
    assert wide._limb_bits(1_365) == 2


@pytest.mark.parametrize(
    ("terms", "bits"),
    [(0, 32), (1, 32), (2, 31), (3, 30), (2**16, 16), (2**16 + 2, 15), (2**31, 1), (2**32 - 1, 1)],
)
def test_limbs_are_as_wide_as_their_sum_allows(terms, bits):
    assert wide._limb_bits(terms) == bits
    assert terms * (2**bits - 1) < 2**32


def test_a_million_large_entries():
    rows = [[jnp.full((1024, 1024), 2**30 - 1, jnp.uint32), jnp.ones((1024, 1024), bool)]]
    sums = jax.jit(wide.exact_sums, static_argnums=1)(rows, (30, 1))
    assert lists(sums) == [[2**20 * (2**30 - 1), 2**20]]


@hypothesis.settings(max_examples=60)
@hypothesis.given(st.lists(words, min_size=10, max_size=10))
def test_exact_sums_of_any_words(values):
    leaf = jnp.array(values, jnp.uint32).reshape(2, 5)
    ones = leaf % 2 == 1
    assert lists(exact_sums_of_one(leaf, ones)) == [[sum(values), sum(v % 2 for v in values)]]


@jax.jit
def exact_sums_of_one(leaf, ones):
    return wide.exact_sums([[leaf, ones]], (32, 1))


def test_under_vmap():
    leaves = random_rows([(6, 4, 5)], (32,))[0][0]
    sums = jax.vmap(lambda leaf: wide.at(wide.exact_sums([[leaf]], (32,)), (0, 0)))(leaves)
    assert ints(sums) == [sums_of([[leaf]])[0][0] for leaf in leaves]


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("reach", [2**32, 2**12], ids=["one round", "several rounds"])
def test_sharded(monkeypatch, axis_type, reach):
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(axis_type, axis_type))
    specs = [jax.P("a", "b"), jax.P(("a", "b"), None), jax.P(None, "a", "b"), jax.P()]
    rows = random_rows([(16, 20), (40, 60), (7, 8, 6), (5,)], (32, 1))
    placed = [[jax.device_put(x, jax.NamedSharding(mesh, spec)) for x in row]
              for row, spec in zip(rows, specs, strict=True)]  # fmt: skip
    with monkeypatch.context() as patched:
        patched.setattr(wide, "_WORD", reach)
        sums = jax.jit(lambda r: wide.exact_sums(r, (32, 1)))(placed)
    assert lists(sums) == sums_of(rows)


def test_an_axis_too_long_is_an_error():
    leaf = jax.ShapeDtypeStruct((3, 2**32), jnp.bool_)
    with pytest.raises(ValueError, match=r"fewer than 2\*\*32 entries.*\(3, 4294967296\).*reshape"):
        jax.eval_shape(lambda x: wide.exact_sums([[x]], (1,)), leaf)


@pytest.mark.parametrize("shape", [(80, 8192, 8192), (2**16, 2**17), (2**31,), (3, 2**31 - 1)])
def test_leaves_of_billions_trace(shape):
    sums = jax.eval_shape(
        lambda x: wide.exact_sums([[x, x]], (30, 1)), jax.ShapeDtypeStruct(shape, jnp.uint32)
    )
    assert sums.low.shape == (1, 2)
