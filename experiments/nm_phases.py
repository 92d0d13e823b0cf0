"""The parts of experiments with N:M masks: one-shot pruning, AdaPrune, training."""

import dataclasses
import time

import jax
import jax.numpy as jnp
import optax

import jaxprune as jp
from experiments.phases import Dense, Network, Tree


@dataclasses.dataclass(frozen=True)
class Pattern:
    """What N:M phases share: `n` kept of `m` inputs, or of outputs too if `transposable`.

    `where` is searched for in the path of a leaf; by the usual choice the first and the last layer
    stay dense.
    """

    n: int = 2
    m: int = 4
    transposable: bool = False
    where: str = "kernel"

    def mask(self, network: Network) -> Tree:
        """The network's mask, with the pattern of the largest magnitudes in the leaves chosen."""
        chosen = jp.prunable(network.weights, self.where)
        magnitudes = jax.tree.map(
            lambda weight, keep: None if keep is None else jnp.abs(weight), network.weights, chosen
        )
        of_tree = jp.transposable_nm_mask if self.transposable else jp.nm_mask
        found = of_tree(magnitudes, self.n, self.m)
        return jax.tree.map(
            lambda _, keep, pattern: keep if pattern is None else keep & pattern,
            network.weights,
            network.mask,
            found,
        )


@dataclasses.dataclass(frozen=True)
class PrunePattern(Pattern):
    """One-shot pruning to N:M. Trains nothing."""

    name: str = "prune"
    epochs: int = 0

    def end(self, network: Network, density: float, room) -> Network:
        """The network with the mask of its largest weights."""
        return network._replace(mask=self.mask(network))


@dataclasses.dataclass(frozen=True)
class Reconstruct(Pattern):
    """AdaPrune: one-shot pruning to N:M that the kept weights make up for, without labels."""

    records: int = 1_000
    batch: int = 250
    method: str = "closed_form"
    sequential: bool = True
    damping: float = 0.01
    name: str = "reconstruct"
    epochs: int = 0

    def end(self, network: Network, density: float, room) -> Network:
        """The network with its mask and new weights and biases."""
        start = time.perf_counter()
        mask = self.mask(network)
        weights = jp.reconstruct(
            lambda weights, images: room.run(weights, network.rest, images, train=False),
            network.weights,
            _without_dense_leaves(mask),
            room.calibration(self.records, self.batch),
            sequential=self.sequential,
            damping=self.damping,
            method=self.method,
        )
        jax.block_until_ready(weights)
        print(f"{self.name}: {time.perf_counter() - start:.1f} s with compilation", flush=True)
        return network._replace(weights=weights, mask=mask)


def _without_dense_leaves(mask: Tree) -> Tree:
    return jax.tree.map(lambda keep: None if bool(jnp.all(keep)) else keep, mask)


@dataclasses.dataclass(frozen=True)
class Recalibrate:
    """Estimates BatchNorm's averages anew, for the weights as they are now. Trains nothing."""

    records: int = 1_000
    batch: int = 250
    passes: int = 12
    name: str = "recalibrate"
    epochs: int = 0

    def end(self, network: Network, density: float, room) -> Network:
        """The network with another rest."""
        see = jax.jit(lambda *args: room.run(*args, train=True)[1])
        weights, rest = network.masked_weights(), network.rest
        for _ in range(self.passes):
            for images in room.calibration(self.records, self.batch):
                rest = see(weights, rest, images)
        return network._replace(rest=rest)


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

    def links(self, network, density, steps):
        """As for dense training, projected onto the pattern."""
        link = jp.keep_transposable_nm if self.transposable else jp.keep_nm
        projection = link(self.n, self.m, every=self.every, where=self.where)
        inner = super().links(network, density, steps)
        if self.straight_through:
            return jp.straight_through(inner, projection, decay=self.pruned_decay)
        return optax.chain(inner, projection)

    def current(self, weights, mask, key):
        """The weights, and which of them aren't zero."""
        return weights, jax.tree.map(
            lambda w, keep: keep if keep is None else w != 0, weights, mask
        )

    def end(self, weights, network, density, key, accuracy):
        """The trained network with its mask."""
        network = network._replace(weights=weights)
        return network._replace(mask=self.mask(network))
