"""One of all N:M patterns for each group of weights, drawn from trained logits.

A group of m inputs has C(m, n) patterns, 6 for 2:4; a 4-by-4 tile has 90 transposable 2:4 patterns.
Each group or tile has a logit for each: 6 bytes a weight for 2:4 in float32, 22.5 bytes for
transposable 2:4. Whatever is drawn is an exact N:M mask.

Kernels are read as matrices (inputs, outputs) and tiles as in `patterns`, and their sides divide;
groups of m run along the inputs of Flax's layout.
"""

import functools
import itertools
import math
from collections.abc import Callable

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
    _check_logits(params, logits, n, m, transposable)
    kind = (n, m, transposable)

    def draw(key, logit, temperature):
        keys = jax.random.split(key, len(logit))
        return _drawn(kind, random_bits, logit.astype(jnp.float32), keys, temperature)

    def of_tree(key, params, logits, temperature):
        one = lambda key, logit: draw(key, logit, temperature)
        return jax.tree.map(_folded, params, sampling.map_with_keys(one, key, logits))

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
    _check_logits(params, logits, n, m, transposable)

    def of_leaf(leaf, logit):
        return _folded(leaf, _entries((n, m, transposable), jnp.argmax(logit, axis=0)) > 0)

    chosen = jax.tree.map(lambda p, a: None if a is None else p, params, logits)
    of_tree = lambda params, logits: jax.tree.map(of_leaf, params, logits)
    return masks.sharded_alike(of_tree, chosen)(chosen, logits)


def _check_logits(params, logits, n, m, transposable) -> None:
    masks.leaves_like(params, logits, "the logits", "`init_pattern_logits(params, ...)`")
    count = len(_table(n, m, transposable))

    def check(path, leaf, logit):
        if logit is None:
            return
        name = masks.path_name(path)
        unfolded = lambda x: _unfolded(name, x, m, transposable)
        groups = jax.eval_shape(unfolded, jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)).shape[1:]
        if logit.shape != (count, *groups):
            raise ValueError(
                f"logits of leaf '{name}' must have shape {(count, *groups)}, got {logit.shape}: "
                "make them by `init_pattern_logits` with the same n, m and transposable"
            )

    jax.tree_util.tree_map_with_path(check, params, logits)


# Classes come first, and one follows the other: what is calculated of a class stays in the caches,
# and nothing of the size of the logits is made but what the gradient needs.


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _drawn(kind, random_bits, logits, keys, temperature) -> jax.Array:
    """Entries (rows, entries of a row, groups...) of the pattern that noise chooses, 0 or 1."""
    return _drawn_fwd(kind, random_bits, logits, keys, temperature)[0]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _drawn_fwd(kind, random_bits, logits, keys, temperature):
    def run(best, this):
        number, logit, key = this
        noisy = logit - jnp.log(-jnp.log(sampling.open_uniform(logit, key, random_bits)))
        wins = noisy > best[0]
        return (jnp.where(wins, noisy, best[0]), jnp.where(wins, number, best[1])), noisy

    groups, numbers = logits.shape[1:], jnp.arange(len(logits), dtype=jnp.int32)
    start = (jnp.full(groups, -jnp.inf), jnp.zeros(groups, jnp.int32))
    (largest, winner), all_noisy = jax.lax.scan(run, start, (numbers, logits, keys))
    return _entries(kind, winner), (all_noisy, largest, temperature)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _drawn_bwd(kind, random_bits, residuals, cotangent):
    """y (g - sum y g) / t with the gains g of the patterns, y = softmax(noisy / t).

    One array holds the noisy logits, then their exponentials, then the gradient.
    """
    del random_bits
    all_noisy, largest, temperature = residuals
    gain, coldness = _gains(kind, cotangent), 1.0 / temperature

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


@functools.cache
def _rows(kind) -> np.ndarray:
    """(patterns, rows, entries of a row): a row is one input, its entries the outputs of a tile."""
    table = _table(*kind)
    return table.reshape(len(table), kind[1], -1)


def _entries(kind, number: jax.Array) -> jax.Array:
    """(rows, entries of a row, groups...) of the patterns with these numbers, in float32."""
    rows = _rows(kind)
    places = np.arange(rows.shape[2])
    words = np.sum(rows * 2.0**places, axis=2).astype(np.uint32)  # fewer look-ups than entries
    found = jnp.stack([jnp.asarray(words[:, i])[number] for i in range(kind[1])])
    bits = [(found >> np.uint32(j)) & np.uint32(1) for j in places]
    return jnp.stack(bits, axis=1).astype(jnp.float32)


def _gains(kind, worth: jax.Array) -> Callable[[jax.Array], jax.Array]:
    """From a pattern's number to what its entries are worth together.

    There are fewer rows than patterns, so each is added up once.
    """
    sums, which = [], []
    for i, rows in enumerate(np.moveaxis(_rows(kind), 1, 0)):
        different, numbers = np.unique(rows, axis=0, return_inverse=True)
        sums.append(_exact_product(different, worth[i]))
        which.append(jnp.asarray(numbers.reshape(-1), jnp.int32))
    return lambda number: functools.reduce(
        jnp.add, [of_row[rows[number]] for of_row, rows in zip(sums, which, strict=True)]
    )


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
    count, inputs, outputs = matrices.shape
    if inputs % m or (transposable and outputs % m):
        raise ValueError(
            f"sides must divide by {m}, but leaf '{name}' has {inputs} inputs and {outputs} "
            "outputs; choose leaves with `where`"
        )
    if transposable:
        whole = tiles.whole_tiles(matrices, m)
        return whole.reshape(m * m, *whole.shape[2:])
    return jnp.moveaxis(matrices.reshape(count, inputs // m, m, outputs), 2, 0)


def _folded(leaf: jax.Array, entries: jax.Array) -> jax.Array:
    """From (rows, entries of a row, matrices, inputs / m, groups...) to the shape of the leaf."""
    return entries.transpose(2, 3, 0, 4, 1).reshape(leaf.shape)
