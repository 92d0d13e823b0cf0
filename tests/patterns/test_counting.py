"""Numbers of masks against trying them all and against published ones."""

import itertools
import math

import pytest
import scipy.stats

import jaxprune as jp


@pytest.mark.parametrize("m", [1, 2, 3, 4])
def test_mask_counts_by_trying_all(m):
    for n in range(m + 1):
        rows = [row for row in itertools.product([0, 1], repeat=m) if sum(row) == n]
        grids = list(itertools.product(rows, repeat=m))
        assert jp.mask_count(n, m, "n:m") == len(grids)
        both = sum(all(sum(column) == n for column in zip(*grid, strict=True)) for grid in grids)
        assert jp.mask_count(n, m, "transposable") == both


@pytest.mark.parametrize(
    ("n", "m", "count"),
    [(1, 4, 24), (2, 4, 90), (2, 8, 187_530_840), (4, 8, 116_963_796_250)],
)
def test_known_mask_counts(n, m, count):
    assert jp.mask_count(n, m, "transposable") == count
    assert jp.mask_count(m - n, m, "transposable") == count


def test_large_mask_counts():
    assert f"{jp.mask_count(4, 16, 'transposable'):.3e}" == "6.893e+42"
    assert f"{jp.mask_count(8, 16, 'transposable'):.4e}" == "3.4812e+55"
    bits = [math.log2(jp.mask_count(4, 8, p)) / 64 for p in ("unstructured", "n:m", "transposable")]
    assert bits == pytest.approx([0.948, 0.766, 0.575], abs=0.001)


@pytest.mark.parametrize(
    ("m", "expected"),
    [(8, {0.5: 6, 0.7: 5, 0.8: 4, 0.9: 2}), (4, {0.5: 4, 0.7: 3, 0.8: 2, 0.9: 2})],
)
def test_the_papers_choice_of_n(m, expected):
    assert {sparsity: jp.smallest_n(sparsity, m) for sparsity in expected} == expected


@pytest.mark.parametrize("m", [1, 4, 32])
@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.99, 1.0])
@pytest.mark.parametrize("probability", [0.0, 0.5, 0.999])
def test_smallest_n_by_scipy(m, sparsity, probability):
    n = jp.smallest_n(sparsity, m, probability=probability)
    fits = lambda n: scipy.stats.binom.cdf(n, m, 1 - sparsity)
    assert n == m or fits(n) > probability - 1e-12
    assert n == 0 or fits(n - 1) <= probability + 1e-12


def test_errors():
    with pytest.raises(ValueError, match="got n = 5, m = 4"):
        jp.mask_count(5, 4, "n:m")
    with pytest.raises(ValueError, match='"n:m" and "transposable", got \'2:4\''):
        jp.mask_count(2, 4, "2:4")
    with pytest.raises(ValueError, match=r"sparsity must lie in \[0, 1\], got 1.2"):
        jp.smallest_n(1.2, 4)
    with pytest.raises(ValueError, match=r"probability must lie in \[0, 1\), got 1"):
        jp.smallest_n(0.5, 4, probability=1)
    with pytest.raises(ValueError, match="got n = 0, m = 64"):
        jp.smallest_n(0.5, 64)
