"""What a mask keeps, leaf by leaf; and what went wrong with it."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxprune.trees import checks, in_force, masks, wide


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
    return rows(jax.tree_util.tree_leaves_with_path(mask))


def rows(paths_and_leaves: Iterable[tuple[Any, jax.Array]]) -> list[Layer]:
    """The layers of a mask that is given by its leaves."""
    paths_and_leaves = list(paths_and_leaves)
    leaves = [leaf for _, leaf in paths_and_leaves]
    counts = np.asarray(_counts(leaves)).tolist() if leaves else []
    return [
        Layer(masks.path_name(path), leaf.shape, kept, leaf.size)
        for (path, leaf), kept in zip(paths_and_leaves, counts, strict=True)
    ]


@wide.counts_in_64_bits
@jax.jit
def _counts(leaves: list[jax.Array]) -> jax.Array:
    """How many each of them keeps: in one program, since every shape would take one of its own."""
    return wide.exact_sums([[leaf] for leaf in leaves])[:, 0]


class Problem(enum.IntFlag):
    """What a link notes in its state, since nothing can be raised inside `jax.jit`."""

    CHANGED = 1
    BUDGET = 2
    NAN = 4
    BEYOND = 8


def noted(problem: Problem, found: jax.Array) -> jax.Array:
    """The bit of a problem if it is found, an int32 scalar."""
    return problem * found.astype(jnp.int32)


_TEXTS = {
    Problem.CHANGED: "pruned weights weren't zero when the next update began: put the link last in "
    "the chain, and change parameters by its updates alone",
    Problem.BUDGET: "a schedule gave NaN or a value out of range, and the mask or budget in force "
    "was kept: sparsities lie in [0, 1], fractions too, n of N:M in 0 to m, thresholds at 0 or "
    "above",
    Problem.NAN: "weights, scores or probabilities were NaN, and the mask in force was kept: find "
    "where the training diverged",
    Problem.BEYOND: "probabilities weren't within [0, 1] and the budget when the next update "
    "began: put the link last in the chain, and change parameters by its updates alone",
}


def problems(opt_state: optax.OptState) -> list[str]:
    """What the links in an optimizer state have noticed since its `init`.

    Those that keep to a mask look at the second update, and then at each choice of a mask,
    `keep_mask` at every 100th update; `project_probabilities` looks at every update.

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
        f"opt_state{jax.tree_util.keystr(path)}: {text}"
        for path, found in in_force.fields(opt_state, "problems").items()
        for problem, text in _TEXTS.items()
        if int(found) & problem
    ]
