"""Stacks of matrices worked on piece by piece, where they lie: the memory of a piece, no moves.

A piece has some tile rows of some matrices, all columns of each, from every shard alike. On a mesh
with Auto axes nobody knows, while a function is traced, where shards end; so the axes are split in
as many parts as could be shards (`masks.most_shards`), and a piece is the same place of all parts.
"""

import functools
import math
from collections.abc import Callable, Sequence

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
    *lead, rows, _ = leaves[0][0].shape
    sizes, mesh = [*lead, rows // m], jax.typeof(leaves[0][0]).sharding.mesh
    parts = [masks.most_shards(size, mesh) for size in sizes]
    inside = [size // part for size, part in zip(sizes, parts, strict=True)]
    height = _height(inside, math.prod(leaves[0][0].shape))
    counts = [len(leaves), *inside[:-1], inside[-1] // height]

    def own(x, axes):
        """The axes that an array has before those of the first: it has so many others."""
        return x.shape[: x.ndim - axes]

    def split(x):
        """Every axis but the last and its own as (parts, inside)."""
        first = own(x, len(lead) + 2)
        pairs = zip(parts, x.shape[len(first) : -1], strict=True)
        parted = (n for part, size in pairs for n in (part, size // part))
        return x.reshape(*first, *parted, x.shape[-1])

    def starts(index, x):
        """Where a piece begins in a split array."""
        tile_rows = x.shape[-2] // inside[-1]
        within = [*index[:-1], index[-1] * height * tile_rows]
        first = [0] * len(own(x, 2 * len(parts) + 1))
        return [*first, *(i for start in within for i in (0, start)), 0]

    def piece_size(x):
        first = own(x, 2 * len(parts) + 1)
        size = [*first, *(n for part in parts for n in (part, 1)), x.shape[-1]]
        size[-2] = height * (x.shape[-2] // inside[-1])
        return size

    def taken(x, index):
        size = piece_size(x)
        piece = jax.lax.dynamic_slice(x, starts(index, x), size)
        first = own(x, 2 * len(parts) + 1)
        return piece.reshape(*first, *parts[:-1], parts[-1] * size[-2], x.shape[-1])

    def put(x, piece, index):
        view = split(x)  # carried as it is: libtpu can't copy bytes of as many axes as this has
        size = piece_size(view)
        view = jax.lax.dynamic_update_slice(view, piece.reshape(size), starts(index, view))
        return view.reshape(x.shape)

    # Results begin as zeros that wait for the leaves: or else they might lie in memory while these
    # are made.
    leaves, zero = jax.lax.optimization_barrier((leaves, jnp.bool_(False)))
    views = [tuple(map(split, arrays)) for arrays in leaves]

    def step(i, results):
        leaf, *index = _unravel(i, counts)
        # Of two leaves or more, XLA would take the slices out of the branches if they weren't
        # written there, and choose among whole leaves.
        written = jax.lax.optimization_barrier if len(views) > 1 else lambda x: x
        read = [lambda view=view: written(tuple(taken(x, index) for x in view)) for view in views]
        outputs = function(*jax.lax.switch(leaf, read))

        def write(number):
            own = tuple(put(*pair, index) for pair in zip(results[number], outputs, strict=True))
            return [*results[:number], own, *results[number + 1 :]]

        # Branches, so that each leaf has an array of its own, which is updated in place.
        return jax.lax.switch(leaf, [functools.partial(write, k) for k in range(len(leaves))])

    first = jax.eval_shape(lambda: function(*(taken(x, [0] * len(parts)) for x in views[0])))
    # A piece's rows are those of `height` tile rows in each part.
    whole = [
        (*own(y, len(parts) + 1), *lead, y.shape[-2] // height * inside[-1], y.shape[-1])
        for y in first
    ]
    empty = [
        tuple(jnp.full(shape, zero.astype(y.dtype)) for shape, y in zip(whole, first, strict=True))
        for _ in leaves
    ]
    return jax.lax.fori_loop(0, math.prod(counts), step, empty)


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
