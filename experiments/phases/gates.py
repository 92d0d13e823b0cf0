"""Channel gates: trained between two trainings of the weights, then cut."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import optax

import jaxprune as jp
from experiments.phases.base import (
    Network,
    Training,
    Tree,
    check_not_negative,
    check_positive,
    partition,
)
from experiments.phases.removal import without_channels


@dataclasses.dataclass(frozen=True)
class TrainGates(Training):
    """Gates behind norms trained by Adam, and cut. The weights stay as they are (DNAL's way).

    So do the statistics of norms: a norm that measures its own would undo gates that shut together.
    A gate is the sigmoid of a score, sharpened from 1 to `sharpest` in a geometric series over the
    phase. The loss has `strength` times the mean of the sigmoids as they are before they are
    sharpened. Adam's steps, all in one direction, would move a score by `travel` from its `start`.
    What isn't open by `open_from` at the end is pruned, but for the most open one of each family;
    how open the others are is multiplied into the norms. How much is pruned is an outcome.
    """

    epochs: int
    batch: int = 128
    travel: float = 8.0
    strength: float = 2.0
    start: float = 3.0
    sharpest: float = 1e4
    open_from: float = 0.9
    name: str = "gates"
    frozen_norms = True

    def __post_init__(self):
        if not 0 < self.open_from < 1:
            raise ValueError(f"open_from must lie between 0 and 1, got {self.open_from}")
        if not self.sharpest > 1:
            raise ValueError(f"sharpest must be above 1, got {self.sharpest}")
        check_positive(self, "travel")
        check_not_negative(self, "strength")

    def in_room(self, network: Network, room) -> "_Gating":
        """The phase with the channels of this network."""
        shapes = jax.eval_shape(network.parameters)
        return _Gating(**vars(self), channels=room.channels(network), shapes=shapes)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Gating(TrainGates):
    """The same for a network whose channels are known."""

    channels: jp.Channels
    shapes: Tree

    def begin(self, network: Network, sparsity: float) -> Tree:
        """Weights, and gates beside them."""
        gates = jp.init_gates(network.parameters(), self.channels, value=self.start)
        return {"weights": network.weights, "gates": gates}

    def links(self, network: Network, sparsity: float, steps: int, room):
        """Adam for the gates, whose steps get as small as what sharp gates can tell apart."""
        first = self.travel * math.log(self.sharpest) / (1 - 1 / self.sharpest) / steps
        rate = optax.exponential_decay(first, steps, 1 / self.sharpest)
        return partition(weights=optax.set_to_zero(), gates=optax.adam(rate))

    def gradients(self, params: Tree, rest: Tree, loss_of, key, progress):
        """(loss, new rest, gradients) of one batch, the weights' being zero."""
        sharpness = optax.exponential_decay(1.0, 1, self.sharpest)(progress)

        def loss(gates):
            found, new = loss_of(self._gated(params["weights"], gates, sharpness), rest)
            opened = jnp.concatenate([jax.nn.sigmoid(s) for s in jax.tree.leaves(gates)])
            return found + self.strength * jnp.mean(opened), (found, new)

        grads, (found, new) = jax.grad(loss, has_aux=True)(params["gates"])
        return found, new, {"weights": optax.tree.zeros_like(params["weights"]), "gates": grads}

    def current(self, params: Tree, mask: Tree, key) -> tuple[Tree, Tree]:
        """What would be left if the gates were cut now."""
        gated = self._gated(params["weights"], params["gates"], self.sharpest)
        least_open = jax.scipy.special.logit(self.open_from) / self.sharpest
        kept = jax.tree.map(lambda s: s >= jnp.minimum(least_open, jnp.max(s)), params["gates"])
        mask = without_channels(mask, jp.channel_mask(self.shapes, self.channels, kept))
        return jp.apply_mask(gated, mask), mask

    def end(self, params: Tree, network: Network, sparsity: float, key, score) -> Network:
        """The network with its gates cut."""
        weights, mask = self.current(params, network.mask, key)
        return network._replace(weights=weights, mask=mask)

    def _gated(self, weights: Tree, gates: Tree, sharpness) -> Tree:
        gated: Tree = jp.apply_gates({"weights": weights}, self.channels, gates, sharpness)
        return gated["weights"]
