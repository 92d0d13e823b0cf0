"""One-shot pruning against the papers' algorithms in NumPy and float64."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from tests.networks.test_reconstruction import correlated, layer, linear, normal, two_layers

TRANSPOSABLE = jp.NM(2, 4, transposable=True)
METHODS = ("magnitude", "wanda", "sparsegpt", "admm")


def product(params, x):
    return x @ params["kernel"]


def kernel_alone(inputs, outputs, seed=0):
    return {"kernel": normal(inputs, outputs, seed=seed)}


def error(new, params, x, apply=product):
    return float(jnp.sum((apply(new, x) - apply(params, x)) ** 2))


def largest(scores, kept):
    """A mask of so many of the largest scores of each column."""
    mask = np.zeros(scores.shape, bool)
    np.put_along_axis(mask, np.argsort(-scores, axis=0)[:kept], True, axis=0)
    return mask


def by_sparsegpt(x, kernel, sparsity, damping=0.01, block=128):
    """Algorithm 1 of the paper, weights (outputs, inputs), with explicit inverses.

    Each input's row of the inverse comes from the inverse of what is left of the Hessian.
    """
    x, weights = np.asarray(x, np.float64), np.asarray(kernel, np.float64).T.copy()
    hessian = x.T @ x
    hessian += damping * np.mean(np.diagonal(hessian)) * np.eye(len(hessian))
    inputs = weights.shape[1]
    inverses = [np.linalg.inv(hessian[i:, i:]) for i in range(inputs)]
    mask = np.ones(weights.shape, bool)
    n, m = map(int, sparsity.split(":")) if isinstance(sparsity, str) else (0, min(block, inputs))
    for i in range(inputs):
        if i % m == 0:
            cost = [weights[:, j] ** 2 / inverses[j][0, 0] for j in range(i, min(i + m, inputs))]
            cost = np.stack(cost, 1)
            if isinstance(sparsity, str):
                kept = largest(cost.T, n).T
            else:
                size = weights.shape[0] * np.array([i, i + cost.shape[1]])
                number = np.diff(size - [round(sparsity * int(each)) for each in size])[0]
                kept = np.zeros(cost.size, bool)
                kept[np.argsort(-cost.ravel())[:number]] = True
            mask[:, i : i + cost.shape[1]] = kept.reshape(cost.shape)
        wrong = np.where(mask[:, i], 0, weights[:, i] / inverses[i][0, 0])
        weights[:, i:] -= np.outer(wrong, inverses[i][0])
    return np.where(mask, weights, 0).T, mask.T


@pytest.mark.parametrize(
    "sparsity, inputs",
    [
        ("1:3", 25),
        *(pytest.param(each, 150, marks=pytest.mark.slow) for each in (0.6, "2:4")),
    ],
)
def test_sparsegpt_is_the_papers_algorithm(sparsity, inputs):
    params, x = kernel_alone(inputs, 10), correlated(400, inputs) / inputs**0.5
    new, mask = jp.prune_layers(product, params, sparsity, [x[:150], x[150:]])
    kernel, keep = by_sparsegpt(x, params["kernel"], sparsity)
    np.testing.assert_array_equal(mask["kernel"], keep)
    np.testing.assert_allclose(new["kernel"], kernel, rtol=2e-2, atol=2e-3)


@pytest.mark.parametrize("scope", [None, "layer"])
def test_wanda_is_the_papers_algorithm(scope):
    params, x = layer(12, 6), correlated(100, 12)
    new, mask = jp.prune_layers(linear, params, 0.5, [x], method="wanda", scope=scope)
    scores = np.abs(params["kernel"]) * np.linalg.norm(x, axis=0)[:, None]
    keep = scores > np.median(scores) if scope else largest(scores, 6)
    np.testing.assert_array_equal(mask["kernel"], keep)
    np.testing.assert_array_equal(new["kernel"], np.where(keep, params["kernel"], 0))
    np.testing.assert_array_equal(new["bias"], params["bias"])


@pytest.mark.parametrize("transposable", [False, True])
def test_magnitude_is_the_mask_of_magnitudes(transposable):
    params, x = layer(12, 8), correlated(100, 12)
    pattern = jp.NM(2, 4, transposable=transposable)
    new, mask = jp.prune_layers(linear, params, pattern, [x], method="magnitude")
    best = jp.transposable_nm_mask if transposable else jp.nm_mask
    np.testing.assert_array_equal(mask["kernel"], best(abs(params["kernel"]), 2, 4))
    np.testing.assert_array_equal(new["kernel"], jp.apply_mask(params, mask)["kernel"])
    assert mask["bias"] is None


@pytest.mark.parametrize("sparsity", [0.6, "2:4", TRANSPOSABLE])
def test_each_method_is_better_than_the_one_before(sparsity):
    """ADMM's masks leave less error than SparseGPT's, whose weights are fitted as well."""
    params, x = kernel_alone(64, 32), correlated(500, 64)
    found = {}
    for method in METHODS:
        new, mask = jp.prune_layers(product, params, sparsity, [x], method=method)
        found[method] = error(new, params, x)
        found[method, "fitted"] = error(jp.reconstruct(product, params, mask, [x]), params, x)
    assert found["admm", "fitted"] < 0.8 * found["sparsegpt", "fitted"]
    assert found["sparsegpt", "fitted"] < found["sparsegpt"] < found["wanda"]
    assert found["admm"] == pytest.approx(found["admm", "fitted"], rel=1e-3)
    assert found["admm"] < found["magnitude", "fitted"] < found["magnitude"]


def test_a_bias_takes_up_the_means():
    """With one, the inputs' means cost nothing, and each output keeps its own."""
    params, x = layer(32, 8), correlated(300, 32) + 5.0
    for method in ("sparsegpt", "admm"):
        new, _ = jp.prune_layers(linear, params, 0.5, [x], method=method)
        off = linear(new, x) - linear(params, x)
        np.testing.assert_allclose(off.mean(0), 0, atol=1e-3)
        centred, _ = jp.prune_layers(product, params, 0.5, [x - x.mean(0)[None]], method=method,
                                     where="kernel")  # fmt: skip
        np.testing.assert_allclose(new["kernel"], centred["kernel"], rtol=1e-2, atol=1e-3)


patterns = st.sampled_from([(1, 2), (2, 4), (3, 4), (4, 8), (1, 3), (0, 4), (4, 4)])


@hypothesis.settings(max_examples=3)
@hypothesis.given(
    method=st.sampled_from(METHODS),
    pattern=patterns,
    transposable=st.booleans(),
    sizes=st.sampled_from([(8, 8), (7, 5), (12, 3)]),
    seed=st.integers(0, 9),
)
def test_patterns_hold_in_every_group(method, pattern, transposable, sizes, seed):
    """Of what is left over where a side doesn't divide, at most n stay."""
    (n, m), params, x = pattern, kernel_alone(*sizes, seed=seed), correlated(40, sizes[0])
    target = jp.NM(n, m, transposable=transposable)
    new, mask = jp.prune_layers(product, params, target, [x], method=method)
    keep = np.asarray(mask["kernel"])
    for side in (keep, keep.T)[: 1 + transposable]:
        groups = [side[i : i + m].sum(0) for i in range(0, len(side), m)]
        whole = [group for i, group in enumerate(groups) if (i + 1) * m <= len(side)]
        assert np.max(groups) <= n
        if not transposable:
            assert all((group == n).all() for group in whole)
            assert all((group == min(n, len(side) % m)).all() for group in groups[len(whole) :])
    if transposable:
        whole = keep[: sizes[0] // m * m, : sizes[1] // m * m]
        assert whole.sum() == whole.size * n // m
    np.testing.assert_array_equal(np.asarray(new["kernel"])[~keep], 0)


@hypothesis.settings(max_examples=4)
@hypothesis.given(
    method=st.sampled_from(METHODS),
    sparsity=st.sampled_from([0, 0.1, 0.37, 0.5, 0.93, 1]),
    scope=st.sampled_from([None, "layer", "outputs"]),
    sizes=st.sampled_from([(8, 8), (7, 5), (140, 3)]),
    always_zero=st.booleans(),
)
def test_counts_are_exact(method, sparsity, scope, sizes, always_zero):
    params, x = kernel_alone(*sizes), correlated(60, sizes[0])
    x = x.at[:, ::2].set(0) if always_zero else x
    new, mask = jp.prune_layers(product, params, sparsity, [x], method=method, scope=scope)
    keep = np.asarray(mask["kernel"])
    if scope == "outputs" or (method == "wanda" and scope is None):
        assert (keep.sum(0) == sizes[0] - round(sparsity * sizes[0])).all()
    assert keep.sum() == pytest.approx(keep.size - round(sparsity * keep.size), abs=sizes[1])
    if scope == "layer" or (method != "wanda" and scope is None):
        assert keep.sum() == keep.size - round(sparsity * keep.size)
    np.testing.assert_array_equal(np.asarray(new["kernel"])[~keep], 0)
    assert np.isfinite(new["kernel"]).all()


@hypothesis.settings(max_examples=3)
@hypothesis.given(
    method=st.sampled_from(["closed_form", "sparsegpt", "admm"]), seed=st.integers(0, 99)
)
def test_what_is_fitted_is_no_worse_than_plain_masking(method, seed):
    params, x = kernel_alone(16, 8, seed=seed), correlated(64, 16, seed=seed)
    if method == "closed_form":
        mask = {"kernel": jp.top_k_mask(abs(params["kernel"]), 64)}
        new = jp.reconstruct(product, params, mask, [x], damping=1e-4)
    else:
        new, mask = jp.prune_layers(product, params, 0.5, [x], method=method, damping=1e-4)
    assert error(new, params, x) <= 1.01 * error(jp.apply_mask(params, mask), params, x)


@pytest.mark.parametrize("method", ["sparsegpt", "admm"])
def test_inputs_that_are_always_zero_are_pruned_first(method):
    params, x = kernel_alone(16, 8), correlated(200, 16).at[:, :4].set(0)
    new, mask = jp.prune_layers(product, params, 0.25, [x], method=method)
    np.testing.assert_array_equal(mask["kernel"], jnp.arange(16)[:, None].repeat(8, 1) >= 4)
    np.testing.assert_allclose(new["kernel"][4:], params["kernel"][4:], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("method", ["magnitude", "wanda"])
def test_what_is_kept_stays_as_it_is_in_float64(method):
    with jax.enable_x64(True):
        params = {"kernel": jnp.asarray(np.random.default_rng(0).normal(size=(8, 4)))}
        new, mask = jp.prune_layers(product, params, 0.5, [correlated(30, 8)], method=method)
        np.testing.assert_array_equal(
            new["kernel"], jp.apply_mask(params, mask)["kernel"], strict=True
        )


def test_in_sequence_a_layer_aims_at_the_dense_output():
    """The second layer makes up for the first, and so it is better than on its own."""
    params = {"first": layer(12, 16), "second": layer(16, 5)}
    x = correlated(300, 12)
    errors = [
        error(jp.prune_layers(two_layers, params, 0.5, [x], sequential=sequential)[0],
              params, x, two_layers)
        for sequential in (False, True)
    ]  # fmt: skip
    assert errors[1] < 0.9 * errors[0]


def test_a_tree_of_sparsities():
    params = {"first": layer(12, 16), "second": layer(16, 8), "third": layer(8, 4)}
    none = {"kernel": None, "bias": None}
    wanted = {"first": {**none, "kernel": 0.75}, "second": {**none, "kernel": "1:4"}, "third": none}
    apply = lambda p, x: linear(p["third"], two_layers(p, x))
    new, mask = jp.prune_layers(apply, params, wanted, [correlated(50, 12)])
    assert jp.count(mask["first"]) == 48
    assert jp.count(mask["second"]["kernel"][:8]) == jp.count(mask["second"]["kernel"][8:]) == 16
    assert mask["third"] == none
    np.testing.assert_array_equal(new["third"]["kernel"], params["third"]["kernel"])
