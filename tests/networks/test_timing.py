"""Groups of channels have times, measured on the machine that is there."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from jaxprune.networks import timing
from tests.networks import nets

pytestmark = pytest.mark.usefixtures("relaxed_promotion")


def perceptron(*widths):
    params = nets.shaken([jnp.zeros(shape) for shape in itertools.pairwise(widths)])

    def apply(params, x):
        for kernel in params[:-1]:
            x = jnp.tanh(x @ kernel)
        return x @ params[-1]

    x = nets.normal(512, widths[0])
    return apply, params, x, jp.channel_groups(apply, params, x)


@pytest.mark.slow  # and wants a quiet machine
def test_what_costs_more_takes_longer():
    """Half of 1,024 groups takes half of the network along, half of 64 nearly as much."""
    apply, params, x, channels = perceptron(8, 1024, 64, 8)
    wide, narrow = jp.channel_times(apply, params, channels, x, repeats=5)
    assert wide.shape == (1024,) and narrow.shape == (64,)
    assert 0 < wide[0] < narrow[0]
    assert (wide == wide[0]).all()


def test_times_are_differences(monkeypatch):
    """Of medians of turns, by a clock that tells 8 ms of the whole, then 6 and 9, then 7 and 8."""
    turns = iter([[0.0, 0.0, 0.0], [8.0, 6.0, 9.0], [80.0, 78.0, 79.0], [8.0, 7.0, 8.0]])
    clock = iter([time for turn in turns for time in turn])
    monkeypatch.setattr(timing, "_milliseconds", lambda call: (call(), next(clock))[1])
    apply, params, x, channels = perceptron(3, 4, 10, 2)
    first, second = jp.channel_times(apply, params, channels, x, repeats=3)
    np.testing.assert_allclose(first, np.full(4, 2.0 / 2))
    np.testing.assert_allclose(second, np.full(10, 1e-3 * 8 / 14))  # never nothing


def test_a_family_of_one_group():
    def apply(params, x):
        y = x @ params["a"]
        return y[:, 1:], jnp.concatenate([jnp.tanh(y[:, :1]), x], -1) @ params["b"]

    params = {"a": jnp.ones((5, 3)), "b": jnp.ones((6, 2))}
    channels = jp.channel_groups(apply, params, nets.ROWS)
    (times,) = jp.channel_times(apply, params, channels, nets.ROWS, repeats=1)
    assert times.shape == (1,) and times > 0


def test_a_budget_in_milliseconds():
    apply, params, x, channels = perceptron(8, 64, 16, 4)
    times = jnp.full(64, 0.5), jnp.full(16, 2.0)
    cost = lambda keep: sum(jnp.sum(jnp.where(k, t, 0)) for k, t in zip(keep, times, strict=True))
    keep = jp.budget_mask(jp.channel_norms(params, channels), 32.0, cost, least=1)
    assert 30 < cost(keep) <= 32
    small = jp.shrink(apply, params, jp.channel_mask(params, channels, keep), x)
    jax.tree.map(np.testing.assert_array_equal, small.keep, keep)


def test_wrong_arguments():
    apply, params, x, channels = perceptron(3, 4, 2)
    with pytest.raises(ValueError, match="`repeats` must be at least 1, got 0"):
        jp.channel_times(apply, params, channels, x, repeats=0)
    with pytest.raises(TypeError, match="`channels` must be what `channel_groups` returns"):
        jp.channel_times(apply, params, None, x)
