"""What a layer may keep: a fraction of its weights, or n of every m.

A target chooses a mask by scores (inputs, outputs), and a part of it by the scores of some inputs,
as SparseGPT goes through them.
"""

import itertools
import re
from typing import Any, NamedTuple, TypeAlias

import chex
import jax
import jax.numpy as jnp

from jaxprune.patterns import tiles
from jaxprune.patterns.nm import nm_mask
from jaxprune.patterns.transposable import transposable_nm_mask
from jaxprune.trees import checks, masks, selection

_PATTERN = re.compile(r"(\d+):(\d+)")
_BLOCK = 128  # inputs among which SparseGPT chooses together

SCOPES = ("layer", "outputs")


class Fraction(NamedTuple):
    """All but a fraction: of the layer, or of the weights of each output."""

    sparsity: float
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
        return jnp.argsort(order, axis=0) < kept

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


def of_leaves(
    params: chex.ArrayTree, sparsity: Any, where, scope: str, transposable: bool
) -> list[Any]:
    """The target of each leaf; raises an error for what is none."""
    if isinstance(sparsity, str) or jax.tree_util.all_leaves([sparsity]):
        chosen = jax.tree.structure(params).flatten_up_to(masks.prunable(params, where))
        own = _target(sparsity, scope, transposable)
        return [None if keep is None else own for keep in chosen]
    if where is not None:
        raise ValueError(
            "a tree of sparsities has None for leaves that stay dense: leave out `where`"
        )
    given = masks.leaves_like(params, sparsity, "the sparsity", "`jax.tree.map` of `params`")
    targets = [None if each is None else _target(each, scope, transposable) for each in given]
    if not any(targets):
        raise ValueError("the tree of sparsities has None everywhere: no leaf is to be pruned")
    return targets


def _target(sparsity: Any, scope: str, transposable: bool) -> Target:
    if isinstance(sparsity, str):
        match = _PATTERN.fullmatch(sparsity)
        if not match:
            raise ValueError(
                f"`sparsity` must be a fraction or a pattern such as '2:4', got {sparsity!r}"
            )
        n, m = map(int, match.groups())
        tiles.check_pattern(n, m)
        return Pattern(n, m, transposable)
    checks.fraction("`sparsity`", sparsity)
    if transposable:
        raise ValueError(f"`transposable` takes a pattern such as '2:4', got sparsity {sparsity}")
    return Fraction(float(sparsity), scope)
