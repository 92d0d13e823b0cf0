"""A trained network pruned in one shot: each layer's mask from what the layer sees."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp

from jaxprune.networks import capture, layerwise, moments, targets
from jaxprune.networks.admm import admm_mask
from jaxprune.networks.layerwise import Problem
from jaxprune.networks.reconstruction import closed_form
from jaxprune.networks.sparsegpt import sparsegpt
from jaxprune.networks.targets import Target
from jaxprune.patterns.targets import NM
from jaxprune.trees import masks


def prune_layers(
    apply: Callable[[chex.ArrayTree, Any], Any],
    params: chex.ArrayTree,
    sparsity: float | str | NM | chex.ArrayTree,
    batches: Sequence[Any],
    *,
    sequential: bool = True,
    damping: float = 0.01,
    method: str = "sparsegpt",
    scope: str | None = None,
    where: masks.Where | None = None,
) -> tuple[chex.ArrayTree, chex.ArrayTree]:
    """Prunes a trained network layer by layer, with a little data and no labels.

    `reconstruct` makes up for a mask that is there; here the mask is found as well.

    Args:
      apply: as for `reconstruct`: any model, whose layers' inputs are found by themselves.
      params: trained parameters.
      sparsity: the fraction of zeros in each leaf, in [0, 1]; or a pattern such as "2:4", 2 kept of
        every 4 inputs (what the product sums over, in whatever layout the leaf has; of
        convolutions, channels), or `NM`; or a tree of these like `params`, `None` where a leaf
        stays dense.
      batches: calibration data, as for `reconstruct`.
      sequential: as for `reconstruct`.
      damping: as for `reconstruct`, of "sparsegpt" and "admm".
      method: "magnitude": the largest weights stay, as they are. "wanda": those of the largest |w|
        times root mean square of the input, as they are. "sparsegpt": by what pruning a weight
        costs if those after it make up for it, which they do. "admm": the mask is looked for in
        all weights of a layer together, and the kept ones are those of `reconstruct`; the least
        error, and the most time.
      scope: among which weights a fraction is chosen: "layer" or "outputs", for each output alone.
        By default the method's own: "outputs" for Wanda, "layer" for the others (SparseGPT: for
        each 128 inputs in turn).
      where: which leaves are pruned, as for `prunable`.

    Returns:
      Parameters and a mask like `params`. SparseGPT and ADMM fit biases as well, as `reconstruct`
      does. Each leaf (each layer of a stack) keeps exactly as many weights as its sparsity says.

    Raises:
      TypeError: as for `reconstruct`, or for a sparsity that is neither number nor pattern.
      ValueError: as for `reconstruct`, for a sparsity out of range, or options that don't go
        together.

    Source: Sun et al., Wanda (ICLR 2024); Frantar and Alistarh, SparseGPT (ICML 2023); Meng et al.,
    ALPS (NeurIPS 2024) for ADMM. With `sequential` the last two aim at the outputs of the dense
    network; the papers aim at those of the dense layer on pruned inputs.

    >>> import jax, jax.numpy as jnp
    >>> import jaxprune as jp
    >>> inputs = jax.random.normal(jax.random.key(0), (100, 4)) @ jnp.ones((4, 8)).cumsum(1)
    >>> inputs += jax.random.normal(jax.random.key(1), (100, 8))
    >>> params = {"kernel": jax.random.normal(jax.random.key(2), (8, 4)), "bias": jnp.zeros(4)}
    >>> apply = lambda params, x: x @ params["kernel"] + params["bias"]
    >>> error = lambda new: float(jnp.mean((apply(new, inputs) - apply(params, inputs)) ** 2))
    >>> new, mask = jp.prune_layers(apply, params, "2:4", [inputs])
    >>> jp.count(mask)
    16
    >>> error(new) < error(jp.apply_mask(params, mask))
    True
    """
    batches = layerwise.check(apply, batches, damping)
    if method not in _METHODS:
        raise ValueError(f"method must be one of {[*_METHODS]}, got {method!r}")
    if scope not in (None, *targets.SCOPES):
        raise ValueError(f"scope must be one of {[*targets.SCOPES]} or None, got {scope!r}")
    scope = scope or ("outputs" if method == "wanda" else "layer")
    wanted = targets.of_leaves(params, sparsity, where, scope)
    mask: list[Any] = [
        None if own is None else jnp.zeros_like(leaf, bool)
        for leaf, own in zip(jax.tree.leaves(params), wanted, strict=True)
    ]

    def solve(problem: Problem) -> jax.Array:
        leaf, product = problem.product.leaf, problem.product
        matrix, keep = _METHODS[method](problem, wanted[leaf], damping)
        mask[leaf] = capture.with_matrix(mask[leaf], keep, product)
        return matrix

    new = layerwise.change(
        apply,
        params,
        params,
        [own is not None for own in wanted],
        batches,
        solve,
        sequential=sequential,
        damping=damping,
        biases=method in _FITTED,
    )
    kept = jax.tree.structure(params).unflatten(mask)
    return (new if method in _FITTED else masks.apply_mask(params, kept)), kept


def _magnitude(problem: Problem, target: Target, damping: float):
    return _kept(problem, jnp.abs(problem.kernel), target)


def _wanda(problem: Problem, target: Target, damping: float):
    norms = moments.root_mean_squares(problem.seen)[:, None]
    return _kept(problem, jnp.abs(problem.kernel) * norms, target)


def _kept(problem: Problem, scores: jax.Array, target: Target):
    """The weights of the largest scores, as they are."""
    keep = _mask(scores, target, problem.product.channels)
    return jnp.where(keep, problem.kernel, 0), keep


@functools.partial(jax.jit, static_argnums=(1, 2))
def _mask(scores, target: Target, channels: int):
    return target.mask(scores, channels)


def _sparsegpt(problem: Problem, target: Target, damping: float):
    hessian, wanted, alive = _quadratic(problem.fitted, problem.kernel, damping)
    new, keep = sparsegpt(hessian, wanted, alive, target, problem.product.channels)
    # What comes in as nothing but zeros keeps its weight, if it is kept.
    return jnp.where(keep & ~alive[:, None], problem.kernel, new), keep


def _admm(problem: Problem, target: Target, damping: float):
    hessian, wanted, alive = _quadratic(problem.fitted, problem.kernel, damping)
    keep = admm_mask(hessian, wanted, alive, target, problem.product.channels)
    return closed_form(problem.fitted, problem.kernel, keep, damping), keep


@jax.jit
def _quadratic(seen: moments.Moments, kernel, damping):
    """Of the error as a function of the kernel: its Hessian, where it is least, what counts."""
    alive = jnp.diagonal(seen.gram) > 0
    hessian = seen.gram + jnp.diag(moments.ridge(seen, damping))
    # Nothing but rounding if the layer sees what the dense one sees.
    off = moments.matmul(seen.cross - seen.gram, kernel)
    factor = jax.scipy.linalg.cho_factor(hessian)
    return hessian, kernel + jax.scipy.linalg.cho_solve(factor, off), alive


_METHODS = {"magnitude": _magnitude, "wanda": _wanda, "sparsegpt": _sparsegpt, "admm": _admm}
_FITTED = ("sparsegpt", "admm")
