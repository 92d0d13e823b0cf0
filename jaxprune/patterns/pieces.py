"""Stacks of matrices worked on piece by piece, where they lie: the memory of a piece, no moves.

A piece has some tile rows of some matrices, all columns of each, from every shard alike. On a mesh
with Auto axes nobody knows, while a function is traced, where shards end; so the axes are split in
as many parts as could be shards (`masks.most_shards`), and a piece is the same place of all parts.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxprune.trees import masks

_WHOLE = 2**20  # entries of a piece that isn't made smaller
_MOST_PIECES = 64  # of a leaf


def one_by_one(function: Callable, tree: chex.ArrayTree, *rest: chex.ArrayTree) -> chex.ArrayTree:
    """As `jax.tree.map`, each leaf after the one before: what one needs in between, all share."""
    leaves, structure = jax.tree.flatten(tree)
    results = []
    for arguments in zip(leaves, *map(structure.flatten_up_to, rest), strict=True):
        if results:
            results[-1], arguments = jax.lax.optimization_barrier((results[-1], arguments))
        results.append(function(*arguments))
    return structure.unflatten(results)


def map_pieces(
    function: Callable[..., tuple[jax.Array, ...]], leaves: Sequence[tuple[jax.Array, ...]], m: int
) -> list[tuple[jax.Array, ...]]:
    """The function of each leaf, where it maps tile rows to tile rows.

    What it does is compiled once for all leaves.

    Args:
      function: takes and gives arrays (..., tile rows * rows of one, columns); the number of rows
        and columns of a tile row may differ from array to array, and an array may have axes of its
        own before those of the first.
      leaves: a tuple of such arrays for each leaf, of the same shapes; of the first array a tile
        row has m rows.
      m: the side of a tile.
    """
    cut = _cut(leaves[0][0], m)
    counts = [len(leaves), *cut.inside[:-1], cut.inside[-1] // cut.height]
    # Results begin as zeros that wait for the leaves: or else they might lie in memory while these
    # are made.
    leaves, zero = jax.lax.optimization_barrier((leaves, jnp.bool_(False)))
    views = [tuple(map(cut.split, arrays)) for arrays in leaves]

    def step(i, results):
        leaf, *index = _unravel(i, counts)
        # Of two leaves or more, XLA would take the slices out of the branches if they weren't
        # written there, and choose among whole leaves.
        written = jax.lax.optimization_barrier if len(views) > 1 else lambda x: x
        take = lambda view: written(tuple(cut.taken(x, index) for x in view))
        outputs = function(*jax.lax.switch(leaf, [functools.partial(take, v) for v in views]))

        def write(number):
            pairs = zip(results[number], outputs, strict=True)
            updated = tuple(cut.put(*pair, index) for pair in pairs)
            return [*results[:number], updated, *results[number + 1 :]]

        # Branches, so that each leaf has an array of its own, which is updated in place.
        return jax.lax.switch(leaf, [functools.partial(write, k) for k in range(len(leaves))])

    start = [0] * len(cut.parts)
    pieces = jax.eval_shape(lambda: function(*(cut.taken(x, start) for x in views[0])))
    empty = [tuple(jnp.full(cut.whole(y), zero.astype(y.dtype)) for y in pieces) for _ in leaves]
    return jax.lax.fori_loop(0, math.prod(counts), step, empty)


class _Cut(NamedTuple):
    """How the axes of arrays but the last, and but the first that only some have, are cut.

    Each axis, of the last of which a tile row is one entry, has so many `parts` with so many
    entries `inside`; a piece has `height` tile rows of each part, and one of each other axis.
    """

    parts: list[int]
    inside: list[int]
    height: int

    def split(self, x: jax.Array) -> jax.Array:
        """Every axis that is cut as (parts, inside)."""
        first = x.shape[: x.ndim - len(self.parts) - 1]
        pairs = zip(self.parts, x.shape[len(first) : -1], strict=True)
        parted = (n for part, size in pairs for n in (part, size // part))
        return x.reshape(*first, *parted, x.shape[-1])

    def _window(self, view: jax.Array, index: Sequence) -> tuple[list, list[int]]:
        """Where a piece begins in a split array, and its sizes there."""
        first = view.shape[: view.ndim - 2 * len(self.parts) - 1]
        rows = self.height * (view.shape[-2] // self.inside[-1])
        within = [*index[:-1], index[-1] * rows]
        starts = [*[0] * len(first), *(i for start in within for i in (0, start)), 0]
        sizes = [*first, *(n for part in self.parts for n in (part, 1)), view.shape[-1]]
        sizes[-2] = rows
        return starts, sizes

    def taken(self, view: jax.Array, index: Sequence) -> jax.Array:
        """A piece of a split array, its parts side by side."""
        starts, sizes = self._window(view, index)
        piece = jax.lax.dynamic_slice(view, starts, sizes)
        first = sizes[: len(sizes) - 2 * len(self.parts) - 1]
        return piece.reshape(*first, *self.parts[:-1], self.parts[-1] * sizes[-2], sizes[-1])

    def put(self, x: jax.Array, piece: jax.Array, index: Sequence) -> jax.Array:
        """The array with a piece in its place."""
        view = self.split(x)  # carried as it is: libtpu can't copy bytes of as many axes as this
        starts, sizes = self._window(view, index)
        return jax.lax.dynamic_update_slice(view, piece.reshape(sizes), starts).reshape(x.shape)

    def whole(self, piece: Any) -> tuple[int, ...]:
        """The shape of the array that such a piece is of."""
        first = piece.shape[: len(piece.shape) - len(self.parts) - 1]
        lead = [part * size for part, size in zip(self.parts, self.inside, strict=True)][:-1]
        return (*first, *lead, piece.shape[-2] // self.height * self.inside[-1], piece.shape[-1])


def _cut(x: jax.Array, m: int) -> _Cut:
    """Of leaves whose first array is such a one."""
    *lead, rows, _ = x.shape
    sizes, mesh = [*lead, rows // m], jax.typeof(x).sharding.mesh
    parts = [masks.most_shards(size, mesh) for size in sizes]
    inside = [size // part for size, part in zip(sizes, parts, strict=True)]
    return _Cut(parts, inside, _height(inside, math.prod(x.shape)))


def _height(inside: list[int], size: int) -> int:
    """How many of the tile rows inside a part are worked on together."""
    pieces = min(_MOST_PIECES, max(size // _WHOLE, 1))
    rows = inside[-1]
    wanted = -(-pieces // math.prod(inside[:-1]))
    return next(height for height in range(rows, 0, -1) if rows % height == 0 and
                (rows // height >= min(wanted, rows)))  # fmt: skip


def _unravel(i: jax.Array, counts: list[int]) -> list[jax.Array]:
    index = []
    for count in reversed(counts):
        i, remainder = i // count, i % count
        index.append(remainder)
    return index[::-1]
