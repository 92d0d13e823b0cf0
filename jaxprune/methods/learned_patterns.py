"""One of all N:M patterns for each group of weights, drawn from trained logits.

A group of m inputs has C(m, n) patterns, 6 for 2:4; a 4-by-4 tile has 90 transposable 2:4 patterns.
Each group or tile has a logit for each: 6 bytes a weight for 2:4 in float32, 22.5 bytes for
transposable 2:4. Whatever is drawn is an exact N:M mask.

Kernels are read as matrices (inputs, outputs) and tiles as in `patterns`, and their sides divide;
groups of m run along the inputs of Flax's layout.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from jaxprune.patterns import choices, groups, pieces
from jaxprune.trees import checks, masks, sampling


def init_pattern_logits(
    params: chex.ArrayTree,
    n: int,
    m: int,
    *,
    transposable: bool = False,
    prior: float = 0.0,
    where: masks.Where | None = None,
) -> chex.ArrayTree:
    """Logits of all N:M patterns of every group of weights.

    Args:
      params: tree of arrays.
      n: how many of a group are kept.
      m: the size of a group along the inputs, or the side of a tile.
      transposable: whether each tile has one of its transposable patterns, or each group of m
        inputs one of C(m, n).
      prior: how much the patterns of larger magnitudes are preferred at the start: the logits'
        standard deviation.
      where: which leaves have logits, as for `prunable`.

    Returns:
      A tree like `params` of float32 arrays (patterns, ..., inputs / m, outputs), or
      (patterns, ..., inputs / m, outputs / m) if transposable, of kernels (..., inputs, outputs);
      `None` for other leaves.

    Raises:
      ValueError: for sides that don't divide by m, n or m out of range, or more than 1,000 patterns
        or 32 entries of a group or tile (2:4, 4:8 and 1:32 can be learned, transposable 2:4).

    Source: Fang et al., "MaskLLM: learnable semi-structured sparsity for large language models"
    (NeurIPS 2024), section 3, for groups of inputs.

    >>> import jax.numpy as jnp
    >>> import jaxprune as jp
    >>> params = {"kernel": jnp.ones((8, 4))}
    >>> jp.init_pattern_logits(params, 2, 4)["kernel"].shape
    (6, 2, 4)
    >>> jp.init_pattern_logits(params, 2, 4, transposable=True)["kernel"].shape
    (90, 2, 1)
    """
    kind = choices.Kind(n, m, transposable)
    choices.table(kind)
    checks.number("`prior`", prior, "a number")
    pruned = masks.prunable(params, where)
    chosen = jax.tree.map(lambda p, kept: None if kept is None else p, params, pruned)
    shardings = jax.tree_util.tree_map_with_path(_of_logits, chosen)

    def of_tree(params):
        matrices = choices.matrix_tree(kind, params)
        return pieces.one_by_one(lambda x: _preferred(kind, x, prior), matrices)

    return masks.sharded_as(of_tree, shardings)(chosen)


@functools.partial(jax.jit, static_argnums=0)
def _preferred(kind: choices.Kind, matrices: jax.Array, prior) -> jax.Array:
    """`prior` times the kept magnitudes of each pattern, of mean zero and unit deviation."""
    centered = choices.table(kind) - kind.n / kind.m

    def gains(piece):
        return choices.sums(centered, choices.entries_of(kind, jnp.abs(piece)).astype(jnp.float32))

    # Twice, since with the deviation unknown they would have to be written before it is.
    square = lambda piece: (jnp.mean(jnp.square(gains(piece)), axis=0),)
    ((squares,),) = pieces.map_pieces(square, [(matrices,)], kind.m)
    scale = prior / jnp.maximum(jnp.sqrt(jnp.mean(squares)), jnp.finfo(jnp.float32).tiny)
    scaled = lambda piece: (gains(piece) * scale,)
    return pieces.map_pieces(scaled, [(matrices,)], kind.m)[0][0]


def _of_logits(path, leaf) -> jax.sharding.Sharding:
    """The sharding of a leaf's logits, in which axes that are one side are one."""
    own = jax.typeof(leaf).sharding
    if own.mesh.empty:
        return own
    inputs, outputs = (
        groups.side(name, masks.path_name(path), leaf.shape) for name in ("inputs", "outputs")
    )
    spec = [*own.spec, *[None] * leaf.ndim]
    return own.update(spec=jax.P(None, *spec[: inputs[0]], spec[inputs[0]], spec[outputs[0]]))


def gumbel_pattern_mask(
    key: chex.PRNGKey,
    params: chex.ArrayTree,
    logits: chex.ArrayTree,
    n: int,
    m: int,
    *,
    transposable: bool = False,
    temperature: jax.typing.ArrayLike = 1.0,
    random_bits: sampling.RandomBits = sampling.counter_bits,
) -> chex.ArrayTree:
    """Draws N:M masks with the gradient of the relaxed choice (Gumbel-softmax over patterns).

    Args:
      key: one `jax.random.key`.
      params: tree of the shapes that the masks take.
      logits: of `init_pattern_logits`; pattern c is drawn with probability softmax(logits)_c, at
        any temperature.
      n: as for `init_pattern_logits`.
      m: as for `init_pattern_logits`.
      transposable: as for `init_pattern_logits`.
      temperature: of the soft masks that give the gradient, as for `relaxed_bernoulli`; no gradient
        reaches it.
      random_bits: as for `relaxed_bernoulli`.

    Returns:
      A tree like `params` of float32 masks, exactly 0 or 1; `None` where there are no logits.

    Raises:
      ValueError: for logits that don't fit `params`, n, m and `transposable`; for a temperature of
        0 or less.

    Source: MaskLLM (NeurIPS 2024), section 3.

    >>> import jax, jax.numpy as jnp
    >>> import jaxprune as jp
    >>> params = {"kernel": jnp.ones((4, 2))}
    >>> logits = jp.init_pattern_logits(params, 2, 4)
    >>> jp.gumbel_pattern_mask(jax.random.key(0), params, logits, 2, 4)["kernel"].sum(0)
    Array([2., 2.], dtype=float32)
    """
    checks.key(key)
    temperature = sampling.usable_temperature(temperature)
    kind = choices.Kind(n, m, transposable)
    _check_logits(params, logits, kind)

    def of_tree(key, params, logits, temperature):
        def draw(key, leaf, logit):
            keys = jax.random.split(key, len(logit))
            mask = _drawn(kind, random_bits, logit.astype(jnp.float32), keys, temperature)
            return mask.reshape(leaf.shape)

        return pieces.one_by_one(draw, sampling.keys_like(key, logits), params, logits)

    chosen = jax.tree.map(lambda p, a: None if a is None else p, params, logits)
    return masks.sharded_alike(of_tree, chosen)(key, chosen, logits, temperature)


def pattern_mask(
    params: chex.ArrayTree, logits: chex.ArrayTree, n: int, m: int, *, transposable: bool = False
) -> chex.ArrayTree:
    """The mask of the patterns with the largest logits; of equal ones the first counts.

    Args:
      params: tree of the shapes that the masks take.
      logits: of `init_pattern_logits`.
      n: as for `init_pattern_logits`.
      m: as for `init_pattern_logits`.
      transposable: as for `init_pattern_logits`.

    Returns:
      A mask like `params`, `None` where there are no logits.

    Raises:
      ValueError: for logits that don't fit `params`, n, m and `transposable`.

    >>> import jax.numpy as jnp
    >>> import jaxprune as jp
    >>> params = {"kernel": jnp.array([[1.0], [-4.0], [3.0], [2.0]])}
    >>> logits = jp.init_pattern_logits(params, 2, 4, prior=1.0)
    >>> jp.pattern_mask(params, logits, 2, 4)["kernel"].ravel()
    Array([False,  True,  True, False], dtype=bool)
    """
    kind = choices.Kind(n, m, transposable)
    _check_logits(params, logits, kind)
    best = lambda leaf, logit: _best(kind, logit).reshape(leaf.shape)
    chosen = jax.tree.map(lambda p, a: None if a is None else p, params, logits)
    of_tree = functools.partial(pieces.one_by_one, best)
    return masks.sharded_alike(of_tree, chosen)(chosen, logits)


@functools.partial(jax.jit, static_argnums=0)
def _best(kind: choices.Kind, logits: jax.Array) -> jax.Array:
    return choices.masks_of(kind, _largest(kind, logits, logits, lambda logit, _: logit)[1])


def _check_logits(params, logits, kind: choices.Kind) -> None:
    masks.leaves_like(params, logits, "the logits", "`init_pattern_logits(params, ...)`")
    count = len(choices.table(kind))
    shapes = jax.tree.map(
        lambda p, a: None if a is None else jax.ShapeDtypeStruct(p.shape, p.dtype), params, logits
    )
    matrices = jax.eval_shape(lambda tree: choices.matrix_tree(kind, tree), shapes)

    def check(path, matrix, logit):
        expected = (count, *kind.groups(matrix.shape))
        if logit.shape != expected:
            raise ValueError(
                f"logits of leaf '{masks.path_name(path)}' must have shape {expected}, got "
                f"{logit.shape}: make them by `init_pattern_logits` with the same n, m and "
                "transposable"
            )

    jax.tree_util.tree_map_with_path(check, matrices, logits)


# Classes come first, and one follows the other: what is calculated of a class stays in the caches,
# and nothing of the size of the logits is made but what the gradient needs.


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _drawn(kind, random_bits, logits, keys, temperature) -> jax.Array:
    """Masks (..., inputs, outputs) of the patterns that noise chooses, 0 or 1."""
    return _drawn_fwd(kind, random_bits, logits, keys, temperature)[0]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _drawn_fwd(kind, random_bits, logits, keys, temperature):
    def noisy(logit, key):
        return logit - jnp.log(-jnp.log(sampling.open_uniform(logit, key, random_bits)))

    largest, winner, all_noisy = _largest(kind, logits, keys, noisy)
    return choices.masks_of(kind, winner).astype(jnp.float32), (all_noisy, largest, temperature)


def _largest(kind, logits: jax.Array, others: jax.Array, value: Callable):
    """The largest `value(logit, other)` of each group, its pattern, and all values."""

    def run(best, this):
        pattern, logit, other = this
        own = value(logit, other)
        wins = own > best[0]
        return (jnp.where(wins, own, best[0]), jnp.where(wins, pattern, best[1])), own

    patterns, shape = choices.as_bits(kind), logits.shape[1:]
    # Known with the logits: or else they might lie in memory while those of other leaves are read.
    least, first = jnp.array(-jnp.inf, logits.dtype), patterns[0]
    logits, least, first = jax.lax.optimization_barrier((logits, least, first))
    start = (jnp.full(shape, least), jnp.full(shape, first))
    (largest, winner), values = jax.lax.scan(run, start, (patterns, logits, others))
    return largest, winner, values


@functools.partial(jax.jit, static_argnums=(0, 1))
def _drawn_bwd(kind, random_bits, residuals, cotangent):
    """y (g - sum y g) / t with the gains g of the patterns, y = softmax(noisy / t).

    One array holds the noisy logits, then their exponentials, then the gradient.
    """
    del random_bits
    all_noisy, largest, temperature = residuals
    gain = choices.gains(kind, choices.entries_of(kind, cotangent))
    coldness = 1.0 / temperature

    def weigh(number, carried):
        array, total, gained = carried
        odds = jnp.exp((array[number] - largest) * coldness)
        return array.at[number].set(odds), total + odds, gained + odds * gain(number)

    zeros = jnp.zeros_like(largest)
    classes = len(all_noisy)
    odds, total, gained = jax.lax.fori_loop(0, classes, weigh, (all_noisy, zeros, zeros))
    mean, slope = gained / total, coldness / total

    def pull(number, array):
        return array.at[number].set(array[number] * (gain(number) - mean) * slope)

    return jax.lax.fori_loop(0, classes, pull, odds), None, None


_drawn.defvjp(_drawn_fwd, _drawn_bwd)
