r"""AdaPrune: the kept weights of a network change so that its layers give what they gave before.

Layer by layer, with inputs `X` of calibration data (rows) and the dense kernel `W`:

.. math:: \min_{W', b'} \| X_d W + b - X (S \circ W') - b' \|^2 + \delta \| W - S \circ W' \|^2

`X` is `X_d`, what the layer sees in the dense network, or in sequence what it sees in the network
whose earlier layers have been pruned and reconstructed. Only X^T X, X^T X_d and the means of rows
are kept of the data. Each output's kept weights solve normal equations of their own.
"""

import functools
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from jaxprune.networks import capture
from jaxprune.trees import checks, masks

_AT_ONCE = 2**24  # entries of the matrices that are factorised together
_STEPS, _LEARNING_RATE = 1000, 1e-3
_HIGHEST = jax.lax.Precision.HIGHEST
_KERNEL = re.compile(r"(kernel|weight)(?=(/value)?$)")


class _Moments(NamedTuple):
    """Of rows x and d of the sparse and dense network: count, means, sums of x x^T and x d^T."""

    count: jax.Array
    sparse: jax.Array
    dense: jax.Array
    gram: jax.Array
    cross: jax.Array


def reconstruct(
    apply: Callable[[chex.ArrayTree, Any], Any],
    params: chex.ArrayTree,
    mask: chex.ArrayTree,
    batches: Sequence[Any],
    *,
    sequential: bool = True,
    damping: float = 0.01,
    method: str = "closed_form",
) -> chex.ArrayTree:
    """Prunes a trained network by a mask and makes up for it, with a little data and no labels.

    Args:
      apply: `apply(params, batch)` runs the model, BatchNorm with its running averages; what it
        returns is ignored. It is traced, and the inputs of each leaf's matrix product or
        convolution are found by themselves, so any model will do.
      params: trained parameters.
      mask: tree of booleans and `None` like `params`, for example an N:M mask of its magnitudes;
        leaves with `None` stay as they are.
      batches: calibration data, each of one shape: some hundred to a thousand records in all.
      sequential: whether a layer makes up for the layers before it, too. Otherwise each one sees
        what the dense network's sees.
      damping: delta, as a fraction of the mean square of the inputs; it draws towards the dense
        weights. Of the closed form only.
      method: "closed_form" solves the normal equations; "gradient" takes 1,000 steps of Adam, like
        the paper's, but on all data at once.

    Returns:
      Parameters like `params`, zero where the mask prunes. A kernel's bias, the leaf beside it
      that is named so, is fitted as well.

    Raises:
      TypeError: for an `apply` that is no function, a mask that isn't boolean, or batches that
        aren't a sequence.
      ValueError: for a mask that doesn't fit or a masked leaf without products that are seen (in
        loops, grouped convolutions), no batches, data that give NaN or infinity, equations that
        are singular (without damping), or an unknown method.

    Source: Hubara et al. (NeurIPS 2021), section 5, for the problem; the closed form takes the
    place of its gradient steps.

    >>> import jax, jax.numpy as jnp
    >>> import jaxprune as jp
    >>> inputs = jax.random.normal(jax.random.key(0), (100, 2)) @ jnp.ones((2, 8)).cumsum(1)
    >>> params = {"kernel": jax.random.normal(jax.random.key(1), (8, 4)), "bias": jnp.zeros(4)}
    >>> apply = lambda params, x: x @ params["kernel"] + params["bias"]
    >>> mask = {"kernel": jp.nm_mask(abs(params["kernel"]), 2, 4), "bias": None}
    >>> error = lambda new: float(jnp.mean((apply(new, inputs) - apply(params, inputs)) ** 2))
    >>> new = jp.reconstruct(apply, params, mask, [inputs])
    >>> error(new) < 0.01 * error(jp.apply_mask(params, mask))
    True
    """
    checks.function("`apply`", apply)
    masks.check_boolean(mask)
    mask = masks.fit_mask(params, mask)
    checks.number("damping", damping, "a number")
    if not damping >= 0:
        raise ValueError(f"damping must not be negative, got {damping}")
    if hasattr(batches, "dtype"):
        kind = checks.described(batches)
        raise TypeError(f"`batches` must be a sequence of batches, such as a list, got {kind}")
    batches = list(batches)
    if not batches:
        raise ValueError("calibration takes data: `batches` is empty")
    if method not in _METHODS:
        raise ValueError(f"method must be one of {[*_METHODS]}, got {method!r}")
    paths_and_leaves, structure = jax.tree_util.tree_flatten_with_path(params)
    names = [masks.path_name(path) for path, _ in paths_and_leaves]
    keeps = structure.flatten_up_to(mask)
    dense = jax.tree.leaves(params)
    sparse = jax.tree.leaves(masks.apply_mask(params, mask))
    of_leaves = lambda leaves, batch: apply(structure.unflatten(leaves), batch)

    for product in _products_in_order(of_leaves, dense, batches[0], names, keeps):
        leaf, bias = product.leaf, _bias_of(product, names, dense)
        moments = _moments(of_leaves, leaf, dense, sparse if sequential else dense, batches)
        before = dense[leaf].astype(jnp.float32)
        kernel, keep = (capture.as_matrix(x, product) for x in (before, keeps[leaf]))
        free = moments if bias is not None else _about_zero(moments)
        new = _METHODS[method](free, kernel, keep, damping)
        _check_finite(names[leaf], moments, new, damping)
        sparse[leaf] = capture.from_matrix(new, dense[leaf], product)
        if bias is not None:
            sparse[bias] = _shifted(dense[bias], moments, kernel, new)
    return structure.unflatten(sparse)


def _products_in_order(apply, leaves, batch, names, keeps):
    """The first product with each masked leaf, as the model uses them; its rows are abstract."""
    products: list[capture.Product] = []
    jax.eval_shape(lambda *args: products.extend(capture.products(apply, *args)), leaves, batch)
    first: dict[int, capture.Product] = {}
    for product in products:
        if first.setdefault(product.leaf, product).inputs != product.inputs:
            raise ValueError(f"leaf '{names[product.leaf]}' is multiplied from both sides")
    unseen = [name for i, name in enumerate(names) if keeps[i] is not None and i not in first]
    if unseen:
        raise ValueError(
            f"no matrix product or ungrouped convolution outside loops is seen of leaves {unseen}: "
            "put None in their places in the mask"
        )
    return [product for leaf, product in first.items() if keeps[leaf] is not None]


def _moments(apply, leaf, dense, sparse, batches) -> _Moments:
    """Of all batches."""

    @jax.jit
    def of_batch(dense, sparse, batch):
        def rows(leaves):
            own = [p.rows for p in capture.products(apply, leaves, batch) if p.leaf == leaf]
            return jnp.concatenate(own).astype(jnp.float32)

        x, d = rows(sparse), rows(dense)
        means = jnp.mean(x, 0), jnp.mean(d, 0)
        x, d = x - means[0][None], d - means[1][None]
        products = (jnp.matmul(x.T, y, precision=_HIGHEST) for y in (x, d))
        return _Moments(jnp.float32(len(x)), *means, *products)

    return functools.reduce(_together, (of_batch(dense, sparse, batch) for batch in batches))


@jax.jit
def _together(a: _Moments, b: _Moments) -> _Moments:
    """Of the rows of both, without the rounding of sums of squares (Chan et al. 1979)."""
    count = a.count + b.count
    sparse, dense = b.sparse - a.sparse, b.dense - a.dense
    weight = a.count * b.count / count
    return _Moments(
        count,
        a.sparse + sparse * (b.count / count),
        a.dense + dense * (b.count / count),
        a.gram + b.gram + weight * jnp.outer(sparse, sparse),
        a.cross + b.cross + weight * jnp.outer(sparse, dense),
    )


def _about_zero(moments: _Moments) -> _Moments:
    """With sums about zero: what a kernel without a bias has to give."""
    rows = moments.count * moments.sparse
    return moments._replace(
        gram=moments.gram + jnp.outer(rows, moments.sparse),
        cross=moments.cross + jnp.outer(rows, moments.dense),
    )


def _bias_of(product, names, leaves) -> int | None:
    """The number of the leaf that is the kernel's bias by its name and size."""
    name = _KERNEL.sub("bias", names[product.leaf])
    if name not in names or name == names[product.leaf]:
        return None
    outputs = math.prod(leaves[product.leaf].shape[axis] for axis in product.outputs)
    bias = names.index(name)
    return bias if leaves[bias].size == outputs else None


def _shifted(bias, moments: _Moments, before, after):
    """The bias that keeps the mean of each output."""
    matmul = functools.partial(jnp.matmul, precision=_HIGHEST)
    shift = matmul(moments.dense, before) - matmul(moments.sparse, after)
    return (bias.astype(jnp.float32) + shift.reshape(bias.shape)).astype(bias.dtype)


def _check_finite(name: str, moments: _Moments, new, damping) -> None:
    finite = lambda x: bool(jnp.all(jnp.isfinite(x)))
    if not all(map(finite, moments)):
        raise ValueError(f"the inputs of leaf '{name}' aren't all finite")
    if not finite(new):
        raise ValueError(
            f"the normal equations of leaf '{name}' are singular: it takes more data or damping "
            f"than {damping}"
        )


# The least squares of one layer.


def _closed_form(moments: _Moments, kernel, keep, damping) -> jax.Array:
    """Solves the normal equations of each output's kept weights."""
    most = int(jnp.max(jnp.sum(keep, 0), initial=0))
    return _solve(moments.gram, moments.cross, kernel, keep, damping, most)


@functools.partial(jax.jit, static_argnames="most")
def _solve(gram, cross, kernel, keep, damping, most: int) -> jax.Array:
    squares = jnp.diagonal(gram)
    # What comes in as nothing but zeros keeps its weight.
    ridge = jnp.where(squares > 0, damping * jnp.mean(squares), 1.0)
    gram = gram + jnp.diag(ridge)
    right = jnp.matmul(cross, kernel, precision=_HIGHEST) + ridge[:, None] * kernel
    kept_first = jnp.argsort(~keep, axis=0, stable=True)[:most].T  # (outputs, most)

    def of_output(args):
        places, right, keep = args
        present = keep[places]
        both = present[:, None] & present[None]
        own = jnp.where(both, gram[places[:, None], places[None]], jnp.eye(most))
        factor = jax.scipy.linalg.cho_factor(own)
        solve = functools.partial(jax.scipy.linalg.cho_solve, factor)
        wanted = jnp.where(present, right[places], 0)
        found = solve(wanted)
        found = found + solve(wanted - jnp.matmul(own, found, precision=_HIGHEST))
        return jnp.zeros(len(gram)).at[places].set(jnp.where(present, found, 0))

    at_once = max(_AT_ONCE // max(most, 1) ** 2, 1)
    return jax.lax.map(of_output, (kept_first, right.T, keep.T), batch_size=at_once).T


@jax.jit
def _gradient(moments: _Moments, kernel, keep, damping) -> jax.Array:
    """Steps of Adam from the pruned kernel."""
    del damping
    optimizer = optax.adam(_LEARNING_RATE)
    right = jnp.matmul(moments.cross, kernel, precision=_HIGHEST)

    def step(state, _):
        new, opt_state = state
        slope = jnp.matmul(moments.gram, new, precision=_HIGHEST) - right
        slope = jnp.where(keep, slope, 0) / moments.count
        updates, opt_state = optimizer.update(slope, opt_state)
        return (optax.apply_updates(new, updates), opt_state), None

    start = jnp.where(keep, kernel, 0)
    (new, _), _ = jax.lax.scan(step, (start, optimizer.init(start)), length=_STEPS)
    return new


_METHODS = {"closed_form": _closed_form, "gradient": _gradient}
