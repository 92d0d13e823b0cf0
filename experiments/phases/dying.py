"""Channels that die by themselves: the control for what claims to prune channels."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp

import jaxprune as jp
from experiments.phases.base import Network, OneShot, Tree, check_not_negative
from experiments.phases.removal import without_channels
from experiments.usage import UsageError


@dataclasses.dataclass(frozen=True)
class RemoveDying(OneShot):
    """Channels that training has all but shut by itself are pruned. Trains nothing.

    These are groups whose scales, of all norms that they go through, have together a norm `below`
    so much. At least one of each family stays. It is what claims about pruned channels should be
    compared with: Adam with weight decay as L2, and nothing else.
    """

    below: float = 1e-3
    name: str = "dying"
    whole_leaves = True

    def __post_init__(self):
        check_not_negative(self, "below")

    def check(self, network, sparsity, room):
        """Raises an error if no channel goes through a norm."""
        jp.init_gates(network.parameters(), room.channels(network))

    def apply(self, network: Network, sparsity: float, room) -> Network:
        """The network with a mask over all that goes with the channels."""
        channels, params = room.channels(network), network.parameters()
        norms = _norms_of_scales(params, channels)
        kept = jax.tree.map(lambda norm: norm >= jnp.minimum(self.below, jnp.max(norm)), norms)
        gone = sum(int(jnp.sum(~own)) for own in jax.tree.leaves(kept))
        groups = sum(family.size for family in channels.groups)
        print(f"{self.name}: {gone:,} of {groups:,} groups of channels died", flush=True)
        mask = jp.channel_mask(params, channels, kept)
        return network._replace(mask=without_channels(network.mask, mask))


def _norms_of_scales(params: Tree, channels: jp.Channels) -> Tree:
    """Of each family the norms of its channels' scales, or None if it goes through no norm."""
    try:
        through = [gates is not None for gates in jp.init_gates(params, channels)]
    except ValueError as error:
        raise UsageError(f"dying: {error}") from error
    families = tuple(itertools.compress(channels.groups, through))
    scale = lambda path, leaf: leaf if "scale" in jax.tree_util.keystr(path) else None
    scales = jax.tree_util.tree_map_with_path(scale, params)
    found = iter(jp.channel_norms(scales, channels._replace(groups=families)))
    return tuple(next(found) if own else None for own in through)
