"""What leaves may keep: a fraction of weights, n of every m, blocks, or what is large enough.

Each target chooses the mask of the leaves that share it from a tree of their scores. Its budget may
be a schedule: then what is out of range inside `jax.jit` is told beside the mask, and the mask is
made only if it is wanted.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any, TypeAlias

import chex
import jax
import jax.numpy as jnp
import optax

from jaxprune.patterns import groups, nm, tiles, transposable
from jaxprune.trees import checks, masks, selection, wide

Choice: TypeAlias = tuple[jax.Array, Callable[[], chex.ArrayTree]]

_PATTERN = re.compile(r"(\d+):(\d+)")


@dataclasses.dataclass(frozen=True)
class NM:
    """n of every m weights: what "2:4" is short for, in a place where a sparsity is asked for.

    Args:
      n: how many of a group to keep, 0 <= n <= m; for links also a schedule of the link's own
        count, which is rounded: `lambda step: jnp.maximum(4 - step // 1000, 1)` goes from dense to
        1:4. Where it is NaN or not within 0 to m, the mask in force is kept, and `problems` says
        so.
      m: the size of a group, 1 to 32.
      axis: along which groups lie, as for `nm_mask`.
      transposable: whether the pattern holds along inputs and outputs: of every tile the best mask,
        as by `transposable_nm_mask`.

    Raises:
      TypeError: for n or m that isn't whole.
      ValueError: for n or m out of range, or an axis for a transposable pattern, which has both.

    >>> import jaxprune as jp
    >>> jp.NM(2, 4, transposable=True)
    NM(n=2, m=4, axis='inputs', transposable=True)
    """

    n: int | optax.Schedule
    m: int
    axis: str | int = "inputs"
    transposable: bool = False

    def __post_init__(self):
        """Raises an error unless it is one."""
        tiles.check_pattern(self.n, self.m)
        groups.check(self.axis)
        if self.transposable and self.axis != "inputs":
            raise ValueError(
                f"a transposable pattern runs along inputs and outputs, got axis={self.axis!r}: "
                "leave it out"
            )

    @property
    def axes(self) -> tuple:
        """Along which groups lie."""
        return ("inputs", "outputs") if self.transposable else (self.axis,)

    def divides(self, path: str, leaf: Any) -> bool:
        """Whether a leaf of two or more dimensions has whole groups only."""
        sides = (tiles.length(axis, path, leaf.shape) for axis in self.axes)
        return all(side % self.m == 0 for side in sides)

    def check(self, path: str, leaf: Any) -> None:
        """Raises an error if a leaf doesn't have the axes."""
        for axis in self.axes:
            tiles.length(axis, path, leaf.shape)

    def choice(self, scores: chex.ArrayTree, count, magnitudes: bool) -> Choice:
        """The largest of every group."""
        n, valid = self.n, jnp.bool_(True)
        if callable(n):
            wanted = jnp.round(jnp.asarray(n(count), jnp.float32))
            valid = (wanted >= 0) & (wanted <= self.m)
            n = jnp.where(valid, wanted, self.m).astype(jnp.int32)
        return valid, lambda: self._mask(scores, n, magnitudes)

    def _mask(self, scores, n, magnitudes: bool):
        if self.transposable:
            of_magnitudes = transposable.transposable_nm_mask_of_magnitudes
            return (of_magnitudes if magnitudes else transposable.transposable_nm_mask)(
                scores, n, self.m
            )
        of = nm.nm_mask_of_magnitudes if magnitudes else nm.nm_mask
        return of(scores, n, self.m, axis=self.axis)


@dataclasses.dataclass(frozen=True)
class Blocks:
    """A fraction of zero blocks: channels, rows or tiles whose weights stay or go together.

    Of all blocks of the leaves that share the target, a block counting as much as another, those of
    the largest mean score stay.

    Args:
      sparsity: fraction of zero blocks, in [0, 1]; for links also a schedule.
      block: (inputs, outputs) of a tile, smaller at edges where they don't divide; or "outputs"
        (what makes one output: a neuron, a channel), "inputs" (what one input goes to) or "heads",
        as for `group_norms`.

    Raises:
      TypeError: for what is none of these.
      ValueError: for a sparsity out of range, an unknown name, or a tile with sides below 1.

    >>> import jaxprune as jp
    >>> jp.Blocks(0.5, (16, 16))
    Blocks(sparsity=0.5, block=(16, 16))
    """

    sparsity: float | optax.Schedule
    block: tuple[int, int] | str

    def __post_init__(self):
        """Raises an error unless it is one."""
        checks.fraction("sparsity", self.sparsity, schedule=True)
        if isinstance(self.block, str):
            groups.check(self.block)
        elif isinstance(self.block, tuple) and len(self.block) == 2:
            for side in self.block:
                checks.integer("a side of a block", side, least=1)
        else:
            raise TypeError(
                "`block` must be (inputs, outputs) of a tile, or 'outputs', 'inputs' or 'heads', "
                f"got {self.block!r}"
            )

    def check(self, path: str, leaf: Any) -> None:
        """Raises an error if a leaf has no such blocks."""
        for name in (self.block,) if isinstance(self.block, str) else ("inputs", "outputs"):
            groups.side(name, path, leaf.shape)

    def choice(self, scores: chex.ArrayTree, count, magnitudes: bool) -> Choice:
        """The blocks of the largest mean score."""
        of_leaves = jax.tree_util.tree_map_with_path
        means = lambda path, leaf: self._means(masks.path_name(path), leaf, magnitudes)
        spread = lambda path, leaf, keep: self._spread(masks.path_name(path), leaf.shape, keep)
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), scores)
        shapes = jax.eval_shape(lambda scores: of_leaves(means, scores), shapes)
        blocks = sum(leaf.size for leaf in jax.tree.leaves(shapes))
        kept, valid = kept_of(self.sparsity, count, blocks)

        def make(scores, kept):
            keep = selection.keep_largest(of_leaves(means, scores), kept)
            return of_leaves(spread, scores, keep)

        return valid, lambda: masks.sharded_alike(make, scores)(scores, kept)

    def _means(self, path: str, leaf: jax.Array, magnitudes: bool) -> jax.Array:
        """The mean score of each block."""
        scores = leaf.astype(masks.at_least_float32(leaf))
        scores = jnp.abs(scores) if magnitudes else scores
        if isinstance(self.block, str):
            inside = groups.axes_inside(self.block, path, leaf.shape)[0]
            return jnp.mean(scores, axis=inside, keepdims=True)
        matrices = tiles.as_matrices(path, scores)
        *lead, inputs, outputs = matrices.shape
        rows, columns = self.block
        padding = [(0, 0)] * len(lead) + [(0, -inputs % rows), (0, -outputs % columns)]
        padded = jnp.pad(matrices, padding)
        down, across = -(-inputs // rows), -(-outputs // columns)
        # Inputs first: a TPU would move the whole leaf to split its last axis.
        of_rows = padded.reshape(*lead, down, rows, across * columns).sum(-2)
        sums = of_rows.reshape(*lead, down, across, columns).sum(-1)
        sizes = _sizes(inputs, rows)[:, None] * _sizes(outputs, columns)[None]
        return sums / jnp.broadcast_to(sizes, sums.shape)

    def _spread(self, path: str, shape: tuple[int, ...], keep: jax.Array) -> jax.Array:
        """What is said of each block, of each of its weights."""
        if isinstance(self.block, str):
            return jnp.broadcast_to(keep, shape)
        rows, columns = self.block
        *lead, down, across = keep.shape
        # The other way round, for the same reason.
        of_rows = jnp.repeat(keep, columns, axis=-1)
        each = jnp.broadcast_to(of_rows[..., None, :], (*lead, down, rows, across * columns))
        whole = each.reshape(*lead, down * rows, across * columns)
        like = jax.eval_shape(lambda: tiles.as_matrices(path, jnp.empty(shape)))
        return whole[..., : like.shape[-2], : like.shape[-1]].reshape(shape)


@dataclasses.dataclass(frozen=True)
class Above:
    """All weights whose score reaches a threshold, however many these are.

    Args:
      threshold: not negative; for links also a schedule such as `ramped_threshold`. At 0 all
        weights are kept, zeros too, which `threshold_mask` prunes. A weight that a link has pruned
        is zero, so it stays pruned while the threshold is above 0: masks only lose weights, as
        those of recurrent networks do in the source.

    Raises:
      TypeError: for what is neither a number nor a schedule.
      ValueError: for a negative threshold.

    Source: Narang et al., "Exploring sparsity in recurrent neural networks" (ICLR 2017).

    >>> import jax.numpy as jnp
    >>> import jaxprune as jp
    >>> jp.prune_to({"w": jnp.array([[1.0, -2.0], [3.0, 0.5]])}, jp.Above(1.5))[0]["w"].tolist()
    [[0.0, -2.0], [3.0, 0.0]]
    """

    threshold: float | optax.Schedule

    def __post_init__(self):
        """Raises an error unless it is one."""
        if callable(self.threshold):
            return
        checks.number("the threshold", self.threshold, "a number or a schedule")
        if checks.known(self.threshold) and not self.threshold >= 0:
            raise ValueError(f"the threshold must not be negative, got {self.threshold}")

    def check(self, path: str, leaf: Any) -> None:
        """Every leaf will do."""

    def choice(self, scores: chex.ArrayTree, count, magnitudes: bool) -> Choice:
        """The scores that reach it."""
        given = self.threshold(count) if callable(self.threshold) else self.threshold

        def reaches(leaf):
            wide = leaf.astype(masks.at_least_float32(leaf))
            return (jnp.abs(wide) if magnitudes else wide) >= jnp.asarray(given, wide.dtype)

        return jnp.greater_equal(given, 0), lambda: jax.tree.map(reaches, scores)


@dataclasses.dataclass(frozen=True)
class Fraction:
    """All weights but a fraction: what a number or a schedule stands for."""

    sparsity: float | optax.Schedule

    def __post_init__(self):
        """Raises an error unless it is one."""
        checks.fraction("sparsity", self.sparsity, schedule=True)

    def check(self, path: str, leaf: Any) -> None:
        """Every leaf will do."""

    def choice(self, scores: chex.ArrayTree, count, magnitudes: bool) -> Choice:
        """The largest of all leaves together."""
        size = sum(leaf.size for leaf in jax.tree.leaves(scores))
        kept, valid = kept_of(self.sparsity, count, size)
        return valid, lambda: selection.keep_largest(scores, kept, magnitudes=magnitudes)


Target: TypeAlias = Fraction | NM | Blocks | Above


def check_constant(own: Target) -> None:
    """Raises a TypeError for a schedule."""
    for field in dataclasses.fields(own):
        value = getattr(own, field.name)
        if callable(value):
            raise TypeError(
                f"`{field.name}` must be a number, got {checks.described(value)}: schedules are "
                "for `keep_sparse`"
            )


def target(sparsity: Any) -> Target:
    """What a number, a schedule, "2:4", `NM`, `Blocks` or `Above` stands for."""
    if isinstance(sparsity, (NM, Blocks, Above)):
        return sparsity
    if isinstance(sparsity, str):
        match = _PATTERN.fullmatch(sparsity)
        if not match:
            raise ValueError(
                f"`sparsity` must be a fraction or a pattern such as '2:4', got {sparsity!r}"
            )
        n, m = map(int, match.groups())
        return NM(n, m)
    return Fraction(sparsity)


@wide.counts_in_64_bits
def kept_of(sparsity, count, size: int) -> tuple[jax.Array, jax.Array]:
    """How many of so many stay, as uint64, and whether the sparsity lies in [0, 1]."""
    if isinstance(sparsity, (int, float)):
        return jnp.uint64(size - round(sparsity * size)), jnp.bool_(True)
    value = jnp.asarray(sparsity(count) if callable(sparsity) else sparsity, jnp.float32)
    valid = (value >= 0) & (value <= 1)
    kept = jnp.round((1.0 - jnp.where(valid, value, 0.0)) * jnp.float32(size))
    return jnp.minimum(kept.astype(jnp.uint64), jnp.uint64(size)), valid


def _sizes(size: int, block: int) -> jax.Array:
    """How many of an axis lie in each block, of which the last may be smaller."""
    return jnp.minimum(block, size - block * jnp.arange(-(-size // block))).astype(jnp.float32)
