"""What phases take, give and share.

A phase takes a `Network` and gives a `Network`. A `Training` has `epochs` and a `batch`, and the
runner asks it, in this order, for the phase `in_room`, what is trained (`begin`), the optimizer
(`links`), gradients in every step, the network as it stands (`current`), and the outcome (`end`);
`dense.Dense` is the simplest. One that trains nothing is a `OneShot`. Everything is composed of
public links and functions of jaxprune and optax.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax

import jaxprune as jp

Tree: TypeAlias = Any
# Mean loss of one batch: (weights, rest) -> (loss, rest).
BatchLoss = Callable[[Tree, Tree], tuple[jax.Array, Tree]]

# Which leaves can be pruned, by their paths: embeddings, biases and norms stay.
KERNELS = "kernel"


class Network(NamedTuple):
    """Trainable weights, everything else of the model (BatchNorm statistics), and a mask.

    `grids` are those of quantized weights, a tree like the weights, or None where there are none.
    What is trained next begins with the weights before they were rounded.
    """

    weights: Tree
    rest: Tree
    mask: Tree
    grids: Tree = None

    def masked_weights(self) -> Tree:
        """The weights with exact zeros where the mask prunes, and on their grids."""
        if self.grids is None:
            return jp.apply_mask(self.weights, self.mask)
        return jp.quantize_to(self.weights, self.mask, self.grids)[0]

    def parameters(self) -> Tree:
        """All that the model holds, as one tree: running averages leave it beside weights."""
        return {"weights": self.weights, "rest": self.rest}

    def parameters_mask(self) -> Tree:
        """The mask in the form of `parameters`."""
        return {"weights": self.mask, "rest": jax.tree.map(lambda _: None, self.rest)}


class Training:
    """A phase that trains; with `frozen_norms` the network as it is evaluated."""

    frozen_norms = False

    @property
    def needs_heldout(self) -> bool:
        """Whether it chooses by held-out records."""
        return False

    def in_room(self, network: Network, room) -> Any:
        """The phase as it trains this network: most need to know nothing of it."""
        return self

    def in_force(self, network: Network, params: Tree, opt_state: optax.OptState) -> Network:
        """The network with the mask and the grids that links keep to now; most keep its own."""
        return network


class OneShot:
    """A phase that trains nothing.

    One with `whole_leaves` reads leaves on the host, and gets them whole on every device. One that
    `returns_to` an earlier phase, by its number, gets the outcome of that one under the last mask.
    One with a `batch` looks at so many `records`, a batch at a time.
    """

    epochs = 0
    whole_leaves = False

    @property
    def returns_to(self) -> int | None:
        """The earlier phase, if it goes back to one."""
        return None

    def mask(self, network: Network) -> Tree:
        """The mask it works with."""
        return network.mask

    def check(self, network: Network, sparsity: float, room) -> None:
        """Raises an error for what can't be had. Traced before a run, which says it then."""
        self.mask(network)

    def apply(self, network: Network, sparsity: float, room) -> Network:
        """The network with another mask, other weights or another rest."""
        raise NotImplementedError


def kept(tree: Tree, sparsity: float) -> int:
    """How many entries stay at this sparsity."""
    size = sum(leaf.size for leaf in jax.tree.leaves(tree))
    return size - round(sparsity * size)


def magnitudes(weights: Tree, mask: Tree) -> Tree:
    """Absolute values where there is a mask, `None` elsewhere."""
    return jax.tree.map(
        lambda weight, keep: None if keep is None else jnp.abs(weight), weights, mask
    )


def nonzero(weights: Tree, mask: Tree) -> Tree:
    """Which weights aren't zero, where there is a mask."""
    return jax.tree.map(lambda weight, keep: None if keep is None else weight != 0, weights, mask)


def rising(sparsity: float, dense_until: float, reached_at: float, steps: int) -> optax.Schedule:
    """The sparsity over a phase: 0, then rising to its end between these fractions of it."""
    return jp.cubic_sparsity(sparsity, round(dense_until * steps), round(reached_at * steps))


def partition(**links: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Each link for the subtree of its name."""
    return optax.partition({**links}, {name: name for name in links})


def check_choice(field: str, value: Any, allowed: Sequence[Any]) -> None:
    """Raises a ValueError unless the value is allowed."""
    if value not in allowed:
        raise ValueError(f"{field} must be one of {[*allowed]}, got {value!r}")


def check_counts(phase: Any, *fields: str) -> None:
    """Raises a ValueError unless these fields are at least 1."""
    _check(phase, fields, "at least 1", lambda value: value >= 1)


def check_not_negative(phase: Any, *fields: str) -> None:
    """Raises a ValueError unless these fields are finite and not negative."""
    _check(phase, fields, "finite and not negative", lambda value: 0 <= value < math.inf)


def check_positive(phase: Any, *fields: str) -> None:
    """Raises a ValueError unless these fields are finite and positive, or None."""
    holds = lambda value: value is None or 0 < value < math.inf
    _check(phase, fields, "finite and positive", holds)


def check_fractions(phase: Any, *fields: str) -> None:
    """Raises a ValueError unless these fields lie in [0, 1]."""
    _check(phase, fields, "a fraction in [0, 1]", lambda value: 0 <= value <= 1)


def check_fractions_above_0(phase: Any, *fields: str) -> None:
    """Raises a ValueError unless these fields lie in (0, 1]."""
    _check(phase, fields, "a fraction in (0, 1]", lambda value: 0 < value <= 1)


def _check(phase, fields, allowed, holds):
    for field in fields:
        if not holds(value := getattr(phase, field)):
            raise ValueError(f"{field} must be {allowed}, got {value}")
