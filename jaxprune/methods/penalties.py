r"""Sparsity penalties as scalar functions of arrays and trees, with gradients in closed form.

With S1 = sum |w| and S2 = sum w^2 of one tensor, the Hoyer-Square S1^2 / S2 counts weights softly:
k for k equal magnitudes, whatever their size. Its gradient

.. math::
  \frac{2}{\tau} \left(\operatorname{sign} w - \frac{w}{\tau}\right), \qquad \tau = S_2 / S_1

pulls what is smaller than the trimming point tau to zero and pushes away what is larger (Yang, Wen,
Li, "DeepHoyer", ICLR 2020, arXiv 1908.09979). Group Hoyer-Square is the same of the groups' norms.

Where squares leave the range of float32, tensors are divided by their largest magnitude, which
changes nothing in a scale-invariant function. At zero, where the functions are 0/0, values and
gradients are 0. Sums are float32 or wider. A gradient is one expression of its weight and of
scalars, without a division: XLA then makes it inside the optimizer's update, in no memory of its
own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from jaxprune.patterns import groups
from jaxprune.trees import checks, masks


def hoyer_square(params: chex.ArrayTree, *, normalized: bool = False) -> jax.Array:
    r"""Hoyer-Square, summed over the leaves.

    .. math:: \sum_{w} \frac{(\sum_i |w_i|)^2}{\sum_i w_i^2}

    Args:
      params: an array, or a tree of floating-point arrays and `None`.
      normalized: divide each leaf's value by its size: then it lies in (0, 1], and one strength
        fits leaves of all sizes.

    Returns:
      float32 scalar (float64 for float64 leaves): between 1 and the size for each leaf that isn't
      zero, 0 for one that is. The gradient has the leaves' dtypes.

    Raises:
      TypeError: for leaves that aren't floating-point.
      ValueError: for a tree without leaves.

    Source: DeepHoyer (ICLR 2020), section 3.2.

    >>> import jax, jax.numpy as jnp
    >>> import jaxprune as jp
    >>> float(jp.hoyer_square(jnp.array([3.0, 4.0])))
    1.96
    >>> jax.grad(jp.hoyer_square)(jnp.array([3.0, 4.0])).round(4)
    Array([ 0.0896, -0.0672], dtype=float32)
    """

    def of_leaf(leaf):
        return _hoyer_square(leaf) / float(max(leaf.size, 1) if normalized else 1)

    return _sum_over(params, of_leaf)


def group_hoyer_square(
    params: chex.ArrayTree, axis: groups.Axis, *, normalized: bool = False
) -> jax.Array:
    r"""Hoyer-Square of the Euclidean norms of groups, summed over the leaves.

    .. math:: \sum_{w} \frac{(\sum_g \|w_g\|)^2}{\sum_g \|w_g\|^2}

    Args:
      params: an array, or a tree of floating-point arrays and `None`.
      axis: the axes inside a group, over which the norm runs: an integer, a tuple of integers, or a
        name that fits any layer ("inputs", "outputs", "heads", as in `group_norms`). Of a tuple of
        names the penalties add up: `("inputs", "outputs")` is the paper's for channels and filters.
      normalized: divide each value by the number of groups.

    Returns:
      float32 scalar (float64 for float64 leaves). Groups of zeros count as absent, and their
      gradient is 0.

    Raises:
      TypeError: for leaves that aren't floating-point, or an axis that is none.
      ValueError: for a tree without leaves, or axes that a leaf doesn't have.

    Source: DeepHoyer (ICLR 2020), section 3.3.

    >>> import jax.numpy as jnp
    >>> import jaxprune as jp
    >>> rows = jnp.array([[3.0, 4.0], [0.0, 0.0]])  # (inputs, outputs)
    >>> [float(jp.group_hoyer_square(rows, name)) for name in ("inputs", "outputs")]
    [1.0, 1.96]
    """

    def of_groups(leaf, inside):
        count = float(groups.count(leaf.shape, inside) if normalized else 1)
        return _group_hoyer_square(leaf, inside) / count

    return _sum_over_groups(params, axis, of_groups)


def hoyer_ratio(params: chex.ArrayTree) -> jax.Array:
    r"""The Hoyer ratio of L1 to L2 norm, summed over the leaves: the square root of Hoyer-Square.

    .. math:: \sum_{w} \frac{\sum_i |w_i|}{\sqrt{\sum_i w_i^2}}

    Args:
      params: an array, or a tree of floating-point arrays and `None`.

    Returns:
      float32 scalar (float64 for float64 leaves); 0, with gradient 0, for zero leaves.

    Raises:
      TypeError: for leaves that aren't floating-point.
      ValueError: for a tree without leaves.

    Source: Hoyer, "Non-negative matrix factorization with sparseness constraints" (JMLR 2004).

    >>> import jax.numpy as jnp
    >>> import jaxprune as jp
    >>> float(jp.hoyer_ratio(jnp.array([3.0, 4.0])))
    1.4
    """
    return _sum_over(params, _hoyer_ratio)


def l1(params: chex.ArrayTree) -> jax.Array:
    """The sum of magnitudes over all leaves, float32 or wider.

    >>> import jax.numpy as jnp
    >>> import jaxprune as jp
    >>> float(jp.l1({"w": jnp.array([3.0, -4.0]), "b": None}))
    7.0
    """
    return _sum_over(params, lambda leaf: jnp.sum(_magnitude(leaf)))


def transformed_l1(params: chex.ArrayTree) -> jax.Array:
    """The sum of 2 |w| / (1 + |w|) over all leaves, float32 or wider: L1 for small, L0 for large w.

    Source: Ma, Miao, Niu, Zhang, "Transformed L1 regularization for learning sparse deep neural
    networks" (Neural Networks 2019), with a = 1.

    >>> import jax.numpy as jnp
    >>> import jaxprune as jp
    >>> float(jp.transformed_l1(jnp.array([0.0, 1.0, -3.0])))
    2.5
    """

    def of_leaf(leaf):
        magnitude = _magnitude(leaf)
        return jnp.sum(2.0 * magnitude / (1.0 + magnitude))

    return _sum_over(params, of_leaf)


def group_lasso(params: chex.ArrayTree, axis: groups.Axis) -> jax.Array:
    """The sum of the groups' Euclidean norms over all leaves, float32 or wider.

    Args:
      params: an array, or a tree of floating-point arrays and `None`.
      axis: as for `group_hoyer_square`.

    Raises:
      TypeError: for leaves that aren't floating-point, or an axis that is none.
      ValueError: for a tree without leaves, or axes that a leaf doesn't have.

    >>> import jax.numpy as jnp
    >>> import jaxprune as jp
    >>> float(jp.group_lasso(jnp.array([[3.0, 4.0], [0.0, 0.0]]), "outputs"))
    7.0
    """
    return _sum_over_groups(params, axis, lambda leaf, inside: jnp.sum(groups.norms(leaf, inside)))


def trimming_point(x: jax.Array) -> jax.Array:
    """S2 / S1 of an array: Hoyer-Square shrinks what is smaller and grows what is larger.

    Args:
      x: floating-point array of any shape; for groups, their norms.

    Returns:
      float32 scalar (float64 for float64), in the units of `x`; 0 if all of it is 0.

    Raises:
      TypeError: for what is no floating-point array.

    Source: DeepHoyer (ICLR 2020), section 3.2.

    >>> import jax.numpy as jnp
    >>> import jaxprune as jp
    >>> float(jp.trimming_point(jnp.array([3.0, 4.0])))
    3.571428
    """
    if not masks.is_floating(x):
        kind = checks.described(x)
        raise TypeError(f"the trimming point is of one floating-point array, got {kind}")
    inverse, s1, s2 = _moments(x)
    return (s2 / groups.or_one(s1)) / inverse  # their product may overflow


def _sum_over(tree, penalty: Callable[[jax.Array], jax.Array]) -> jax.Array:
    masks.check_floating("a penalty", tree)
    return functools.reduce(jnp.add, [penalty(_wide(leaf)) for leaf in jax.tree.leaves(tree)])


def _sum_over_groups(tree, axis, penalty) -> jax.Array:
    masks.check_floating("a penalty", tree)
    terms = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        wide = _wide(leaf)
        for inside in groups.axes_inside(axis, masks.path_name(path), leaf.shape):
            # The XLA of JAX 0.9 makes NaN of groups without entries.
            terms.append(penalty(wide, inside) if leaf.size else jnp.zeros((), wide.dtype))
    return functools.reduce(jnp.add, terms)


def _wide(x: jax.Array) -> jax.Array:
    """In the dtype to sum in; its gradient is rounded to the dtype of x once, at the end."""
    return x.astype(masks.at_least_float32(x))


@jax.custom_jvp
def _magnitude(x: jax.Array) -> jax.Array:
    """|x| with the derivative sign(x), which is 0 at 0, where that of `jnp.abs` is 1."""
    return jnp.abs(x)


@_magnitude.defjvp
def _magnitude_jvp(primals, tangents):
    (x,) = primals
    return jnp.abs(x), jnp.sign(x) * tangents[0]


@jax.jit  # or it is compiled at every call
def _moments(x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The inverse of a scale, and with u = x / scale the sums of |u| and u^2, in one read of x."""
    return jax.lax.platform_dependent(_wide(x), cpu=_moments_by_branch, default=_moments_by_sums)


def _moments_by_sums(x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """By all sums that could be needed; the scale is a power of two."""
    inverse, s2 = (y.reshape(()) for y in groups.squares_by_sums(x, tuple(range(x.ndim))))
    small = 1.0 / groups.large(x.dtype)
    s1, of_huge = jnp.sum(_magnitude(x)), jnp.sum(_magnitude(x * small))
    return inverse, jnp.where(inverse < 1, of_huge, s1 * inverse), s2


def _moments_by_branch(x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """By the sums of x itself; of scaled entries only where these under- or overflow."""
    s1, s2 = jnp.sum(_magnitude(x)), jnp.sum(x * x)
    least, tiny = groups.least_square(x.dtype), float(jnp.finfo(x.dtype).tiny)
    right = (s2 >= x.size * least) & (jnp.maximum(s1, s2) < jnp.inf)

    def scaled(x):
        largest = jax.lax.stop_gradient(jnp.max(jnp.abs(x), initial=0.0))
        inverse = 1.0 / jnp.clip(largest, tiny, 1.0 / tiny)  # neither it nor its inverse is 0
        return inverse, jnp.sum(_magnitude(x * inverse)), jnp.sum((x * inverse) ** 2)

    return jax.lax.cond(right, lambda _: (jnp.ones_like(s1), s1, s2), scaled, x)


@jax.custom_jvp
def _hoyer_square(x: jax.Array) -> jax.Array:
    _, s1, s2 = _moments(x)
    return s1 * (s1 / groups.or_one(s2))


@_hoyer_square.defjvp
def _hoyer_square_jvp(primals, tangents):
    (x,) = primals
    inverse, s1, s2 = _moments(x)
    ratio = s1 / groups.or_one(s2)
    gradient = (2.0 * ratio * inverse) * (jnp.sign(x) - ratio * (x * inverse))
    return s1 * ratio, _along(gradient, tangents)


@jax.custom_jvp
def _hoyer_ratio(x: jax.Array) -> jax.Array:
    _, s1, s2 = _moments(x)
    return s1 / jnp.sqrt(groups.or_one(s2))


@_hoyer_ratio.defjvp
def _hoyer_ratio_jvp(primals, tangents):
    (x,) = primals
    inverse, s1, s2 = _moments(x)
    norm = jnp.sqrt(groups.or_one(s2))
    gradient = (jnp.sign(x) - (s1 / groups.or_one(s2)) * (x * inverse)) * (inverse / norm)
    return s1 / norm, _along(gradient, tangents)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _group_hoyer_square(x: jax.Array, inside: tuple[int, ...]) -> jax.Array:
    _, s1, s2 = _moments(groups.norms(x, inside))
    return s1 * (s1 / groups.or_one(s2))


@_group_hoyer_square.defjvp
def _group_hoyer_square_jvp(inside, primals, tangents):
    (x,) = primals
    norm = groups.norms(x, inside)
    inverse, s1, s2 = _moments(norm)
    ratio, u = s1 / groups.or_one(s2), norm * inverse
    present = u >= jnp.finfo(u.dtype).tiny
    # Whatever needs a division is made once for a group: each weight is then only multiplied.
    pull = jnp.where(present, (1.0 - ratio * u) / jnp.where(present, u, 1.0), 0.0)
    gradient = (2.0 * ratio * inverse) * (pull * (x.astype(norm.dtype) * inverse))
    return s1 * ratio, _along(gradient, tangents)


def _along(gradient: jax.Array, tangents) -> jax.Array:
    """The directional derivative."""
    return jnp.sum(gradient * tangents[0])
