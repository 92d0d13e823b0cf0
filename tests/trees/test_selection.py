"""top_k_mask against a stable argsort of the concatenated tree."""

import functools
import math
import re
import resource

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import AxisType

import jaxprune as jp

F32, BF16, F16 = np.float32, ml_dtypes.bfloat16, np.float16
E4M3, E5M2 = ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2


def stable_top_k(scores, k):
    """What top_k_mask must return, by sorting."""
    leaves, structure = jax.tree.flatten(scores)
    flat = np.concatenate([np.asarray(x).astype(np.float64).ravel() for x in leaves])
    kept = np.zeros(flat.size, bool)
    kept[np.argsort(-flat, kind="stable")[: int(k)]] = True
    parts = np.split(kept, np.cumsum([x.size for x in leaves])[:-1])
    return structure.unflatten(p.reshape(x.shape) for p, x in zip(parts, leaves, strict=True))


def assert_same_mask(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.dtype == bool
        np.testing.assert_array_equal(a, e)


def cast(values, dtype):
    """Finite values beyond the dtype's range become its ends, infinities too where it has none."""
    values = np.asarray(values, np.float64)
    if np.issubdtype(dtype, np.integer):
        info = np.iinfo(dtype)
        return np.clip(values, info.min, info.max).astype(dtype)
    largest = float(ml_dtypes.finfo(dtype).max)
    if dtype == E4M3:
        return np.clip(values, -largest, largest).astype(dtype)
    return np.where(np.isinf(values), values, np.clip(values, -largest, largest)).astype(dtype)


# Leaves are (dtype, shape); 0-d, empty and absent ones stand beside others.
TREES = {
    "float32 vector": (F32, (9,)),
    "float32 tree": {"a": (F32, (3, 4)), "b": (F32, ()), "c": [None, (F32, (5,)), (F32, (2, 3))]},
    "float32, empty leaves": [(F32, (0,)), (F32, (4,)), (F32, (3, 0)), (F32, (4,)), (F32, (0,))],
    "bfloat16": ((BF16, (2, 5)), None, {"x": (BF16, (7,))}),
    "float16": {"a": (F16, (2, 5)), "b": None, "c": (F16, (7,))},
    "float8_e4m3fn": [(E4M3, (4, 3)), (E4M3, (2,))],
    "int8, uint8": [(np.int8, (6,)), (np.uint8, (2, 3))],
    "mixed": {"e": (E5M2, (3,)), "f": (F32, (2, 2)), "g": (BF16, (3,)), "h": (F16, (3,)),
              "i": (np.int16, (3,)), "j": (np.uint8, ()), "k": (E4M3, (2,))},
}  # fmt: skip
SPECIAL = [0.0, -0.0, 1.0, -1.0, math.inf, -math.inf, 3.4028235e38, -3.4028235e38, 448.0, 65504.0]
NEIGHBOURS = [float(np.nextafter(F32(1), F32(2))), float(np.nextafter(F32(1), F32(0))), 1 + 2**-7]
DENORMALS = [1e-45, -1e-45, 1e-40, -1e-40, 2.0**-24, -(2.0**-24), 2.0**-9, 9.2e-41]
VALUES = [*SPECIAL, *NEIGHBOURS, *DENORMALS]


def is_spec(x):
    return isinstance(x, tuple) and len(x) == 2 and isinstance(x[0], type)


@st.composite
def scores_and_k(draw):
    tree = TREES[draw(st.sampled_from(list(TREES)))]
    specs, structure = jax.tree.flatten(tree, is_leaf=is_spec)
    size = sum(math.prod(shape) for _, shape in specs)
    distinct = draw(st.lists(st.sampled_from(VALUES) | st.floats(-9, 9), min_size=1, max_size=size))
    values = draw(st.lists(st.sampled_from(distinct), min_size=size, max_size=size))
    leaves = []
    for dtype, shape in specs:
        here, values = values[: math.prod(shape)], values[math.prod(shape) :]
        leaves.append(jnp.asarray(cast(here, dtype).reshape(shape)))
    k = draw(st.sampled_from([0, 1, size - 1, size]) | st.integers(0, size))
    return structure.unflatten(leaves), k


jitted = jax.jit(jp.top_k_mask)


@hypothesis.settings(max_examples=700)
@hypothesis.given(scores_and_k())
def test_equals_stable_argsort(case):
    scores, k = case
    assert_same_mask(jp.top_k_mask(scores, k), stable_top_k(scores, k))


@hypothesis.settings(max_examples=300)
@hypothesis.given(scores_and_k())
def test_equals_stable_argsort_under_jit_with_traced_k(case):
    scores, k = case
    assert_same_mask(jitted(scores, jnp.int32(k)), stable_top_k(scores, k))


@pytest.mark.parametrize("dtype", [BF16, F16, E4M3, E5M2, np.int8, np.uint8, np.int16, np.uint16])
def test_ranks_every_value_of_a_narrow_dtype(dtype):
    """All bit patterns but NaN, shuffled, twice over: cuts fall within and between ties."""
    width = np.dtype(dtype).itemsize * 8
    values = np.arange(2**width).astype(f"uint{width}").view(dtype)
    if not np.issubdtype(dtype, np.integer):
        values = np.where(np.isnan(values.astype(F32)), dtype(0), values)
    values = np.random.default_rng(0).permutation(np.concatenate([values, values]))
    scores = {"w": jnp.asarray(values)}
    ks = np.linspace(0, values.size, 9).astype(int)
    for k in [1, 2, 3, values.size - 1, *ks, *(ks[:-1] + 1)]:
        assert_same_mask(jp.top_k_mask(scores, int(k)), stable_top_k(scores, k))


@pytest.mark.parametrize("few_values", [True, False], ids=["ties", "distinct"])
def test_one_long_leaf(few_values):
    random = np.random.default_rng(1)
    values = random.standard_normal(300_000).astype(F32)
    scores = [jnp.asarray(np.round(values) if few_values else values)]
    for k in (0, 1, 2, 1_000, 149_999, 299_999, 300_000):
        assert_same_mask(jp.top_k_mask(scores, k), stable_top_k(scores, k))


@pytest.mark.parametrize("shape", [(5,), (1,), (), (1, 5), (5, 1), (2, 3, 5, 2), (1, 1, 1)])
def test_all_equal_keeps_the_first(shape):
    scores = [jnp.full(shape, -2.5), jnp.full((3,), -2.5)]
    for k in range(math.prod(shape) + 4):
        kept = jp.top_k_mask(scores, k)
        assert [*kept[0].ravel(), *kept[1]] == [i < k for i in range(math.prod(shape) + 3)]


@pytest.mark.parametrize("k", [2, np.int64(2), np.array(2), jnp.int32(2), jnp.uint8(2)])
def test_k_may_be_any_integer(k):
    assert jp.top_k_mask([jnp.array([1.0, 3.0, 2.0])], k)[0].tolist() == [False, True, True]


@pytest.mark.parametrize(("k", "kept"), [(-5, 0), (0, 0), (2, 2), (3, 3), (4, 3), (2**31 - 1, 3)])
def test_traced_k_out_of_range_is_taken_as_the_nearer_end(k, kept):
    assert jitted([jnp.array([1.0, 3.0, 2.0])], jnp.int32(k))[0].sum() == kept


def test_nan_ranks_with_minus_infinity_inside_jit():
    scores = [jnp.array([jnp.nan, -jnp.inf, -3.0, -jnp.nan])]
    for k, kept in ((1, [2]), (2, [0, 2]), (3, [0, 1, 2])):
        assert np.flatnonzero(jitted(scores, jnp.int32(k))[0]).tolist() == kept


BATCH = 4


def batch_of_trees():
    random = np.random.default_rng(2)
    draw = lambda *shape: jnp.asarray(np.round(random.standard_normal((BATCH, *shape)), 1), F32)
    scores = {"a": draw(3, 4), "b": None, "c": draw(), "d": draw(8).astype(jnp.bfloat16)}
    return scores, jnp.array([0, 5, 11, 21], jnp.int32)


def expected_of_batch(scores, ks):
    rows = [jax.tree.map(lambda x, i=i: x[i], scores) for i in range(BATCH)]
    return [stable_top_k(row, k) for row, k in zip(rows, ks, strict=True)]


def assert_same_batch(actual, expected):
    for i in range(BATCH):
        assert_same_mask(jax.tree.map(lambda x, i=i: x[i], actual), expected[i])


def test_vmap_over_trees_and_k():
    scores, ks = batch_of_trees()
    assert_same_batch(jax.vmap(jp.top_k_mask)(scores, ks), expected_of_batch(scores, ks))
    fixed = jax.vmap(lambda s: jp.top_k_mask(s, 7))(scores)
    assert_same_batch(fixed, expected_of_batch(scores, [7] * BATCH))


def test_vmap_over_k_alone():
    scores, ks = batch_of_trees()
    scores = jax.tree.map(lambda x: x[0], scores)
    masks = jax.vmap(jp.top_k_mask, in_axes=(None, 0))(scores, ks)
    assert_same_batch(masks, [stable_top_k(scores, k) for k in ks])


def test_inside_scan():
    scores, ks = batch_of_trees()
    _, masks = jax.lax.scan(lambda _, case: (None, jp.top_k_mask(*case)), None, (scores, ks))
    assert_same_batch(masks, expected_of_batch(scores, ks))


def test_inside_cond():
    scores, _ = batch_of_trees()
    scores = jax.tree.map(lambda x: x[2], scores)
    dense = jax.tree.map(lambda x: jnp.ones_like(x, dtype=bool), scores)

    @jax.jit
    def choose(scores, prune, k):
        return jax.lax.cond(prune, lambda: jp.top_k_mask(scores, k), lambda: dense)

    assert_same_mask(choose(scores, True, 5), stable_top_k(scores, 5))
    assert_same_mask(choose(scores, False, 5), dense)


def test_no_retrace_for_another_k():
    traces = []
    mask_of = jax.jit(lambda s, k: traces.append(0) or jp.top_k_mask(s, k))
    for k in range(4):
        mask_of([jnp.arange(4.0)], jnp.int32(k))
    assert len(traces) == 1


WRONG = {
    "empty tree": ({}, 0, "no leaves"),
    "only None": ({"a": None}, 0, "no leaves"),
    "k negative": ({"a": jnp.ones(3)}, -1, "k must be at least 0, got -1"),
    "k too large": ({"a": jnp.ones(3)}, 4, "between 0 and the number of scores, 3; got 4"),
    "k array too large": ({"a": jnp.ones(3)}, np.array(4), "got 4"),
    "int32": ({"a": {"b": jnp.ones(3, jnp.int32)}}, 1, "'a/b' are int32.*cast them to float32"),
    "bool": ({"a": jnp.ones(3, bool)}, 1, "'a' are bool.*cast them to float32"),
    "complex": ({"a": jnp.ones(3, jnp.complex64)}, 1, "'a' are complex64.*cast them to float32"),
    "Python number": ({"a": 1.0}, 1, "'a'"),
    "NaN": ({"a": jnp.ones(2), "b": [jnp.array([1.0, jnp.nan])]}, 1, "'b/0' holds NaN.*nan_to_num"),
    "NaN in bfloat16": ([jnp.array([jnp.nan], jnp.bfloat16)], 1, "'0' holds NaN"),
    "NaN in float8": ([jnp.array([jnp.nan]).astype(jnp.float8_e4m3fn)], 1, "'0' holds NaN"),
}


@pytest.mark.parametrize("case", WRONG)
def test_errors_name_leaf_and_remedy(case):
    scores, k, message = WRONG[case]
    with pytest.raises((TypeError, ValueError), match=message):
        jp.top_k_mask(scores, k)


def test_concrete_scores_inside_jit():
    """A step may close over arrays that aren't traced: scores computed once, say."""
    scores = [jnp.array([1.0, 3.0, 2.0])]
    mask = jax.jit(lambda k: jp.top_k_mask(scores, k))(jnp.int32(2))
    assert mask[0].tolist() == [False, True, True]


def test_float_k_is_an_error():
    with pytest.raises(TypeError):
        jp.top_k_mask([jnp.ones(3)], 1.0)


# Sharded trees: the same bits, and only scalars between devices.

SPECS = {"a": jax.P("a", "b"), "b": jax.P("b", None), "c": jax.P(("a", "b")), "d": jax.P(None, "a"),
         "e": jax.P(), "f": jax.P(("b", "a"), None, None)}  # fmt: skip


def mesh_of(axis_type):
    return jax.make_mesh((4, 2), ("a", "b"), axis_types=(axis_type, axis_type))


def shard(tree, mesh, specs=SPECS):
    return {name: jax.device_put(leaf, jax.NamedSharding(mesh, specs[name]))
            for name, leaf in tree.items()}  # fmt: skip


def sharded_shapes():
    """Ties in plenty, so that most cuts divide a leaf."""
    random = np.random.default_rng(3)
    shapes = {"a": (8, 6), "b": (4, 5), "c": (16,), "d": (3, 8), "e": (), "f": (8, 2, 3)}
    dtypes = {"c": BF16, "d": F16}
    return {name: jnp.asarray(np.round(random.standard_normal(shape)), dtypes.get(name, F32))
            for name, shape in shapes.items()}  # fmt: skip


def assert_only_scalars_travel(compiled_text):
    collectives = r"all-gather|all-to-all|collective-permute|reduce-scatter|collective-broadcast"
    assert not re.search(rf"({collectives})(-start)?\(", compiled_text)
    reduced = re.findall(r"= (.*?) all-reduce(?:-start)?\(", compiled_text)
    assert reduced
    for result in reduced:
        assert set(re.findall(r"\[(.*?)\]", result)) == {""}, result


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_sharded_tree_gives_the_same_mask(axis_type):
    scores = sharded_shapes()
    sharded = shard(scores, mesh_of(axis_type))
    size = sum(leaf.size for leaf in jax.tree.leaves(scores))
    for k in [0, 1, *range(20, size, 37), size]:
        expected = stable_top_k(scores, k)
        assert_same_mask(jp.top_k_mask(sharded, k), expected)
    assert_same_mask(jitted(sharded, jnp.int32(k)), expected)


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_sharded_mask_lies_like_the_scores(axis_type):
    sharded = shard(sharded_shapes(), mesh_of(axis_type))
    for name, leaf in jp.top_k_mask(sharded, 50).items():
        assert leaf.sharding.is_equivalent_to(sharded[name].sharding, leaf.ndim), name


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_only_scalars_travel(axis_type):
    mesh = mesh_of(axis_type)
    lowered = jitted.lower(shard(sharded_shapes(), mesh), jnp.int32(50))
    assert_only_scalars_travel(lowered.compile().as_text())


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_under_set_mesh_inside_cond(axis_type):
    mesh = mesh_of(axis_type)
    with jax.set_mesh(mesh):
        sharded = shard(sharded_shapes(), mesh)
        dense = jax.tree.map(lambda x: jnp.ones_like(x, dtype=bool), sharded)
        mask = jax.jit(
            lambda s, k: jax.lax.cond(k > 3, lambda: jp.top_k_mask(s, k), lambda: dense)
        )(sharded, jnp.int32(60))
    assert_same_mask(mask, stable_top_k(sharded_shapes(), 60))


# Size.


def test_temporary_memory_stays_below_one_leaf_and_a_bit():
    """One boolean for each of its entries would do; the leaf where the ties are is ranked once."""
    leaf = jax.ShapeDtypeStruct((1024, 1024), jnp.float32)
    compiled = jitted.lower([leaf] * 8, jax.ShapeDtypeStruct((), jnp.int32)).compile()
    temporary = compiled.memory_analysis().temp_size_in_bytes
    assert temporary <= 1.01 * 4 * leaf.size  # the tree has 8 such leaves
    assert not re.search(r"\[8388608\]|\[8,1024,1024\]", compiled.as_text())  # no concatenation


@pytest.mark.parametrize("shape", [(80, 8192, 8192), (2**16, 2**17), (2**12, 1, 2**21), (2**31,)])
def test_leaves_past_the_reach_of_32_bits_trace(shape):
    scores = {"w": jax.ShapeDtypeStruct(shape, jnp.bfloat16), "v": jax.ShapeDtypeStruct((3,), F32)}
    mask = jax.eval_shape(lambda s: jp.top_k_mask(s, math.prod(shape) // 2), scores)
    assert mask["w"].shape == shape
    assert mask["w"].dtype == bool


def test_one_axis_can_be_as_long():
    scores = [jax.ShapeDtypeStruct((2**33,), jnp.bfloat16)]
    (mask,) = jax.eval_shape(lambda s: jp.top_k_mask(s, 2**32), scores)
    assert mask.shape == (2**33,)


PERIOD = 251  # prime, so that the values fall out of step with every power of two


@functools.partial(jax.jit, static_argnums=0)
def periodic(shape):
    """The position modulo 251, as uint8."""
    return (flat_position(shape) % PERIOD).astype(jnp.uint8)


def flat_position(shape):
    position = jnp.zeros(shape, jnp.uint32)
    for axis in range(len(shape)):
        stride = jnp.uint32(math.prod(shape[axis + 1 :]))
        position += jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * stride
    return position


@jax.jit
def all_equal(mask, cut, end):
    """Whether values above the cut are kept, those at the cut before position `end`, no others."""
    value = periodic(mask.shape)
    kept = (value > cut) | ((value == cut) & (flat_position(mask.shape) < end))
    return jnp.all(mask == kept)


@pytest.mark.slow
@pytest.mark.parametrize(
    "shapes",
    [[(2**31 + 2**27,)], [(2**30,), (2**15, 2**15), (2**13, 3, 2**13)]],
    ids=["one leaf", "three leaves"],
)
def test_past_two_to_the_31(shapes):
    """2.28 and 2.35 billion scores. Values and the place of the cut are known in closed form."""
    scores = [periodic(shape) for shape in shapes]
    sizes = [math.prod(shape) for shape in shapes]
    occurrences = lambda v: [len(range(v, size, PERIOD)) for size in sizes]
    cut, into_last_leaf = 5, 400_003
    above = sum(sum(occurrences(v)) for v in range(cut + 1, PERIOD))
    k = above + sum(occurrences(cut)[:-1]) + into_last_leaf
    assert 2**31 < k < sum(sizes)
    assert into_last_leaf < occurrences(cut)[-1]
    mask = jp.top_k_mask(scores, k)
    for leaf, end in zip(mask, [*sizes[:-1], cut + PERIOD * (into_last_leaf - 1) + 1], strict=True):
        assert all_equal(leaf, jnp.uint8(cut), jnp.uint32(end))
    assert jp.count(mask) == k
    assert jp.count([~leaf for leaf in mask]) == sum(sizes) - k
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 24 * 2**20  # KiB
