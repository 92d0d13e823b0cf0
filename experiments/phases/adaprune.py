"""AdaPrune: one-shot N:M pruning that the kept weights make up for; BatchNorm estimated anew."""

import dataclasses
import time

import jax
import jax.numpy as jnp

import jaxprune as jp
from experiments.phases.base import Network, OneShot, Tree
from experiments.phases.nm import Pattern
from experiments.usage import UsageError

_REMEDY = (
    "Of layers in a loop nothing is seen: take the model whose name doesn't end in _scanned; or "
    "choose other leaves with where"
)


@dataclasses.dataclass(frozen=True)
class Reconstruct(Pattern, OneShot):
    """AdaPrune: one-shot pruning to N:M that the kept weights make up for, without labels."""

    records: int = 1_000
    batch: int = 250
    method: str = "closed_form"
    sequential: bool = True
    damping: float = 0.01
    name: str = "reconstruct"
    whole_leaves = True

    def apply(self, network: Network, sparsity: float, room) -> Network:
        """The network with its mask and new weights and biases."""
        start = time.perf_counter()
        mask = self.mask(network)
        try:
            weights = self._reconstructed(network, mask, room)
        except ValueError as error:
            raise UsageError(f"{self.name}: {error}. {_REMEDY}") from error
        jax.block_until_ready(weights)
        print(f"{self.name}: {time.perf_counter() - start:.1f} s with compilation", flush=True)
        return network._replace(weights=weights, mask=mask)

    def _reconstructed(self, network, mask, room):
        return jp.reconstruct(
            lambda weights, inputs: room.run(weights, network.rest, inputs, train=False)[0],
            network.weights,
            _without_dense_leaves(mask),
            room.calibration(self.records, self.batch),
            sequential=self.sequential,
            damping=self.damping,
            method=self.method,
        )


def _without_dense_leaves(mask: Tree) -> Tree:
    return jax.tree.map(lambda keep: None if bool(jnp.all(keep)) else keep, mask)


@dataclasses.dataclass(frozen=True)
class Recalibrate(OneShot):
    """Estimates BatchNorm's averages anew, for the weights as they are now. Trains nothing."""

    records: int = 1_000
    batch: int = 250
    passes: int = 12
    name: str = "recalibrate"

    def apply(self, network: Network, sparsity: float, room) -> Network:
        """The network with another rest."""
        see = jax.jit(lambda *args: room.run(*args, train=True)[1])
        weights, rest = network.masked_weights(), network.rest
        for _ in range(self.passes):
            for inputs in room.calibration(self.records, self.batch):
                rest = see(weights, rest, inputs)
        return network._replace(rest=rest)
