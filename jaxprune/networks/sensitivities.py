"""Channels pruned by their part in what the next layers see, with a bound on the error.

Liebenwein, Baykal, Lang, Feldman, Rus, "Provable Filter Pruning for Efficient Neural Networks"
(ICLR 2020, arXiv 1911.07412). The sensitivity of a channel is its largest part in any output of any
layer that sums over it, for some inputs. Channels drawn in proportion to it, and reweighted, give
each output but for a small relative error, with a probability that the number of draws decides.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.networks import capture, group_trees, layerwise, moments, walking
from jaxprune.networks.capture import Product
from jaxprune.networks.channels import Channels, Place
from jaxprune.networks.group_trees import channel_cost, channel_mask
from jaxprune.trees import checks, masks

# Of the sample size: an output is off by more than epsilon with probability 2 exp(-3 K) at most.
_K = 3.0
_EPSILONS = 1e-6, 1e6
_HALVINGS = 60


class PrunedChannels(NamedTuple):
    """What `prune_channels` returns: parameters, a mask like them, and the epsilon of the bound."""

    params: chex.ArrayTree
    mask: chex.ArrayTree
    epsilon: float


def channel_sensitivities(
    apply: Callable[[chex.ArrayTree, Any], Any],
    params: chex.ArrayTree,
    channels: Channels,
    batches: Sequence[Any],
) -> tuple[jax.Array | None, ...]:
    r"""The largest part that each group of channels has in an output of a layer that sums over it.

    .. math:: s_j = \max_{x, i} \frac{w_{ij} a_j(x)}{\sum_k w_{ik} a_k(x)}

    Positive and negative weights, and positive and negative activations, are four sums apart: in
    each all terms have one sign. Of a convolution every position is an x, and the term of a channel
    is the sum over its window. The maximum is over all products with leaves that the group is an
    input of, in all batches; the rest of the layer's inputs counts in the denominator.

    Args:
      apply: pure function `apply(params, batch)`, as for `reconstruct`.
      params: trained parameters.
      channels: of `channel_groups`, of the same function.
      batches: calibration data without labels, a sequence of batches; a few dozen inputs do.

    Returns:
      For each family of `channels.groups` a float32 array of shape (family.size,) with entries in
      [0, 1], or None for one that no matrix product or ungrouped convolution with a leaf sums over.
      They are scores, for `budget_mask` too.

    Raises:
      TypeError: for arguments of another kind.
      ValueError: if there are no batches, or a layer's inputs aren't finite; the message names it.

    Source: Liebenwein et al. (ICLR 2020), section 3.

    >>> import jax.numpy as jnp
    >>> import jaxprune as jp
    >>> params = {"a": jnp.eye(3), "b": jnp.array([[3.0, 1.0], [1.0, 1.0], [0.0, 2.0]])}
    >>> apply = lambda p, x: x @ p["a"] @ p["b"]
    >>> channels = jp.channel_groups(apply, params, jnp.ones((1, 3)))
    >>> jp.channel_sensitivities(apply, params, channels, [jnp.ones((1, 3))])
    (Array([0.75, 0.25, 0.5 ], dtype=float32),)
    """
    batches = layerwise.check_batches(apply, batches)
    checks.tree("the parameters", params)
    group_trees.check_channels(channels)
    found: list[jax.Array | None] = [None] * len(channels.groups)
    for number, shares in _shares(apply, params, channels, batches):
        own = found[number]
        found[number] = shares if own is None else jnp.maximum(own, shares)
    return tuple(found)


def prune_channels(
    apply: Callable[[chex.ArrayTree, Any], Any],
    params: chex.ArrayTree,
    channels: Channels,
    budget: float,
    batches: Sequence[Any],
    *,
    of: str = "flops",
    key: jax.Array | None = None,
) -> PrunedChannels:
    r"""Prunes whole channels to a budget by their sensitivities, with a little data and no labels.

    In each family :math:`m = \lceil K (6 + 2 \epsilon) S / \epsilon^2 \rceil` channels are drawn
    with replacement, with probabilities s / S, where S is the sum of the sensitivities s and K = 3.
    What the next layers have of a channel that is drawn n times is multiplied by n / (m s / S). One
    epsilon, found by bisection, serves all families. For an input that the sensitivities were
    measured on, each of the four sums of an output (see `channel_sensitivities`), as the layer
    would calculate it from dense inputs, is then right to epsilon but with a probability of at most
    2 exp(-3 K) = 2.5e-4. For other inputs, whose largest parts may be C times larger, K is 3 / C.

    Args:
      apply: as for `channel_sensitivities`.
      params: trained parameters.
      channels: of `channel_groups`, of the same function.
      budget: what the network may cost, as `channel_cost` counts.
      batches: as for `channel_sensitivities`.
      of: "flops" or "parameters".
      key: a key to draw by. With None nothing is drawn: in each family the most sensitive channels
        stay as they are, as many as different ones would be drawn on average. In practice this is
        better before fine-tuning, without the bound.

    Returns:
      `(params, mask, epsilon)`: parameters, reweighted and with zeros where the mask, made by
      `channel_mask`, prunes; `shrink` takes both. Families without sensitivities stay whole, of
      others at least one channel stays. A leaf that is also used where nothing sums over the
      channels, as a tied embedding, is reweighted there as well.

    Raises:
      TypeError: for arguments of another kind.
      ValueError: as `channel_sensitivities`, for an unknown `of`, or for a budget below what one
        channel of each family costs; the message says how much that is.

    Source: Liebenwein et al. (ICLR 2020), algorithms 1 and 2.

    >>> import jax, jax.numpy as jnp
    >>> import jaxprune as jp
    >>> params = {"a": jnp.eye(3), "b": jnp.array([[3.0, 1.0], [1.0, 1.0], [0.0, 2.0]])}
    >>> apply = lambda p, x: x @ p["a"] @ p["b"]
    >>> inputs = jnp.ones((1, 3))
    >>> channels = jp.channel_groups(apply, params, inputs)
    >>> sparse, mask, _ = jp.prune_channels(apply, params, channels, 20, [inputs])
    >>> jp.shrink(apply, sparse, mask, inputs).params["b"]
    Array([[3., 1.],
           [0., 2.]], dtype=float32)
    """
    checks.number("the budget", budget, "a number")
    if key is not None:
        checks.key(key)
    batches = layerwise.check_batches(apply, batches)
    found = channel_sensitivities(apply, params, channels, batches)
    scores = [None if own is None else np.asarray(own, np.float64) for own in found]
    drawn = _most_sensitive if key is None else functools.partial(_sampled, _seed(key))

    def weights(epsilon: float) -> tuple[np.ndarray | None, ...]:
        """Of each family what its channels are multiplied by."""
        return tuple(
            None if own is None else drawn(own, epsilon, number)
            for number, own in enumerate(scores)
        )

    spent = lambda own: int(channel_cost(channels, _kept(own), of=of))
    epsilon = _least_epsilon(lambda epsilon: spent(weights(epsilon)) <= budget)
    chosen = weights(epsilon)
    if spent(chosen) > budget:
        raise ValueError(
            f"the budget is {budget}, but one channel of each family costs {spent(chosen)}: give "
            "at least that much"
        )
    names = _consumers(apply, params, batches[0])
    heard = lambda place: (place.leaf, place.axis) in names
    mask = channel_mask(params, channels, _kept(chosen))
    if key is not None:
        factors = tuple(None if own is None else jnp.float32(own) for own in chosen)
        params = masks.apply_mask(params, group_trees.at_places(params, channels, factors, heard))
    return PrunedChannels(masks.apply_mask(params, mask), mask, epsilon)


# Sensitivities ----------------------------------------------------------------------------------


def _names(params: chex.ArrayTree) -> list[str]:
    return [masks.path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]


def _traced(apply, params, batch) -> capture.Trace:
    """All products with leaves, loops over them written out."""
    stacks = range(jax.tree.structure(params).num_leaves)
    return capture.trace(apply, params, batch, stacks=stacks)


def _consumers(apply, params, batch) -> set[tuple[str, int]]:
    """The leaves that something is multiplied by, each with an axis that is summed over."""
    names, products = _names(params), _traced(apply, params, batch).products
    return {(names[product.leaf], axis) for product in products for axis in product.inputs}


def _shares(apply, params, channels: Channels, batches):
    """Numbers of families and the largest shares of their groups, of each product and batch."""
    leaves, names = jax.tree.leaves(params), _names(params)
    for alike in layerwise.of_one_shape(batches):
        for product, operands in walking.walk(_traced(apply, params, alike[0]), [leaves], alike):
            heard = [*_heard(channels, names[product.leaf], product)]
            if not heard:
                continue
            matrix = capture.as_matrix(leaves[product.leaf].astype(jnp.float32), product)
            for (number, place), (operand,) in itertools.product(heard, operands):
                rows = _positions(leaves, product, place)
                shares = _largest_shares(operand, matrix, rows, product.layout)
                name = names[product.leaf]
                layerwise.check_finite(shares, f"what leaf '{name}' multiplies isn't all finite")
                yield number, shares


def _heard(channels: Channels, name: str, product: Product):
    """Families that the product sums over, by their numbers and places."""
    for number, family in enumerate(channels.groups):
        for place in family.places:
            if place.leaf == name and place.axis in product.inputs:
                yield number, place


def _positions(leaves: Sequence[jax.Array], product: Product, place: Place) -> np.ndarray:
    """(groups, entries): the rows of the layer's matrix that belong to a group."""
    shape = [leaves[product.leaf].shape[axis] for axis in product.inputs]
    rows = np.arange(np.prod(shape)).reshape(shape)
    along = np.moveaxis(rows, product.inputs.index(place.axis), 0)
    return along[place.indices].reshape(len(place.indices), -1)


@functools.partial(jax.jit, static_argnums=3)
def _largest_shares(operand, matrix, positions, layout) -> jax.Array:
    """Of each group of rows the largest share of an output; NaN if something isn't finite."""
    rows = layout.rows(operand).astype(jnp.float32)
    signs = [jnp.float32(1), jnp.float32(-1)]
    parts = [
        _shares_of_sums(jnp.maximum(a * rows, 0), jnp.maximum(b * matrix, 0), positions)
        for a, b in itertools.product(signs, signs)
    ]
    largest = jnp.minimum(functools.reduce(jnp.maximum, parts), 1)
    finite = jnp.all(jnp.isfinite(rows)) & jnp.all(jnp.isfinite(matrix))
    return jnp.where(finite, largest, jnp.float32(jnp.nan))


def _shares_of_sums(rows, matrix, positions) -> jax.Array:
    """One group after the other: all at once would not fit into memory."""
    total = moments.matmul(rows, matrix)

    def of_group(own):
        part = moments.matmul(rows[:, own], matrix[own])
        return jnp.max(jnp.where(total > 0, part / total, 0))

    return jax.lax.map(of_group, positions)


# Draws ------------------------------------------------------------------------------------------


def draws(total: float, epsilon: float, k: float = _K) -> int:
    """How many channels are drawn, for sensitivities of this sum."""
    return int(np.ceil(k * (6 + 2 * epsilon) * total / epsilon**2))


def _sampled(seed: Sequence[int], scores: np.ndarray, epsilon: float, number: int) -> np.ndarray:
    """What channels are multiplied by: 0 if they weren't drawn."""
    total = scores.sum()
    if not total:
        return _most_sensitive(scores, epsilon, number)
    count, chances = draws(total, epsilon), scores / total
    found = np.random.default_rng([*seed, number]).multinomial(count, chances)
    return np.divide(found, count * chances, out=np.zeros_like(scores), where=found > 0)


def _most_sensitive(scores: np.ndarray, epsilon: float, number: int) -> np.ndarray:
    """1 for as many channels as different ones would be drawn on average, and 0 for the rest."""
    total = scores.sum()
    chances = scores / (total or 1)
    with np.errstate(divide="ignore"):  # a channel that is drawn each time
        missed = np.exp(draws(total, epsilon) * np.log1p(-chances))
    stay = max(1, round(float(np.sum(1 - missed))))
    order = np.argsort(-scores, kind="stable")
    return np.isin(np.arange(len(scores)), order[:stay]).astype(np.float64)


def _seed(key: jax.Array) -> list[int]:
    return np.asarray(jax.random.bits(key, (4,), jnp.uint32)).tolist()


def _kept(weights: Sequence[np.ndarray | None]) -> tuple[np.ndarray | None, ...]:
    return tuple(None if own is None else own > 0 for own in weights)


def _least_epsilon(fits: Callable[[float], bool]) -> float:
    """The smallest epsilon, by bisection of its logarithm, that fits the budget."""
    low, high = np.log(_EPSILONS)
    if fits(float(np.exp(low))):
        return float(np.exp(low))
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if fits(float(np.exp(middle))) else (middle, high)
    return float(np.exp(high))
