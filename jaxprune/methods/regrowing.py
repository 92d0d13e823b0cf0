"""Dynamic sparse training: some of the weights that are kept make room for others now and then.

RigL and SET differ only in what grows, so one link does both. It stands round a whole optimizer, as
`straight_through` does, for two reasons. The optimizer must see the gradients of kept weights
alone, while the choice reads those of all; and what the optimizer has learnt of a weight (moments,
averages, copies) must go when the weight goes. That is: whatever in its state mirrors the weight is
set to what `init` would give it at zero, so that a weight which grows starts afresh.

The number of kept weights is constant in each leaf, exactly: what grows is chosen by one selection
of so many scores as were kept, with those that stay first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from jaxprune.methods import keeping, scores
from jaxprune.trees import checks, masks, mirrors, sampling, selection, wide
from jaxprune.trees.report import Problem, noted

Score = Callable[[jax.Array, jax.Array], jax.Array]

_FIRST = 0xFFFF0000  # above every rank that grows, with as many zeros as those of bfloat16


class RegrowState(NamedTuple):
    """`count`: updates so far; `mask`: the one in force; `problems`: see there; the optimizer's."""

    count: jax.typing.ArrayLike
    mask: chex.ArrayTree
    problems: jax.typing.ArrayLike
    inner_state: optax.OptState


def regrow(
    inner: optax.GradientTransformation,
    mask: chex.ArrayTree,
    *,
    by: str | Score = "gradient",
    every: jax.typing.ArrayLike = 100,
    fraction: optax.ScalarOrSchedule = 0.3,
    key: chex.PRNGKey | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Trains sparse from the start: drops small weights and grows as many others (RigL, SET).

    At updates `every`, 2 `every`, ... a fraction of the kept weights of each leaf is dropped, those
    of least magnitude, and as many are grown among all that aren't kept then: what was just dropped
    may stay, as in RigL's algorithm 1. A leaf keeps as many weights as its first mask, exactly.
    Pruned weights are zero. What mirrors them in the optimizer's state (moments, averages, copies
    of weights) is as `init` makes it for a weight of zero, and so a weight that grows starts
    afresh, at zero. The optimizer gets the gradients of the kept weights, and zeros.

    Every update is a step of the optimizer, under the mask that it has just chosen, by the gradient
    that the choice read; RigL makes no step where the mask changes. So the optimizer's counts and
    schedules agree with the training loop.

    Args:
      inner: the whole optimizer, such as `optax.adamw(1e-3)`. Of accumulated gradients the choice
        is better: `optax.MultiSteps` goes around the link, not inside.
      mask: the first one, `None` where a leaf stays dense; such as `random_mask` with
        `erk_sparsities`. The state holds a copy. Give parameters that it is applied to
        (`apply_mask`), else the first gradients are those of dense ones.
      by: what grows: "gradient", the largest gradients (RigL); "random" (SET); or the largest
        scores of a function from a leaf's weights and gradients to scores of its shape.
      every: updates between two changes of the mask.
      fraction: how many of the kept weights to drop, in [0, 1]; a number or a schedule of the
        link's own count. RigL's is `optax.cosine_decay_schedule(0.3, steps)`, with three quarters
        of all steps: where it is 0 nothing is chosen. Where it is NaN or outside [0, 1], and in
        leaves with a NaN among weights or gradients, the mask in force is kept, and `problems` says
        so.
      key: for "random"; each change draws anew from it.

    Returns:
      A transformation that takes a whole chain's place; `update` hands on extra arguments. The mask
      is found with `optax.tree.get(opt_state, "mask")`.

    Raises:
      TypeError: for an `inner` that is no transformation, a fraction that is neither a number nor a
        schedule, an `every` that isn't whole, another kind of `by`, a missing key; in `init`, for a
        mask that isn't boolean.
      ValueError: for a fraction outside [0, 1], `every` < 1, an unknown word for `by`; in `init`,
        if the mask doesn't fit; the message names the leaf.

    Sources: Evci et al., "Rigging the lottery" (ICML 2020); Mocanu et al., "Scalable training of
    artificial neural networks with adaptive sparse connectivity" (Nature Communications, 2018).

    >>> import jax.numpy as jnp, optax
    >>> import jaxprune as jp
    >>> params, mask = {"w": jnp.array([1.0, 3.0, 0.0])}, {"w": jnp.array([True, True, False])}
    >>> tx = jp.regrow(optax.sgd(0.1), mask, every=1, fraction=0.5)
    >>> state = tx.init(params)
    >>> for _ in range(3):
    ...     updates, state = tx.update({"w": jnp.array([0.0, 0.0, -5.0])}, state, params)
    ...     params = optax.apply_updates(params, updates)
    ...     print(params["w"], optax.tree.get(state, "mask")["w"])
    [1. 3. 0.] [ True  True False]
    [0. 3. 0.5] [False  True  True]
    [0. 3. 1.] [False  True  True]
    """
    if not isinstance(inner, optax.GradientTransformation):
        raise TypeError(f"`inner` must be an optax transformation, got {checks.described(inner)}")
    checks.fraction("the fraction", fraction, schedule=True)
    if checks.known(every):
        checks.integer("`every`", every, least=1)
    growth_of = _growth(by, key)
    inner = optax.with_extra_args_support(inner)

    def init_fn(params):
        masks.check_boolean(mask)
        first = jax.tree.map(jnp.copy, masks.fit_mask(params, mask))
        pruned = masks.apply_mask(params, first)
        return RegrowState(jnp.int32(0), first, jnp.int32(0), inner.init(pruned))

    def update_fn(updates, state, params=None, **extra_args):
        params = keeping.needed(params, updates, state.mask)
        share = jnp.asarray(fraction(state.count) if callable(fraction) else fraction, jnp.float32)
        change = lambda: _change(state, params, updates, share, growth_of)
        due = (state.count > 0) & (state.count % every == 0) & (share != 0)
        wait = lambda: (state.mask, state.problems)
        only_look = lambda: (state.mask, keeping.looked(state, params))
        branch = jnp.where(due, 2, jnp.where(state.count == 1, 1, 0))
        mask, problems = jax.lax.switch(branch, [wait, only_look, change])
        # From here on the new mask is enough, and may lie where the old one lay: a weight that has
        # just grown is zero, and its moments are at rest, since it was pruned until now.
        gradients, kept = (masks.apply_mask(tree, mask) for tree in (updates, params))
        # Before the optimizer's step: after it, its moments would be worked out twice.
        inner_state = _at_rest(inner, state.inner_state, kept, mask)
        updates, inner_state = inner.update(gradients, inner_state, kept, **extra_args)
        updates = keeping.pruned_updates(updates, params, mask)
        count = optax.safe_increment(state.count)
        return updates, RegrowState(count, mask, problems, inner_state)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _change(state, params, gradients, share, growth_of):
    """The next mask, and the problems; where no mask can be chosen, the one in force."""
    weights, gradients = scores.prunable(params, state.mask), scores.prunable(gradients, state.mask)
    valid = (share >= 0) & (share <= 1)
    is_nan = lambda w, g: jnp.any(jnp.isnan(w) | jnp.isnan(g))
    nans = jax.tree.map(is_nan, weights, gradients)
    structure = jax.tree.structure(state.mask)
    places = structure.unflatten(range(structure.num_leaves))

    def of_leaf(place, keep, weight, gradient, nan):
        growth = growth_of(state.count, place, weight, gradient)
        # A branch reads its operands from memory: a function's scores have the same bits wherever
        # they are used.
        regrown = lambda keep, w, operands: _regrown(
            keep, w, growth._replace(operands=operands), share
        )
        as_before = lambda keep, w, operands: keep
        return jax.lax.cond(valid & ~nan, regrown, as_before, keep, weight, growth.operands)

    mask = jax.tree.map(of_leaf, places, state.mask, weights, gradients, nans)
    nan = jnp.any(jnp.stack(jax.tree.leaves(nans)))
    found = noted(Problem.BUDGET, ~valid) | noted(Problem.NAN, nan)
    return mask, keeping.looked(state, params) | found


def _growth(by, key):
    """From the link's count, a leaf's place, its weights and gradients to the order of growth."""
    if by == "gradient":
        return lambda count, place, weight, gradient: selection.of_scores(gradient, magnitudes=True)
    if by == "random":
        if key is None:
            raise TypeError('`by`="random" draws what grows: pass `key=jax.random.key(0)`')
        checks.key(key)
        of_leaf = lambda count, place: jax.random.fold_in(jax.random.fold_in(key, place), count)
        return lambda count, place, weight, gradient: sampling.at_random(
            weight, of_leaf(count, place)
        )
    if isinstance(by, str):
        raise ValueError(f'`by` must be "gradient", "random" or a function, got {by!r}')
    checks.function("`by`", by)
    return lambda count, place, weight, gradient: selection.of_scores(
        _fitting(by(weight, gradient), weight)
    )


def _fitting(score: jax.Array, weight: jax.Array) -> jax.Array:
    """Scores of a user's function, if there is one for each weight."""
    selection.check_scores("what `by` returns", score)
    if jnp.shape(score) != weight.shape:
        raise ValueError(
            f"what `by` returns for a leaf must have its shape {weight.shape}, got "
            f"{checks.described(score)}"
        )
    return score if masks.is_floating(score) else score.astype(jnp.float32)


@wide.counts_in_64_bits
def _regrown(keep, weight, growth: selection.Ranked, share) -> jax.Array:
    """The leaf's mask with that share dropped and as many grown."""

    def of_leaf(share, keep, weight, *operands):
        size = selection.of_scores(weight, magnitudes=True)
        held = lambda keep, weight: jnp.where(keep, size.ranks(weight), 0)
        kept = wide.exact_sums([[keep]])[0, 0]
        dropped = jnp.round(share * kept.astype(jnp.float32)).astype(jnp.uint64)
        by_size = selection.Ranked((keep, weight), held, size.low_zero_bits)
        stays = selection.cut(by_size, kept - jnp.minimum(dropped, kept))

        def ranks(keep, weight, *operands):
            first = stays.keeps(held(keep, weight))
            return jnp.where(first, jnp.uint32(_FIRST), growth.ranks(*operands))

        zeros = min(growth.low_zero_bits, 16)
        then = selection.Ranked((keep, weight, *operands), ranks, zeros)
        return then.kept(selection.cut(then, kept))

    return masks.sharded_alike(of_leaf, keep)(share, keep, weight, *growth.operands)


def _at_rest(inner, inner_state, params, mask) -> optax.OptState:
    """The state, as `init` makes it for a weight of zero where the mask prunes."""
    fresh = inner.init(params)
    reset = lambda leaf, first, keep: (
        leaf if keep is None else jnp.where(keep, leaf, first.astype(leaf.dtype))
    )
    return jax.tree.map(reset, inner_state, fresh, mirrors.mirrored(inner_state, params, mask))
