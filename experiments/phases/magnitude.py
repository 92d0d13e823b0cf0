"""Pruning of the smallest weights of the whole network: at one stroke, or while it trains."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import optax

import jaxprune as jp
from experiments.phases.base import (
    KERNELS,
    Network,
    OneShot,
    check_counts,
    check_fractions,
    check_fractions_above_0,
    nonzero,
    rising,
)
from experiments.phases.dense import Dense

_ROUNDING = 1e-6  # of a schedule in float32


@dataclasses.dataclass(frozen=True)
class PruneMagnitudes(OneShot):
    """The largest magnitudes of the whole network stay. Trains nothing.

    It goes a `part` of the way: the density is that of the run to this power. Of three rounds that
    keep the same fraction each, the first has a part of 1/3, the second of 2/3.
    """

    part: float = 1.0
    name: str = "magnitude"

    def __post_init__(self):
        check_fractions_above_0(self, "part")

    def apply(self, network: Network, sparsity: float, room) -> Network:
        """The network with the mask of its largest weights."""
        reached = 1 - (1 - sparsity) ** self.part if self.part < 1 else sparsity
        weights = network.masked_weights()
        return network._replace(mask=jp.prune_to(weights, reached, where=KERNELS)[1])


@dataclasses.dataclass(frozen=True)
class Rewind(OneShot):
    """Weights and statistics as they were after an earlier phase, under the last mask.

    Trains nothing. `returns_to` counts phases from 0.
    """

    returns_to: int = 0
    name: str = "rewind"

    def apply(self, network: Network, sparsity: float, room) -> Network:
        """The network of then, with zeros where the mask of now prunes."""
        return network._replace(weights=network.masked_weights())


@dataclasses.dataclass(frozen=True)
class _Pruning(Dense):
    """Training while the smallest weights go, as `schedule` says.

    What is pruned is chosen by the `score` and `scope` of `keep_sparse`; it is zero and stays so
    while its mask stands, or with `straight_through` lives on behind the mask.

    Raises:
        ValueError: before the first step, if no mask is chosen once the sparsity is reached.
    """

    score: str = "magnitude"
    scope: str = "global"
    straight_through: bool = False

    sooner: ClassVar[str]  # which settings bring the sparsity forward

    def _check_last_choice(self, schedule, every, sparsity, steps):
        last = (max(steps, 1) - 1) // every * every
        with jax.ensure_compile_time_eval():
            found = float(schedule(jnp.int32(last)))
        if abs(found - sparsity) > _ROUNDING:
            raise ValueError(
                f"the last of {steps} steps to choose a mask is step {last}, at a sparsity of "
                f"{found:.6g}, not {sparsity:g}: lower {self.sooner}, or train for longer"
            )

    def schedule(self, sparsity: float, steps: int) -> tuple[optax.Schedule, int]:
        """The sparsity over the steps, and how many of them a mask stands."""
        raise NotImplementedError

    def links(self, network, sparsity, steps, room):
        """As for dense training, with the largest scores kept."""
        schedule, every = self.schedule(sparsity, steps)
        self._check_last_choice(schedule, every, sparsity, steps)
        keep = jp.keep_sparse(
            schedule, score=self.score, scope=self.scope, every=every, where=KERNELS
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


@dataclasses.dataclass(frozen=True)
class PruneGradually(_Pruning):
    """Training while the smallest weights go, more and more of them (Zhu and Gupta, 2017).

    The mask is chosen anew every so many steps, by the `score` and `scope` of `keep_sparse`; what
    it prunes is zero and stays so, or with `straight_through` lives on behind the mask. Fractions
    are of the phase's steps.
    """

    dense_until: float = 0.16
    reach_sparsity_at: float = 0.60
    every: int = 10
    name: str = "gradual"

    sooner = "every or reach_sparsity_at"

    def __post_init__(self):
        super().__post_init__()
        check_counts(self, "every")
        check_fractions(self, "dense_until", "reach_sparsity_at")

    def schedule(self, sparsity, steps):
        """Rising sparsity, and `every`."""
        return rising(sparsity, self.dense_until, self.reach_sparsity_at, steps), self.every


@dataclasses.dataclass(frozen=True)
class PruneAlternately(_Pruning):
    """Dense and sparse training by turns (AC/DC, Peste et al., 2021).

    Dense at first, then a turn sparse, a turn dense, and so on, sparse in the end. Each sparse turn
    chooses its mask anew, by the `score` and `scope` of `keep_sparse`; with `straight_through` what
    it prunes lives on behind the mask. Fractions are of the phase's steps.
    """

    dense_until: float = 0.1
    sparse_from: float = 0.75
    turn: float = 0.05
    name: str = "alternate"

    sooner = "sparse_from or turn"

    def __post_init__(self):
        super().__post_init__()
        check_fractions(self, "dense_until", "sparse_from")
        check_fractions_above_0(self, "turn")

    def schedule(self, sparsity, steps):
        """No sparsity or all of it, in whole turns."""
        every = max(round(self.turn * steps), 1)
        begin, end = (
            max(round(fraction * steps / every), 1) * every
            for fraction in (self.dense_until, self.sparse_from)
        )
        return jp.alternating_sparsity(sparsity, begin, end, every=every), every
