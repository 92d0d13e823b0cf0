"""Random masks: relaxed and hard samples of independent Bernoulli variables.

A weight is kept with probability s. The relaxed sample is the binary concrete (Gumbel-softmax)
distribution, through which gradients reach s; the hard sample is a mask. One draw is one key.
"""

import math
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from jaxprune import masks, positions

RandomBits = Callable[..., jax.Array]

_EPSILON = 1e-20  # keeps logarithms and gradients finite at probabilities 0 and 1


def relaxed_bernoulli(
    key: chex.PRNGKey,
    probs: chex.ArrayTree,
    temperature: jax.typing.ArrayLike,
    *,
    random_bits: RandomBits = jax.random.bits,
) -> chex.ArrayTree:
    r"""Samples soft masks that are differentiable in the probabilities.

    .. math::
      m = \sigma\big((\log(s+\epsilon) - \log(1-s+\epsilon) + l) / \tau\big),
      \quad l \sim \mathrm{Logistic}(0, 1),\ \epsilon = 10^{-20}

    P(m > 1/2) = s at any temperature; as it falls, m approaches 0 or 1. The gradient
    m (1 - m) (1/(s+e) + 1/(1-s+e)) / temperature is finite everywhere, and exactly 0 at s = 1.

    Args:
      key: one `jax.random.key`.
      probs: tree of floating-point arrays in [0, 1] and `None`.
      temperature: positive; a Python number, or a scalar that may be traced. The inverse
        temperature of "Effective Sparsification ..." (CVPR 2021) is 1 / temperature.
      random_bits: a function (key, shape, dtype) -> uint32 array; `counter_bits` is faster
        where random numbers dominate.

    Returns:
      A tree like `probs` of float32 arrays in [0, 1], whatever the dtype of `probs`.

    Raises:
      ValueError: for a tree without leaves, or one that isn't floating-point.

    >>> import jax, jax.numpy as jnp
    >>> import jaxprune as jp
    >>> jp.relaxed_bernoulli(jax.random.key(0), {"w": jnp.array([0.0, 1.0])}, 0.5)
    {'w': Array([0., 1.], dtype=float32)}
    """

    def soft(key, prob):
        # The middles of 2**23 equal intervals: never 0 or 1.
        bits = _bits_like(prob, key, random_bits)
        uniform = ((bits >> 9).astype(jnp.float32) + 0.5) * 2.0**-23
        prob = prob.astype(jnp.float32)
        keep = jnp.log((prob + _EPSILON) * uniform)
        # XLA would fold 1 - s + e to 1 - s; in float32 the maximum is the same number.
        drop = jnp.log(jnp.maximum(1.0 - prob, _EPSILON) * (1.0 - uniform))
        return jax.nn.sigmoid((keep - drop) / temperature)

    return _map_with_keys(soft, key, probs)


def bernoulli_mask(
    key: chex.PRNGKey, probs: chex.ArrayTree, *, random_bits: RandomBits = jax.random.bits
) -> chex.ArrayTree:
    """Samples a mask that keeps each weight with its probability, to 2**-24.

    Args:
      key: one `jax.random.key`.
      probs: tree of floating-point arrays in [0, 1] and `None`.
      random_bits: as for `relaxed_bernoulli`.

    Returns:
      A mask like `probs`.

    Raises:
      ValueError: for a tree without leaves, or one that isn't floating-point.

    >>> import jax, jax.numpy as jnp
    >>> import jaxprune as jp
    >>> jp.bernoulli_mask(jax.random.key(0), {"w": jnp.array([0.0, 1.0])})
    {'w': Array([False,  True], dtype=bool)}
    """

    def hard(key, prob):
        uniform = (_bits_like(prob, key, random_bits) >> 8).astype(jnp.float32) * 2.0**-24
        return uniform < prob.astype(jnp.float32)

    return _map_with_keys(hard, key, probs)


def _map_with_keys(sample, key, probs):
    leaves, structure = jax.tree.flatten(probs)
    if not leaves or not all(masks.is_floating(leaf) for leaf in leaves):
        dtypes = [str(leaf.dtype) for leaf in leaves]
        raise ValueError(f"probabilities must be floating-point arrays, got leaves of {dtypes}")
    keys = jax.random.split(key, len(leaves))
    return structure.unflatten(map(sample, keys, leaves))


def _bits_like(prob: jax.Array, key: chex.PRNGKey, random_bits: RandomBits) -> jax.Array:
    """A uint32 array of the shape and, on a mesh with Explicit axes, the sharding of `prob`."""
    # With Explicit axes and without this, each device would draw the whole leaf.
    draw = lambda key: random_bits(key, prob.shape, jnp.uint32)
    return masks.sharded_alike(draw, prob)(key)


def counter_bits(
    key: chex.PRNGKey, shape: tuple[int, ...], dtype: jax.typing.DTypeLike = jnp.uint32
) -> jax.Array:
    """Random bits from a hash of each entry's position: fewer operations than `jax.random.bits`.

    The position is hashed twice (a 32-bit finalizer of two multiplications, with constants from the
    tables of hash-prospector), each time after a word of the key is added. XLA fuses all of it into
    the loop that uses the bits. Good enough for masks (its tests: uniformity, serial correlation,
    correlation between keys and avalanche); not for cryptography.

    Args:
      key: one `jax.random.key` of any implementation.
      shape: of the result; fewer than 2**32 entries.
      dtype: uint32.

    Returns:
      uint32 array.

    >>> import jax
    >>> import jaxprune as jp
    >>> jp.counter_bits(jax.random.key(0), (2, 3)).shape
    (2, 3)
    """
    if jnp.dtype(dtype) != jnp.uint32:
        raise ValueError(f"counter_bits makes uint32, not {jnp.dtype(dtype)}")
    if math.prod(shape) >= 2**32:
        raise ValueError(f"counter_bits counts to 2**32, but shape {shape} has more entries")
    words = jax.random.bits(key, (2,), jnp.uint32)
    return _scramble(_scramble(positions.flat(shape) + words[0]) + words[1])


def _scramble(x: jax.Array) -> jax.Array:
    x = (x ^ (x >> 16)) * jnp.uint32(0x21F0AAAD)
    x = (x ^ (x >> 15)) * jnp.uint32(0xD35A2D97)
    return x ^ (x >> 15)
