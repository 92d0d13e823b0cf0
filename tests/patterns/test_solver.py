"""The exact transposable solver against linear programs, other solvers and its own certificates."""

import functools
import itertools

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize
import scipy.sparse
import sklearn.datasets

from jaxprune.patterns import solver

PATTERNS = [(2, 4), (1, 4), (3, 4), (4, 8), (2, 8), (7, 8), (3, 7), (8, 16), (16, 32)]


def solve(tiles, n):
    """Masks of (tiles, m, m)."""
    mask = solver.solve(jnp.moveaxis(jnp.asarray(tiles), 0, -1), n)
    return np.moveaxis(np.asarray(mask), -1, 0)


def linear_program(tiles, n):
    """The largest sum for each tile, by HiGHS; the constraint matrix is totally unimodular."""
    m = tiles.shape[-1]
    one, eye = np.ones((1, m)), scipy.sparse.identity(m)
    sums = scipy.sparse.vstack([scipy.sparse.kron(eye, one), scipy.sparse.kron(one, eye)])
    many = scipy.sparse.block_diag([sums] * len(tiles), format="csr")
    result = scipy.optimize.linprog(
        -tiles.reshape(-1), A_eq=many, b_eq=np.full(many.shape[0], n), bounds=(0, 1), method="highs"
    )
    return (result.x.reshape(tiles.shape) * tiles).sum((1, 2))


@functools.cache
def trained_kernel():
    """The middle kernel of an MLP trained on scikit-learn's digits, 512 x 512."""
    images, labels = sklearn.datasets.load_digits(return_X_y=True)
    sizes = [64, 512, 512, 10]
    keys = jax.random.split(jax.random.key(0), 3)
    init = jax.nn.initializers.he_normal()
    weights = [init(key, shape) for key, shape in zip(keys, itertools.pairwise(sizes), strict=True)]

    def loss(weights):
        hidden = jnp.asarray(images / 16, jnp.float32)
        for kernel in weights[:-1]:
            hidden = jax.nn.relu(hidden @ kernel)
        logits = hidden @ weights[-1]
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    tx = optax.sgd(0.1, momentum=0.9)

    def step(state, _):
        weights, opt_state = state
        updates, opt_state = tx.update(jax.grad(loss)(weights), opt_state)
        return (optax.apply_updates(weights, updates), opt_state), loss(weights)

    (weights, _), losses = jax.lax.scan(step, (weights, tx.init(weights)), length=60)
    assert losses[-1] < 0.2
    return np.abs(weights[1])


def tiles_of(kind, count, m, seed=0):
    random = np.random.default_rng([seed, m])
    normal = random.standard_normal((count, m, m)).astype(np.float32)
    match kind:
        case "Gaussian":
            return np.abs(normal)
        case "signed":
            return normal
        case "heavy-tailed":
            return np.abs(random.standard_cauchy((count, m, m))).astype(np.float32)
        case "five values":
            return random.integers(0, 5, (count, m, m)).astype(np.float32)
        case "two values":
            return random.integers(0, 2, (count, m, m)).astype(np.float32)
        case "rank one":
            return np.abs(normal[:, :1] * normal[:, :, :1])
        case "constant":
            return np.full((count, m, m), 0.3, np.float32)
        case "mostly zero":
            return np.abs(normal) * (random.random((count, m, m)) < 0.4)
        case "trained":
            kernel = trained_kernel()
            side = len(kernel) // m
            kernel = kernel[: side * m, : side * m].reshape(side, m, side, m)
            return kernel.swapaxes(1, 2).reshape(-1, m, m)[:count]
        case "bfloat16":
            return np.abs(normal).astype(jnp.bfloat16).astype(np.float32)


KINDS = [
    "Gaussian", "signed", "heavy-tailed", "five values", "two values", "rank one", "constant",
    "mostly zero", "bfloat16", "trained",
]  # fmt: skip


def check_optimal(tiles, n):
    mask = solve(tiles, n)
    assert (mask.sum(1) == n).all()
    assert (mask.sum(2) == n).all()
    exact = tiles.astype(np.float64)
    best = linear_program(exact, n)
    np.testing.assert_allclose((exact * mask).sum((1, 2)), best, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "m"), PATTERNS)
def test_as_good_as_the_linear_program(n, m, kind):
    check_optimal(tiles_of(kind, 2048 // m**2 + 4, m), n)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (4, 8), (2, 8), (8, 16), (16, 32)])
def test_as_good_as_the_linear_program_on_many(n, m, kind):
    tiles = tiles_of(kind, 10_000, m, seed=1)
    for start in range(0, len(tiles), 500):
        check_optimal(tiles[start : start + 500], n)


@hypothesis.given(st.data())
@hypothesis.settings(max_examples=60)
def test_as_good_as_the_linear_program_on_any_tile(data):
    m = data.draw(st.sampled_from([2, 3, 4, 5, 6]))
    n = data.draw(st.integers(0, m))
    few = st.integers(-3, 3).map(float)
    any_float = st.floats(-(2**20), 2**20, width=32)
    tiles = data.draw(hnp.arrays(np.float32, (2, m, m), elements=few | any_float))
    largest = np.abs(tiles).max((1, 2), keepdims=True)
    check_optimal(tiles / np.where(largest == 0, 1, largest), n)


@pytest.mark.parametrize(("n", "m"), [(1, 4), (2, 4), (3, 4)])
def test_trying_all_masks_agrees_with_the_general_solver(n, m):
    tiles = jnp.moveaxis(jnp.asarray(tiles_of("Gaussian", 100_000, m)), 0, -1)
    grid, _ = solver.to_grid(tiles)
    not_done = jnp.zeros(grid.shape[2:], bool)
    mask, done = solver._separate(grid, n, 64, not_done)
    every = solver._best_of_all(grid, n)
    exchanged = solver._finish(grid, n, jnp.zeros_like(mask), not_done)
    assert done.mean() > 0.999
    done = np.asarray(done)
    np.testing.assert_array_equal(every[..., done], mask[..., done])
    np.testing.assert_array_equal(every, exchanged)


@pytest.mark.parametrize("m", [3, 8, 16])
def test_one_of_m_is_an_assignment(m):
    tiles = tiles_of("Gaussian", 50, m)
    for tile, mask in zip(tiles, solve(tiles, 1), strict=True):
        rows, columns = scipy.optimize.linear_sum_assignment(tile, maximize=True)
        np.testing.assert_array_equal(np.argwhere(mask), np.stack([rows, columns], 1))


@pytest.mark.parametrize("m", [1, 2, 5, 32])
def test_all_or_none(m):
    tiles = tiles_of("Gaussian", 3, m)
    assert solve(tiles, m).all()
    assert not solve(tiles, 0).any()


@pytest.mark.parametrize(("n", "m"), [(2, 4), (4, 8), (8, 16)])
def test_symmetries(n, m):
    tiles = tiles_of("Gaussian", 40, m)
    mask = solve(tiles, n)
    np.testing.assert_array_equal(solve(tiles.swapaxes(1, 2), n), mask.swapaxes(1, 2))
    order = np.random.default_rng(0).permutation(m)
    np.testing.assert_array_equal(solve(tiles[:, order], n), mask[:, order])
    np.testing.assert_array_equal(solve(-tiles, m - n), ~mask)
    shifted = tiles + np.linspace(0, 1, m, dtype=np.float32)[:, None]
    np.testing.assert_array_equal(solve(shifted, n), mask)
    np.testing.assert_array_equal(solve(tiles * np.float32(2.0**-110), n), mask)
    np.testing.assert_array_equal(solve(tiles * np.float32(2.0**120), n), mask)


@pytest.mark.parametrize(("n", "m"), [(2, 4), (3, 7), (4, 8)])
def test_infinities_come_first_and_last(n, m):
    tiles = tiles_of("Gaussian", 10, m)
    tiles[:, 0, :n], tiles[:, 1, n:] = np.inf, -np.inf
    tiles[::2, 2, : m - n] = np.nan
    mask = solve(tiles, n)
    assert (mask.sum(1) == n).all()
    assert (mask.sum(2) == n).all()
    assert mask[:, 0, :n].all()
    assert not mask[:, 1, n:].any()
    assert not mask[::2, 2, : m - n].any()
    large = np.nan_to_num(tiles.astype(np.float64), nan=-1e3, posinf=1e3, neginf=-1e3)
    best = linear_program(large, n)
    np.testing.assert_allclose((large * mask).sum((1, 2)), best, rtol=1e-6)


@pytest.mark.parametrize("fill", [-np.inf, np.inf, np.nan, -1.0])
@pytest.mark.parametrize(("n", "m"), [(1, 2), (2, 4), (3, 4), (3, 7), (7, 8)])
def test_tiles_of_one_value_only(n, m, fill):
    mask = solve(np.full((2, m, m), fill, np.float32), n)
    assert (mask.sum(1) == n).all()
    assert (mask.sum(2) == n).all()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_dtypes(dtype):
    tiles = tiles_of("Gaussian", 20, 8).astype(dtype)
    np.testing.assert_array_equal(solve(tiles, 4), solve(tiles.astype(np.float32), 4))


def test_any_batch():
    tiles = jnp.moveaxis(jnp.asarray(tiles_of("five values", 60, 8)), 0, -1)
    flat = solver.solve(tiles, 4)
    shaped = solver.solve(tiles.reshape(8, 8, 3, 4, 5), 4)
    np.testing.assert_array_equal(shaped, flat.reshape(8, 8, 3, 4, 5))


def test_a_tile_does_not_depend_on_its_neighbours():
    tiles = tiles_of("five values", 1500, 8)
    mask = solve(tiles, 4)
    np.testing.assert_array_equal(solve(tiles[700:900], 4), mask[700:900])
    np.testing.assert_array_equal(solve(tiles[::-1], 4), mask[::-1])


def test_sorting_networks_sort_all_zeros_and_ones():
    for size in range(1, 11):
        lists = np.array(list(itertools.product([0, 1], repeat=size))).T
        for low, high in solver._sorting_network(size):
            lists[[low, high]] = (
                np.minimum(lists[low], lists[high]),
                np.maximum(lists[low], lists[high]),
            )
        assert (np.diff(lists, axis=0) >= 0).all()
    assert [len(solver._sorting_network(size)) for size in (4, 8, 16, 32)] == [5, 19, 63, 191]


@pytest.mark.parametrize("m", [1, 4, 5])
def test_a_traced_number_is_as_good_as_a_fixed_one(m):
    tiles = jnp.moveaxis(jnp.asarray(tiles_of("five values", 60, m)), 0, -1)
    traced = jax.jit(solver.solve)
    for n in range(m + 1):
        np.testing.assert_array_equal(traced(tiles, n), solver.solve(tiles, n))


def test_inside_scan_and_vmap():
    tiles = jnp.moveaxis(jnp.asarray(tiles_of("five values", 12, 5)), 0, -1)
    expected = solver.solve(tiles, 2)
    parts = jnp.moveaxis(tiles.reshape(5, 5, 3, 4), 2, 0)
    mapped = jax.vmap(lambda x: solver.solve(x, 2))(parts)
    _, scanned = jax.lax.scan(lambda _, x: (None, solver.solve(x, 2)), None, parts)
    np.testing.assert_array_equal(jnp.moveaxis(mapped, 0, 2).reshape(5, 5, 12), expected)
    np.testing.assert_array_equal(scanned, mapped)
