"""Random masks: relaxed and hard samples of independent Bernoulli variables.

A weight is kept with probability s. The relaxed sample is the binary concrete (Gumbel-softmax)
distribution, through which gradients reach s; the hard sample is a mask. One draw is one key.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp

from jaxprune.trees import checks, masks, positions, selection

RandomBits = Callable[..., jax.Array]

_EPSILON = 1e-20  # keeps logarithms and gradients finite at probabilities 0 and 1
_BLOCK = 2**32  # entries that 32 bits count
_COLDEST = 1e-6  # in place of a traced temperature that isn't positive


def counter_bits(
    key: chex.PRNGKey, shape: tuple[int, ...], dtype: jax.typing.DTypeLike = jnp.uint32
) -> jax.Array:
    """Random bits from a hash of each entry's position: fewer operations than `jax.random.bits`.

    The position is hashed twice (a 32-bit finalizer of two multiplications, with constants from the
    tables of hash-prospector), each time after a word of the key is added, and both hashes are
    added up: one alone would give each word once, and the sizes of masks would vary too little. XLA
    fuses all of it into the loop that uses the bits. Good enough for masks (its tests: uniformity,
    repeated words, serial correlation, correlation between keys and avalanche); not for
    cryptography.

    Args:
      key: one `jax.random.key` of any implementation.
      shape: of the result; each axis shorter than 2**32.
      dtype: uint32.

    Returns:
      uint32 array.

    Raises:
      TypeError: for what is no key, or a shape that isn't of integers.
      ValueError: for another dtype, or a negative size or one of 2**32 or more.

    >>> import jax
    >>> import jaxprune as jp
    >>> jp.counter_bits(jax.random.key(0), (2, 3)).shape
    (2, 3)
    """
    checks.key(key)
    for size in shape:
        if checks.integer("a size in the shape", size, least=0) >= 2**32:
            raise ValueError(f"counter_bits counts to 2**32, but an axis of {shape} is longer")
    if jnp.dtype(dtype) != jnp.uint32:
        raise ValueError(f"counter_bits makes uint32, not {jnp.dtype(dtype)}")
    words = jax.random.bits(key, (2,), jnp.uint32)
    start = words[0]
    blocks = next(i for i in range(len(shape) + 1) if math.prod(shape[i:]) <= _BLOCK)
    if blocks:  # of leading axes, each with a start of its own
        own = _scramble(positions.flat(shape[:blocks]) + start)
        start = own.reshape(own.shape + (1,) * (len(shape) - blocks))
    first = _scramble(jnp.broadcast_to(positions.flat(shape[blocks:]), shape) + start)
    return first + _scramble(first + words[1])


def _scramble(x: jax.Array) -> jax.Array:
    x = (x ^ (x >> 16)) * jnp.uint32(0x21F0AAAD)
    x = (x ^ (x >> 15)) * jnp.uint32(0xD35A2D97)
    return x ^ (x >> 15)


def relaxed_bernoulli(
    key: chex.PRNGKey,
    probs: chex.ArrayTree,
    temperature: jax.typing.ArrayLike,
    *,
    random_bits: RandomBits = counter_bits,
) -> chex.ArrayTree:
    r"""Samples soft masks that are differentiable in the probabilities.

    .. math::
      m = \sigma\big((\log(s+\epsilon) - \log(1-s+\epsilon) + l) / \tau\big),
      \quad l \sim \mathrm{Logistic}(0, 1),\ \epsilon = 10^{-20}

    P(m > 1/2) = s at any temperature; as it falls, m approaches 0 or 1. The gradient
    m (1 - m) (1/(s+e) + 1/(1-s+e)) / temperature is finite everywhere, and at temperatures up to
    1.5 exactly 0 at s = 1. Start no higher than at 1, as the paper does: above, the gradient at 0
    and 1 grows like e^(1/temperature - 1), at 2 to more than 1e12 among a million entries.

    Args:
      key: one `jax.random.key`.
      probs: tree of floating-point arrays in [0, 1] and `None`.
      temperature: positive; a Python number, or a scalar that may be traced: one that turns out
        to be 0, negative or NaN is taken as 1e-6, so that masks are 0 and 1 with the right
        probabilities. The inverse temperature of "Effective Sparsification ..." (CVPR 2021) is
        1 / temperature.
      random_bits: a function (key, shape, dtype) -> uint32 array; `jax.random.bits` is slower
        where random numbers dominate.

    Returns:
      A tree like `probs` of float32 arrays in [0, 1], whatever the dtype of `probs`.

    Raises:
      TypeError: for leaves that aren't floating-point, naming one, or a key that is none.
      ValueError: for a tree without leaves, or a temperature that isn't positive.

    >>> import jax, jax.numpy as jnp
    >>> import jaxprune as jp
    >>> jp.relaxed_bernoulli(jax.random.key(0), {"w": jnp.array([0.0, 1.0])}, 0.5)
    {'w': Array([0., 1.], dtype=float32)}
    """
    temperature = usable_temperature(temperature)

    def soft(key, prob):
        uniform = open_uniform(prob, key, random_bits)
        return jax.nn.sigmoid(_noisy_logit(prob.astype(jnp.float32), uniform) / temperature)

    return map_with_keys(soft, key, probs)


@jax.custom_jvp
def _noisy_logit(prob: jax.Array, uniform: jax.Array) -> jax.Array:
    """log(s + e) - log(1 - s + e) + logistic noise, with a single logarithm."""
    return jnp.log((_kept(prob) * uniform) / (_dropped(prob) * (1.0 - uniform)))


@_noisy_logit.defjvp
def _noisy_logit_jvp(primals, tangents):
    prob, uniform = primals
    # In closed form, so that the backward pass needs no noise: neither stored nor drawn again.
    slope = 1.0 / _kept(prob) + 1.0 / _dropped(prob)
    return _noisy_logit(prob, uniform), slope * tangents[0]


def _kept(prob: jax.Array) -> jax.Array:
    return prob + _EPSILON


def _dropped(prob: jax.Array) -> jax.Array:
    # XLA would fold 1 - s + e to 1 - s; in float32 the maximum is the same number.
    return jnp.maximum(1.0 - prob, _EPSILON)


def gumbel_mask(
    key: chex.PRNGKey,
    logits: chex.ArrayTree,
    temperature: jax.typing.ArrayLike = 1.0,
    *,
    random_bits: RandomBits = counter_bits,
) -> chex.ArrayTree:
    r"""Samples hard masks with the gradient of the relaxed sample (Gumbel-softmax of two classes).

    .. math::
      m = [a + l > 0], \quad \frac{\partial m}{\partial a} := \frac{y (1 - y)}{\tau}, \quad
      y = \sigma\big((a + l) / \tau\big), \quad l \sim \mathrm{Logistic}(0, 1)

    A weight is kept with probability sigma(a), at any temperature. The logit a is any real number:
    nothing needs to be projected.

    Args:
      key: one `jax.random.key`.
      logits: tree of floating-point arrays and `None`.
      temperature: positive; a Python number, or a scalar that may be traced, as for
        `relaxed_bernoulli`.
      random_bits: as for `relaxed_bernoulli`.

    Returns:
      A tree like `logits` of float32 arrays, exactly 0 or 1.

    Raises:
      TypeError: for leaves that aren't floating-point, naming one, or a key that is none.
      ValueError: for a tree without leaves, or a temperature that isn't positive.

    Source: Dupont et al., "Extracting effective subnetworks with Gumbel-softmax" (ICIP 2022),
    section 3; Jang et al. (ICLR 2017) for the straight-through estimator.

    >>> import jax, jax.numpy as jnp
    >>> import jaxprune as jp
    >>> jp.gumbel_mask(jax.random.key(0), {"w": jnp.array([-30.0, 30.0])})
    {'w': Array([0., 1.], dtype=float32)}
    """
    temperature = usable_temperature(temperature)

    def sample(key, logit):
        uniform = open_uniform(logit, key, random_bits)
        noisy = logit.astype(jnp.float32) + jnp.log(uniform / (1.0 - uniform))
        return _step(noisy / temperature)

    return map_with_keys(sample, key, logits)


@jax.custom_jvp
def _step(x: jax.Array) -> jax.Array:
    """Whether x > 0, as 0 or 1, with the derivative of a sigmoid."""
    return (x > 0).astype(x.dtype)


@_step.defjvp
def _step_jvp(primals, tangents):
    # Without a forward pass of the sigmoid, which nobody would read.
    soft = jax.nn.sigmoid(primals[0])
    return _step(*primals), soft * (1.0 - soft) * tangents[0]


def surrogate_gradient(mask: chex.ArrayTree, soft: chex.ArrayTree) -> chex.ArrayTree:
    """The values of a hard mask with the gradient of a soft one: a straight-through estimator.

    Args:
      mask: tree of booleans and `None`.
      soft: tree like it of floating-point arrays, from which the gradient comes. With
        `mask = bernoulli_mask(key, probs)` and `soft = probs` this is the estimator of supermasks,
        with `mask = top_k_mask(scores, k)` and `soft = scores` that of edge-popup.

    Returns:
      A tree like `soft`, exactly 0 or 1 (NaN where it is NaN).

    Raises:
      TypeError: for a mask that isn't boolean, or a soft one that isn't floating-point.
      ValueError: if the two don't fit; the message names the leaf.

    Sources: Zhou et al., "Deconstructing lottery tickets" (NeurIPS 2019), for supermasks;
    Ramanujan et al., "What's hidden in a randomly weighted neural network?" (CVPR 2020), for
    edge-popup.

    >>> import jax, jax.numpy as jnp
    >>> import jaxprune as jp
    >>> scores = jnp.array([0.1, 0.9])
    >>> kept = lambda s: jp.surrogate_gradient(jp.top_k_mask(s, 1), s)
    >>> kept(scores), jax.grad(lambda s: jnp.sum(kept(s) * jnp.array([2.0, 3.0])))(scores)
    (Array([0., 1.], dtype=float32), Array([2., 3.], dtype=float32))
    """

    def one(keep, soft):
        # In this order the sum is exactly 0 or 1; but infinity less itself is NaN.
        nothing = jnp.where(jnp.isinf(soft), 0, soft - jax.lax.stop_gradient(soft))
        return keep.astype(soft.dtype) + nothing

    masks.check_boolean(mask)
    masks.check_floating("a surrogate gradient", soft)
    return jax.tree.map(one, masks.fit_mask(soft, mask), soft)


def bernoulli_mask(
    key: chex.PRNGKey, probs: chex.ArrayTree, *, random_bits: RandomBits = counter_bits
) -> chex.ArrayTree:
    """Samples a mask that keeps each weight with its probability, to 2**-24.

    Args:
      key: one `jax.random.key`.
      probs: tree of floating-point arrays in [0, 1] and `None`.
      random_bits: as for `relaxed_bernoulli`.

    Returns:
      A mask like `probs`.

    Raises:
      TypeError: for leaves that aren't floating-point, naming one, or a key that is none.
      ValueError: for a tree without leaves.

    >>> import jax, jax.numpy as jnp
    >>> import jaxprune as jp
    >>> jp.bernoulli_mask(jax.random.key(0), {"w": jnp.array([0.0, 1.0])})
    {'w': Array([False,  True], dtype=bool)}
    """

    def hard(key, prob):
        uniform = (_bits_like(prob, key, random_bits) >> 8).astype(jnp.float32) * 2.0**-24
        return uniform < prob.astype(jnp.float32)

    return map_with_keys(hard, key, probs)


def usable_temperature(temperature: Any) -> Any:
    """The temperature; if it is traced, at its least harmful where it isn't positive.

    Raises:
      TypeError: for what is no number.
      ValueError: for a number that isn't positive.
    """
    checks.number("the temperature", temperature, "a positive number, not a schedule of one")
    if not checks.known(temperature):
        temperature = jnp.asarray(temperature, jnp.float32)
        return jnp.where(temperature > 0, temperature, _COLDEST)
    if not temperature > 0:
        raise ValueError(
            f"the temperature must be positive, got {temperature}: for masks of 0 and 1 a low one "
            "isn't needed, `bernoulli_mask` and `gumbel_mask` draw them at any"
        )
    return temperature


def map_with_keys(sample, key: chex.PRNGKey, probs: chex.ArrayTree) -> chex.ArrayTree:
    """`sample(key, leaf)` of each leaf, with keys of their own."""
    return jax.tree.map(sample, keys_like(key, probs), probs)


def keys_like(key: chex.PRNGKey, probs: chex.ArrayTree) -> chex.ArrayTree:
    """A key for each leaf."""
    checks.key(key)
    masks.check_floating("sampling of probabilities or logits", probs)
    structure = jax.tree.structure(probs)
    return structure.unflatten(jax.random.split(key, structure.num_leaves))


def open_uniform(like: jax.Array, key: chex.PRNGKey, random_bits: RandomBits) -> jax.Array:
    """The middles of 2**23 equal intervals of [0, 1]: never 0 or 1."""
    bits = _bits_like(like, key, random_bits)
    return ((bits >> 9).astype(jnp.float32) + 0.5) * 2.0**-23


def at_random(like: jax.Array, key: chex.PRNGKey) -> selection.Ranked:
    """The order of `open_uniform`, in ranks below 2**31."""
    ranks = lambda like, key: counter_bits_like(like, key) >> 9 << 8
    return selection.Ranked((like, key), ranks, low_zero_bits=8)


def counter_bits_like(like: jax.Array, key: chex.PRNGKey) -> jax.Array:
    """`counter_bits` of the shape of an array and, on any mesh, its sharding."""
    drawn = _bits_like(like, key, counter_bits)
    # XLA wouldn't know how numbers are to lie that don't depend on the array.
    return jnp.where((like == like) | (like != like), drawn, jnp.uint32(0))


def _bits_like(prob: jax.Array, key: chex.PRNGKey, random_bits: RandomBits) -> jax.Array:
    """A uint32 array of the shape and, on a mesh with Explicit axes, the sharding of `prob`."""
    # With Explicit axes and without this, each device would draw the whole leaf.
    draw = lambda key: random_bits(key, prob.shape, jnp.uint32)
    return masks.sharded_alike(draw, prob)(key)
