"""Kernels as matrices (inputs, outputs), and matrices as tiles."""

import math

import chex
import jax
import jax.numpy as jnp

from jaxprune.patterns import groups
from jaxprune.trees import checks, masks, selection

_LARGEST = 32


def as_matrices(path: str, leaf: jax.Array) -> jax.Array:
    """The leaf as (..., inputs, outputs); axes before these stay, since they may be sharded."""
    inputs, outputs = (groups.side(name, path, leaf.shape) for name in ("inputs", "outputs"))
    sizes = [math.prod(leaf.shape[axis] for axis in side) for side in (inputs, outputs)]
    return leaf.reshape(*leaf.shape[: inputs[0]], *sizes)


def axes_of(axis: str | int, path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The consecutive axes of a leaf that are meant."""
    if isinstance(axis, str):
        return groups.side(axis, path, shape)
    return groups.axes_inside([axis], path, shape)[0]


def length(axis: str | int, path: str, shape: tuple[int, ...]) -> int:
    """Along the axis, or the axes together that are a kernel's "inputs" or "outputs"."""
    return math.prod(shape[i] for i in axes_of(axis, path, shape))


def check_pattern(n, m: int) -> None:
    """Raises an error unless 0 <= n <= m <= 32 and m >= 1; a traced n or a schedule passes."""
    known = not callable(n) and checks.known(n)
    if known:
        checks.integer("n of an N:M pattern", n, least=0)
    checks.integer("m of an N:M pattern", m, least=1)
    if m > _LARGEST or (known and n > m):
        raise ValueError(
            f"N:M keeps 0 <= n <= m of m entries, 1 <= m <= {_LARGEST}; got n = {n}, m = {m}"
        )


def check(name: str, scores: chex.ArrayTree, n, m: int) -> None:
    """Raises an error unless these are scores that a mask n:m can be chosen by."""
    check_pattern(n, m)
    masks.check_floating(name, scores)
    selection.check_no_nan(scores)


def whole(matrices: jax.Array, m: int) -> jax.Array:
    """The matrices without the rows and columns that are left over."""
    inputs, outputs = matrices.shape[-2:]
    return matrices[..., : inputs - inputs % m, : outputs - outputs % m]


def to_tiles(matrices: jax.Array, m: int) -> jax.Array:
    """(m, m, ..., inputs / m, outputs / m)."""
    *lead, inputs, outputs = matrices.shape
    split = matrices.reshape(*lead, inputs // m, m, outputs // m, m)
    return jnp.moveaxis(split, (-3, -1), (0, 1))


def to_matrices(tiles: jax.Array) -> jax.Array:
    """(..., inputs, outputs)."""
    m, _, *lead, rows, columns = tiles.shape
    return jnp.moveaxis(tiles, (0, 1), (-3, -1)).reshape(*lead, rows * m, columns * m)


def _edges(matrices: jax.Array, m: int) -> list[jax.Array]:
    """What is left over: rows below the whole tiles, with the corner, and columns beside them."""
    inputs, outputs = matrices.shape[-2:]
    rows, columns = inputs - inputs % m, outputs - outputs % m
    return [matrices[..., rows:, :], matrices[..., :rows, columns:]]


def edge_tiles(matrices: jax.Array, m: int) -> jax.Array:
    """The edges as tiles (m, m, tiles), padded by NaN, in float32 or wider."""
    tiles = []
    for edge in _edges(matrices, m):
        edge = edge.astype(masks.at_least_float32(edge))
        edge = jnp.where(jnp.isnan(edge), -jnp.inf, edge)
        missing = [(0, 0)] * (edge.ndim - 2) + [(0, -size % m) for size in edge.shape[-2:]]
        padded = jnp.pad(edge, missing, constant_values=jnp.nan)
        tiles.append(to_tiles(padded, m).reshape(m, m, -1))
    return jnp.concatenate(tiles, axis=2)


def place_edges(matrices: jax.Array, tiles: jax.Array, m: int) -> jax.Array:
    """Puts them back, beside the whole tiles of (..., inputs, outputs)."""
    *lead, inputs, outputs = matrices.shape
    rows, columns = inputs - inputs % m, outputs - outputs % m
    for edge, at in zip(_edges(matrices, m), ((rows, 0), (0, columns)), strict=True):
        height, width = edge.shape[-2:]
        shape = (*lead, -(-height // m), -(-width // m))
        own, tiles = jnp.split(tiles, [math.prod(shape)], axis=2)
        part = to_matrices(own.reshape(m, m, *shape))[..., :height, :width]
        matrices = jax.lax.dynamic_update_slice(matrices, part, (*[0] * len(lead), *at))
    return matrices
