"""Groups that a statistic runs over leave on request, and the report says so."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from tests.networks import nets

X = nets.normal(5, 3, seed=2)
STAY = np.array([0, 2, 3, 5])


def two_layers(function):
    params = {"a": nets.normal(3, 6), "m": nets.normal(1, 6, seed=1), "b": nets.normal(6, 2)}
    return lambda p, x: function(x @ p["a"] + p["m"]) @ p["b"], params


def without(params):
    return {"a": params["a"][:, STAY], "m": params["m"][:, STAY], "b": params["b"][STAY]}


def pruned(params):
    keep = np.isin(np.arange(6), STAY)
    rows, columns = jnp.asarray(keep[:, None]), jnp.asarray(keep[None])
    whole = {"a": columns, "m": columns, "b": rows}
    return {name: jnp.broadcast_to(whole[name], leaf.shape) for name, leaf in params.items()}


def test_softmax():
    """What leaves takes no share any more."""
    apply, params = two_layers(jax.nn.softmax)
    mask = pruned(params)
    small = jp.shrink(apply, params, mask, X, approximate=True)
    assert small.approximated == ("a[:, i]",)
    assert small.params["b"].shape == (4, 2)
    masked, shrunk = apply(jp.apply_mask(params, mask), X), small.apply(small.params, X)
    np.testing.assert_allclose(shrunk, apply(without(params), X), rtol=1e-6)
    largest = jnp.max(jnp.abs(masked - shrunk)) / jnp.max(jnp.abs(masked))
    np.testing.assert_allclose(small.difference, largest, rtol=1e-4)
    assert small.difference > 0.01


def test_only_on_request():
    apply, params = two_layers(jax.nn.softmax)
    assert not jp.channel_groups(apply, params, X).groups
    small = jp.shrink(apply, params, pruned(params), X)
    assert small.params["b"].shape == (6, 2)
    assert small.difference == 0


def standardized(x):
    """LayerNorm with `use_fast_variance=False`."""
    centered = x - x.mean(-1, keepdims=True)
    return centered * jax.lax.rsqrt(jnp.mean(centered**2, -1, keepdims=True) + 1e-6)


def test_two_pass_variance():
    """The mean divides by the old width, as in the masked network; so does the variance."""
    apply, params = two_layers(standardized)
    small = jp.shrink(apply, params, pruned(params), X, approximate=True)
    h = np.asarray(X @ params["a"] + params["m"], np.float64)[:, STAY]
    centered = h - h.sum(-1, keepdims=True) / 6
    normed = centered / np.sqrt((centered**2).sum(-1, keepdims=True) / 6 + 1e-6)
    expected = normed @ np.asarray(params["b"], np.float64)[STAY]
    np.testing.assert_allclose(small.apply(small.params, X), expected, rtol=1e-4, atol=1e-5)
    assert 1e-4 < small.difference < 0.5


def test_one_pass_variance_is_exact():
    """There approximation changes nothing, and isn't reported."""
    fast = lambda x: (
        x
        * jax.lax.rsqrt(
            jnp.mean(x**2, -1, keepdims=True) - jnp.mean(x, -1, keepdims=True) ** 2 + 1.0
        )
    )
    apply, params = two_layers(fast)
    small = jp.shrink(apply, params, pruned(params), X, approximate=True)
    assert small.difference < 1e-6
    assert small.approximated == ()


def test_the_rest_must_be_pruned_still():
    """A statistic may change, but what a group sends to weights is no approximation."""
    apply, params = two_layers(jax.nn.softmax)
    mask = pruned(params) | {"b": None}
    with pytest.raises(ValueError, match=r"`dot_general` of float32\[5,6\]: it isn't the same for"):
        jp.shrink(apply, params, mask, X, approximate=True)
    small = jp.shrink(apply, params, mask, X, approximate=True, partial="complete")
    assert small.params["b"].shape == (4, 2)


def test_the_report():
    apply, params = two_layers(jax.nn.softmax)
    report = str(jp.channel_groups(apply, params, X, approximate=True))
    assert "approximated, as it changes `reduce_max` of float32[5,6]: a[:, i]" in report


def test_layer_norm_of_flax():
    import flax.linen as nn

    layers = [nn.Dense(6), nn.LayerNorm(use_fast_variance=False), nn.Dense(2)]
    apply, params, rows = nets.linen(nn.Sequential(layers), nets.ROWS)
    (family,) = jp.channel_groups(apply, params, rows, approximate=True).groups
    assert family.approximated.startswith("`reduce_sum` of")
    mask = jp.prunable(params)
    kernel = mask["params"]["layers_0"]["kernel"]
    mask["params"]["layers_0"]["kernel"] = kernel.at[:, 0].set(False)
    small = jp.shrink(apply, params, mask, rows, approximate=True, partial="complete")
    assert small.approximated == (family.name,)
    assert 0 < small.difference < 0.5
    assert not jp.channel_groups(apply, params, rows).groups
