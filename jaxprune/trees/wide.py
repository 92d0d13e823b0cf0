"""Exact integers of up to 64 bits, and exact sums, where arrays have 32.

JAX sums in 32 bits unless x64 is switched on for the whole process, and a float32 sum depends on
its order, so on how an array lies on its devices. Budgets of this library hold to the element, past
2^31 weights, and give the same bits on one device and on many. So whatever is compared with a
budget is an integer: `exact_sums` cuts values into limbs short enough that no 32-bit sum overflows,
and puts the limbs' sums together as a `Wide`.
"""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

_WORD = 2**32


class Wide(NamedTuple):
    """Unsigned integers `high * 2**32 + low`; both fields are uint32 arrays of one shape."""

    high: jax.Array
    low: jax.Array


def wide(value: int) -> Wide:
    """The Python integer 0 <= value < 2**64 as a scalar `Wide`."""
    return Wide(jnp.uint32(value >> 32), jnp.uint32(value % _WORD))


def to_int(a: Wide) -> int:
    """The Python integer of a concrete scalar `Wide`."""
    return int(a.high) * _WORD + int(a.low)


def from_float(x: jax.Array) -> Wide:
    """floor(x) of a float32 array with 0 <= x < 2**64; every step is exact."""
    high = jnp.floor(x / float(_WORD))
    return Wide(high.astype(jnp.uint32), (x - high * float(_WORD)).astype(jnp.uint32))


def to_float(a: Wide) -> jax.Array:
    """The nearest float32, up to 1 unit in its last place."""
    return a.high.astype(jnp.float32) * float(_WORD) + a.low.astype(jnp.float32)


def at(a: Wide, index) -> Wide:
    """Both words indexed alike."""
    return Wide(a.high[index], a.low[index])


def stack(terms: Sequence[Wide], axis: int = 0) -> Wide:
    """Terms of one shape along a new axis."""
    return Wide(*(jnp.stack(words, axis) for words in zip(*terms, strict=True)))


def where(condition: jax.Array, a: Wide, b: Wide) -> Wide:
    """Both words chosen alike."""
    return Wide(jnp.where(condition, a.high, b.high), jnp.where(condition, a.low, b.low))


def add(a: Wide, b: Wide) -> Wide:
    """a + b modulo 2**64."""
    low = a.low + b.low
    return Wide(a.high + b.high + (low < a.low).astype(jnp.uint32), low)


def subtract(a: Wide, b: Wide) -> Wide:
    """a - b modulo 2**64."""
    return Wide(a.high - b.high - (a.low < b.low).astype(jnp.uint32), a.low - b.low)


def less(a: Wide, b: Wide) -> jax.Array:
    """a < b."""
    return (a.high < b.high) | ((a.high == b.high) & (a.low < b.low))


def difference(a: Wide, b: Wide) -> jax.Array:
    """a - b as a float32, signed, without cancellation."""
    negative = less(a, b)
    distance = to_float(where(negative, subtract(b, a), subtract(a, b)))
    return jnp.where(negative, -distance, distance)


def total(a: Wide) -> Wide:
    """The sum over the first axis, of up to 65,536 terms, modulo 2**64."""
    return _along_first(jnp.sum, a)


def running_total(a: Wide) -> Wide:
    """The sums of the first 1, 2, ... terms along the first axis, modulo 2**64."""
    return _along_first(jnp.cumsum, a)


def _along_first(add_up, a: Wide) -> Wide:
    parts = a.high, a.low >> 16, a.low & 0xFFFF
    high, upper, lower = (add_up(part, axis=0, dtype=jnp.uint32) for part in parts)
    return add(add(_shift_left(high, 32), _shift_left(upper, 16)), _shift_left(lower, 0))


def _shift_left(words: jax.Array, places: int) -> Wide:
    """uint32 words times 2**places, 0 <= places < 64, modulo 2**64."""
    if places == 0:
        return Wide(jnp.zeros_like(words), words)
    if places >= 32:
        return Wide(words << (places - 32), jnp.zeros_like(words))
    return Wide(words >> (32 - places), words << places)


def exact_sums(rows: Sequence[Sequence[jax.Array]], bits: Sequence[int]) -> Wide:
    """The exact sum of each array, as a `Wide` of shape (len(rows), len(bits)).

    Args:
      rows: one sequence for each leaf of a tree: uint32 or boolean arrays of the leaf's shape.
      bits: for each place in a row a number from 1 to 32, such that entries are below 2**bits.

    Raises:
      ValueError: if an axis is so long that not even one-bit limbs fit (2**32 entries).
    """
    for row in rows:
        if _last_axes(row[0].shape)[1] >= _WORD:
            raise ValueError(
                f"an axis may have fewer than 2**32 entries, got shape {row[0].shape}: reshape it"
            )
    limb = min(_limb_bits(_last_axes(row[0].shape)[1]) for row in rows)
    limbs = stack([_limb_sums(row, bits, limb) for row in rows])
    stops = list(itertools.accumulate(-(-width // limb) for width in bits))
    numbers = [
        _join([at(limbs, (slice(None), i)) for i in range(start, stop)], limb)
        for start, stop in zip([0, *stops], stops, strict=False)
    ]
    return stack(numbers, axis=1)


def _last_axes(shape: tuple[int, ...]) -> tuple[int, int]:
    """The last axes that are summed at once: where they start and how many entries they have."""
    first = max(len(shape) - 1, 0)
    terms = math.prod(shape[first:])
    while first > 0 and terms * shape[first - 1] < _WORD // 16:
        first -= 1
        terms *= shape[first]
    return first, terms


def _limb_bits(terms: int) -> int:
    """The widest limbs of which `terms` can be summed in 32 bits."""
    return ((_WORD - 1) // max(terms, 1) + 1).bit_length() - 1


def _limb_sums(row: Sequence[jax.Array], bits: Sequence[int], limb: int) -> Wide:
    """The sums of all limbs of all arrays of a row, lowest limb first."""
    limbs = [
        (value.astype(jnp.uint32) >> place) & jnp.uint32(2**limb - 1)
        for value, width in zip(row, bits, strict=True)
        for place in range(0, width, limb)
    ]
    first, _ = _last_axes(row[0].shape)
    partial = _sums(limbs, tuple(range(first, row[0].ndim)))
    if first > 0:
        return at(exact_sums([partial], [32] * len(partial)), 0)
    low = jnp.stack(partial)
    return Wide(jnp.zeros_like(low), low)


def _sums(values: Sequence[jax.Array], axes: tuple[int, ...]) -> list[jax.Array]:
    """Sums modulo 2**32 of uint32 arrays of one shape.

    On one device all sums come from a single pass (a reduction of several operands); XLA's CPU
    compiler would rewrite single sums to a chain that copies the array and takes ten times as long.
    Over a mesh that form would gather partial results, so there each sum is a plain all-reduce.
    """
    if jax.typeof(values[0]).sharding.mesh.size > 1:
        return [jnp.sum(value, axis=axes, dtype=jnp.uint32) for value in values]
    zeros = [jnp.uint32(0)] * len(values)
    add_each = lambda a, b: [x + y for x, y in zip(a, b, strict=True)]
    return list(jax.lax.reduce(list(values), zeros, add_each, axes))


def _join(limbs: Sequence[Wide], limb: int) -> Wide:
    """The number whose limbs are given, lowest first."""
    number = limbs[0]
    for i, part in enumerate(limbs[1:], start=1):
        shifted, above = _shift_left(part.low, limb * i), _shift_left(part.high, limb * i).low
        number = add(number, Wide(shifted.high + above, shifted.low))
    return number
