"""What a layer may keep: a fraction of its weights, or n of every m.

A target chooses a mask by scores (inputs, outputs), and a part of it by the scores of some inputs,
as SparseGPT goes through them.
"""

import itertools
from typing import Any, NamedTuple, TypeAlias

import chex
import jax
import jax.numpy as jnp

from jaxprune.patterns import sharing, targets
from jaxprune.patterns.nm import nm_mask
from jaxprune.patterns.transposable import transposable_nm_mask
from jaxprune.trees import masks, selection

_BLOCK = 128  # inputs among which SparseGPT chooses together

SCOPES = ("layer", "outputs")


class Fraction(NamedTuple):
    """All but a fraction: of the layer, or of the weights of each output."""

    sparsity: Any  # a number
    scope: str

    def mask(self, scores: jax.Array, channels: int) -> jax.Array:
        """The largest scores."""
        inputs, outputs = scores.shape
        return self.part(scores, jnp.int32(self._kept(inputs, outputs)))

    def group(self, inputs: int, channels: int) -> tuple[int, int]:
        """How many inputs are chosen among together, and how many lie side by side."""
        return min(_BLOCK, inputs), inputs

    def parts(self, inputs: int, outputs: int, group: int) -> jax.Array:
        """How many each group of inputs keeps, so that all together keep what they should."""
        ends = [min(end, inputs) for end in range(0, inputs + group, group)]
        kept = [self._kept(end, outputs) for end in ends]
        return jnp.array([b - a for a, b in itertools.pairwise(kept)], jnp.int32)

    def part(self, scores: jax.Array, kept: jax.Array) -> jax.Array:
        """The largest scores of a group of inputs."""
        if self.scope == "layer":
            mask: Any = selection.top_k_mask(scores, kept)
            return mask
        order = jnp.argsort(-scores, axis=0, stable=True)
        rank = jnp.argsort(order, axis=0)
        return rank < kept.astype(rank.dtype)

    def _kept(self, inputs: int, outputs: int) -> int:
        size = inputs * (outputs if self.scope == "layer" else 1)
        return size - round(self.sparsity * size)


class Pattern(NamedTuple):
    """n of every m inputs that lie side by side; of every m outputs too if `transposable`."""

    n: int
    m: int
    transposable: bool

    def mask(self, scores: jax.Array, channels: int) -> jax.Array:
        """The best mask of this pattern, exactly."""
        matrices = scores.reshape(-1, channels, scores.shape[1])
        return self._best(matrices).reshape(scores.shape)

    def group(self, inputs: int, channels: int) -> tuple[int, int]:
        """How many inputs are chosen among together, and how many lie side by side."""
        return self.m, channels

    def parts(self, inputs: int, outputs: int, group: int) -> jax.Array:
        """Nothing that differs from group to group."""
        return jnp.zeros(-(-inputs // group), jnp.int32)

    def part(self, scores: jax.Array, kept: jax.Array) -> jax.Array:
        """The best mask of a group of inputs."""
        return self._best(scores)

    def _best(self, matrices: jax.Array) -> jax.Array:
        of_scores = transposable_nm_mask if self.transposable else nm_mask
        mask: Any = of_scores(matrices, self.n, self.m)
        return mask


Target: TypeAlias = Fraction | Pattern


def of_leaves(params: chex.ArrayTree, sparsity: Any, where, scope: str) -> list[Any]:
    """The target of each leaf; raises an error for what is none."""
    if not sharing.is_single(sparsity):
        given = sharing.of_leaves(params, sparsity, where)
        return [None if each is None else _of_layer(each, scope) for each in given]
    chosen = jax.tree.structure(params).flatten_up_to(masks.prunable(params, where))
    own = _of_layer(targets.target(sparsity), scope)
    return [None if keep is None else own for keep in chosen]


def _of_layer(target: targets.Target, scope: str) -> Target:
    targets.check_constant(target)
    if isinstance(target, targets.Fraction):
        sparsity: Any = target.sparsity
        return Fraction(float(sparsity), scope)
    if isinstance(target, targets.NM) and target.axis == "inputs":
        n: Any = target.n
        return Pattern(n, target.m, target.transposable)
    raise ValueError(f"layers are pruned to a fraction or to n of every m inputs, got {target}")
