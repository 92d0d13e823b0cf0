"""N:M masks: n kept of every m weights, along one side of each matrix or along both.

A kernel is read as matrices (inputs, outputs): a Dense kernel as it is, a convolution's HWIO kernel
as one matrix for each position (h, w), attention's as (inputs, heads * size) and (heads * size,
outputs). N:M runs along the inputs, over which a matrix product sums; a transposable mask is N:M
along the outputs as well, so that the transposed product of the backward pass is sparse too.
Equinox has its weights the other way round, (outputs, inputs): there `axis="outputs"` runs along
what the product sums over.

Rows and columns that are left over when a side doesn't divide by m form groups or tiles of their
own, of which at most n (in each row and column) are kept.
"""

from __future__ import annotations

import collections
import functools
import numbers
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.patterns import approximate, groups, pieces, solver
from jaxprune.patterns import tiles as tiling
from jaxprune.trees import masks

_POOLED = 2**22  # scores of a leaf that is solved together with leaves of other shapes
_CHUNK, _MOST_CHUNKS = 2**20, 64  # of theirs at a time; or more, for so many chunks at most
_LINE = 16  # entries of a cache line
_SOLVERS = {
    "exact": solver.solve,
    "greedy": approximate.greedy,
    "entropic": approximate.entropic,
}


def transposable_nm_mask(
    scores: chex.ArrayTree, n: int | jax.Array, m: int, *, method: str = "exact"
) -> chex.ArrayTree:
    """Keeps n of every m scores along the inputs and of every m along the outputs of each matrix.

    The mask of the largest sum of kept scores: of every m-by-m tile the best one, exactly (to one
    part in 2^24 of the tile's largest score). Each tile has n entries in every row and column; so
    the transpose of the mask is N:M too.

    Args:
      scores: an array, or a tree of floating-point arrays and `None`. An infinite score is kept (or
        -inf pruned) wherever the pattern allows it.
      n: how many of a row or column of a tile to keep, 0 <= n <= m; an integer or, inside
        `jax.jit`, an int32 scalar.
      m: the side of a tile, 1 to 32. Of what is left over where inputs or outputs don't divide by
        it, at most n in each row and column of a smaller tile are kept, the best such choice.
      method: "exact"; or for comparison "greedy" (the largest scores first) or "entropic"
        (TSENOR's transport plan), both completed by swaps. These lose 0.4 to 1.1 and 0.0 to 0.1
        percent of the best sum, and are slower.

    Returns:
      A mask like `scores`. Inside `jax.jit`, where values can't be checked, NaN ranks with -inf.

    Raises:
      TypeError: for n or m that isn't whole, or leaves that aren't floating-point.
      ValueError: for n or m out of range, an unknown method, a tree without leaves, leaves of fewer
        than two dimensions, or NaN (outside `jit`); the message names the leaf.

    Source: Hubara et al., "Accelerated sparse neural training: a provable and efficient method to
    find N:M transposable masks" (NeurIPS 2021), for the problem.

    >>> import jax.numpy as jnp
    >>> import jaxprune as jp
    >>> kernel = jnp.array([[8.0, 7, 1, 1], [6, 5, 1, 1], [1, 1, 4, 3], [1, 1, 2, 1]])
    >>> jp.transposable_nm_mask(kernel, 2, 4).astype(int).tolist()
    [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]
    """
    tiling.check("a transposable mask", scores, n, m)
    if method not in _SOLVERS:
        raise ValueError(f"method must be one of {[*_SOLVERS]}, got {method!r}")
    return _mask(scores, n, m, method, jnp.asarray)


def transposable_nm_mask_of_magnitudes(
    params: chex.ArrayTree, n: int | jax.Array, m: int
) -> chex.ArrayTree:
    """`transposable_nm_mask` of checked parameters' magnitudes, a few in memory at a time."""
    return _mask(params, n, m, "exact", jnp.abs)


def _mask(scores, n, m: int, method: str, read: Callable[[jax.Array], jax.Array]):
    """Of what `read` makes of each score."""
    fixed = isinstance(n, numbers.Integral)
    static = {"method": method, "n": int(n) if fixed else None, "m": m, "read": read}
    of_tree = functools.partial(_transposable_tree, **static)
    return masks.sharded_alike(of_tree, scores)(scores, None if fixed else n)


@functools.partial(jax.jit, static_argnames=("method", "n", "m", "read"))
def _transposable_tree(scores, traced_n, method: str, n: int | None, m: int, read):
    solver_of = functools.partial(_SOLVERS[method], n=traced_n if n is None else n)
    solve = lambda tiles: solver_of(read(tiles))
    paths_and_leaves, structure = jax.tree_util.tree_flatten_with_path(scores)
    leaves = [leaf for _, leaf in paths_and_leaves]
    matrices = [tiling.as_matrices(masks.path_name(path), leaf) for path, leaf in paths_and_leaves]
    kept = _of_whole_tiles([tiling.whole(matrix, m) for matrix in matrices], solve, m)
    edges = [tiling.edge_tiles(read(matrix), m) for matrix in matrices]
    if any(edge.size for edge in edges):
        mask = _at_most(solver_of, jnp.concatenate(edges, axis=2))
        ends = np.cumsum([edge.shape[2] for edge in edges])[:-1]
        own = jnp.split(mask, ends, axis=2)
        kept = [
            tiling.place_edges(_grown(keep, matrix.shape), edge, m)
            for keep, matrix, edge in zip(kept, matrices, own, strict=True)
        ]
    return structure.unflatten(k.reshape(leaf.shape) for k, leaf in zip(kept, leaves, strict=True))


def _grown(kept: jax.Array, shape) -> jax.Array:
    missing = [(0, size - own) for own, size in zip(kept.shape, shape, strict=True)]
    return jnp.pad(kept, missing)


def _of_whole_tiles(matrices: list[jax.Array], solve, m: int) -> list[jax.Array]:
    """Masks (..., inputs, outputs) of matrices whose sides divide by m."""
    kept = [jnp.zeros(matrix.shape, bool) for matrix in matrices]
    # What is solved together is compiled once: on one device small leaves of all shapes, else
    # leaves of one shape, piece by piece.
    together = collections.defaultdict(list)
    for i, matrix in enumerate(matrices):
        pooled = jax.typeof(matrix).sharding.mesh.empty and matrix.size <= _POOLED
        if matrix.size:
            together[None if pooled else matrix.shape, matrix.dtype].append(i)
    for (shape, _), members in together.items():
        own = [matrices[i] for i in members]
        masks_of_own = _pooled(own, solve, m) if shape is None else _by_pieces(own, solve, m)
        for i, mask in zip(members, masks_of_own, strict=True):
            kept[i] = mask
    return kept


def _pooled(matrices: list[jax.Array], solve, m: int) -> list[jax.Array]:
    """Solves chunks of tile rows from one matrix after the other: the memory of a chunk."""
    stacks = [matrix.reshape(-1, matrix.shape[-1]) for matrix in matrices]
    widths = [stack.shape[1] // m for stack in stacks]
    most = max(_CHUNK, sum(stack.size for stack in stacks) // _MOST_CHUNKS) // m**2
    chunks = _chunks([len(stack) // m for stack in stacks], widths, most)
    tiles_of = lambda chunk: sum((end - start) * widths[i] for i, start, end in chunk)
    # Arrays whose rows lie a power of two apart would fall on the same lines of a CPU's cache.
    size = _LINE * (-(-max(map(tiles_of, chunks)) // _LINE) | 1)

    def read(chunk):
        tiles = [tiling.to_tiles(stacks[i][start * m : end * m], m) for i, start, end in chunk]
        joined = jnp.concatenate([tile.reshape(m, m, -1) for tile in tiles], axis=2)
        # By the last tile: one of zeros, all tied, would take longer.
        missing = size - joined.shape[2]
        return jnp.pad(joined, ((0, 0), (0, 0), (0, missing)), mode="edge")

    def write(chunk, kept, part):
        kept, used = [*kept], 0
        for i, start, end in chunk:
            number = (end - start) * widths[i]
            own = part[:, :, used : used + number].reshape(m, m, -1, widths[i])
            kept[i] = kept[i].at[start * m : end * m].set(tiling.to_matrices(own))
            used += number
        return kept

    def step(number, kept):
        part = solve(jax.lax.switch(number, [functools.partial(read, c) for c in chunks]))
        return jax.lax.switch(number, [functools.partial(write, c) for c in chunks], kept, part)

    empty = [jnp.zeros(stack.shape, bool) for stack in stacks]
    kept = jax.lax.fori_loop(0, len(chunks), step, empty)
    return [keep.reshape(matrix.shape) for keep, matrix in zip(kept, matrices, strict=True)]


def _chunks(heights: list[int], widths: list[int], most: int) -> list[list[tuple[int, int, int]]]:
    """Tile rows of stacks of some height and width, up to so many tiles together, or a row alone.

    A chunk has parts (stack, first tile row, end) of one stack or more.
    """
    chunks, room = [], 0
    for i, (height, width) in enumerate(zip(heights, widths, strict=True)):
        start = 0
        while start < height:
            if room < width:
                chunks.append([])
                room = max(most, width)
            end = min(height, start + room // width)
            chunks[-1].append((i, start, end))
            room -= (end - start) * width
            start = end
    return chunks


def _by_pieces(matrices: list[jax.Array], solve, m: int) -> list[jax.Array]:
    # Written to memory before and after: on CPUs the rearrangements, fused with what is around
    # them, take ten times as long.
    written = jax.lax.optimization_barrier
    of_piece = lambda piece: (
        tiling.to_matrices(written(solve(written(tiling.to_tiles(piece, m))))),
    )
    masks_only = pieces.map_pieces(of_piece, [(matrix,) for matrix in matrices], m)
    return [mask for (mask,) in masks_only]


def transposable_potentials(
    scores: chex.ArrayTree, mask: chex.ArrayTree, m: int
) -> tuple[chex.ArrayTree, chex.ArrayTree]:
    r"""Potentials of the rows and columns of every tile: the certificate of an optimal mask.

    Whatever potentials are put in, no mask with n entries in every row and column of a tile has
    scores of a sum above

    .. math:: n \sum_i u_i + n \sum_j v_j + \sum_{ij} \max(A_{ij} - u_i - v_j, 0)

    so a mask whose sum reaches this is optimal, and anyone can check it (in float64: float32 sums
    are off by more than the potentials).

    Args:
      scores: an array, or a tree of floating-point arrays and `None`, all of them finite.
      mask: a mask like `scores`, of `transposable_nm_mask` or from elsewhere.
      m: the side of a tile, by which inputs and outputs of all leaves divide.

    Returns:
      Two trees like `scores`, of arrays (..., inputs, outputs // m) for the rows and
      (..., inputs // m, outputs) for the columns of the tiles of matrices (..., inputs, outputs),
      float32 or wider. For a mask that isn't optimal they leave a gap.

    Raises:
      TypeError: for a mask that isn't boolean, or scores that aren't floating-point.
      ValueError: for sides that don't divide by m, a mask that doesn't fit, or scores that
        `transposable_nm_mask` wouldn't take; the message names the leaf.

    >>> import jax, jax.numpy as jnp, numpy as np
    >>> import jaxprune as jp
    >>> scores = jax.random.normal(jax.random.key(0), (64, 32))
    >>> mask = jp.transposable_nm_mask(scores, 4, 8)
    >>> u, v = (np.float64(x) for x in jp.transposable_potentials(scores, mask, 8))
    >>> above = np.float64(scores) - np.repeat(u, 8, axis=1) - np.repeat(v, 8, axis=0)
    >>> bound = 4 * u.sum() + 4 * v.sum() + above.clip(0).sum()
    >>> bool(np.isclose(np.float64(scores)[mask].sum(), bound, rtol=1e-6))
    True
    """
    tiling.check("a certificate", scores, 0, m)
    masks.check_boolean(mask)
    mask = masks.fit_mask(scores, mask)
    of_tree = functools.partial(_potential_trees, m=m)
    return masks.sharded_alike(of_tree, (scores, scores))(scores, mask)


@functools.partial(jax.jit, static_argnames="m")
def _potential_trees(scores, mask, m: int):
    def of_leaf(path, leaf, kept):
        name = masks.path_name(path)
        matrices = tiling.as_matrices(name, leaf)
        inputs, outputs = matrices.shape[-2:]
        if inputs % m or outputs % m:
            raise ValueError(
                f"tiles of side {m} must fill the matrices, but leaf '{name}' has {inputs} inputs "
                f"and {outputs} outputs"
            )
        pair = matrices, tiling.as_matrices(name, kept)
        rows, columns = pieces.map_pieces(functools.partial(_potentials, m=m), [pair], m)[0]
        batch = leaf.shape[: groups.side("inputs", name, leaf.shape)[0]]
        return (
            rows.reshape(*batch, inputs, outputs // m),
            columns.reshape(*batch, inputs // m, outputs),
        )

    both = jax.tree_util.tree_map_with_path(of_leaf, scores, mask)
    rows = jax.tree.map(lambda _, pair: pair[0], scores, both)
    columns = jax.tree.map(lambda _, pair: pair[1], scores, both)
    return rows, columns


def _potentials(matrices: jax.Array, kept: jax.Array, m: int) -> tuple[jax.Array, jax.Array]:
    """Of rows, (..., inputs, outputs / m), and columns, (..., inputs / m, outputs)."""
    tiles = (tiling.to_tiles(x, m) for x in (matrices, kept))
    rows, columns = solver.potentials(*tiles)  # (m, ..., inputs / m, outputs / m)
    *batch, height, width = rows.shape[1:]
    return (
        jnp.moveaxis(rows, 0, -2).reshape(*batch, height * m, width),
        jnp.moveaxis(columns, 0, -1).reshape(*batch, height, width * m),
    )


# Tiles: (m, m, ...), the batch last, as `solver` wants them.


def _at_most(solve, tiles: jax.Array) -> jax.Array:
    """Solves tiles (m, m, tiles) for at most n in each row and column; NaN takes no part.

    Beside each row and column of a tile is room for n entries that are worth nothing, as if the
    tile lay in the corner of one of 2 m by 2 m zeros.
    """
    m = tiles.shape[0]
    absent = jnp.isnan(tiles)
    finite = jnp.isfinite(tiles)
    lowest = jnp.min(tiles, axis=(0, 1), keepdims=True, where=finite, initial=0)
    worth = jnp.where(absent, 0, tiles - lowest)
    return solve(jnp.pad(worth, ((0, m), (0, m), (0, 0))))[:m, :m] & ~absent
