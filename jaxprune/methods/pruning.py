"""Masks by scores: at once, or in training by links that keep to what they have chosen.

What is chosen is said in the same words everywhere: a sparsity or a pattern, the score of which the
largest stay, and the scope among which they are the largest.
"""

from __future__ import annotations

import functools

import chex
import jax
import jax.numpy as jnp
import optax

from jaxprune.methods import keeping, scores
from jaxprune.methods.scores import Score
from jaxprune.patterns import sharing, targets
from jaxprune.patterns.targets import NM, Above, Blocks
from jaxprune.trees import checks, masks, selection

_SCOPES = ("global", "layer")
_WITH_GRADIENTS = "prune_to(params, sparsity, score=score, grad=jax.grad(loss)(params))"
_LOOK_EVERY = 100  # updates of `keep_mask` between two looks at what it has pruned


def keep_mask(mask: chex.ArrayTree) -> optax.GradientTransformation:
    """Keeps pruned weights at exactly zero, whatever the optimizer before it does.

    Args:
      mask: tree like the parameters: boolean arrays, `None` where a leaf stays dense. The state
        holds a copy, found with `current_mask(params, opt_state)`.

    Returns:
      A transformation for the end of a chain. The first update sets pruned weights to zero, if
      they aren't yet.

    Raises:
      TypeError: in `init`, for a mask that isn't boolean; the message names the leaf.
      ValueError: in `init`, if the mask doesn't fit; the message names the leaf.

    >>> import jax.numpy as jnp, optax
    >>> import jaxprune as jp
    >>> params = {"w": jnp.array([1.0, 2.0])}
    >>> tx = optax.chain(optax.sgd(0.1), jp.keep_mask({"w": jnp.array([True, False])}))
    >>> updates, _ = tx.update({"w": jnp.ones(2)}, tx.init(params), params)
    >>> optax.apply_updates(params, updates)
    {'w': Array([0.9, 0. ], dtype=float32)}
    """

    def given(params):
        masks.check_boolean(mask)
        return jax.tree.map(jnp.copy, masks.fit_mask(params, mask))

    return keeping.keep(None, given, _LOOK_EVERY)


def keep_sparse(
    sparsity: float | optax.Schedule | str | NM | Blocks | Above | chex.ArrayTree,
    *,
    score: Score = "magnitude",
    scope: str = "global",
    every: int = 1,
    where: masks.Where | None = None,
) -> optax.GradientTransformation:
    """Keeps the weights of the largest scores, and zeros the others.

    The mask is chosen anew at updates 0, `every`, 2 `every`, ..., from the parameters as they come
    in; in between it is kept. So a pruned weight stays zero, unless the sparsity falls (then zeros
    are let go in order of position); for weights that return there is `straight_through`.

    Args:
      sparsity: what is pruned. A fraction of zeros in [0, 1], or a schedule of it by the link's own
        count: n (1 - sparsity), rounded, of n weights are kept, exactly for a Python number; a
        schedule gives a float32. Or a pattern: "2:4" for 2 kept of every 4 inputs, `NM` with more
        to choose, `Blocks` for blocks and channels, `Above` for a threshold. Or a tree like the
        parameters of any of these, None where a leaf stays dense. Where a schedule is NaN or out of
        range, and where a score is NaN, the mask in force is kept, and `problems` says so.
      score: what the largest stay of. "magnitude": |w|. "saliency": |w g|. "movement": the sum of
        -w g over all updates so far. "random": always the same random order. Or a tree of scores;
        or a function of (parameters, gradients), both with None for leaves that stay dense, to
        scores. Fractions compare scores to 24 bits, as float32 has: float64 that is equal so far is
        kept in order of position. Gradients are what is passed as `tx.update(grads, opt_state,
        params, grad=grads)`; `straight_through` passes them by itself.
      scope: among which weights one fraction is chosen, "global" (the whole tree, exactly) or
        "layer" (each leaf has that sparsity). Give `erk_sparsities` as the sparsity for densities
        that depend on the leaves' shapes.
      every: updates between two choices of the mask. Of a transposable pattern 40, as in the paper,
        costs below one percent of a ResNet-50's training.
      where: which leaves can be pruned, as for `prunable`; by default of a pattern those of its
        kernels and embeddings whose axes divide by m. (Of leaves that `where` or a tree chooses and
        that don't divide, the last group is smaller.) Two links with leaves of their own can stand
        in one chain.

    Returns:
      A transformation for the end of a chain. The mask is
      `current_mask(params, opt_state)`.

    Raises:
      TypeError: for a sparsity of another kind, or an `every` that isn't whole.
      ValueError: for a sparsity or pattern out of range, an unknown name, `every` < 1, parameters
        without leaves to prune, and, while a step is traced, for gradients that are missing or
        scores that don't fit.

    Sources: Hubara et al. (NeurIPS 2021), section 4, for transposable patterns that follow the
    weights; Sanh et al., "Movement pruning" (NeurIPS 2020).

    >>> import jax.numpy as jnp, optax
    >>> import jaxprune as jp
    >>> params = {"w": jnp.array([[1.0, -2.0], [3.0, 0.5], [-4.0, 1.5], [0.0, 1.0]])}
    >>> for sparsity in (0.5, "2:4"):
    ...     tx = optax.chain(optax.sgd(0.1), jp.keep_sparse(sparsity))
    ...     updates, _ = tx.update({"w": jnp.ones((4, 2))}, tx.init(params), params)
    ...     print((optax.apply_updates(params, updates)["w"] != 0).astype(int).tolist())
    [[0, 1], [1, 0], [1, 1], [0, 0]]
    [[0, 1], [1, 0], [1, 1], [0, 0]]
    """
    scored = scores.scored(score)
    _check(sparsity, scope)
    first = lambda params: sharing.first_mask(params, sparsity, where)

    def choice(chosen, count):
        return _choice(chosen, sharing.parts(chosen, sparsity, scope), count, scored.of is None)

    return keeping.keep(choice, first, every, scored)


def prune_to(
    params: chex.ArrayTree,
    sparsity: float | str | NM | Blocks | Above | chex.ArrayTree,
    *,
    score: Score = "magnitude",
    scope: str = "global",
    where: masks.Where | None = None,
    grad: chex.ArrayTree | None = None,
) -> tuple[chex.ArrayTree, chex.ArrayTree]:
    """Prunes parameters at once: the weights of the largest scores stay.

    In the words of `keep_sparse`, which does it in training. SNIP is `score="saliency"` of
    parameters at their initialisation, with `grad=jax.grad(loss)(params)`.

    Args:
      params: tree of arrays.
      sparsity: as for `keep_sparse`, without schedules.
      score: as for `keep_sparse`, without "movement".
      scope: as for `keep_sparse`.
      where: as for `keep_sparse`.
      grad: the gradients, for scores that need them: a tree like `params`.

    Returns:
      The pruned parameters, and the mask.

    Raises:
      TypeError: as `keep_sparse`.
      ValueError: as `keep_sparse`, and for NaN (outside `jit`); the message names the leaf.

    Source: Lee et al., "SNIP: single-shot network pruning based on connection sensitivity"
    (ICLR 2019).

    >>> import jax.numpy as jnp
    >>> import jaxprune as jp
    >>> params = {"kernel": jnp.array([[1.0, -2.0], [3.0, 0.5]]), "bias": jnp.zeros(2)}
    >>> pruned, mask = jp.prune_to(params, 0.5)
    >>> pruned["kernel"].tolist()
    [[0.0, -2.0], [3.0, 0.0]]
    >>> jp.count(mask)
    2
    """
    checks.tree("the parameters", params)
    scored = scores.scored(score)
    if scored.follow is not None:
        raise ValueError(f"`score`={score!r} is gathered in training: use `keep_sparse`")
    _check(sparsity, scope)
    mask = sharing.first_mask(params, sparsity, where)
    grad = keeping.gradients(grad, scored, params, mask, _WITH_GRADIENTS)
    found = scores.of(scored, params, grad, (), mask)
    selection.check_no_nan(found)
    parts = sharing.parts(found, sparsity, scope)
    for part in parts:
        targets.check_constant(part.target)
    _, make = _choice(found, parts, jnp.int32(0), scored.of is None)
    mask = make()
    return masks.apply_mask(params, mask), mask


def _check(sparsity, scope: str) -> None:
    """Raises an error for what is wrong whatever the parameters are."""
    if scope not in _SCOPES:
        raise ValueError(f"`scope` must be one of {[*_SCOPES]}, got {scope!r}")
    if sharing.is_single(sparsity):
        targets.target(sparsity)


def _choice(chosen, parts, count, magnitudes: bool):
    """One mask of all parts, as `keeping.keep` wants it."""
    choices = [part.target.choice(part.of(chosen), count, magnitudes) for part in parts]

    def make():
        structure = jax.tree.structure(chosen)
        made = [structure.flatten_up_to(make_part()) for _, make_part in choices]
        return structure.unflatten(
            next(mask for mask in of_leaf if mask is not None)
            for of_leaf in zip(*made, strict=True)
        )

    return functools.reduce(jnp.logical_and, [valid for valid, _ in choices]), make
