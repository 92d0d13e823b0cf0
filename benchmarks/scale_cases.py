"""Every function and link of the library as something to compile, with abstract arguments.

A case takes a `Setting`, the trees of one variant on a mesh, and gives a function with its
arguments. Leaves are stacked over layers and sharded as language models have them, 10^12 weights in
all (without any sharding: a model that fits a chip).
"""

import copy
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType, Mesh, NamedSharding

import jaxprune as jp

AXES = ("data", "model")


class Variant(NamedTuple):
    """How the tree lies on the mesh, and how the function is compiled."""

    layout: str = "two axes"
    dtype: Any = jnp.bfloat16
    axis_type: AxisType = AxisType.Auto
    out_shardings: bool = False


_EXPLICIT = AxisType.Explicit
VARIANTS = {
    "base": Variant(),
    "float32": Variant(dtype=jnp.float32),
    "Explicit": Variant(axis_type=_EXPLICIT),
    "output shardings": Variant(out_shardings=True),
    "inputs": Variant("inputs"),
    "last axis": Variant("last"),
    "stacked axis": Variant("stacked"),
    "stacked and last": Variant("stacked and last"),
    "no axis": Variant("none"),
    "no axis, Explicit": Variant("none", axis_type=_EXPLICIT),
    "opposite": Variant("stacked and last", jnp.float32, _EXPLICIT, out_shardings=True),
}


def leaves(layout: str) -> dict[str, tuple[tuple[int, ...], tuple]]:
    """Shapes and partitions of a language model's leaves: some 10^12 weights, if sharded."""
    if layout == "two axes":
        return {
            "embedding": ((256_000, 16_384), ("model", "data")),
            "query": ((128, 16_384, 16_384), (None, "data", "model")),
            "up": ((128, 16_384, 65_536), (None, "data", "model")),
            "down": ((128, 65_536, 16_384), (None, "model", "data")),
            "experts_up": ((80, 64, 4_096, 16_384), (None, "data", None, "model")),
            "experts_down": ((80, 64, 16_384, 4_096), (None, "model", "data", None)),
        }
    shape, partition = {
        "inputs": ((480, 16_384, 65_536), (None, AXES, None)),
        "last": ((480, 16_384, 65_536), (None, None, AXES)),
        "stacked": ((512, 16_384, 65_536), (AXES, None, None)),
        # As many layers on a chip as groups along them can fill.
        "stacked and last": ((512, 16_384, 65_536), ("data", None, "model")),
        "none": ((16, 1024, 4096), ()),
    }[layout]
    return {f"kernel_{i}": (shape, partition) for i in range(2)}


class Setting:
    """The abstract trees of a variant on a mesh."""

    def __init__(self, variant: Variant, mesh: Mesh):
        self.variant, self.mesh = variant, mesh
        self.kernels = {
            name: self.array(shape, *partition, dtype=variant.dtype)
            for name, (shape, partition) in leaves(variant.layout).items()
        }
        self.params = self.kernels | {"scale": self.array((128, 16_384), dtype=variant.dtype)}
        self.kept = self.like(self.kernels, jnp.bool_)
        self.mask = self.kept | {"scale": None}
        self.probs = self.like(self.kernels, jnp.float32)
        self.key = self.array((2,), dtype=jnp.uint32)

    def with_mask(self, mask):
        """The same trees with another mask."""
        other = copy.copy(self)
        other.mask = mask
        return other

    def array(self, shape, *partition, dtype=jnp.float32):
        """An abstract array on the mesh."""
        sharding = NamedSharding(self.mesh, jax.P(*partition))
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    def scalars(self):
        """One for each kernel."""
        return jax.tree.map(lambda _: self.array(()), self.kernels)

    def like(self, tree, dtype):
        """The same shapes and places."""
        change = lambda x: jax.ShapeDtypeStruct(x.shape, dtype, sharding=x.sharding)
        return jax.tree.map(change, tree)

    def placed(self, tree):
        """Abstract arrays, sharded like kernels of their shape or close to it, or replicated."""

        def place(x):
            for kernel in self.kernels.values():
                if len(x.shape) == kernel.ndim and all(
                    size % own == 0 and own >= size / 8
                    for size, own in zip(kernel.shape, x.shape, strict=True)
                ):
                    return kernel.sharding
            return NamedSharding(self.mesh, jax.P())

        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place(x)), tree
        )

    def packed(self):
        """The mask at a bit a weight, sharded like the mask."""
        place = lambda x, mask: self.array(x.shape, *mask.sharding.spec, dtype=x.dtype)
        return jax.tree.map(place, jax.eval_shape(jp.pack_mask, self.mask), self.mask)

    def logits(self, transposable):
        """Of patterns, sharded like their kernels."""
        shapes = jax.eval_shape(
            lambda p: jp.init_pattern_logits(p, 2, 4, transposable=transposable), self.kernels
        )

        def place(kernel, logit):
            spec = [*kernel.sharding.spec, *[None] * kernel.ndim][: kernel.ndim]
            return self.array(logit.shape, None, *spec)

        return jax.tree.map(place, self.kernels, shapes)


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
    "knapsack_mask": of_kernels(lambda p: jp.knapsack_mask(p, dict.fromkeys(p, 3), 2**42)),
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
}
STRAIGHT = (
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
