"""One of all N:M patterns for each group of weights, drawn from trained logits.

A group of m inputs has C(m, n) patterns, 6 for 2:4; a 4-by-4 tile has 90 transposable 2:4 patterns.
Each group or tile has a logit for each: 6 bytes a weight for 2:4 in float32, 22.5 bytes for
transposable 2:4. Whatever is drawn is an exact N:M mask.

Kernels are read as matrices (inputs, outputs) and tiles as in `patterns`, and their sides divide;
groups of m run along the inputs of Flax's layout.
"""

import itertools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.patterns import counting, solver, tiles
from jaxprune.trees import checks, masks, sampling

_MOST = 1000  # patterns of one group


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
      A tree like `params` of float32 arrays (patterns, matrices, inputs / m, outputs), or
      (patterns, matrices, inputs / m, outputs / m) if transposable; `None` for other leaves.

    Raises:
      ValueError: for sides that don't divide by m, n or m out of range, or more than 1,000
        patterns (all of m > 8, transposable of m > 4).

    Source: Fang et al., "MaskLLM: learnable semi-structured sparsity for large language models"
    (NeurIPS 2024), section 3, for groups of inputs.

    >>> import jax.numpy as jnp
    >>> import jaxprune as jp
    >>> params = {"kernel": jnp.ones((8, 4))}
    >>> jp.init_pattern_logits(params, 2, 4)["kernel"].shape
    (6, 1, 2, 4)
    >>> jp.init_pattern_logits(params, 2, 4, transposable=True)["kernel"].shape
    (90, 1, 2, 1)
    """
    kept = _table(n, m, transposable)
    checks.number("`prior`", prior, "a number")

    def of_leaf(path, leaf, chosen):
        if chosen is None:
            return None
        entries = _unfolded(masks.path_name(path), jnp.abs(leaf), m, transposable)
        sums = _exact_product(kept, entries.astype(jnp.float32))
        sums = sums - jnp.mean(sums, axis=0, keepdims=True)
        return prior * sums / jnp.maximum(jnp.std(sums), jnp.finfo(jnp.float32).tiny)

    return jax.tree_util.tree_map_with_path(of_leaf, params, masks.prunable(params, where))


def gumbel_pattern_mask(
    key: chex.PRNGKey,
    params: chex.ArrayTree,
    logits: chex.ArrayTree,
    n: int,
    m: int,
    *,
    transposable: bool = False,
    temperature: jax.typing.ArrayLike = 1.0,
    random_bits: sampling.RandomBits = jax.random.bits,
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
      temperature: of the soft masks that give the gradient, as for `relaxed_bernoulli`.
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
    kept = _table(n, m, transposable)
    temperature = sampling.usable_temperature(temperature)

    def noise(key, leaf):
        return -jnp.log(-jnp.log(sampling.open_uniform(leaf, key, random_bits)))

    noises = sampling.map_with_keys(noise, key, logits)
    noisy = jax.tree.map(lambda a, g: a.astype(jnp.float32) + g, logits, noises)

    def soft(path, leaf, noisy):
        if noisy is None:
            return None
        entries = _exact_product(kept.T, jax.nn.softmax(noisy / temperature, axis=0))
        return _folded(entries, leaf, m, transposable)

    hard = pattern_mask(params, noisy, n, m, transposable=transposable)
    softs = jax.tree_util.tree_map_with_path(soft, params, noisy)
    return sampling.surrogate_gradient(hard, softs)


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
    kept = jnp.asarray(_table(n, m, transposable), bool)
    masks.leaves_like(params, logits, "the logits", "`init_pattern_logits(params, ...)`")

    def of_leaf(path, leaf, logit):
        if logit is None:
            return None
        name = masks.path_name(path)
        expected = jax.eval_shape(lambda x: _unfolded(name, x, m, transposable), leaf).shape[1:]
        if logit.shape != (len(kept), *expected):
            raise ValueError(
                f"logits of leaf '{name}' must have shape {(len(kept), *expected)}, got "
                f"{logit.shape}: make them by `init_pattern_logits` with the same n, m and "
                "transposable"
            )
        entries = jnp.moveaxis(kept[jnp.argmax(logit, axis=0)], -1, 0)
        return _folded(entries, leaf, m, transposable)

    return jax.tree_util.tree_map_with_path(of_leaf, params, logits)


def _table(n: int, m: int, transposable: bool) -> np.ndarray:
    """All patterns, (patterns, entries) of 0 and 1 in float32."""
    tiles.check_pattern(n, m)
    count = counting.mask_count(n, m, "transposable") if transposable else math.comb(m, n)
    if count > _MOST:
        raise ValueError(
            f"{n}:{m} has {count:,} patterns to choose among, more than {_MOST:,}: choose a "
            "smaller m"
        )
    if not transposable:
        kept = [[i in chosen for i in range(m)] for chosen in itertools.combinations(range(m), n)]
    else:
        kept = [[row >> j & 1 for row in rows for j in range(m)] for rows in solver.all_masks(n, m)]
    return np.array(kept, np.float32)


def _exact_product(table: np.ndarray, x: jax.Array) -> jax.Array:
    """In float32, where an accelerator would round to bfloat16."""
    return jnp.tensordot(table, x, 1, precision=jax.lax.Precision.HIGHEST)


def _unfolded(name: str, leaf: jax.Array, m: int, transposable: bool) -> jax.Array:
    """(entries of a group, matrices, inputs / m, groups or tiles along the outputs)."""
    matrices = tiles.as_matrices(name, leaf)
    matrices = matrices.reshape(-1, *matrices.shape[-2:])
    count, inputs, outputs = matrices.shape
    if inputs % m or (transposable and outputs % m):
        raise ValueError(
            f"sides must divide by {m}, but leaf '{name}' has {inputs} inputs and {outputs} "
            "outputs; choose leaves with `where`"
        )
    if transposable:
        whole = tiles.to_tiles(matrices, m)
        return whole.reshape(m * m, *whole.shape[2:])
    return jnp.moveaxis(matrices.reshape(count, inputs // m, m, outputs), 2, 0)


def _folded(entries: jax.Array, leaf: jax.Array, m: int, transposable: bool) -> jax.Array:
    """Back to the shape of the leaf."""
    if not transposable:
        return jnp.moveaxis(entries, 0, 2).reshape(leaf.shape)
    return tiles.to_matrices(entries.reshape(m, m, *entries.shape[1:])).reshape(leaf.shape)
