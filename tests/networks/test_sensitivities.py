"""Sensitivities against loops in numpy; the bound of sampled channels by simulation; budgets."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from jaxprune.networks import sensitivities


def parts(x):
    return np.maximum(x, 0), np.maximum(-x, 0)


def shares(a, w):
    """Of inputs (samples, channels, entries) and weights (channels, entries, outputs)."""
    largest = np.zeros(a.shape[1])
    for inputs, weights in itertools.product(parts(a), parts(w)):
        terms = np.einsum("nce,ceo->nco", inputs, weights)
        total = terms.sum(1, keepdims=True)
        share = np.divide(terms, total, out=np.zeros_like(terms), where=total > 0)
        largest = np.maximum(largest, share.max((0, 2)))
    return largest


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


# Sensitivities ----------------------------------------------------------------------------------


def two_consumers(params, x):
    h = jnp.tanh(x @ params["first"])
    return jax.nn.relu(h @ params["second"]) @ params["third"] + h @ params["skip"]


def test_sensitivities_are_the_largest_of_all_consumers_and_batches():
    shapes = {"first": (5, 6), "second": (6, 7), "third": (7, 3), "skip": (6, 3)}
    params = {name: jnp.float32(normal(*shape)) for name, shape in shapes.items()}
    batches = [jnp.float32(normal(n, 5, seed=n)) for n in (8, 8, 3)]
    channels = jp.channel_groups(two_consumers, params, batches[0])
    found = jp.channel_sensitivities(two_consumers, params, channels, batches)
    double = {name: np.float64(leaf) for name, leaf in params.items()}
    x = np.concatenate(batches).astype(np.float64)
    h = np.tanh(x @ double["first"])
    hidden = np.maximum(h @ double["second"], 0)
    of_h = [shares(h[..., None], double[name][:, None]) for name in ("second", "skip")]
    expected = {6: np.maximum(*of_h), 7: shares(hidden[..., None], double["third"][:, None])}
    for own in found:
        np.testing.assert_allclose(own, expected[own.size], rtol=1e-4)


def convolution(params, images):
    conv = lambda x, kernel, strides: jax.lax.conv_general_dilated(
        x, kernel, (strides, strides), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    x = jax.nn.relu(conv(images, params["a"], 1) + params["bias"][None, None, None])
    return conv(x, params["b"], 2).reshape(len(images), -1) @ params["head"]


def test_windows_of_a_convolution_are_summed_and_flattened_pixels_too():
    shapes = {"a": (3, 3, 2, 4), "bias": (4,), "b": (3, 3, 4, 3), "head": (27, 2)}
    params = {name: jnp.float32(normal(*shape)) for name, shape in shapes.items()}
    images = jnp.float32(normal(2, 6, 6, 2, seed=1))
    channels = jp.channel_groups(convolution, params, images)
    found = jp.channel_sensitivities(convolution, params, channels, [images])
    x, y = features(params, images)
    patches = [x[:, i : i + 5 : 2, j : j + 5 : 2] for i, j in itertools.product(range(3), repeat=2)]
    a = np.stack(patches, -1).reshape(-1, 4, 9)
    w = np.float64(params["b"]).reshape(9, 4, 3).swapaxes(0, 1)
    pixels = y.reshape(2, 9, 3).swapaxes(1, 2)
    head = np.float64(params["head"]).reshape(9, 3, 2).swapaxes(0, 1)
    expected = {4: shares(a, w), 3: shares(pixels, head)}
    for own in found:
        np.testing.assert_allclose(own, expected[own.size], rtol=1e-4)


def features(params, images):
    """What `b` sees, padded as for strides of 2 (one behind), and what it gives."""
    same = lambda x, name, strides: jax.lax.conv_general_dilated(
        x, params[name], strides, "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    x = jax.nn.relu(same(images, "a", (1, 1)) + params["bias"][None, None, None])
    padded = np.pad(np.float64(x), ((0, 0), (0, 1), (0, 1), (0, 0)))
    return padded, np.float64(same(x, "b", (2, 2)))


def scanned(params, x):
    """Layers in one stack: a residual stream, and hidden channels in each layer."""
    layer = lambda x, own: (x + jax.nn.relu(x @ own["up"]) @ own["down"], None)
    return jax.lax.scan(layer, x @ params["embed"], params["layers"])[0] @ params["head"]


def test_layers_of_a_stack_count_each():
    layers = {"up": jnp.float32(normal(3, 4, 6)), "down": jnp.float32(normal(3, 6, 4, seed=1))}
    params = {"embed": jnp.float32(normal(5, 4)), "layers": layers, "head": jnp.ones((4, 2))}
    x = jnp.float32(normal(7, 5, seed=2))
    channels = jp.channel_groups(scanned, params, x)
    found = jp.channel_sensitivities(scanned, params, channels, [x])
    stream, inner, outer = np.float64(x) @ np.float64(params["embed"]), [], []
    for up, down in zip(np.float64(layers["up"]), np.float64(layers["down"]), strict=True):
        outer.append(shares(stream[..., None], up[:, None]))
        hidden = np.maximum(stream @ up, 0)
        inner.append(shares(hidden[..., None], down[:, None]))
        stream = stream + hidden @ down
    outer.append(shares(stream[..., None], np.ones((4, 1, 2))))
    expected = {6: np.max(inner, 0), 4: np.max(outer, 0)}
    assert len(found) == 2
    for own in found:
        np.testing.assert_allclose(own, expected[own.size], rtol=1e-3)


def test_what_no_leaf_sums_over_has_no_sensitivity_and_stays():
    params = {"query": jnp.float32(normal(3, 4)), "key": jnp.float32(normal(3, 4, seed=1))}
    apply = lambda p, x: (x @ p["query"]) @ (x @ p["key"]).T
    x = jnp.float32(normal(5, 3, seed=2))
    channels = jp.channel_groups(apply, params, x)
    assert jp.channel_sensitivities(apply, params, channels, [x]) == (None,)
    found = jp.prune_channels(apply, params, channels, 1e9, [x])
    jax.tree.map(np.testing.assert_array_equal, found.params, params)


# The bound --------------------------------------------------------------------------------------

TRIALS = 400


def failures(k, epsilon=0.5):
    """How often a sum of an output is off by more than epsilon: the largest of all sums."""
    a, w = normal(6, 300), normal(300, 4, seed=1) ** 3
    scores = shares(a[..., None], w[:, None])
    chances, count = scores / scores.sum(), sensitivities.draws(scores.sum(), epsilon, k)
    drawn = np.random.default_rng(2).multinomial(count, chances, size=TRIALS)
    factors = drawn / (count * chances)
    worst = 0.0
    for inputs, weights in itertools.product(parts(a), parts(w)):
        dense, sampled = inputs @ weights, np.einsum("nc,tc,co->tno", inputs, factors, weights)
        off = np.abs(sampled - dense[None]) > epsilon * dense[None]
        worst = max(worst, off.mean(0).max())
    return worst


@pytest.mark.parametrize("k", [0.3, 0.5, 1.0])
def test_sums_are_off_no_more_often_than_the_bound_says(k):
    bound = 2 * np.exp(-3 * k)
    assert failures(k) <= bound + 3 * np.sqrt(bound / TRIALS)


def test_the_bound_fails_with_a_tenth_of_the_draws():
    assert failures(0.1) > 2 * np.exp(-3 * 1.0) + 3 * np.sqrt(0.1 / TRIALS)


def test_weights_of_samples_are_right_on_average_and_those_of_the_formula():
    scores = np.array([0.5, 0.25, 0.125, 0.0])
    assert sensitivities.draws(2.0, 0.5) == int(np.ceil(3 * 7 * 2.0 / 0.25))
    found = [sensitivities._sampled([seed], scores, 2.0, 0) for seed in range(3000)]
    np.testing.assert_allclose(np.mean(found, 0), [1, 1, 1, 0], atol=0.05)
    count, seed = sensitivities.draws(0.875, 2.0), 7
    drawn = np.random.default_rng([seed, 0]).multinomial(count, scores / 0.875)
    expected = [n / (count * s / 0.875) if s else 0 for n, s in zip(drawn, scores, strict=True)]
    np.testing.assert_allclose(sensitivities._sampled([seed], scores, 2.0, 0), expected)


def test_without_a_key_as_many_stay_as_would_be_drawn_on_average():
    scores, epsilon = np.array([0.05, 0.6, 0.3, 0.05, 0.02]), 4.0
    count = sensitivities.draws(scores.sum(), epsilon)
    drawn = np.random.default_rng(0).multinomial(count, scores / scores.sum(), size=4000)
    stay = round(np.mean((drawn > 0).sum(1)))
    found = sensitivities._most_sensitive(scores, epsilon, 0)
    assert found.sum() == stay and found[1] == 1
    assert min(scores[found > 0]) >= max(scores[found == 0])


# Budgets ----------------------------------------------------------------------------------------


def mlp():
    shapes = {"a": (8, 40), "b": (40, 30), "c": (30, 4)}
    params = {name: jnp.float32(normal(*shape, seed=1)) for name, shape in shapes.items()}
    apply = lambda p, x: jax.nn.relu(jax.nn.relu(x @ p["a"]) @ p["b"]) @ p["c"]
    x = jnp.float32(normal(16, 8))
    return apply, params, x, jp.channel_groups(apply, params, x)


@pytest.mark.parametrize("key", [None, 0, 1])
@pytest.mark.parametrize(("of", "fraction"), [("flops", 0.5), ("parameters", 0.2), ("flops", 1.0)])
def test_the_budget_is_held_and_nearly_used_and_channels_leave(key, of, fraction):
    apply, params, x, channels = mlp()
    key = None if key is None else jax.random.key(key)
    whole = jp.channel_cost(channels, (None, None), of=of)
    found = jp.prune_channels(apply, params, channels, fraction * whole, [x], of=of, key=key)
    small = jp.shrink(apply, found.params, found.mask, x)
    cost = jp.channel_cost(channels, small.keep, of=of)
    assert 0.8 * fraction * whole < cost <= fraction * whole
    assert small.difference < 1e-5
    if key is None:
        exact = jp.apply_mask(params, found.mask)
        jax.tree.map(np.testing.assert_array_equal, found.params, exact)


def test_samples_reweigh_the_consumers_alone():
    apply, params, x, channels = mlp()
    half = jp.channel_cost(channels, (None, None)) / 2
    found = jp.prune_channels(apply, params, channels, half, [x], key=jax.random.key(3))
    again = jp.prune_channels(apply, params, channels, half, [x], key=jax.random.key(3))
    jax.tree.map(np.testing.assert_array_equal, found, again)
    factors = {name: np.asarray(found.params[name]) / np.asarray(params[name]) for name in params}
    assert set(np.unique(factors["a"])) == {0.0, 1.0}  # inputs don't leave, outputs aren't weighted
    scores = jp.channel_sensitivities(apply, params, channels, [x])
    by_rows = factors["c"][:, 0]
    np.testing.assert_allclose(factors["c"], np.tile(by_rows[:, None], 4), rtol=1e-5)
    own = next(np.float64(s) for s in scores if s.size == 30)
    count = sensitivities.draws(own.sum(), found.epsilon)
    drawn = by_rows * count * own / own.sum()
    np.testing.assert_allclose(drawn, np.round(drawn), atol=1e-3)
    assert np.sum(np.round(drawn)) == count


def test_dead_channels_and_whole_dead_families():
    apply, params, x, channels = mlp()
    params = {**params, "a": params["a"].at[:, :10].set(0.0)}
    cost = jp.channel_cost(channels, (None, None))
    for key in (None, jax.random.key(0)):
        found = jp.prune_channels(apply, params, channels, cost - 1, [x], key=key)
        assert not np.any(found.mask["b"][:10]) and np.all(np.isfinite(found.params["b"]))
        nothing = {**params, "a": jnp.zeros((8, 40))}
        found = jp.prune_channels(apply, nothing, channels, cost / 4, [x], key=key)
        assert np.sum(np.any(found.mask["b"], 1)) == 1


def test_inputs_that_are_not_finite_and_budgets_that_are_too_small():
    apply, params, x, channels = mlp()
    with pytest.raises(ValueError, match="leaf 'b' multiplies isn't all finite"):
        jp.channel_sensitivities(apply, params, channels, [x.at[0, 0].set(jnp.nan)])
    least = 2 * 16 * (8 + 1 + 4)
    with pytest.raises(ValueError, match=f"one channel of each family costs {least}"):
        jp.prune_channels(apply, params, channels, least - 1, [x])
    found = jp.prune_channels(apply, params, channels, least, [x])
    assert [int(np.any(found.mask[name], 0).sum()) for name in ("a", "b")] == [1, 1]
