"""Two masks of one tree: what both keep, and what only one of them does."""

from __future__ import annotations

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.trees import masks, wide


class Overlap(NamedTuple):
    """One leaf: how many weights both masks keep, only the first, and only the second."""

    path: str
    shape: tuple[int, ...]
    both: int
    lost: int
    gained: int
    size: int

    @property
    def iou(self) -> float:
        """Intersection over union: weights that both keep, of those that any keeps."""
        union = self.both + self.lost + self.gained
        return self.both / union if union else 1.0

    @property
    def churn(self) -> float:
        """The fraction of all weights that one mask keeps and the other doesn't."""
        return (self.lost + self.gained) / max(self.size, 1)


def overlaps(first: chex.ArrayTree, second: chex.ArrayTree) -> list[Overlap]:
    """Compares two masks, leaf by leaf and in total.

    Args:
      first: tree of boolean arrays and `None`.
      second: such a tree of the same structure. `None` in one of them keeps the whole leaf.

    Returns:
      A list of `Overlap(path, shape, both, lost, gained, size)` in the tree's order, without leaves
      that stay dense in both masks; the last one is the total. Each has an `iou` and a `churn`. The
      counts are exact, past 2**31 too; so the call waits for the device.

    Raises:
      TypeError: for leaves that aren't boolean.
      ValueError: for masks of different structures or shapes; the message names the leaf.

    >>> import jax.numpy as jnp
    >>> import jaxprune as jp
    >>> before = {"w": jnp.array([True, True, False, False]), "b": None}
    >>> after = {"w": jnp.array([True, False, True, False]), "b": None}
    >>> *leaves, total = jp.overlaps(before, after)
    >>> leaves
    [Overlap(path='w', shape=(4,), both=1, lost=1, gained=1, size=4)]
    >>> round(total.iou, 3), total.churn
    (0.333, 0.5)
    """
    pairs = _pairs(first, second)
    counts = np.asarray(_counts([pair for _, pair in pairs])).tolist() if pairs else []
    rows = [
        Overlap(masks.path_name(path), mask.shape, both, lost, gained, mask.size)
        for (path, (mask, _)), (both, lost, gained) in zip(pairs, counts, strict=True)
    ]
    return [*rows, _total(rows)]


def _total(rows: list[Overlap]) -> Overlap:
    total = lambda name: sum(getattr(row, name) for row in rows)
    return Overlap("total", (), total("both"), total("lost"), total("gained"), total("size"))


@wide.counts_in_64_bits
@jax.jit
def _counts(pairs: list[tuple[jax.Array, jax.Array]]) -> jax.Array:
    return wide.exact_sums([[a & b, a & ~b, ~a & b] for a, b in pairs])


def _pairs(first: chex.ArrayTree, second: chex.ArrayTree) -> list:
    """The paths of leaves that a mask can prune, with both of its arrays."""
    masks.check_boolean(first)
    masks.check_boolean(second)
    a, structure = jax.tree_util.tree_flatten_with_path(first, is_leaf=_is_none)
    b, other = jax.tree.flatten(second, is_leaf=_is_none)
    if structure != other:
        raise ValueError(
            f"the masks must be of one tree, but the first is {structure} and the second {other}"
        )
    found = [(path, (x, y)) for (path, x), y in zip(a, b, strict=True)]
    return [(path, _whole(path, *pair)) for path, pair in found if not all(map(_is_none, pair))]


def _is_none(leaf) -> bool:
    return leaf is None


def _whole(path, a: Any, b: Any) -> tuple[jax.Array, jax.Array]:
    """The pair with an array in the place of None."""
    if a is None:
        return jnp.ones_like(b), b
    if b is None:
        return a, jnp.ones_like(a)
    if a.shape != b.shape:
        name = masks.path_name(path)
        raise ValueError(
            f"the masks of leaf '{name}' must have one shape, got {a.shape} and {b.shape}"
        )
    return a, b
