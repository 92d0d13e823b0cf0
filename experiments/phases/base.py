"""What phases take, give and share.

A phase takes a `Network` and gives a `Network`. One that trains has `epochs` and a `batch`, and the
runner asks it, in this order, for what is trained (`begin`), the optimizer (`links`), gradients in
every step, the network as it stands (`current`), and the outcome (`end`); `dense.Dense` is the
simplest. One that trains nothing is a `OneShot`. Everything is composed of public links and
functions of jaxprune and optax.
"""

import functools
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

OPTIMIZERS = {
    "sgd": functools.partial(optax.sgd, momentum=0.9),
    "adam": optax.adam,
    "adamw": functools.partial(optax.adamw, b2=0.95),
}


class Network(NamedTuple):
    """Trainable weights, everything else of the model (BatchNorm statistics), and a mask."""

    weights: Tree
    rest: Tree
    mask: Tree

    def masked_weights(self) -> Tree:
        """The weights with exact zeros where the mask prunes."""
        return jp.apply_mask(self.weights, self.mask)

    def parameters(self) -> Tree:
        """All that the model holds, as one tree: running averages leave it beside weights."""
        return {"weights": self.weights, "rest": self.rest}

    def parameters_mask(self) -> Tree:
        """The mask in the form of `parameters`."""
        return {"weights": self.mask, "rest": jax.tree.map(lambda _: None, self.rest)}


class OneShot:
    """A phase that trains nothing."""

    epochs = 0

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


def decayed(
    peak: float, decay: str | tuple[float, ...], steps: int, warmup: float = 0.0
) -> optax.Schedule:
    """The learning rate over a phase: "cosine", "constant", or a tenth at these fractions of it.

    It rises linearly in the first `warmup` of the phase; the rest is for what comes then.
    """
    if warmup:
        first = max(round(warmup * steps), 1)
        after = decayed(peak, decay, steps - first)
        return optax.join_schedules([optax.linear_schedule(0.0, peak, first), after], [first])
    if decay == "cosine":
        return optax.cosine_decay_schedule(peak, steps)
    falls = () if isinstance(decay, str) else decay
    return optax.piecewise_constant_schedule(peak, {round(at * steps): 0.1 for at in falls})


def rising(sparsity: float, dense_until: float, reached_at: float, steps: int) -> optax.Schedule:
    """The sparsity over a phase: 0, then rising to its end between these fractions of it."""
    return jp.cubic_sparsity(sparsity, round(dense_until * steps), round(reached_at * steps))


def descent(
    optimizer: str, learning_rate: optax.Schedule, weight_decay: float
) -> optax.GradientTransformation:
    """One of `OPTIMIZERS`; weight decay is in the gradient, but of "adamw" beside it."""
    make = OPTIMIZERS[optimizer]
    if optimizer == "adamw":
        return make(learning_rate, weight_decay=weight_decay)
    return optax.chain(optax.add_decayed_weights(weight_decay), make(learning_rate))


def clipped(norm: float | None) -> optax.GradientTransformation:
    """Gradients of at most this global norm, or as they are."""
    return optax.identity() if norm is None else optax.clip_by_global_norm(norm)


def partition(**links: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Each link for the subtree of its name."""
    return optax.partition({**links}, {name: name for name in links})


def check_choice(field: str, value: Any, allowed: Sequence[str]) -> None:
    """Raises a ValueError unless the value is allowed."""
    if value not in allowed:
        raise ValueError(f"{field} must be one of {[*allowed]}, got {value!r}")
