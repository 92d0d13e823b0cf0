"""Masks as trees: which leaves can be pruned; apply, count and check a mask.

A mask has the structure of the parameters, with a boolean array where a leaf can be pruned and
`None` where it stays dense. Functions of parameters and a mask take the parameters first:
`jax.tree.map(f, params, mask)` then hands `None` to `f` where a leaf stays dense.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax

from jaxprune.trees import checks, wide

Where = Callable[[str, Any], bool] | str

# Last parts of paths, and parts before the last, whose leaves stay dense by default.
_BIAS_OR_SCALE = re.compile(r"(^|_)bias(es)?(_|$)|(^|_)scales?$|^(offset|gamma|beta)$")
_B = re.compile(r"(^|/)b\d*$")  # a bias beside a `w`, a weight beside an `a`
_NORM = re.compile(r"(norm|normalization|(^|_)[bgl]n)(_?(\d+|f))?$|^scales$", re.IGNORECASE)


def path_name(path) -> str:
    """A leaf's key path as text, such as `layers/0/kernel`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def prunable(params: chex.ArrayTree, where: Where | None = None) -> chex.ArrayTree:
    """Chooses the leaves that can be pruned, as a mask that keeps every weight.

    Args:
      params: any tree of arrays: Flax NNX state, Linen dict, Equinox module, lists. Shapes
        suffice (`jax.ShapeDtypeStruct`) under `jax.eval_shape`.
      where: `None` for kernels and embeddings: floating-point leaves with two or more dimensions,
        but no biases and no scales, whatever their rank. These are known by the last part of their
        path (`bias` alone or in words such as `bias_n`, `b` or `b1` beside a `w`, `scale`,
        `offset`, `gamma`, `beta`; a trailing `value` of NNX doesn't count), or by the layer right
        above, if its name or, in Equinox, its class ends in `norm` or `normalization` (also `ln`,
        `bn`, `gn`, and with a number). Or a regular expression that is searched for in the leaf's
        path (`"kernel"`, `"^encoder/.*kernel"`); or a predicate on (path, leaf). A leaf that is not
        floating-point is never chosen.

    Returns:
      A tree like `params`: an all-`True` array for each chosen leaf, `None` for the others.

    Raises:
      TypeError: for a `where` of another kind, or what is no tree of arrays.
      ValueError: if nothing is chosen; the message lists the paths.

    >>> import jax.numpy as jnp
    >>> import jaxprune as jp
    >>> params = {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}
    >>> jp.prunable(params)
    {'bias': None, 'kernel': Array([[ True,  True,  True],
           [ True,  True,  True]], dtype=bool)}
    """
    checks.tree("the argument of `prunable`", params)
    if where is None:
        kernels = kernel_names(params)
        chosen = lambda path, leaf: path_name(path) in kernels
    elif isinstance(where, str):
        pattern = _compiled(where)
        chosen = lambda path, leaf: pattern.search(path_name(path)) is not None
    elif callable(where):
        chosen = lambda path, leaf: where(path_name(path), leaf)
    else:
        raise TypeError(
            "`where` must be a regular expression or a function of (path, leaf), got "
            f"{checks.described(where)}"
        )

    def keep_all(path, leaf):
        if is_floating(leaf) and chosen(path, leaf):
            if not isinstance(leaf, jax.Array):  # a shape, or an array of NumPy's
                return jnp.ones_like(leaf, dtype=bool)
            # Of a constant XLA would not know that it is to lie like the leaf on a mesh.
            return (leaf == leaf) | (leaf != leaf)
        return None

    mask = jax.tree_util.tree_map_with_path(keep_all, params)
    if not jax.tree.leaves(mask):
        paths = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
        raise ValueError(
            "no leaf can be pruned: it takes a floating-point leaf "
            + (
                "of two or more dimensions that is no bias or scale"
                if where is None
                else f"that `where`{'' if callable(where) else f'={where!r}'} chooses"
            )
            + f"; the leaves are {paths}. Pass `where` to choose others."
        )
    return mask


def kernel_names(params: chex.ArrayTree) -> set[str]:
    """The paths of the leaves that can be pruned if nobody says which: kernels and embeddings."""
    return {
        path_name(path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
        if is_floating(leaf) and leaf.ndim >= 2 and not _is_bias_or_scale(params, path)
    }


def _compiled(where: str) -> re.Pattern:
    try:
        return re.compile(where)
    except re.error as error:
        raise ValueError(f"`where`={where!r} is no regular expression: {error}") from error


def _is_bias_or_scale(params: chex.ArrayTree, path) -> bool:
    """Whether a leaf is a bias or scale by its name, or that of the layer that holds it."""
    parts = path_name(path).split("/")
    if len(parts) > 1 and parts[-1] == "value":  # the array in a variable of NNX
        parts.pop()
    layer = _NORM.search(parts[-2]) if len(parts) > 1 else None
    return bool(
        _BIAS_OR_SCALE.search(parts[-1])
        or (_B.search(parts[-1]) and _is_beside_w(params, "/".join(parts)))
        or layer
        or _NORM.search(_holder(params, path))
    )


def _is_beside_w(params: chex.ArrayTree, name: str) -> bool:
    """Whether the node that has the leaf has one that is called `w`, `w1`, `W` or `weight` too."""
    beside = re.compile(re.escape(name.rpartition("b")[0]) + "w", re.IGNORECASE)
    names = (path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params))
    return any(beside.match(other) for other in names)


def _holder(params: chex.ArrayTree, path) -> str:
    """The class of the module that has the leaf as an attribute; empty if there is none."""
    if not path or not isinstance(path[-1], jax.tree_util.GetAttrKey):
        return ""
    node: Any = params
    for key in path[:-1]:
        if isinstance(key, jax.tree_util.GetAttrKey):
            node = getattr(node, key.name)
        elif isinstance(key, jax.tree_util.SequenceKey):
            node = node[key.idx]
        elif isinstance(key, jax.tree_util.DictKey):
            node = node[key.key]
        else:
            return ""
    return type(node).__name__


def is_floating(leaf) -> bool:
    """Whether a leaf is a floating-point array."""
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)


def is_boolean(leaf) -> bool:
    """Whether a leaf is a boolean array."""
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.bool_)


def apply_mask(params: chex.ArrayTree, mask: chex.ArrayTree) -> chex.ArrayTree:
    """Sets pruned weights to exactly zero, or scales weights by a soft mask.

    Args:
      params: tree of arrays.
      mask: tree like `params`. Where its leaf is boolean, weights under `False` become 0 (NaN and
        infinity too); where it is floating-point (a sample of `relaxed_bernoulli`), weights are
        multiplied by it in float32 or wider; where it is `None`, the leaf is left alone.

    Returns:
      A tree like `params`, with its dtypes.

    Raises:
      TypeError: for a mask that is neither boolean nor floating-point.
      ValueError: if the mask doesn't fit; the message names the leaf.

    >>> import jax.numpy as jnp
    >>> import jaxprune as jp
    >>> jp.apply_mask({"w": jnp.array([1.0, 2.0])}, {"w": jnp.array([True, False])})
    {'w': Array([1., 0.], dtype=float32)}
    """
    checks.tree("the parameters", params)
    mask = fit_mask(params, mask)

    def masked(path, weight, keep):
        if keep is None:
            return weight
        if is_boolean(keep):
            return jnp.where(keep, weight, jnp.zeros_like(weight))
        if not is_floating(keep):
            raise TypeError(
                f"the mask of leaf '{path_name(path)}' must be boolean, or floating-point to scale "
                f"by, got {checks.described(keep)}"
            )
        product = wider_dtype(weight, keep)
        return (weight.astype(product) * keep.astype(product)).astype(weight.dtype)

    return jax.tree_util.tree_map_with_path(masked, params, mask)


def wider_dtype(a: jax.Array, b: jax.Array):
    """The dtype that holds both arrays' values, under strict promotion too."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.promote_types(a.dtype, b.dtype)


def at_least_float32(x: jax.Array):
    """The dtype to calculate in: float64 for float64, float32 for what is narrower."""
    return jnp.float64 if x.dtype == jnp.float64 else jnp.float32


def fit_mask(params: chex.ArrayTree, mask: chex.ArrayTree) -> chex.ArrayTree:
    """The mask, checked against `params`, without leaves that `optax.masked` hides from a link.

    Raises:
      TypeError: for what is no mask, or for a mask in the place of the parameters.
      ValueError: if the mask doesn't fit; the message names the leaf.
    """
    masks = leaves_like(params, mask, "the mask", "`prunable(params)` or a function of such a tree")
    paths_and_leaves, structure = jax.tree_util.tree_flatten_with_path(params, is_leaf=_hidden)
    for (path, leaf), keep in zip(paths_and_leaves, masks, strict=True):
        if _hidden(leaf) or keep is None:
            continue
        if is_boolean(leaf):
            raise TypeError(
                f"leaf '{path_name(path)}' of the parameters is boolean, like a mask's: parameters "
                "come first, then the mask"
            )
        if jnp.shape(keep) != jnp.shape(leaf):
            raise ValueError(
                f"the mask of leaf '{path_name(path)}' must have the leaf's shape "
                f"{jnp.shape(leaf)} or be None, got {getattr(keep, 'shape', keep)}"
            )
    return structure.unflatten(
        leaf if _hidden(leaf) else keep
        for (_, leaf), keep in zip(paths_and_leaves, masks, strict=True)
    )


def leaves_like(params: chex.ArrayTree, tree: chex.ArrayTree, name: str, made_by: str) -> list:
    """What the tree has in the place of each leaf of `params`: a leaf or None.

    Raises:
      TypeError: for what is no tree of arrays.
      ValueError: if the structures differ; the message says what the tree is and how it's made.
    """
    try:
        return jax.tree.structure(params, is_leaf=_hidden).flatten_up_to(tree)
    except ValueError as error:
        checks.tree(name, tree)
        checks.modules_apart(params, tree)
        raise ValueError(
            f"{name} must have the structure of the parameters, which come first, with None for "
            f"leaves that don't take part; make it by {made_by}. {error}"
        ) from error


def visible(params: chex.ArrayTree, tree: chex.ArrayTree) -> chex.ArrayTree:
    """The tree with what `optax.masked` or `optax.partition` hides from a link hidden as well."""
    return jax.tree.map(lambda p, x: p if _hidden(p) else x, params, tree, is_leaf=_hidden)


def _hidden(leaf) -> bool:
    return isinstance(leaf, optax.MaskedNode)


@wide.counts_in_64_bits
@jax.jit
def _nonzero_total(leaves: list[jax.Array]) -> jax.Array:
    """The exact number of non-zero entries of all leaves, as a uint64 scalar."""
    if not leaves:
        return jnp.uint64(0)
    return jnp.sum(wide.exact_sums([[leaf if is_boolean(leaf) else leaf != 0] for leaf in leaves]))


def count(mask: chex.ArrayTree) -> int:
    """The number of kept weights, exactly, past 2**31 too and without x64.

    Args:
      mask: tree of boolean arrays and `None`.

    Returns:
      A Python integer; so the call waits for the device. Inside `jax.jit` use `sparsity`.

    Raises:
      TypeError: for leaves that aren't boolean (count of a parameter tree: see `sparsity`).

    >>> import jax.numpy as jnp
    >>> import jaxprune as jp
    >>> jp.count({"w": jnp.array([True, False, True]), "b": None})
    2
    """
    check_boolean(mask)
    return int(_nonzero_total(jax.tree.leaves(mask)))


def check_boolean(mask: chex.ArrayTree) -> None:
    """Raises a TypeError that names the leaf unless all leaves are boolean arrays."""
    checks.tree("the mask", mask)
    for path, leaf in jax.tree_util.tree_leaves_with_path(mask):
        if not is_boolean(leaf):
            raise TypeError(
                f"a mask has boolean leaves, but leaf '{path_name(path)}' is "
                f"{getattr(leaf, 'dtype', type(leaf).__name__)}; of parameters there is `sparsity`"
            )


def check_floating(name: str, tree: chex.ArrayTree) -> None:
    """Raises an error that names the leaf unless there are leaves, all floating-point."""
    checks.tree(f"the argument of {name}", tree)
    paths_and_leaves = jax.tree_util.tree_leaves_with_path(tree)
    if not paths_and_leaves:
        raise ValueError(f"{name} needs arrays, but the tree has no leaves")
    for path, leaf in paths_and_leaves:
        if not is_floating(leaf):
            raise TypeError(
                f"{name} needs floating-point arrays, but leaf '{path_name(path)}' is "
                f"{getattr(leaf, 'dtype', type(leaf).__name__)}; put None in the place of leaves "
                "that don't take part"
            )


def sharded_alike(function: Callable[..., chex.ArrayTree], tree: chex.ArrayTree) -> Callable:
    """The function with results sharded like the tree, whose leaves' shapes they have.

    On a mesh with Explicit axes, where a reshape would ask for its result's sharding, the function
    runs as it does with Auto axes; elsewhere it is left as it is.
    """
    return sharded_as(function, jax.tree.map(lambda leaf: jax.typeof(leaf).sharding, tree))


def sharded_as(function: Callable[..., chex.ArrayTree], shardings: chex.ArrayTree) -> Callable:
    """As `sharded_alike`, with the shardings of the results."""
    for sharding in jax.tree.leaves(shardings):
        if jax.sharding.AxisType.Explicit in sharding.mesh.axis_types:
            axes = sharding.mesh.explicit_axes
            auto_axes: Any = jax.sharding.auto_axes
            return auto_axes(function, axes=axes, out_sharding=shardings)
    return function


def whole(function: Callable[..., chex.ArrayTree], tree: chex.ArrayTree) -> Callable:
    """As `sharded_alike`, with results that each device has whole."""
    meshes = [jax.typeof(leaf).sharding.mesh for leaf in jax.tree.leaves(tree)]
    explicit = [mesh for mesh in meshes if jax.sharding.AxisType.Explicit in mesh.axis_types]
    if not explicit:
        return function
    everywhere: Any = jax.sharding.NamedSharding(explicit[0], jax.sharding.PartitionSpec())
    return sharded_as(function, everywhere)


def most_shards(size: int, mesh) -> int:
    """A multiple of every number of shards that so many entries of an axis can lie in, evenly.

    On a mesh with Auto axes nobody knows, while a function is traced, how an array lies. But an
    axis split into this number of parts and the rest is then sharded along the parts alone:
    whatever is done inside the parts moves nothing.
    """
    sizes = mesh.axis_sizes
    together = (c for count in range(len(sizes) + 1) for c in itertools.combinations(sizes, count))
    shards: list[int] = [math.prod(axes) for axes in together]
    return math.lcm(*(number for number in shards if size % number == 0))


def sparsity(tree: chex.ArrayTree) -> jax.Array:
    """The fraction of zeros among prunable weights.

    Args:
      tree: a mask (boolean leaves and `None`), or parameters, of which the leaves that `prunable`
        chooses by default are counted.

    Returns:
      float32 scalar in [0, 1], from an exact count; works inside `jax.jit`.

    Raises:
      ValueError: if nothing is prunable.

    >>> import jax.numpy as jnp
    >>> import jaxprune as jp
    >>> float(jp.sparsity({"w": jnp.array([[1.0, 0.0], [0.0, 0.0]]), "b": jnp.ones(2)}))
    0.75
    """
    leaves = jax.tree.leaves(tree)
    if not leaves or not all(map(is_boolean, leaves)):
        chosen = jax.tree.map(lambda x, keep: None if keep is None else x, tree, prunable(tree))
        leaves = jax.tree.leaves(chosen)
    return _zero_fraction(leaves)


@wide.counts_in_64_bits
def nonzeros(leaves: list[jax.Array]) -> jax.Array:
    """The number of non-zero entries, as a float32 scalar of the exact count."""
    return _nonzero_total(leaves).astype(jnp.float32)


@wide.counts_in_64_bits
def _zero_fraction(leaves):
    size = sum(leaf.size for leaf in leaves)
    zeros = jnp.uint64(size) - _nonzero_total(leaves)
    return zeros.astype(jnp.float32) / jnp.float32(max(size, 1))
