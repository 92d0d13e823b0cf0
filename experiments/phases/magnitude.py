"""One-shot pruning of the smallest weights."""

import dataclasses

import jaxprune as jp
from experiments.phases.base import Network, OneShot, kept, magnitudes


@dataclasses.dataclass(frozen=True)
class PruneMagnitudes(OneShot):
    """The largest magnitudes of the whole network stay. Trains nothing."""

    name: str = "magnitude"

    def apply(self, network: Network, sparsity: float, room) -> Network:
        """The network with the mask of its largest weights."""
        largest = magnitudes(network.weights, network.mask)
        return network._replace(mask=jp.top_k_mask(largest, kept(largest, sparsity)))
