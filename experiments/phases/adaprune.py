"""One-shot pruning by what layers see, the kept weights making up for it; BatchNorm anew."""

import dataclasses
import time

import jax
import jax.numpy as jnp
from flax import nnx

import jaxprune as jp
from experiments.phases.base import (
    KERNELS,
    Network,
    OneShot,
    Tree,
    check_choice,
    check_counts,
    check_not_negative,
)
from experiments.phases.nm import Pattern


@dataclasses.dataclass(frozen=True)
class _Calibrated(OneShot):
    """What phases share that look at some training records, without labels."""

    records: int = 1_000
    batch: int = 250
    sequential: bool = True
    damping: float = 0.01
    name: str = "calibrated"
    whole_leaves = True

    def __post_init__(self):
        check_counts(self, "records", "batch")
        check_not_negative(self, "damping")

    def apply(self, network: Network, sparsity: float, room) -> Network:
        """The network with its mask and new weights and biases."""
        start = time.perf_counter()
        run = lambda weights, inputs: room.run(weights, network.rest, inputs, train=False)[0]
        batches = room.calibration(self.records, self.batch)
        weights, mask = jax.block_until_ready(self.pruned(run, network, sparsity, batches))
        print(f"{self.name}: {time.perf_counter() - start:.1f} s with compilation", flush=True)
        return network._replace(weights=weights, mask=mask)

    def pruned(self, run, network: Network, sparsity: float, batches) -> tuple[Tree, Tree]:
        """The weights and the mask."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Reconstruct(Pattern, _Calibrated):
    """AdaPrune: one-shot pruning to N:M that the kept weights make up for, without labels."""

    method: str = "closed_form"
    name: str = "reconstruct"

    def __post_init__(self):
        super().__post_init__()
        check_choice("method", self.method, ("closed_form", "gradient"))

    def pruned(self, run, network, sparsity, batches):
        """The mask of the largest magnitudes, and what makes up for it."""
        mask = self.mask(network)
        weights = jp.reconstruct(
            run,
            network.weights,
            _without_dense_leaves(mask),
            batches,
            sequential=self.sequential,
            damping=self.damping,
            method=self.method,
        )
        return weights, mask


@dataclasses.dataclass(frozen=True)
class PruneLayers(_Calibrated):
    """One-shot pruning of each layer by Wanda, SparseGPT or ADMM, without labels.

    To the sparsity of the experiment, or to a `pattern` such as "2:4".
    """

    method: str = "sparsegpt"
    pattern: str = ""
    transposable: bool = False
    scope: str | None = None
    where: str = KERNELS
    name: str = "layers"

    def __post_init__(self):
        super().__post_init__()
        check_choice("method", self.method, ("magnitude", "wanda", "sparsegpt", "admm"))
        check_choice("scope", self.scope, (None, "layer", "outputs"))
        if self.pattern:
            self._target()

    def check(self, network, sparsity, room):
        """Raises an error if there is nothing to prune, or no pattern."""
        jp.prunable(network.weights, self.where)
        self._target()

    def pruned(self, run, network, sparsity, batches):
        """The masks that the method finds; other leaves keep everything."""
        weights, found = jp.prune_layers(
            run,
            network.weights,
            self._target() or sparsity,
            batches,
            sequential=self.sequential,
            damping=self.damping,
            method=self.method,
            scope=self.scope,
            where=self.where,
        )
        mask = jax.tree.map(
            lambda _, keep, own: keep if own is None else own, weights, network.mask, found
        )
        return weights, mask

    def _target(self):
        if not self.pattern and not self.transposable:
            return None
        try:
            n, m = map(int, self.pattern.split(":"))
        except ValueError as error:
            raise ValueError(f"pattern must be such as '2:4', got {self.pattern!r}") from error
        return jp.NM(n, m, transposable=self.transposable)


def _without_dense_leaves(mask: Tree) -> Tree:
    return jax.tree.map(lambda keep: None if bool(jnp.all(keep)) else keep, mask)


@dataclasses.dataclass(frozen=True)
class Recalibrate(OneShot):
    """Estimates BatchNorm's averages anew, for the weights as they are now. Trains nothing."""

    records: int = 1_000
    batch: int = 250
    passes: int = 12
    name: str = "recalibrate"

    def __post_init__(self):
        check_counts(self, "records", "batch", "passes")

    def apply(self, network: Network, sparsity: float, room) -> Network:
        """The network with another rest."""
        see = jax.jit(lambda *args: room.run(*args, train=True)[1])
        weights = network.masked_weights()
        batches = room.calibration(self.records, self.batch)

        def seen(rest):
            for _ in range(self.passes):
                for inputs in batches:
                    rest = see(weights, rest, inputs)
            return rest

        start = _of_averages(jnp.zeros_like, network.rest)
        once = seen(start)
        twice = seen(_of_averages(lambda _, average: average, start, once))
        return network._replace(rest=_of_averages(_without_start, once, twice))


def _of_averages(function, rest: Tree, *others: Tree) -> Tree:
    """The rest with a function of its BatchNorm's averages in their place."""
    is_average = lambda x: isinstance(x, nnx.BatchStat)

    def of(leaf, *more):
        return jax.tree.map(function, leaf, *more) if is_average(leaf) else leaf

    return jax.tree.map(of, rest, *others, is_leaf=is_average)


def _without_start(once: jax.Array, twice: jax.Array) -> jax.Array:
    """The running average of which nothing is its start, from 0 and from there once more.

    A part of each start is left, the same for all entries, whatever the momentum.
    """
    size = jnp.sum(jnp.abs(once))
    left = jnp.where(size > 0, jnp.sum(jnp.abs(twice - once)) / size, 0)
    return once / (1 - left)
