"""The rivals of the exact solver: feasible always, and as good as is known of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from jaxprune.patterns import approximate, solver

RIVALS = [approximate.greedy, approximate.entropic]
PATTERNS = [(2, 4), (3, 7), (8, 16)]


def tiles_of(kind, m, count=64):
    normal = jax.random.normal(jax.random.key(m), (m, m, count))
    match kind:
        case "Gaussian":
            return jnp.abs(normal)
        case "signed":
            return normal
        case "integers":
            return jnp.floor(2 * normal)
        case "constant":
            return jnp.full((m, m, count), 0.3)
        case "rank one":
            return jnp.abs(normal[:, :1] * normal[:1])
        case "infinities and NaN":
            return jnp.where(normal > 1, jnp.inf, jnp.where(normal < -1, -jnp.inf, normal)).at[
                0, 0, 0
            ].set(jnp.nan)  # fmt: skip


KINDS = ["Gaussian", "signed", "integers", "constant", "rank one", "infinities and NaN"]


@pytest.mark.parametrize("solve", RIVALS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "m"), PATTERNS)
def test_every_row_and_column_has_n_entries(n, m, kind, solve):
    mask = solve(tiles_of(kind, m), n)
    assert (mask.sum(0) == n).all()
    assert (mask.sum(1) == n).all()


@pytest.mark.parametrize("solve", RIVALS)
@pytest.mark.parametrize("m", [4, 8])
def test_none_or_all(m, solve):
    tiles = tiles_of("Gaussian", m)
    assert not solve(tiles, 0).any()
    assert solve(tiles, m).all()


def kept(tiles, mask):
    return np.asarray(jnp.sum(jnp.where(mask, tiles, 0), (0, 1)), np.float64)


@pytest.mark.parametrize("kind", ["Gaussian", "integers", "rank one"])
@pytest.mark.parametrize(("n", "m"), PATTERNS)
def test_greedy_keeps_at_least_half_of_the_best(n, m, kind):
    tiles = jnp.abs(tiles_of(kind, m))
    best = kept(tiles, solver.solve(tiles, n))
    found = kept(tiles, approximate.greedy(tiles, n))
    assert (found >= best / 2 - 1e-6).all()
    assert (found <= best * (1 + 1e-6)).all()


@pytest.mark.parametrize("n", [1, 2, 4])
def test_greedy_keeps_hardly_more_than_half_in_its_worst_case(n):
    # Hubara et al. (2021): the entry 1 + e first, then nothing fits but zeros.
    tile = jnp.kron(jnp.array([[1.0, 1.01], [0.0, 1.0]]), jnp.ones((n, n)))[..., None]
    assert kept(tile, approximate.greedy(tile, n)) == pytest.approx(1.01 * n * n)
    assert kept(tile, solver.solve(tile, n)) == pytest.approx(2 * n * n)


@pytest.mark.parametrize(
    ("n", "m", "greedy_loss", "entropic_loss"),
    [(2, 4, 1.06, 0.0), (4, 8, 0.78, 0.023), (8, 16, 0.60, 0.065)],
)
def test_losses_on_gaussian_tiles_are_those_published(n, m, greedy_loss, entropic_loss):
    tiles = tiles_of("Gaussian", m, count=2**17 // m**2)
    best = kept(tiles, solver.solve(tiles, n)).sum()
    loss = lambda solve: 100 * (1 - kept(tiles, solve(tiles, n)).sum() / best)
    assert loss(approximate.greedy) == pytest.approx(greedy_loss, abs=0.06)
    assert loss(approximate.entropic) == pytest.approx(entropic_loss, abs=0.02)


@pytest.mark.parametrize("method", ["greedy", "entropic"])
def test_trees_and_sides_that_do_not_divide(method):
    scores = {"a": jnp.abs(jax.random.normal(jax.random.key(0), (3, 12, 10))), "b": None}
    mask = jp.transposable_nm_mask(scores, 2, 4, method=method)
    kernel = mask["a"]
    assert mask["b"] is None
    tiles = kernel[:, :, :8].reshape(3, 3, 4, 2, 4)
    assert (tiles.sum(2) == 2).all()
    assert (tiles.sum(4) == 2).all()
    edge = kernel[:, :, 8:].reshape(3, 3, 4, 2)
    assert (edge.sum(2) <= 2).all()
    exact = jp.transposable_nm_mask(scores, 2, 4)
    sums = [float(jnp.sum(jnp.where(each["a"], scores["a"], 0))) for each in (mask, exact)]
    assert 0.97 * sums[1] < sums[0] <= sums[1] * (1 + 1e-6)


def test_an_unknown_method():
    with pytest.raises(ValueError, match=r"one of \['exact', 'greedy', 'entropic'\], got 'flow'"):
        jp.transposable_nm_mask(jnp.ones((4, 4)), 2, 4, method="flow")
