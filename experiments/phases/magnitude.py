"""Pruning of the smallest weights of the whole network: at one stroke, or while it trains."""

import dataclasses

import optax

import jaxprune as jp
from experiments.phases.base import KERNELS, Network, OneShot, kept, magnitudes, nonzero, rising
from experiments.phases.dense import Dense


@dataclasses.dataclass(frozen=True)
class PruneMagnitudes(OneShot):
    """The largest magnitudes of the whole network stay. Trains nothing."""

    name: str = "magnitude"

    def apply(self, network: Network, sparsity: float, room) -> Network:
        """The network with the mask of its largest weights."""
        return _pruned(network, sparsity)


@dataclasses.dataclass(frozen=True)
class PruneGradually(Dense):
    """Training while the smallest weights go, more and more of them (Zhu and Gupta, 2017).

    The mask is chosen anew every so many steps; what it prunes is zero and stays so. Fractions are
    of the phase's steps.
    """

    dense_until: float = 0.16
    reach_sparsity_at: float = 0.60
    every: int = 10
    name: str = "gradual"

    def links(self, network, sparsity, steps, room):
        """As for dense training, with the largest magnitudes kept."""
        schedule = rising(sparsity, self.dense_until, self.reach_sparsity_at, steps)
        keep = jp.keep_sparse(schedule, every=self.every, where=KERNELS)
        return optax.chain(super().links(network, sparsity, steps, room), keep)

    def current(self, weights, mask, key):
        """The weights, and which of them aren't zero."""
        return weights, nonzero(weights, mask)

    def end(self, weights, network, sparsity, key, score):
        """The trained network with its mask."""
        return _pruned(network._replace(weights=weights), sparsity)


def _pruned(network: Network, sparsity: float) -> Network:
    largest = magnitudes(network.weights, network.mask)
    return network._replace(mask=jp.top_k_mask(largest, kept(largest, sparsity)))
