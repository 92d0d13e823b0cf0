"""What a mask keeps, leaf by leaf, as rows and as a table."""

from typing import NamedTuple

import chex
import jax

from jaxprune.trees import masks


class Layer(NamedTuple):
    """One prunable leaf: its path, shape, number of kept weights and number of weights."""

    path: str
    shape: tuple[int, ...]
    kept: int
    size: int

    @property
    def density(self) -> float:
        """The fraction that is kept."""
        return self.kept / max(self.size, 1)


def layers(mask: chex.ArrayTree) -> list[Layer]:
    """The prunable leaves of a mask, in the tree's order.

    Args:
      mask: tree of boolean arrays and `None`.

    Returns:
      A list of `Layer(path, shape, kept, size)`, each with a `density`.

    Raises:
      TypeError: for leaves that aren't boolean.

    >>> import jax.numpy as jnp
    >>> import jaxprune as jp
    >>> jp.layers({"w": jnp.array([True, False]), "b": None})
    [Layer(path='w', shape=(2,), kept=1, size=2)]
    """
    masks.check_boolean(mask)
    return [
        Layer(masks.path_name(path), leaf.shape, masks.count(leaf), leaf.size)
        for path, leaf in jax.tree_util.tree_leaves_with_path(mask)
    ]


def table(mask: chex.ArrayTree) -> str:
    """The layers of a mask as text, with the total in the last line.

    >>> import jax.numpy as jnp
    >>> import jaxprune as jp
    >>> print(jp.table({"w": jnp.array([[True, False]]), "b": None}))
    layer  shape  kept  weights  density
    w      1x2       1        2  50.000%
    total            1        2  50.000%
    """
    rows = layers(mask)
    kept, size = sum(row.kept for row in rows), sum(row.size for row in rows)
    cells = [("layer", "shape", "kept", "weights", "density")]
    for row in [*rows, Layer("total", (), kept, size)]:
        shape = "x".join(map(str, row.shape))
        cells.append((row.path, shape, f"{row.kept:,}", f"{row.size:,}", f"{row.density:.3%}"))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in cells
    )
