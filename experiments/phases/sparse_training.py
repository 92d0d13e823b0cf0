"""Sparse from the start: a mask before any training, and masks that move while it goes on."""

import dataclasses

import jax
import optax

import jaxprune as jp
from experiments.phases.base import (
    KERNELS,
    Network,
    OneShot,
    check_choice,
    check_counts,
    check_fractions,
    check_not_negative,
    check_positive,
)
from experiments.phases.dense import FineTune


@dataclasses.dataclass(frozen=True)
class PruneAtStart(OneShot):
    """The mask of a network that hasn't been trained. Trains nothing.

    `by` is "snip" or "grasp", of the gradients of some training records, or "random", which keeps
    in each leaf what its `densities` say: "uniform", or "erk", which depend on its shape. GraSP's
    logits are divided by `temperature`: without it confident mistakes of random weights decide.
    """

    by: str = "snip"
    densities: str = "erk"
    records: int = 1000
    temperature: float = 200.0
    seed: int = 0
    name: str = "start"

    def __post_init__(self):
        check_choice("by", self.by, ("snip", "grasp", "random"))
        check_choice("densities", self.densities, ("uniform", "erk"))
        check_counts(self, "records")
        check_positive(self, "temperature")
        check_not_negative(self, "seed")

    def apply(self, network: Network, sparsity: float, room) -> Network:
        """The network with the mask, and zeros where it prunes."""
        mask = self._random(network, sparsity) if self.by == "random" else None
        if mask is None:
            mask = jax.jit(lambda network: self._by_gradients(network, sparsity, room))(network)
        return network._replace(weights=jp.apply_mask(network.weights, mask), mask=mask)

    def _random(self, network, sparsity):
        key, weights = jax.random.key(self.seed), network.weights
        if self.densities == "uniform":
            return jp.random_mask(key, weights, sparsity, where=KERNELS)
        return jp.random_mask(key, weights, jp.erk_sparsities(weights, sparsity, where=KERNELS))

    def _by_gradients(self, network, sparsity, room):
        records = room.train.first(min(self.records, room.train.count))
        batch = room.task.batch(records, jax.random.key(self.seed))
        weights, cooled = network.weights, self.temperature if self.by == "grasp" else 1.0

        def loss(weights):
            run = lambda inputs, train: room.run(weights, network.rest, inputs, train)[0] / cooled
            return room.task.loss(run, batch)

        if self.by == "snip":
            how = {"score": "saliency", "grad": jax.grad(loss)(weights)}
        else:
            how = {"score": jp.grasp_scores(loss, weights)}
        return jp.prune_to(weights, sparsity, where=KERNELS, **how)[1]


@dataclasses.dataclass(frozen=True)
class Regrow(FineTune):
    """Training of the kept weights while some of them make room for others (RigL and SET).

    Every so many steps, up to a fraction of the phase, `fraction` of each leaf's weights move at
    first, falling to 0 by a cosine. What grows is chosen `by` "gradient" or "random".
    """

    by: str = "gradient"
    fraction: float = 0.3
    every: int = 100
    until: float = 0.75
    name: str = "regrow"

    def __post_init__(self):
        super().__post_init__()
        check_choice("by", self.by, ("gradient", "random"))
        check_counts(self, "every")
        check_fractions(self, "fraction", "until")

    def links(self, network, sparsity, steps, room):
        """The optimizer within the link that moves its mask."""
        inner = optax.chain(self.clipping(), self.descent(steps))
        fraction = optax.cosine_decay_schedule(self.fraction, max(round(self.until * steps), 1))
        return jp.regrow(
            inner, network.mask, by=self.by, every=self.every, fraction=fraction,
            key=jax.random.key(0),
        )  # fmt: skip

    def in_force(self, network, params, opt_state):
        """The network with the mask as it has moved: weights that grew are zero at first."""
        return network._replace(mask=jp.current_mask(params, opt_state))
