"""A mask as a table: a line for each leaf, and columns for what the leaf costs, dense and sparse.

What a leaf costs is spread evenly over its weights, so that a sparse leaf costs its density's share
of it, and whatever it takes to say where the kept weights are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import chex
import jax

from jaxprune.trees import checks, in_force, masks, report
from jaxprune.trees.report import Layer

Columns = dict[str, list[int]]  # a number for each layer, and the last for all other leaves


def table(
    tree: chex.ArrayTree,
    *,
    params: chex.ArrayTree | None = None,
    flops: chex.ArrayTree | None = None,
) -> str:
    """The layers of a mask as text, with the total in the last line.

    Args:
      tree: a mask; or an optimizer state, of which the mask in force is shown (what all of its
        links keep), and below it the `problems` that they have noticed; if none of them keeps to a
        mask, these alone.
      params: the parameters, or their shapes, for columns of bytes: dense, and sparse, as kept
        values in the leaf's dtype and a bit for each weight (`pack_mask`).
      flops: tree like the parameters, as of `leaf_flops`, for columns of operations: dense, and
        sparse, by the fraction of the leaf's weights that is kept.

    Of bytes and operations the totals are of all leaves; those that stay dense are in a line of
    others. Weights are counted among those that can be pruned. Leaves that keep nothing are named
    below: nothing goes through their layers.

    Raises:
      TypeError: for leaves of a mask that aren't boolean, or `params` that are no tree of arrays.
      ValueError: for `params` or `flops` without a leaf of the mask; the message names it. For the
        state of links that neither keep to a mask nor have noticed problems.

    >>> import jax.numpy as jnp
    >>> import jaxprune as jp
    >>> mask = {"w": jnp.array([[True, False]]), "b": None}
    >>> print(jp.table(mask))
    layer  shape  kept  weights  density
    w      1x2       1        2  50.000%
    total            1        2  50.000%
    >>> params = {"w": jnp.ones((1, 2)), "b": jnp.ones(2)}
    >>> flops = jp.leaf_flops(lambda p, x: x @ p["w"] + p["b"], params, jnp.ones((8, 1)))
    >>> print(jp.table(mask, params=params, flops=flops))
    layer  shape  kept  weights  density  bytes  sparse bytes  flops  sparse flops
    w      1x2       1        2  50.000%      8             5     32            16
    others                                    8             8      0             0
    total            1        2  50.000%     16            13     32            16
    """
    rows, notes = _shown(tree)
    columns: Columns = {}
    if params is not None:
        checks.tree("`params`", params)
        dense = {path: leaf.size * leaf.dtype.itemsize for path, leaf in _named(params).items()}
        columns |= _columns("params", "bytes", dense, rows, lambda size: -(-size // 8))
    if flops is not None:
        columns |= _columns("flops", "flops", _named(flops), rows, lambda size: 0)
    notes += [f"'{row.path}' keeps none of its weights" for row in rows if row.size > row.kept == 0]
    lines = _aligned(_cells(rows, columns)) if rows or not notes else []
    return "\n".join([*lines, *notes])


def _shown(tree: chex.ArrayTree) -> tuple[list[Layer], list[str]]:
    """The layers of a mask or an optimizer state, and what is to be said about them."""
    if not in_force.fields(tree, "problems"):
        return report.layers(tree), []
    noticed = report.problems(tree)
    found = {} if noticed and not in_force.links_masks(tree) else in_force.by_path(tree)
    return report.rows(found.items()), noticed


def _named(tree: chex.ArrayTree) -> dict[str, Any]:
    paths_and_leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {masks.path_name(path): leaf for path, leaf in paths_and_leaves}


def _columns(
    argument: str,
    name: str,
    dense: dict[str, int],
    rows: list[Layer],
    of_places: Callable[[int], int],
) -> Columns:
    """What leaves cost when they are dense, and sparse with the places of so many weights."""
    missing = [row.path for row in rows if row.path not in dense]
    if missing:
        raise ValueError(
            f"`{argument}` must have the structure of the parameters, but has no leaf "
            f"'{missing[0]}', only {[*dense]}"
        )
    own = [dense[row.path] for row in rows]
    sparse = [
        -(-cost * row.kept // max(row.size, 1)) + of_places(row.size)
        for cost, row in zip(own, rows, strict=True)
    ]
    others = sum(dense.values()) - sum(own)
    return {name: [*own, others], f"sparse {name}": [*sparse, others]}


def _cells(rows: list[Layer], columns: Columns) -> list[tuple[str, ...]]:
    *own, others = zip(*columns.values(), strict=True) if columns else [()] * (len(rows) + 1)
    cells = [("layer", "shape", "kept", "weights", "density", *columns)]
    cells += [_line(row, numbers) for row, numbers in zip(rows, own, strict=True)]
    if any(others):
        cells.append(("others", "", "", "", "", *_grouped(others)))
    total = Layer("total", (), sum(row.kept for row in rows), sum(row.size for row in rows))
    return [*cells, _line(total, map(sum, columns.values()))]


def _line(row: Layer, numbers: Iterable[int]) -> tuple[str, ...]:
    shape = "x".join(map(str, row.shape))
    return (
        row.path,
        shape,
        *_grouped((row.kept, row.size)),
        f"{row.density:.3%}",
        *_grouped(numbers),
    )


def _grouped(numbers: Iterable[int]) -> list[str]:
    return [f"{number:,}" for number in numbers]


def _aligned(cells: list[tuple[str, ...]]) -> list[str]:
    """Names to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in cells
    ]
