"""Pruning of whole channels to a budget, and their removal from the network."""

import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxprune as jp
from experiments.phases.base import (
    Network,
    OneShot,
    Tree,
    check_choice,
    check_counts,
    check_positive,
)
from experiments.usage import UsageError, check_pattern

# Rounding decides between classes that are all but equal: one record in a thousand.
_TIES = 1e-3


@dataclasses.dataclass(frozen=True)
class PruneChannels(OneShot):
    """The channels that hold most for what they cost stay. Trains nothing.

    What a channel holds is its part of the squared norm of its layer's channels; what it costs is
    what its removal alone would save. At least one of each layer stays, and as many as together
    cost at most `budget`, or (1 - sparsity) of what the network costs: in `of="flops"` for one
    record (two for each multiplication and addition) or `of="parameters"`. What stays of a layer is
    a `multiple_of` so many channels, which hardware works on at once. Groups in whose names
    `where` isn't found stay whole: "mlp" leaves attention and the width of a decoder alone, whose
    module takes them for granted.
    """

    of: str = "flops"
    budget: float | None = None
    where: str = ""
    multiple_of: int = 1
    name: str = "prune-channels"
    whole_leaves = True

    def __post_init__(self):
        check_choice("of", self.of, ("flops", "parameters"))
        check_counts(self, "multiple_of")
        check_positive(self, "budget")
        check_pattern("where", self.where)

    def check(self, network, sparsity, room):
        """Raises an error if the budget is below what one channel of each layer costs."""
        channels = room.channels(network)
        with jax.ensure_compile_time_eval():
            norms = tuple(jnp.ones(family.size) for family in channels.groups)
            self._kept(norms, channels, sparsity)

    def apply(self, network: Network, sparsity: float, room) -> Network:
        """The network with a mask over all that goes with the channels."""
        params, channels = network.parameters(), room.channels(network)
        norms = jp.channel_norms(jp.apply_mask(params, network.parameters_mask()), channels)
        mask = jp.channel_mask(params, channels, self._kept(norms, channels, sparsity))
        return network._replace(mask=without_channels(network.mask, mask))

    def _kept(self, norms: Tree, channels: jp.Channels, sparsity: float) -> list:
        cost = functools.partial(jp.channel_cost, channels, of=self.of)
        budget = self.budget
        if budget is None:
            budget = (1 - sparsity) * float(cost(jax.tree.map(jnp.ones_like, norms)))
        scores: Tree = tuple(
            norm**2 / jnp.sum(norm**2) / getattr(family, self.of)
            if re.search(self.where, family.name)
            else None
            for norm, family in zip(norms, channels.groups, strict=True)
        )
        try:
            kept = jp.budget_mask(scores, budget, cost, least=1, multiple_of=self.multiple_of)
        except ValueError as error:
            raise UsageError(f"{self.name}: {error}") from error
        return _filled(kept, scores, budget, cost, self.multiple_of)


def _filled(chosen: Tree, scores: Tree, budget: float, cost: Callable, at_once: int):
    """Also keeps what comes later and still fits, until of no layer anything does."""
    kept: list[Any] = [None if own is None else np.array(own) for own in chosen]
    left = [
        np.array([-np.inf]) if own is None else np.where(own, -np.inf, score)
        for own, score in zip(kept, scores, strict=True)
    ]
    while (best := max(own.max() for own in left)) > -np.inf:
        layer = next(i for i, own in enumerate(left) if own.max() == best)
        ranked = np.argsort(-left[layer], kind="stable")[:at_once]
        channels = ranked[left[layer][ranked] > -np.inf]
        kept[layer][channels] = True
        left[layer][channels] = -np.inf
        if cost(kept) > budget:
            kept[layer][channels] = False
            left[layer][:] = -np.inf
    return kept


def without_channels(mask: Tree, of_channels: Tree) -> Tree:
    """The mask of the weights, arrays for all of them, without the channels that go."""
    both = lambda stays, keep: stays if keep is None else stays & keep
    return jax.tree.map(both, of_channels["weights"], mask)


@dataclasses.dataclass(frozen=True)
class Shrink(OneShot):
    """The channels that the mask prunes leave: what follows trains a smaller network.

    Raises:
        RuntimeError: it doesn't do on the test records what the masked network did, ties aside.
    """

    partial: str = "refuse"
    name: str = "shrink"
    whole_leaves = True

    def __post_init__(self):
        check_choice("partial", self.partial, ("refuse", "complete", "keep"))

    def apply(self, network: Network, sparsity: float, room) -> Network:
        """The network with smaller weights, rest and mask."""
        params, mask = network.parameters(), network.parameters_mask()
        small = jp.shrink(room.outputs, params, mask, room.example(), partial=self.partial)
        pruned: Tree = small.mask
        left: Tree = small.params
        shrunk = Network(**left, mask=small.like(pruned)["weights"])
        with jax.default_matmul_precision("highest"):  # accelerators round products to fewer bits
            masked = jp.apply_mask(network.weights, pruned["weights"])
            before = room.test_scores(masked, network.rest)
            after = room.test_scores(shrunk.weights, shrunk.rest)
        different = int(np.sum(~np.isclose(before, after, rtol=1e-4)))
        sizes = (sum(leaf.size for leaf in jax.tree.leaves(n.weights)) for n in (network, shrunk))
        print(
            f"{self.name}: {next(sizes):,} parameters became {next(sizes):,}; outputs differ by "
            f"{small.difference:.0e} of the largest, {different} of {len(before):,} test records "
            "are scored differently",
            flush=True,
        )
        if different > _TIES * len(before):
            raise RuntimeError(
                f"{self.name}: {different} test records are scored differently by the model at "
                "these sizes: it may have a norm over fewer channels, or heads of another size; "
                "choose what leaves with where of prune-channels"
            )
        return shrunk
