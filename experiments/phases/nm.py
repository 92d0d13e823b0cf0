"""N:M masks: one-shot, and in training, where they follow the weights."""

import dataclasses

import jax
import optax

import jaxprune as jp
from experiments.phases.base import (
    KERNELS,
    Network,
    OneShot,
    Tree,
    check_counts,
    check_not_negative,
    magnitudes,
    nonzero,
)
from experiments.phases.dense import Dense


@dataclasses.dataclass(frozen=True)
class Pattern:
    """What N:M phases share: `n` kept of `m` inputs, or of outputs too if `transposable`.

    `where` is searched for in the path of a leaf; by the usual choice the first and the last layer
    stay dense.
    """

    n: int = 2
    m: int = 4
    transposable: bool = False
    where: str = KERNELS

    def mask(self, network: Network) -> Tree:
        """The network's mask, with the pattern of the largest magnitudes in the leaves chosen."""
        chosen = jp.prunable(network.weights, self.where)
        of_tree = jp.transposable_nm_mask if self.transposable else jp.nm_mask
        found = of_tree(magnitudes(network.weights, chosen), self.n, self.m)
        return jax.tree.map(
            lambda _, keep, pattern: keep if pattern is None else keep & pattern,
            network.weights,
            network.mask,
            found,
        )


@dataclasses.dataclass(frozen=True)
class PrunePattern(Pattern, OneShot):
    """One-shot pruning to N:M. Trains nothing."""

    name: str = "prune"

    def apply(self, network: Network, sparsity: float, room) -> Network:
        """The network with the mask of its largest weights."""
        return network._replace(mask=self.mask(network))


@dataclasses.dataclass(frozen=True)
class TrainPattern(Pattern, Dense):
    """Training with an N:M mask that follows the weights, renewed every so many steps.

    With `straight_through` pruned weights live on behind the mask, and `pruned_decay` is SR-STE's;
    without they start from zero again.
    """

    every: int = 1
    straight_through: bool = True
    pruned_decay: float = 0.0
    name: str = "train"

    def __post_init__(self):
        super().__post_init__()
        check_counts(self, "every")
        check_not_negative(self, "pruned_decay")

    def links(self, network, sparsity, steps, room):
        """As for dense training, projected onto the pattern."""
        pattern = jp.NM(self.n, self.m, transposable=self.transposable)
        projection = jp.keep_sparse(pattern, every=self.every, where=self.where)
        inner = super().links(network, sparsity, steps, room)
        if self.straight_through:
            return jp.straight_through(inner, projection, decay=self.pruned_decay)
        return optax.chain(inner, projection)

    def current(self, weights, mask, key):
        """The weights, and which of them aren't zero."""
        return weights, nonzero(weights, mask)

    def end(self, weights, network, sparsity, key, score):
        """The trained network with its mask."""
        network = network._replace(weights=weights)
        return network._replace(mask=self.mask(network))
