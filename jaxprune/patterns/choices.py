"""All patterns that a group or tile of weights can have, to choose one of.

A group of m inputs has C(m, n) patterns, 6 for 2:4; a 4-by-4 tile has 90 transposable 2:4 patterns.
A pattern is a row of a table of 0 and 1, and also a number with a bit for each entry of the group
or tile, which takes less memory than its entries. Kernels are read as matrices (inputs, outputs),
as in `tiles`, and their sides divide; groups run along the inputs.
"""

import functools
import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.patterns import counting, pieces, solver, tiles
from jaxprune.trees import masks

_MOST, _BITS = 1000, 32  # patterns of a group or tile, entries of one


class Kind(NamedTuple):
    """Of patterns: n of m entries of a group, or of each row and column of a tile."""

    n: int
    m: int
    transposable: bool

    @property
    def shape(self) -> tuple[int, int]:
        """Of a group or tile: inputs, outputs."""
        return self.m, self.m if self.transposable else 1

    def groups(self, matrices: tuple[int, ...]) -> tuple[int, ...]:
        """The shape (..., inputs / m, groups or tiles along the outputs) of those of matrices."""
        *lead, inputs, outputs = matrices
        height, width = self.shape
        return (*lead, inputs // height, outputs // width)


def table(kind: Kind) -> np.ndarray:
    """All patterns, (patterns, entries) of 0 and 1 in float32.

    Raises:
      ValueError: for n or m out of range, or too many patterns or entries.
    """
    n, m, transposable = kind
    tiles.check_pattern(n, m)
    count = counting.mask_count(n, m, "transposable") if transposable else math.comb(m, n)
    entries = math.prod(kind.shape)
    if count > _MOST or entries > _BITS:
        raise ValueError(
            f"{n}:{m} has {count:,} patterns of {entries} entries to choose among, more than "
            f"{_MOST:,} or of more than {_BITS}: choose a smaller m"
        )
    if not transposable:
        kept = [[i in chosen for i in range(m)] for chosen in itertools.combinations(range(m), n)]
    else:
        kept = [[row >> j & 1 for row in rows for j in range(m)] for rows in solver.all_masks(n, m)]
    return np.array(kept, np.float32)


def as_bits(kind: Kind) -> jax.Array:
    """All patterns as numbers, in the narrowest dtype that has a bit for each entry."""
    kept = table(kind)
    bits = kept.shape[1]
    return jnp.asarray(kept @ 2.0 ** np.arange(bits), np.min_scalar_type(2**bits - 1))


def masks_of(kind: Kind, patterns: jax.Array) -> jax.Array:
    """Masks (..., inputs, outputs) of patterns as bits, (..., inputs / m, groups)."""
    height, width = kind.shape

    def of_piece(patterns):
        one = patterns.dtype.type(1)
        bit = lambda i: (patterns & one << patterns.dtype.type(i)) > 0
        entries = jnp.stack([bit(i) for i in range(height * width)])
        *lead, rows, columns = patterns.shape
        entries = jnp.moveaxis(entries.reshape(height, width, *patterns.shape), (0, 1), (-3, -1))
        return (entries.reshape(*lead, rows * height, columns * width),)

    return pieces.map_pieces(of_piece, [(patterns,)], 1)[0][0]


def entries_of(kind: Kind, matrices: jax.Array) -> jax.Array:
    """(entries, ..., inputs / m, groups) of matrices (..., inputs, outputs)."""
    groups = kind.groups(matrices.shape)
    if kind.transposable:
        return tiles.to_tiles(matrices, kind.m).reshape(-1, *groups)
    *lead, inputs, outputs = matrices.shape
    return jnp.moveaxis(matrices.reshape(*lead, inputs // kind.m, kind.m, outputs), -2, 0)


def sums(rows: np.ndarray, entries: jax.Array) -> jax.Array:
    """What each row of weights makes of the entries together: in float32, also on accelerators."""
    return jnp.tensordot(rows, entries, 1, precision=jax.lax.Precision.HIGHEST)


def gains(kind: Kind, entries: jax.Array) -> Callable[[jax.Array], jax.Array]:
    """From a pattern's row in the table to the sum of the entries that it keeps.

    A tile has fewer different rows than patterns, so each is added up once.
    """
    height, width = kind.shape
    kept = table(kind).reshape(-1, height, width)
    entries = entries.reshape(height, width, *entries.shape[1:])
    of_rows, which = [], []
    for i in range(height):
        different, numbers = np.unique(kept[:, i], axis=0, return_inverse=True)
        of_rows.append(sums(different, entries[i]))
        which.append(jnp.asarray(numbers.reshape(-1), jnp.int32))
    return lambda row: functools.reduce(
        jnp.add, [values[numbers[row]] for values, numbers in zip(of_rows, which, strict=True)]
    )


def matrix_tree(kind: Kind, params: chex.ArrayTree) -> chex.ArrayTree:
    """Leaves as (..., inputs, outputs), of which these sides divide.

    Raises:
      ValueError: for a leaf whose sides don't.
    """

    def of_leaf(path, leaf):
        name = masks.path_name(path)
        matrices = tiles.as_matrices(name, leaf)
        inputs, outputs = matrices.shape[-2:]
        height, width = kind.shape
        if inputs % height or outputs % width:
            raise ValueError(
                f"sides must divide by {kind.m}, but leaf '{name}' has {inputs} inputs and "
                f"{outputs} outputs; choose leaves with `where`"
            )
        return matrices

    return jax.tree_util.tree_map_with_path(of_leaf, params)
