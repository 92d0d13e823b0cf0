"""What groups of channels cost in time, measured on the device that is there.

The network is timed with and without half of each family. A group's time is its share of the
difference; it is measured beside all other groups, so times of groups that share a product don't
quite add up.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.networks import group_trees, removal
from jaxprune.networks.channels import Channels
from jaxprune.trees import checks

_LEAST_SHARE = 1e-3  # of an even share of the time: what can't be measured isn't free


def channel_times(
    apply: Callable[..., Any],
    params: chex.ArrayTree,
    channels: Channels,
    *example_inputs: Any,
    repeats: int = 20,
) -> tuple[jax.Array, ...]:
    """The milliseconds that one group of each family costs, measured on the present device.

    The whole network and those without half of one family run in turns, compiled and warm; of each
    family the median difference to the whole is divided by the number of groups. So times are
    additive, an approximation: they hold beside all other groups, as long as about half stay, and
    without one family those that share products with it are cheaper. Sums of them overestimate what
    is saved; measure the network that comes out. Networks that run in less than a millisecond
    mostly measure how a function is called.

    Args:
      apply: pure function `apply(params, *inputs)`, as for `channel_groups`.
      params: tree of arrays.
      channels: of `channel_groups`.
      *example_inputs: trees of arrays, with the batch size that matters.
      repeats: how many times each network runs. For each family one is compiled.

    Returns:
      A tuple of float32 arrays of shape (family.size,), positive: costs for
      `projection_capped_simplex` and `project_probabilities`, and for `budget_mask` by the sum over
      what stays.

    Raises:
      TypeError: for an `apply` that is no function, or what isn't of `channel_groups`.
      ValueError: for other parameters, or `repeats` below 1.

    >>> import jax.numpy as jnp
    >>> import jaxprune as jp
    >>> params = [jnp.ones((2, 64)), jnp.ones((64, 3))]
    >>> apply, x = lambda p, x: x @ p[0] @ p[1], jnp.ones((8, 2))
    >>> channels = jp.channel_groups(apply, params, x)
    >>> [times.shape for times in jp.channel_times(apply, params, channels, x, repeats=1)]
    [(64,)]
    """
    checks.function("`apply`", apply)
    group_trees.check_channels(channels)
    repeats = checks.integer("`repeats`", repeats, least=1)
    masks = [group_trees.channel_mask(params, channels, keep) for keep in _halves(channels)]
    networks = [(apply, params), *(removal.cut(apply, params, mask) for mask in masks)]
    calls = [functools.partial(jax.jit(f), own, *example_inputs) for f, own in networks]
    rounds = _times(calls, repeats)
    whole = statistics.median(times[0] for times in rounds)
    groups = sum(family.size for family in channels.groups)

    def of_family(number, family):
        saved = statistics.median(times[0] - times[number] for times in rounds)
        one = max(saved / max(family.size // 2, 1), _LEAST_SHARE * whole / groups)
        return jnp.full(family.size, one, jnp.float32)

    return tuple(of_family(i, family) for i, family in enumerate(channels.groups, 1))


def _halves(channels: Channels):
    """For each family what is kept if half of it goes."""
    for family in channels.groups:
        half = np.arange(family.size) < family.size - family.size // 2
        yield [half if other is family else None for other in channels.groups]


def _times(calls: Sequence[Callable[[], Any]], repeats: int) -> list[list[float]]:
    """Milliseconds of each call, one list a round, after one round for warmth."""
    rounds = [[_milliseconds(call) for call in calls] for _ in range(repeats + 1)]
    return rounds[1:]


def _milliseconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(call())
    return 1e3 * (time.perf_counter() - start)
