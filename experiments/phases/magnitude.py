"""Pruning of the smallest weights of the whole network: at one stroke, or while it trains."""

import dataclasses

import optax

import jaxprune as jp
from experiments.phases.base import KERNELS, Network, OneShot, nonzero, rising
from experiments.phases.dense import Dense


@dataclasses.dataclass(frozen=True)
class PruneMagnitudes(OneShot):
    """The largest magnitudes of the whole network stay. Trains nothing."""

    name: str = "magnitude"

    def apply(self, network: Network, sparsity: float, room) -> Network:
        """The network with the mask of its largest weights."""
        return network._replace(mask=jp.prune_to(network.weights, sparsity, where=KERNELS)[1])


@dataclasses.dataclass(frozen=True)
class PruneGradually(Dense):
    """Training while the smallest weights go, more and more of them (Zhu and Gupta, 2017).

    The mask is chosen anew every so many steps, by the `score` and `scope` of `keep_sparse`; what
    it prunes is zero and stays so, or with `straight_through` lives on behind the mask. Fractions
    are of the phase's steps.
    """

    dense_until: float = 0.16
    reach_sparsity_at: float = 0.60
    every: int = 10
    score: str = "magnitude"
    scope: str = "global"
    straight_through: bool = False
    name: str = "gradual"

    def links(self, network, sparsity, steps, room):
        """As for dense training, with the largest scores kept."""
        schedule = rising(sparsity, self.dense_until, self.reach_sparsity_at, steps)
        keep = jp.keep_sparse(
            schedule, score=self.score, scope=self.scope, every=self.every, where=KERNELS
        )
        inner = super().links(network, sparsity, steps, room)
        if self.straight_through:
            return jp.straight_through(inner, keep)
        return optax.chain(inner, keep)

    def current(self, weights, mask, key):
        """The weights, and which of them aren't zero."""
        return weights, nonzero(weights, mask)

    def end(self, weights, network, sparsity, key, score):
        """The trained network with the mask of what isn't zero."""
        return network._replace(weights=weights, mask=nonzero(weights, network.mask))
