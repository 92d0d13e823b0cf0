"""What the compiler for 512 TPU chips makes of every function and link, at 10^12 weights.

    python -m benchmarks.scale                       # all of it, into benchmarks/results/
    python -m benchmarks.scale top_k_mask keep_      # only cases whose names have one of these

libtpu compiles ahead of time for chips that it only has described, so this takes `jax[tpu]` and no
TPU. Leaves are stacked over layers and sharded as language models have them. Every case is compiled
in a process of its own; what it gave is kept in `--rows`, where an interrupted run goes on (remove
the file when the code has changed).
"""

import argparse
import concurrent.futures
import functools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding

import jaxprune as jp
from benchmarks import compiled

TOPOLOGY, MESH = "v5p:8x8x8", (32, 16)
BOTH = ("data", "model")
SMALL = 2**16  # bytes: "reductions of a few kilobytes"


class Variant(NamedTuple):
    """How the tree lies on the mesh, and how the function is compiled."""

    layout: str = "two axes"
    dtype: Any = jnp.bfloat16
    axis_type: AxisType = AxisType.Auto
    out_shardings: bool = False


VARIANTS = {
    "base": Variant(),
    "float32": Variant(dtype=jnp.float32),
    "explicit": Variant(axis_type=AxisType.Explicit),
    "outputs": Variant(out_shardings=True),
    "explicit outputs": Variant(axis_type=AxisType.Explicit, out_shardings=True),
    "inputs": Variant("inputs"),
    "last": Variant("last"),
    "stacked": Variant("stacked"),
    "stacked and last": Variant("stacked and last"),
    "none": Variant("none"),
    "explicit stacked and last": Variant("stacked and last", axis_type=AxisType.Explicit),
    "explicit last": Variant("last", axis_type=AxisType.Explicit),
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
        "inputs": ((240, 16_384, 65_536), (None, BOTH, None)),
        "last": ((240, 16_384, 65_536), (None, None, BOTH)),
        "stacked": ((512, 16_384, 32_768), (BOTH, None, None)),
        "stacked and last": ((256, 16_384, 65_536), ("data", None, "model")),
        "none": ((16, 1024, 4096), ()),
    }[layout]
    return {f"kernel_{i}": (shape, partition) for i in range(4)}


class Setting:
    """The abstract trees of a variant on a mesh."""

    def __init__(self, variant: Variant, mesh: Mesh):
        self.variant, self.mesh = variant, mesh
        self.kernels = {
            name: self.array(shape, *partition, dtype=variant.dtype)
            for name, (shape, partition) in leaves(variant.layout).items()
        }
        self.params = self.kernels | {"scale": self.array((128, 16_384), dtype=variant.dtype)}
        self.mask = self.like(self.kernels, jnp.bool_) | {"scale": None}
        self.probs = self.like(self.kernels, jnp.float32)
        self.key = self.array((2,), dtype=jnp.uint32)
        self.leaf = next(iter(self.kernels.values()))

    def array(self, shape, *partition, dtype=jnp.float32):
        sharding = NamedSharding(self.mesh, jax.P(*partition))
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    def scalars(self):
        return jax.tree.map(lambda _: self.array(()), self.kernels)

    def like(self, tree, dtype):
        change = lambda x: jax.ShapeDtypeStruct(x.shape, dtype, sharding=x.sharding)
        return jax.tree.map(change, tree)

    def placed(self, tree):
        """Abstract arrays, sharded like kernels of their shape, or replicated."""
        places = {leaf.shape: leaf.sharding for leaf in self.kernels.values()}
        everywhere = NamedSharding(self.mesh, jax.P())
        place = lambda x: places.get(x.shape, everywhere)
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place(x)), tree
        )

    def logits(self, transposable):
        """Of patterns, sharded like their kernels."""
        shapes = jax.eval_shape(
            lambda p: jp.init_pattern_logits(p, 2, 4, transposable=transposable), self.kernels
        )

        def place(kernel, logit):
            spec = [*kernel.sharding.spec, *[None] * kernel.ndim][: kernel.ndim]
            return self.array(logit.shape, None, *spec)

        return jax.tree.map(place, self.kernels, shapes)


Case = Callable[[Setting], tuple]  # to a function and its abstract arguments


def of_kernels(function) -> Case:
    return lambda s: (function, (s.kernels,))


def sampled(function, with_gradient=True) -> dict[str, Case]:
    """A draw with both kinds of bits, and the gradient through it."""
    cases = {}
    for bits in (jax.random.bits, jp.counter_bits):
        draw = functools.partial(function, random_bits=bits)
        named = f"{function.__name__}" + (", counter_bits" if bits is jp.counter_bits else "")
        cases[named] = lambda s, draw=draw: (draw, (s.key, s.probs))
        if with_gradient:
            summed = lambda p, k, w, draw=draw: sum(
                jnp.sum(a * b) for a, b in zip(jax.tree.leaves(draw(k, p)), jax.tree.leaves(w))
            )
            cases[named + ", gradient"] = lambda s, summed=summed: (
                jax.grad(summed), (s.probs, s.key, s.probs))  # fmt: skip
    return cases


def cold_relaxed_bernoulli(key, probs, random_bits):
    return jp.relaxed_bernoulli(key, probs, 0.5, random_bits=random_bits)


cold_relaxed_bernoulli.__name__ = "relaxed_bernoulli"


def pattern_cases() -> dict[str, Case]:
    cases = {}
    for transposable in (False, True):
        kind = ", transposable" * transposable
        options = {"n": 2, "m": 4, "transposable": transposable}
        cases["init_pattern_logits" + kind] = of_kernels(
            functools.partial(jp.init_pattern_logits, **options)
        )
        cases["pattern_mask" + kind] = lambda s, o=options: (
            functools.partial(jp.pattern_mask, **o), (s.kernels, s.logits(o["transposable"])))  # fmt: skip
        cases["gumbel_pattern_mask" + kind] = lambda s, o=options: (
            functools.partial(jp.gumbel_pattern_mask, **o),
            (s.key, s.kernels, s.logits(o["transposable"])))  # fmt: skip
    return cases


FUNCTIONS: dict[str, Case] = {
    "prunable": lambda s: (jp.prunable, (s.params,)),
    "sparsity": lambda s: (jp.sparsity, (s.params,)),
    "sparsity of a mask": lambda s: (jp.sparsity, (s.mask,)),
    "apply_mask": lambda s: (jp.apply_mask, (s.params, s.mask)),
    "top_k_mask": lambda s: (lambda p: jp.top_k_mask(p, 10**8), (s.kernels,)),
    "top_k_mask, traced k": lambda s: (jp.top_k_mask, (s.kernels, s.array((), dtype=jnp.int32))),
    "nm_mask": of_kernels(lambda p: jp.nm_mask(p, 2, 4)),
    "nm_mask, outputs": of_kernels(lambda p: jp.nm_mask(p, 2, 4, axis="outputs")),
    "nm_mask, first axis": of_kernels(lambda p: jp.nm_mask(p, 2, 4, axis=0)),
    "nm_mask, 8:16": of_kernels(lambda p: jp.nm_mask(p, 8, 16)),
    "transposable_nm_mask": of_kernels(lambda p: jp.transposable_nm_mask(p, 2, 4)),
    "transposable_nm_mask, 4:8": of_kernels(lambda p: jp.transposable_nm_mask(p, 4, 8)),
    "transposable_nm_mask, 16:32": of_kernels(lambda p: jp.transposable_nm_mask(p, 16, 32)),
    "transposable_nm_mask, greedy": of_kernels(
        lambda p: jp.transposable_nm_mask(p, 4, 8, method="greedy")
    ),
    "transposable_nm_mask, entropic": of_kernels(
        lambda p: jp.transposable_nm_mask(p, 4, 8, method="entropic")
    ),
    "transposable_potentials": lambda s: (
        lambda p, m: jp.transposable_potentials(p, m, 8),
        (s.kernels, s.like(s.kernels, jnp.bool_)),
    ),
    "projection_capped_simplex": lambda s: (jp.projection_capped_simplex, (s.probs, s.array(()))),
    "projection_capped_simplex, costs": lambda s: (
        lambda p, b, c: jp.projection_capped_simplex(p, b, costs=c),
        (s.probs, s.array(()), s.scalars()),
    ),
    "projection_capped_simplex, cost arrays": lambda s: (
        lambda p, b, c: jp.projection_capped_simplex(p, b, costs=c),
        (s.probs, s.array(()), s.probs),
    ),
    "init_probabilities": lambda s: (jp.init_probabilities, (s.params,)),
    **sampled(jp.bernoulli_mask, with_gradient=False),
    **sampled(cold_relaxed_bernoulli),
    **sampled(jp.gumbel_mask),
    "surrogate_gradient": lambda s: (
        jp.surrogate_gradient, (s.like(s.kernels, jnp.bool_), s.probs)),  # fmt: skip
    "vrpge_gradient": lambda s: (
        jp.vrpge_gradient,
        (s.probs, [s.like(s.kernels, jnp.bool_)] * 2, s.array((2,))),
    ),
    "signed_constant": lambda s: (jp.signed_constant, (s.params, s.mask)),
    "rescale": lambda s: (jp.rescale, (s.kernels, s.scalars())),
    "inverse_density": lambda s: (jp.inverse_density, (s.mask,)),
    **pattern_cases(),
    **{
        name: of_kernels(function)
        for name, function in {
            "l1": jp.l1,
            "transformed_l1": jp.transformed_l1,
            "hoyer_square": jp.hoyer_square,
            "hoyer_square, normalized": functools.partial(jp.hoyer_square, normalized=True),
            "hoyer_ratio": jp.hoyer_ratio,
            "group_hoyer_square": lambda p: jp.group_hoyer_square(p, ("inputs", "outputs")),
            "group_hoyer_square, normalized": lambda p: jp.group_hoyer_square(
                p, "outputs", normalized=True
            ),
            "group_lasso": lambda p: jp.group_lasso(p, "outputs"),
            "group_norms": lambda p: jp.group_norms(p, "inputs"),
            "trimming_point": lambda p: jax.tree.map(jp.trimming_point, p),
        }.items()
    },
    "threshold_mask": lambda s: (lambda p: jp.threshold_mask(p, jp.trimming_point), (s.params,)),
    "threshold_mask, groups": lambda s: (
        lambda p: jp.threshold_mask(p, jp.trimming_point, axis=("inputs", "outputs")),
        (s.params,),
    ),
}


class Link(NamedTuple):
    """A link, whether it stands before the optimizer, and the tree that it updates."""

    make: Callable[[], optax.GradientTransformation]
    first: bool = False
    tree: str = "params"


def n_schedule(step):
    return jnp.maximum(4 - step // 1000, 1)


LINKS = {
    "keep_top_k": Link(lambda: jp.keep_top_k(0.9)),
    "keep_top_k, every 100": Link(lambda: jp.keep_top_k(0.9, every=100)),
    "keep_top_k, scheduled": Link(
        lambda: jp.keep_top_k(jp.cubic_sparsity(0.9, 10, 1000), every=100)
    ),
    "keep_nm": Link(lambda: jp.keep_nm(2, 4)),
    "keep_nm, every 40": Link(lambda: jp.keep_nm(2, 4, every=40)),
    "keep_nm, scheduled, outputs": Link(lambda: jp.keep_nm(n_schedule, 4, every=40, axis="outputs")),
    "keep_transposable_nm": Link(lambda: jp.keep_transposable_nm(2, 4)),
    "keep_transposable_nm, 4:8, scheduled": Link(lambda: jp.keep_transposable_nm(n_schedule, 8)),
    "project_probabilities": Link(
        lambda: jp.project_probabilities(jp.cubic_sparsity(0.9, 10, 1000)), tree="probs"
    ),
    "project_probabilities, costs": Link(
        lambda: jp.project_probabilities(0.9, costs=dict.fromkeys(leaves("two axes"), 2.0)),
        tree="probs",
    ),
    "project_logits": Link(
        lambda: jp.project_logits(jp.cubic_sparsity(0.9, 10, 1000)), tree="probs"
    ),
    "add_hoyer_square": Link(lambda: jp.add_hoyer_square(1e-4), first=True),
    "add_group_hoyer_square": Link(lambda: jp.add_group_hoyer_square(1e-4), first=True),
    "add_penalty(l1)": Link(lambda: jp.add_penalty(jp.l1, 1e-4), first=True),
    "add_penalty(group_lasso)": Link(
        lambda: jp.add_penalty(functools.partial(jp.group_lasso, axis="outputs"), 1e-4), first=True
    ),
}
STRAIGHT = ("keep_top_k, every 100", "keep_nm, every 40", "keep_transposable_nm")


def transformation(name: str, s: Setting):
    """A whole optimizer with the link, and the abstract tree that it updates."""
    if name == "keep_mask":
        return optax.chain(optax.adam(1e-3), jp.keep_mask(s.mask)), s.params
    if name == "identity":
        return optax.adam(1e-3), s.params
    if name.startswith("straight_through"):
        link = LINKS[name.removeprefix("straight_through of ")]
        return jp.straight_through(optax.adam(1e-3), link.make(), decay=2e-4), s.params
    link = LINKS[name]
    order = [link.make(), optax.adam(1e-3)] if link.first else [optax.adam(1e-3), link.make()]
    return optax.chain(*order), getattr(s, link.tree)


def step_case(name: str) -> Case:
    """Update and apply; the parameters and the state are donated, as in training."""

    def case(s: Setting):
        tx, params = transformation(name, s)
        with_mask = lambda params, mask: (
            optax.chain(optax.adam(1e-3), jp.keep_mask(mask)).init(params)
        )
        if name == "keep_mask":
            state = jax.eval_shape(with_mask, params, s.mask)
        else:
            state = jax.eval_shape(tx.init, params)

        def step(params, state, grads):
            # In memory, as a backward pass leaves them.
            grads = jax.lax.optimization_barrier(jax.tree.map(jnp.negative, grads))
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        return step, (params, s.placed(state), params)

    return case


def init_case(name: str) -> Case:
    def case(s: Setting):
        tx, params = transformation(name, s)
        return tx.init, (params,)

    return case


STEPS = ["identity", "keep_mask", *LINKS, *(f"straight_through of {name}" for name in STRAIGHT)]
CASES = (
    FUNCTIONS
    | {f"step with {name}": step_case(name) for name in STEPS}
    | {f"init of {name}": init_case(name) for name in ("keep_top_k", "keep_nm", "straight_through of keep_nm, every 40")}
)  # fmt: skip


def compile_case(case: str, variant: str) -> dict:
    """Compiles one case; a row of the table."""
    v = VARIANTS[variant]
    devices = topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGY).devices
    mesh = Mesh(np.array(devices).reshape(MESH), BOTH, (v.axis_type,) * 2)
    setting = Setting(v, mesh)
    function, arguments = CASES[case](setting)
    options = {}
    if case.startswith("step"):
        options["donate_argnums"] = (0, 1)
    outputs = setting.placed(jax.eval_shape(function, *arguments))
    if v.out_shardings:
        options["out_shardings"] = jax.tree.map(lambda x: x.sharding, outputs)
    start = time.perf_counter()
    done = jax.jit(function, **options).lower(*arguments).compile()
    program = compiled.read(done, time.perf_counter() - start)
    if os.environ.get("DUMP"):
        Path(os.environ["DUMP"]).write_text(done.as_text())
    shard = lambda x: int(np.prod(x.sharding.shard_shape(x.shape)))
    sizes = [shard(x) for x in jax.tree.leaves(arguments)]
    nbytes = lambda tree: sum(shard(x) * x.dtype.itemsize for x in jax.tree.leaves(tree))
    tree = nbytes(arguments[0]) if case.startswith("step") else max(map(nbytes, arguments))
    return {
        "case": case,
        "variant": variant,
        "temporary": program.temporary,
        "share": tree,
        "fraction": program.temporary / tree,
        "array": program.largest_array / max(sizes),
        "moved": program.moved and [program.moved.name, program.moved.bytes],
        "seconds": round(program.seconds, 1),
        "output": done.memory_analysis().output_size_in_bytes / tree,
    }


def in_own_process(case: str, variant: str) -> dict:
    """The row that a process of its own prints."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "true",
    }
    command = [sys.executable, "-m", "benchmarks.scale", "--compile", case, variant]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
        return json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        return {"case": case, "variant": variant, "error": "more than 600 s"}
    except (IndexError, ValueError):
        error = [x for x in done.stderr.splitlines() if x.strip()][-1:]
        return {"case": case, "variant": variant, "error": str(error)[-300:], "code": done.returncode}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*")
    parser.add_argument("--variants", default="base")
    parser.add_argument("--compile", nargs=2)
    parser.add_argument("--without", default="")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rows", type=Path, default=Path("dist/scale-512-chips.jsonl"))
    args = parser.parse_args()
    if args.compile:
        print(json.dumps(compile_case(*args.compile)))
        return
    chosen = [
        (case, variant)
        for variant in args.variants.split(",")
        for case in CASES
        if not args.names or any(name in case for name in args.names)
        if not any(name in case for name in filter(None, args.without.split(",")))
    ]
    args.rows.parent.mkdir(exist_ok=True, parents=True)
    with concurrent.futures.ThreadPoolExecutor(args.workers) as pool, args.rows.open("a") as file:
        for row in pool.map(lambda pair: in_own_process(*pair), chosen):
            print(json.dumps(row), file=file, flush=True)
            if "error" in row:
                print(f"{row['case']:44} {row['variant']:10} {row['error'][-250:]}", flush=True)
            else:
                print(
                    f"{row['case']:44} {row['variant']:10} {row['fraction']:8.4f} {row['array']:8.3f} "
                    f"{row['output']:.2f} {row['moved']} {row['seconds']}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
