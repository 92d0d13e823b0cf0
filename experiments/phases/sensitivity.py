"""Pruning of whole channels by their part in what the next layers see (provable filter pruning)."""

import dataclasses

import jax

import jaxprune as jp
from experiments.phases.base import (
    Network,
    OneShot,
    Tree,
    check_choice,
    check_counts,
    check_not_negative,
)
from experiments.phases.removal import without_channels
from experiments.usage import UsageError


@dataclasses.dataclass(frozen=True)
class PruneBySensitivity(OneShot):
    """The channels with the largest part in what the next layers see stay. Trains nothing.

    Sensitivities are measured on the first training records, `batch` at a time. The network then
    costs at most (1 - sparsity) of what it did, `of` "flops" or "parameters". With `draw` channels
    are drawn by their sensitivities and reweighted, as the paper's bound has it; without, the most
    sensitive ones stay as they are.
    """

    records: int = 64
    batch: int = 16
    of: str = "flops"
    draw: bool = False
    seed: int = 0
    name: str = "sensitivity"
    whole_leaves = True

    def __post_init__(self):
        check_choice("of", self.of, ("flops", "parameters"))
        check_counts(self, "records", "batch")
        check_not_negative(self, "seed")

    def apply(self, network: Network, sparsity: float, room) -> Network:
        """The network with a mask over all that goes with the channels, perhaps reweighted."""
        channels, params = room.channels(network), network.parameters()
        whole = (None,) * len(channels.groups)
        budget = (1 - sparsity) * float(jp.channel_cost(channels, whole, of=self.of))
        key = jax.random.key(self.seed) if self.draw else None
        batches = room.calibration(self.records, self.batch)
        try:
            found: Tree = jp.prune_channels(
                room.outputs, params, channels, budget, batches, of=self.of, key=key
            )
        except ValueError as error:
            raise UsageError(f"{self.name}: {error}") from error
        print(f"{self.name}: epsilon {found.epsilon:.3g}", flush=True)
        mask = without_channels(network.mask, found.mask)
        return network._replace(weights=found.params["weights"], mask=mask)
