"""Training with N:M masks that follow the weights."""

import functools

import jax
import jax.numpy as jnp
import optax

from jaxprune.methods import keeping
from jaxprune.patterns import nm, tiles, transposable
from jaxprune.trees import masks


def keep_nm(
    n: int | optax.Schedule,
    m: int,
    *,
    axis: str | int = "inputs",
    every: int = 1,
    where: masks.Where | None = None,
) -> optax.GradientTransformation:
    """Keeps the n largest magnitudes of every m weights along an axis, and zeros the others.

    The mask is chosen anew at updates 0, `every`, 2 `every`, ... from the parameters as they come
    in; in between it is kept. A pruned weight stays zero, unless `straight_through` goes around.

    Args:
      n: how many of a group to keep, 0 <= n <= m; or a schedule of the link's own count, which is
        rounded: `lambda step: jnp.maximum(4 - step // 1000, 1)` goes from dense to 1:4. Where it is
        NaN or not within 0 to m, and where a weight is NaN, the mask in force is kept, and
        `problems` says so.
      m: the size of a group, 1 to 32.
      axis: as for `nm_mask`.
      every: updates between two choices of the mask.
      where: which leaves can be pruned, as for `prunable`; by default those of two or more
        dimensions whose axis divides by m. (Of leaves that `where` chooses and that don't divide,
        the last group is smaller.)

    Returns:
      A transformation for the end of a chain. The mask is
      `current_mask(params, opt_state)`.

    Raises:
      TypeError: for n, m or `every` that isn't whole.
      ValueError: for n or m out of range, `every` < 1, or parameters of which nothing is chosen.

    >>> import jax.numpy as jnp, optax
    >>> import jaxprune as jp
    >>> params = {"kernel": jnp.array([[1.0], [-2.0], [3.0], [0.5]])}
    >>> tx = optax.chain(optax.sgd(0.1), jp.keep_nm(2, 4))
    >>> updates, _ = tx.update({"kernel": jnp.ones((4, 1))}, tx.init(params), params)
    >>> optax.apply_updates(params, updates)["kernel"].ravel()
    Array([ 0. , -2.1,  2.9,  0. ], dtype=float32)
    """
    mask_of = functools.partial(nm.nm_mask_of_magnitudes, axis=axis)
    return _keep(mask_of, n, m, (axis,), every, where)


def keep_transposable_nm(
    n: int | optax.Schedule, m: int, *, every: int = 40, where: masks.Where | None = None
) -> optax.GradientTransformation:
    """Keeps the transposable N:M mask of the largest magnitudes, and zeros the other weights.

    The mask is the best one (`transposable_nm_mask`), chosen anew at updates 0, `every`,
    2 `every`, ... from the parameters as they come in; in between it is kept. A pruned weight stays
    zero, unless `straight_through` goes around.

    Args:
      n: how many of a row or column of a tile to keep, 0 <= n <= m; or a schedule, as for
        `keep_nm`.
      m: the side of a tile, 1 to 32.
      every: updates between two choices of the mask; at the paper's 40 it is below one percent of
        a ResNet-50's training.
      where: which leaves can be pruned, as for `prunable`; by default those of two or more
        dimensions whose inputs and outputs divide by m, so first convolutions and depthwise ones
        stay dense.

    Returns:
      A transformation for the end of a chain. The mask is
      `current_mask(params, opt_state)`.

    Raises:
      TypeError: for n, m or `every` that isn't whole.
      ValueError: for n or m out of range, `every` < 1, or parameters of which nothing is chosen.

    Source: Hubara et al. (NeurIPS 2021), section 4.

    >>> import jax, jax.numpy as jnp, optax
    >>> import jaxprune as jp
    >>> params = {"kernel": jax.random.normal(jax.random.key(0), (16, 8))}
    >>> tx = optax.chain(optax.sgd(0.1), jp.keep_transposable_nm(2, 4))
    >>> updates, _ = tx.update(optax.tree.zeros_like(params), tx.init(params), params)
    >>> kept = optax.apply_updates(params, updates)["kernel"] != 0
    >>> kept.reshape(4, 4, 8).sum(1).tolist() == [[2] * 8] * 4  # along the inputs
    True
    >>> kept.reshape(16, 2, 4).sum(2).tolist() == [[2] * 2] * 16  # along the outputs
    True
    """
    mask_of = transposable.transposable_nm_mask_of_magnitudes
    return _keep(mask_of, n, m, ("inputs", "outputs"), every, where)


def _keep(mask_of, n, m, axes, every, where):
    """A link that keeps to N:M, by default in leaves of which these axes divide by m."""
    tiles.check_pattern(n, m)
    if where is None:
        where = lambda path, leaf: (
            leaf.ndim >= 2 and all(tiles.length(axis, path, leaf.shape) % m == 0 for axis in axes)
        )

    def choice(params, count):
        now, valid = n, jnp.bool_(True)
        if callable(n):
            wanted = jnp.round(jnp.asarray(n(count), jnp.float32))
            valid = (wanted >= 0) & (wanted <= m)
            now = jnp.where(valid, wanted, m).astype(jnp.int32)
        return valid, lambda: mask_of(params, now, m)

    def first(params):
        try:
            mask = masks.prunable(params, where)
        except ValueError as error:
            divide = " and ".join(map(str, axes))
            raise ValueError(
                f"{error} Without `where` it takes leaves whose {divide} divide by {m}."
            ) from error
        check = lambda path, leaf: [
            tiles.length(a, masks.path_name(path), leaf.shape) for a in axes
        ]
        jax.tree_util.tree_map_with_path(check, mask)
        return mask

    return keeping.keep(choice, first, every)
