"""Every function and link of the library as something to compile, with abstract arguments.

A case takes a `Setting`, the trees of one variant on a mesh, and gives a function with its
arguments.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import jaxprune as jp
from benchmarks.scale_trees import Setting

Case = Callable[[Setting], tuple[Callable, tuple]]  # to a function and its abstract arguments


def of_kernels(function: Callable) -> Case:
    """Of a function of one tree."""
    return lambda s: (function, (s.kernels,))


def drawn(name: str, draw: Callable, *, gradient: bool = True) -> dict[str, Case]:
    """Cases of `draw(key, probs, random_bits)`, and of the gradient through it."""
    cases: dict[str, Case] = {}
    for bits, suffix in ((jax.random.bits, ""), (jp.counter_bits, ", counter_bits")):

        def sample(key, probs, bits=bits):
            return draw(key, probs, random_bits=bits)

        def weighted(probs, key, weights, sample=sample):
            products = jax.tree.map(jnp.multiply, sample(key, probs), weights)
            return sum(map(jnp.sum, jax.tree.leaves(products)))

        cases[name + suffix] = lambda s, f=sample: (f, (s.key, s.probs))
        if gradient:
            slope = jax.grad(weighted)
            cases[f"{name}{suffix}, gradient"] = lambda s, f=slope: (f, (s.probs, s.key, s.probs))
    return cases


def of_patterns(transposable: bool) -> dict[str, Case]:
    """Learned 2:4 patterns."""
    suffix = ", transposable" if transposable else ""
    bind = functools.partial
    options = {"n": 2, "m": 4, "transposable": transposable}
    return {
        "init_pattern_logits" + suffix: of_kernels(bind(jp.init_pattern_logits, **options)),
        "pattern_mask" + suffix: lambda s: (
            bind(jp.pattern_mask, **options),
            (s.kernels, s.logits(transposable)),
        ),
        "gumbel_pattern_mask" + suffix: lambda s: (
            bind(jp.gumbel_pattern_mask, **options),
            (s.key, s.kernels, s.logits(transposable)),
        ),
    }


def project_at_costs(scores, budget, costs):
    return jp.projection_capped_simplex(scores, budget, costs=costs)


def relaxed(key, probs, random_bits):
    return jp.relaxed_bernoulli(key, probs, 0.5, random_bits=random_bits)


def total_above(thresholds, params):
    return sum(map(jnp.sum, jax.tree.leaves(jp.above_thresholds(params, thresholds))))


def threshold_groups(params):
    return jp.threshold_mask(params, jp.trimming_point, axis=("inputs", "outputs"))


def transposable(n: int, m: int, method: str = "exact") -> Case:
    return of_kernels(lambda p: jp.transposable_nm_mask(p, n, m, method=method))


PENALTIES = {
    "l1": jp.l1,
    "transformed_l1": jp.transformed_l1,
    "hoyer_square": jp.hoyer_square,
    "hoyer_square, normalized": lambda p: jp.hoyer_square(p, normalized=True),
    "hoyer_ratio": jp.hoyer_ratio,
    "group_hoyer_square": lambda p: jp.group_hoyer_square(p, ("inputs", "outputs")),
    "group_hoyer_square, normalized": lambda p: jp.group_hoyer_square(
        p, "outputs", normalized=True
    ),
    "group_lasso": lambda p: jp.group_lasso(p, "outputs"),
    "group_norms": lambda p: jp.group_norms(p, "inputs"),
    "trimming_point": lambda p: jax.tree.map(jp.trimming_point, p),
}
FUNCTIONS: dict[str, Case] = {
    "prunable": lambda s: (jp.prunable, (s.params,)),
    "sparsity": lambda s: (jp.sparsity, (s.params,)),
    "sparsity of a mask": lambda s: (jp.sparsity, (s.mask,)),
    "apply_mask": lambda s: (jp.apply_mask, (s.params, s.mask)),
    "pack_mask": lambda s: (jp.pack_mask, (s.mask,)),
    "unpack_mask": lambda s: (jp.unpack_mask, (s.params, s.packed())),
    "top_k_mask": of_kernels(lambda p: jp.top_k_mask(p, sum(x.size for x in p.values()) // 10)),
    "knapsack_mask": of_kernels(
        lambda p: jp.knapsack_mask(p, {name: 1 + i for i, name in enumerate(p)}, 2**38)
    ),
    "compress_to": lambda s: (lambda p: jp.compress_to(p, 2**36), (s.params,)),
    "quantize_to": lambda s: (lambda p, mask: jp.quantize_to(p, mask, 4), (s.params, s.mask)),
    "top_k_mask, traced k": lambda s: (jp.top_k_mask, (s.kernels, s.array((), dtype=jnp.int32))),
    "nm_mask": of_kernels(lambda p: jp.nm_mask(p, 2, 4)),
    "nm_mask, outputs": of_kernels(lambda p: jp.nm_mask(p, 2, 4, axis="outputs")),
    "nm_mask, first axis": of_kernels(lambda p: jp.nm_mask(p, 2, 4, axis=0)),
    "nm_mask, 8:16": of_kernels(lambda p: jp.nm_mask(p, 8, 16)),
    "projection_capped_simplex": lambda s: (jp.projection_capped_simplex, (s.probs, s.array(()))),
    "projection_capped_simplex, costs": lambda s: (
        project_at_costs,
        (s.probs, s.array(()), s.scalars()),
    ),
    "projection_capped_simplex, a cost for each": lambda s: (
        project_at_costs,
        (s.probs, s.array(()), s.probs),
    ),
    "init_probabilities": lambda s: (jp.init_probabilities, (s.params,)),
    **drawn("bernoulli_mask", jp.bernoulli_mask, gradient=False),
    **drawn("relaxed_bernoulli", relaxed),
    "random_mask": lambda s: (lambda key, p: jp.random_mask(key, p, 0.9), (s.key, s.params)),
    **drawn("gumbel_mask", jp.gumbel_mask),
    "surrogate_gradient": lambda s: (jp.surrogate_gradient, (s.kept, s.probs)),
    "vrpge_gradient": lambda s: (jp.vrpge_gradient, (s.probs, [s.kept, s.kept], s.array((2,)))),
    "signed_constant": lambda s: (jp.signed_constant, (s.params, s.mask)),
    "rescale": lambda s: (jp.rescale, (s.kernels, s.scalars())),
    "inverse_density": lambda s: (jp.inverse_density, (s.mask,)),
    **{name: of_kernels(function) for name, function in PENALTIES.items()},
    "threshold_mask": lambda s: (lambda p: jp.threshold_mask(p, jp.trimming_point), (s.params,)),
    "threshold_mask, groups": lambda s: (threshold_groups, (s.params,)),
    "init_thresholds": of_kernels(jp.init_thresholds),
    "above_thresholds": lambda s: (jp.above_thresholds, (s.kernels, s.thresholds())),
    "above_thresholds, gradient": lambda s: (jax.grad(total_above), (s.thresholds(), s.kernels)),
    "reset_thresholds": lambda s: (jp.reset_thresholds, (s.kernels, s.thresholds())),
    "transposable_nm_mask": transposable(2, 4),
    "transposable_nm_mask, 4:8": transposable(4, 8),
    "transposable_nm_mask, greedy": transposable(4, 8, "greedy"),
    "transposable_nm_mask, entropic": transposable(4, 8, "entropic"),
    "transposable_potentials": lambda s: (
        lambda p, kept: jp.transposable_potentials(p, kept, 8),
        (s.kernels, s.kept),
    ),
    **of_patterns(transposable=False),
    **of_patterns(transposable=True),
}


def grids(s: Setting):
    return jax.tree.map(lambda _: jp.Grid(jnp.int32(4), jnp.float32(0.01)), s.kept) | {
        "scale": None
    }


class Link(NamedTuple):
    """A link, whether it stands before the optimizer, and the name of the tree that it updates."""

    make: Callable[[Setting], optax.GradientTransformation]
    first: bool = False
    tree: str = "params"


def n_schedule(step):
    return jnp.maximum(4 - step // 1000, 1)


rising = jp.cubic_sparsity(0.9, 10, 1000)
LINKS = {
    "keep_mask": Link(lambda s: jp.keep_mask(s.mask)),
    "keep_sparse": Link(lambda s: jp.keep_sparse(0.9)),
    "keep_sparse, every 100, scheduled": Link(lambda s: jp.keep_sparse(rising, every=100)),
    "keep_sparse of Above, scheduled": Link(
        lambda s: jp.keep_sparse(jp.Above(jp.ramped_threshold(0.1, 0, 9, 99)), every=100)
    ),
    "keep_sparse of Blocks, scheduled": Link(
        lambda s: jp.keep_sparse(jp.Blocks(rising, (128, 128)), every=100)
    ),
    "keep_sparse of Blocks of outputs, scheduled": Link(
        lambda s: jp.keep_sparse(jp.Blocks(rising, "outputs"), every=100)
    ),
    "keep_sparse 2:4": Link(lambda s: jp.keep_sparse("2:4")),
    "keep_sparse 2:4, every 40": Link(lambda s: jp.keep_sparse("2:4", every=40)),
    "keep_sparse 2:4, outputs, scheduled": Link(
        lambda s: jp.keep_sparse(jp.NM(n_schedule, 4, axis="outputs"), every=40)
    ),
    "keep_sparse transposable 2:4": Link(
        lambda s: jp.keep_sparse(jp.NM(2, 4, transposable=True), every=40)
    ),
    "keep_sparse transposable 2:4, scheduled": Link(
        lambda s: jp.keep_sparse(jp.NM(n_schedule, 4, transposable=True), every=40)
    ),
    "project_probabilities": Link(lambda s: jp.project_probabilities(rising), tree="probs"),
    "project_probabilities, costs": Link(
        lambda s: jp.project_probabilities(0.9, costs=jax.tree.map(lambda _: 2.0, s.probs)),
        tree="probs",
    ),
    "project_logits": Link(lambda s: jp.project_logits(rising), tree="probs"),
    "add_hoyer_square": Link(lambda s: jp.add_hoyer_square(1e-4), first=True),
    "add_group_hoyer_square": Link(lambda s: jp.add_group_hoyer_square(1e-4), first=True),
    "add_penalty of l1": Link(lambda s: jp.add_penalty(jp.l1, 1e-4), first=True),
    "add_penalty of group_lasso": Link(
        lambda s: jp.add_penalty(functools.partial(jp.group_lasso, axis="outputs"), 1e-4),
        first=True,
    ),
    "add_admm of prune_to": Link(
        lambda s: jp.add_admm(lambda p: jp.prune_to(p, 0.9)[0], 1e-3, every=100), first=True
    ),
    "add_admm of compress_to": Link(
        lambda s: jp.add_admm(lambda p: jp.compress_to(p, 2**36)[0], 1e-3, every=100), first=True
    ),
    "keep_quantized": Link(lambda s: jp.keep_quantized(s.mask, grids(s))),
    "count_dying": Link(lambda s: jp.count_dying(), first=True),
}
STRAIGHT = (
    "keep_quantized",
    "keep_sparse 2:4, every 40",
    "keep_sparse, every 100, scheduled",
    "keep_sparse transposable 2:4",
)


def with_link(
    name: str, s: Setting, optimizer: optax.GradientTransformation
) -> tuple[optax.GradientTransformation, Any]:
    """The optimizer with the link of this name, and the abstract tree that it updates."""
    if name == "no link":
        return optimizer, s.params
    if name == "regrow":
        return jp.regrow(optimizer, s.mask), s.params
    if name.startswith("straight_through of "):
        link = LINKS[name.removeprefix("straight_through of ")]
        return jp.straight_through(optimizer, link.make(s), decay=2e-4), s.params
    link = LINKS[name]
    order = (link.make(s), optimizer) if link.first else (optimizer, link.make(s))
    return optax.chain(*order), getattr(s, link.tree)


def step_with(name: str) -> Case:
    """A training step from gradients in memory; parameters and state come first, to be donated."""

    def case(s):
        tx, params = with_link(name, s, optax.adam(1e-3))
        # A given mask is an argument of `init`, since an abstract one can't be copied.
        of_mask = lambda params, mask: with_link(name, s.with_mask(mask), optax.adam(1e-3))[0].init(
            params
        )
        state = jax.eval_shape(of_mask, params, s.mask)

        def step(params, state, grads):
            # As a backward pass leaves them, or else XLA would fuse what made them.
            grads = jax.lax.optimization_barrier(jax.tree.map(jnp.negative, grads))
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        return step, (params, s.placed(state), params)

    return case


def init_of(name: str) -> Case:
    """What makes the first state, inside `jit`; without moments, which optax replicates there."""

    def case(s):
        tx, params = with_link(name, s, optax.sgd(1e-3))
        return tx.init, (params,)

    return case


NAMES = ["no link", *LINKS, "regrow", *(f"straight_through of {name}" for name in STRAIGHT)]


def of_channels(function: Callable) -> Case:
    """Of a function of two stacked kernels and the hidden channels between them."""

    def case(s: Setting):
        names = ("up", "down") if "up" in s.kernels else ("kernel_0", "kernel_1")
        kernels = {name: s.kernels[name] for name in names}
        turned = kernels[names[1]].shape[1] == kernels[names[0]].shape[2]

        def layer(x, both):
            up, down = both
            return x + jax.nn.relu(x @ up) @ (down if turned else down.T), None

        def apply(params, x):
            return jax.lax.scan(layer, x, tuple(params[name] for name in names))[0]

        width = kernels[names[0]].shape[1]
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), kernels)
        x = jax.ShapeDtypeStruct((1, width), s.variant.dtype)
        channels = jp.channel_groups(apply, shapes, x)
        keep = tuple(s.array((family.size,), dtype=jnp.bool_) for family in channels.groups)
        return functools.partial(function, channels), (kernels, keep)

    return case


CHANNELS: dict[str, Case] = {
    "channel_norms": of_channels(lambda channels, p, keep: jp.channel_norms(p, channels)),
    "channel_mask": of_channels(lambda channels, p, keep: jp.channel_mask(p, channels, keep)),
}


CASES: dict[str, Case] = (
    FUNCTIONS
    | CHANNELS
    | {f"step, {name}": step_with(name) for name in NAMES}
    | {f"init, {name}": init_of(name) for name in ("keep_sparse", "keep_sparse 2:4", NAMES[-1])}
)
MECHANISMS = (
    "prunable",
    "top_k_mask",
    "nm_mask",
    "transposable_nm_mask",
    "projection_capped_simplex",
    "bernoulli_mask",
    "bernoulli_mask, counter_bits",
)
