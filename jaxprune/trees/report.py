"""What a mask keeps, leaf by leaf, as rows and as a table; and what went wrong with it."""

import enum
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import chex
import jax
import optax

from jaxprune.trees import checks, in_force, masks


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
    return _rows(jax.tree_util.tree_leaves_with_path(mask))


def _rows(paths_and_leaves: Iterable[tuple[Any, jax.Array]]) -> list[Layer]:
    return [
        Layer(masks.path_name(path), leaf.shape, masks.count(leaf), leaf.size)
        for path, leaf in paths_and_leaves
    ]


def table(
    tree: chex.ArrayTree,
    *,
    params: chex.ArrayTree | None = None,
    flops: chex.ArrayTree | None = None,
) -> str:
    """The layers of a mask as text, with the total in the last line.

    Args:
      tree: a mask; or an optimizer state, of which the mask in force is shown (what all of its
        links keep), and below it the `problems` that they have noticed.
      params: the parameters, or their shapes, for columns of bytes: dense, and sparse, as kept
        values in the leaf's dtype and a bit for each weight (`pack_mask`).
      flops: tree like the parameters, as of `leaf_flops`, for columns of operations: dense, and
        sparse, by the fraction of the leaf's weights that is kept.

    With bytes or operations there is a line for what leaves outside the mask add, and the totals
    are the whole network's, but those of weights are of what can be pruned, as ever.

    Raises:
      TypeError: for leaves of a mask that aren't boolean.
      ValueError: for `params` or `flops` without a leaf of the mask; the message names it.

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
    is_state = bool(in_force.links_masks(tree))
    rows = _rows(in_force.by_path(tree).items()) if is_state else layers(tree)
    costs = [] if params is None else [_bytes(params)]
    costs += [] if flops is None else [_Cost("flops", _named(flops), lambda size: 0)]
    return "\n".join([*_lines(rows, costs), *(problems(tree) if is_state else [])])


class _Cost(NamedTuple):
    """A quantity of each leaf when it is dense, and what a sparse one of a size takes besides."""

    name: str
    dense: dict[str, int]
    besides: Callable[[int], int]

    def of(self, row: Layer) -> tuple[int, int]:
        """Dense and sparse."""
        if row.path not in self.dense:
            raise ValueError(
                f"`{'params' if self.name == 'bytes' else self.name}` must have the structure of "
                f"the parameters, but has no leaf '{row.path}', only {[*self.dense]}"
            )
        dense = self.dense[row.path]
        return dense, -(-dense * row.kept // max(row.size, 1)) + self.besides(row.size)

    def of_others(self, rows: list[Layer]) -> int:
        """Of leaves that stay dense."""
        return sum(self.dense.values()) - sum(self.dense[row.path] for row in rows)


def _bytes(params: chex.ArrayTree) -> _Cost:
    dense = {path: leaf.size * leaf.dtype.itemsize for path, leaf in _named(params).items()}
    return _Cost("bytes", dense, lambda size: -(-size // 8))


def _named(tree: chex.ArrayTree) -> dict[str, Any]:
    paths_and_leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {masks.path_name(path): leaf for path, leaf in paths_and_leaves}


def _lines(rows: list[Layer], costs: list[_Cost]) -> list[str]:
    """The rows as text, in columns."""
    names = [name for cost in costs for name in (cost.name, f"sparse {cost.name}")]
    cells = [("layer", "shape", "kept", "weights", "density", *names)]
    own = [[number for cost in costs for number in cost.of(row)] for row in rows]
    others = [cost.of_others(rows) for cost in costs for _ in range(2)]
    cells += [(*_cells(row), *_grouped(numbers)) for row, numbers in zip(rows, own, strict=True)]
    if costs:
        cells.append(("others", "", "", "", "", *_grouped(others)))
    kept, size = sum(row.kept for row in rows), sum(row.size for row in rows)
    totals = map(sum, zip(others, *own, strict=True))
    cells.append((*_cells(Layer("total", (), kept, size)), *_grouped(totals)))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in cells
    ]


def _cells(row: Layer) -> tuple[str, ...]:
    shape = "x".join(map(str, row.shape))
    return row.path, shape, f"{row.kept:,}", f"{row.size:,}", f"{row.density:.3%}"


def _grouped(numbers: Iterable[int]) -> list[str]:
    return [f"{number:,}" for number in numbers]


class Problem(enum.IntFlag):
    """What a link notes in its state, since nothing can be raised inside `jax.jit`."""

    CHANGED = 1
    BUDGET = 2
    NAN = 4


_TEXTS = {
    Problem.CHANGED: "pruned weights weren't zero when the next update began: put the link last in "
    "the chain, and change parameters by its updates alone",
    Problem.BUDGET: "a schedule gave NaN or a value out of range, and the mask in force was kept: "
    "sparsities lie in [0, 1], n of N:M in 0 to m",
    Problem.NAN: "weights were NaN when a mask was to be chosen, and the mask in force was kept: "
    "find where the training diverged",
}


def problems(opt_state: optax.OptState) -> list[str]:
    """What the `keep_...` links in an optimizer state have noticed since its `init`.

    They look at the second update, and then at each choice of a mask, `keep_mask` at every 100th
    update.

    Args:
      opt_state: of any nesting of transformations. The call waits for the device.

    Returns:
      One line for each kind of problem of each link, with its place; empty if all is well.

    Raises:
      TypeError: for what is no optimizer state.

    >>> import jax.numpy as jnp, optax
    >>> import jaxprune as jp
    >>> params = {"w": jnp.array([1.0, 2.0])}
    >>> keep = jp.keep_mask({"w": jnp.array([True, False])})
    >>> tx = optax.chain(keep, optax.adam(0.1))  # in the wrong order
    >>> state = tx.init(params)
    >>> for _ in range(2):
    ...     updates, state = tx.update({"w": jnp.ones(2)}, state, params)
    ...     params = optax.apply_updates(params, updates)
    >>> print(*jp.problems(state))
    opt_state[0]: pruned weights weren't zero when the next update began: put the link last in the
    chain, and change parameters by its updates alone
    """
    checks.tree("the optimizer state", opt_state)
    return [
        f"opt_state{jax.tree_util.keystr(path[:-1])}: {text}"
        for path, found in optax.tree.get_all_with_path(opt_state, "problems")
        for problem, text in _TEXTS.items()
        if int(found) & problem
    ]
