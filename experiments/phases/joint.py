"""Pruning and quantization: together under one budget in bytes, and quantized training."""

import dataclasses
import functools

import optax

import jaxprune as jp
from experiments.phases.base import (
    KERNELS,
    Network,
    Tree,
    check_choice,
    check_counts,
    check_not_negative,
    check_positive,
)
from experiments.phases.dense import Dense, FineTune

_WIDTHS = range(1, 9)  # in bits


@dataclasses.dataclass(frozen=True)
class Compress(Dense):
    """Training drawn by ADMM towards the nearest network of `budget` bytes, pruned and quantized.

    The budget is of kept weights alone: their bits, and `place_bits` for where each one is. In
    `projections` steps of the phase at most, evenly spaced, the nearest network is found anew. The
    pull grows geometrically from `strength` to `final_strength`.
    """

    budget: int = 5_000
    strength: float = 1e-3
    final_strength: float = 1e-1
    projections: int = 20
    most_bits: int = 8
    place_bits: int = 0
    name: str = "compress"

    def __post_init__(self):
        super().__post_init__()
        check_counts(self, "projections", "budget")
        check_choice("most_bits", self.most_bits, _WIDTHS)
        check_not_negative(self, "place_bits")
        check_positive(self, "strength", "final_strength")

    def links(self, network, sparsity, steps, room):
        """As for dense training, with the pull in front."""
        growth = self.final_strength / self.strength
        strength = optax.exponential_decay(self.strength, max(steps, 1), growth)
        project = lambda weights: self._compressed(weights)[0]
        every = max(-(-steps // self.projections), 1)
        pull = jp.add_admm(project, strength, every=every, where=KERNELS)
        return optax.chain(pull, super().links(network, sparsity, steps, room))

    @property
    def _compressed(self):
        how = {"most_bits": self.most_bits, "place_bits": self.place_bits, "where": KERNELS}
        return functools.partial(jp.compress_to, budget=self.budget, **how)

    def current(self, weights, mask, key):
        """The nearest compressed network, and its mask."""
        return self._compressed(weights)[:2]

    def end(self, weights, network, sparsity, key, score):
        """The weights, with the mask and the grids of the nearest compressed network."""
        _, mask, grids = self._compressed(weights)
        return network._replace(weights=weights, mask=mask, grids=grids)


@dataclasses.dataclass(frozen=True)
class TrainQuantized(FineTune):
    """Training of the kept weights on their grids, straight through the rounding.

    Where no phase before has quantized, all kept weights get `bits`.
    """

    bits: int = 4
    name: str = "quantized"

    def __post_init__(self):
        super().__post_init__()
        check_choice("bits", self.bits, _WIDTHS)

    def grids(self, network: Network) -> Tree:
        """The grids of all kept weights."""
        if network.grids is not None:
            return network.grids
        return jp.quantize_to(network.weights, network.mask, self.bits)[1]

    def begin(self, network, sparsity):
        """The weights before they are rounded, which they are by the first update."""
        return jp.apply_mask(network.weights, network.mask)

    def links(self, network, sparsity, steps, room):
        """The optimizer of the weights behind the grids, and the link that rounds them."""
        keep = jp.keep_quantized(network.mask, self.grids(network))
        return jp.straight_through(optax.chain(self.clipping(), self.descent(steps)), keep)

    def in_force(self, network, params, opt_state):
        """The network with the grids on which its weights lie now."""
        return network._replace(grids=optax.tree.get(opt_state, "grids"))

    def end(self, weights, network, sparsity, key, score):
        """The trained network, its weights exactly on their grids."""
        weights, _ = jp.quantize_to(weights, network.mask, network.grids)
        return network._replace(weights=weights)
