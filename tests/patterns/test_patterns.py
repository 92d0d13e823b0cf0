"""N:M masks and transposable masks of trees, shapes and layouts of all kinds; certificates."""

import functools
import itertools
import re

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxprune as jp
from jaxprune.patterns import solver, tiles, transposable


def normal(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


def in_groups(mask, m, axis):
    """How many are kept of each group of m along an axis, the last one perhaps smaller."""
    moved = np.moveaxis(np.asarray(mask), axis, 0)
    return np.stack([moved[i : i + m].sum(0) for i in range(0, len(moved), m)])


def plain_nm(scores, n, m, axis):
    moved = np.moveaxis(np.asarray(scores), axis, 0)
    mask = np.zeros(moved.shape, bool)
    for start in range(0, len(moved), m):
        group = moved[start : start + m]
        order = np.argsort(-group, axis=0, kind="stable")[:n]
        np.put_along_axis(mask[start : start + m], order, True, axis=0)
    return np.moveaxis(mask, 0, axis)


# N:M along one axis.


@hypothesis.settings(max_examples=50)
@hypothesis.given(st.data())
def test_nm_keeps_the_largest_of_each_group(data):
    shape = data.draw(st.lists(st.sampled_from([1, 5, 8]), min_size=1, max_size=3))
    m = data.draw(st.sampled_from([1, 4, 5, 9]))
    n = data.draw(st.sampled_from(sorted({0, m // 2, m})))
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    values = data.draw(st.sampled_from([[0.0, 1.0], [-np.inf, -1.0, 0.5, np.inf], range(100)]))
    scores = np.random.default_rng(m).choice(np.float32(values), shape)
    mask = jp.nm_mask(jnp.asarray(scores), n, m, axis=axis)
    np.testing.assert_array_equal(mask, plain_nm(scores, n, m, axis))


@pytest.mark.parametrize(
    ("shape", "name", "inputs", "outputs"),
    [
        ((12, 8), "kernel", 0, 1),
        ((3, 3, 12, 8), "kernel", 2, 3),
        ((5, 12, 8), "kernel", 1, 2),
        ((12, 2, 4), "query/kernel", 0, None),
        ((3, 4, 8), "out/kernel", None, 2),
    ],
)
def test_sides_of_kernels(shape, name, inputs, outputs):
    kernel = normal(*shape)
    tree = {part: kernel for part in [name]}
    for side, axis in (("inputs", inputs), ("outputs", outputs)):
        mask = np.asarray(jp.nm_mask(tree, 2, 4, axis=side)[name])
        if axis is None:  # heads and their size together
            flat = kernel.reshape(12, 8)
            expected = plain_nm(flat, 2, 4, 0 if side == "inputs" else 1).reshape(shape)
        else:
            expected = plain_nm(kernel, 2, 4, axis)
        np.testing.assert_array_equal(mask, expected)


def test_nm_along_the_inputs_by_default_and_of_trees():
    tree = {"a": normal(8, 4), "b": [normal(4, 4).astype(jnp.bfloat16), None]}
    mask = jp.nm_mask(tree, 1, 4)
    assert mask["b"][1] is None
    assert (in_groups(mask["a"], 4, 0) == 1).all()
    assert (in_groups(mask["b"][0], 4, 0) == 1).all()
    jitted = jax.jit(lambda tree: jp.nm_mask(tree, 1, 4))(tree)
    jax.tree.map(np.testing.assert_array_equal, jitted, mask)


# Transposable masks.


def check_transposable(mask, n, m, axes):
    for axis in axes:
        sums = in_groups(mask, m, axis)
        whole = np.asarray(mask).shape[axis] // m
        assert (sums <= n).all()
        other = axes[0] if axis == axes[1] else axes[1]
        divides = np.asarray(mask).shape[other] % m == 0
        if divides:
            assert (sums[:whole] == n).all()


@pytest.mark.parametrize(("n", "m"), [(2, 4), (3, 7)])
def test_rows_and_columns_hold_at_most_n(n, m):
    shapes = [(16, 24), (19, 21), (3, 3, 8, 16), (2, 2, 3, 10), (8, 1)]
    masks = jp.transposable_nm_mask([abs(normal(*shape)) for shape in shapes], n, m)
    for mask in masks:
        check_transposable(mask, n, m, (mask.ndim - 2, mask.ndim - 1))


def test_attention_is_seen_as_matrices():
    query, out = normal(8, 2, 4), normal(2, 4, 12)
    tree = {"query": {"kernel": query}, "out": {"kernel": out}}
    mask = jp.transposable_nm_mask(tree, 2, 4)
    for kernel, kept in ((query, mask["query"]["kernel"]), (out, mask["out"]["kernel"])):
        flat = kernel.reshape(8, -1)
        expected = jp.transposable_nm_mask(flat, 2, 4)
        np.testing.assert_array_equal(kept.reshape(flat.shape), expected)


def at_most(n, tile):
    """The largest sum with at most n in each row and column, by trying all masks."""
    rows = [
        np.array(row) for row in itertools.product([0, 1], repeat=tile.shape[1]) if sum(row) <= n
    ]
    best = {(0,) * tile.shape[1]: 0.0}
    for scores in tile:
        following = {}
        for columns, total in best.items():
            for row in rows:
                sums = tuple(columns + row)
                if max(sums) <= n:
                    value = total + float(scores @ row)
                    following[sums] = max(following.get(sums, 0.0), value)
        best = following
    return max(best.values())


@pytest.mark.parametrize("shape", [(3, 3), (3, 4), (1, 4), (2, 3), (4, 1)])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_what_is_left_over_is_kept_best_too(shape, n):
    scores = np.abs(np.asarray(normal(6, *shape, seed=n)))
    for tile in scores:
        mask = np.asarray(jp.transposable_nm_mask(jnp.asarray(tile), n, 4))
        assert (mask.sum(0) <= n).all()
        assert (mask.sum(1) <= n).all()
        assert (tile * mask).sum() == pytest.approx(at_most(n, tile), rel=1e-6)


def test_edges_leave_whole_tiles_alone():
    scores = abs(normal(19, 21))
    mask = jp.transposable_nm_mask(scores, 4, 8)
    np.testing.assert_array_equal(mask[:16, :16], jp.transposable_nm_mask(scores[:16, :16], 4, 8))
    negative = jp.transposable_nm_mask(scores - 10, 4, 8)
    check_transposable(negative, 4, 8, (0, 1))
    np.testing.assert_array_equal(negative[:16, :16], mask[:16, :16])


def test_leaves_of_one_shape_or_of_many_are_solved_alike():
    tree = [normal(16, 8, seed=i) for i in range(3)] + [normal(8, 8), None, normal(9, 12)]
    mask = jp.transposable_nm_mask(tree, 2, 4)
    jitted = jax.jit(lambda tree: jp.transposable_nm_mask(tree, 2, 4))(tree)
    jax.tree.map(np.testing.assert_array_equal, jitted, mask)
    for leaf, kept in zip(tree, mask, strict=True):
        if leaf is not None:
            np.testing.assert_array_equal(kept, jp.transposable_nm_mask(leaf, 2, 4))


@pytest.mark.parametrize(
    ("n", "m", "fraction"),
    [(2, 4, 0.7029), (1, 4, 0.4120), (4, 8, 0.7431), (2, 8, 0.4552), (8, 16, 0.7682)],
)
def test_kept_magnitude_of_gaussian_scores(n, m, fraction):
    scores = abs(normal(512, 512))
    kept = jnp.sum(jnp.where(jp.transposable_nm_mask(scores, n, m), scores, 0)) / jnp.sum(scores)
    assert float(kept) == pytest.approx(fraction, abs=0.002)


# Certificates.

SLOW_16_32 = pytest.param(16, 32, (128, 96), marks=pytest.mark.slow)


def gap(scores, mask, n, m):
    """How far the bound lies above the sum, in float64, as a fraction of it."""
    rows, columns = (np.float64(x) for x in jp.transposable_potentials(scores, mask, m))
    scores = np.float64(scores)
    above = scores - np.repeat(rows, m, axis=-1) - np.repeat(columns, m, axis=-2)
    bound = n * rows.sum() + n * columns.sum() + above.clip(0).sum()
    kept = scores[np.asarray(mask)].sum()
    return (bound - kept) / np.abs(kept)


@pytest.mark.parametrize(
    ("n", "m", "shape"),
    [(2, 4, (400, 400)), (4, 8, (3, 3, 240, 320)), (8, 16, (320, 320)), SLOW_16_32],
)
def test_certificates(n, m, shape):
    scores = abs(normal(*shape))
    mask = jp.transposable_nm_mask(scores, n, m)
    assert abs(gap(scores, mask, n, m)) < 1e-6
    worse = jp.transposable_nm_mask(abs(normal(*shape, seed=1)), n, m)
    assert gap(scores, worse, n, m) > 0.01


def test_certificate_of_one_exchange_too_few():
    scores = abs(normal(8, 8))
    mask = np.array(jp.transposable_nm_mask(scores, 4, 8))
    i, k = 0, next(k for k in range(8) if (mask[k] != mask[0]).any())
    j, other = np.argmax(mask[i] & ~mask[k]), np.argmax(mask[k] & ~mask[i])
    mask[[i, k, i, k], [j, other, other, j]] = False, False, True, True
    assert (mask.sum(0) == 4).all()
    assert gap(scores, jnp.asarray(mask), 4, 8) > 1e-5


# Errors.

ones = jnp.ones((4, 4))
BOTH = {
    "n > m": ({"w": ones}, 5, 4, "0 <= n <= m .* got n = 5, m = 4"),
    "n < 0": ({"w": ones}, -1, 4, "n of an N:M pattern must be at least 0, got -1"),
    "m = 0": ({"w": ones}, 0, 0, "m of an N:M pattern must be at least 1, got 0"),
    "m > 32": ({"w": ones}, 2, 64, "m <= 32"),
    "empty": ({}, 2, 4, "no leaves"),
    "integers": ({"a": {"b": jnp.ones((4, 4), int)}}, 2, 4, "leaf 'a/b' is int32"),
    "NaN": ({"a": [ones.at[0, 0].set(jnp.nan)]}, 2, 4, "'a/0' holds NaN"),
    "vector": ({"a": jnp.ones(4)}, 2, 4, r"leaf 'a' of shape \(4,\) has no inputs"),
}


@pytest.mark.parametrize("chunk", [16, 100, 2**20])
def test_chunks_go_from_one_matrix_to_the_next(chunk, monkeypatch):
    monkeypatch.setattr(transposable, "_CHUNK", chunk)  # some rows of tiles have more
    solve = functools.partial(solver.solve, n=2)
    matrices = [abs(normal(*shape)) for shape in [(12, 8), (4, 40), (2, 8, 4), (16, 12)]]
    kept = transposable._pooled(matrices, solve, 4)
    for matrix, keep in zip(matrices, kept, strict=True):
        expected = tiles.to_matrices(solve(tiles.to_tiles(matrix, 4)))
        np.testing.assert_array_equal(keep, expected)


@pytest.mark.parametrize("case", BOTH)
@pytest.mark.parametrize("function", [jp.nm_mask, jp.transposable_nm_mask])
def test_errors_name_leaf_and_remedy(function, case):
    scores, n, m, message = BOTH[case]
    with pytest.raises((TypeError, ValueError), match=message):
        function(scores, n, m)


def test_more_errors():
    with pytest.raises(ValueError, match=re.escape("must be different axes of leaf 'w'")):
        jp.nm_mask({"w": ones}, 2, 4, axis=2)
    with pytest.raises(ValueError, match="named inputs, outputs, heads, got 'rows'"):
        jp.nm_mask({"w": ones}, 2, 4, axis="rows")
    with pytest.raises(ValueError, match="'w' has 4 inputs and 4 outputs"):
        jp.transposable_potentials({"w": ones}, {"w": ones > 0}, 3)
    with pytest.raises(ValueError, match="the mask of leaf 'w'"):
        jp.transposable_potentials({"w": ones}, {"w": jnp.ones(3, bool)}, 4)


# Sharded trees: the same masks, and no matrix gathered.


@pytest.mark.parametrize("spec", [P("x", None), P(None, "y"), P("x", "y"), P(("x", "y"), None)])
def test_sharded_leaves_stay_where_they_are(spec):
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
    scores = abs(normal(512, 256))
    sharded = jax.device_put(scores, NamedSharding(mesh, spec))
    for function in (
        lambda s: jp.nm_mask(s, 2, 4),
        lambda s: jp.transposable_nm_mask(s, 2, 4),
        lambda s: jp.transposable_nm_mask(s, 4, 8),
    ):
        compiled = jax.jit(function).lower(sharded).compile()
        mask = compiled(sharded)
        np.testing.assert_array_equal(mask, function(scores))
        assert mask.sharding.is_equivalent_to(sharded.sharding, 2)
        moves = r"= (.*) (?:all-gather|all-to-all|collective-permute)(?:-start)?\("
        gathered = re.findall(moves, compiled.as_text())
        for shape in re.findall(r"\[([\d,]*)\]", " ".join(gathered)):
            assert np.prod([int(size) for size in shape.split(",") if size]) <= scores.size / 16
