"""Speed and memory of exact global selection and projection on a ResNet-50-shaped tree.

    python -m benchmarks.selection > benchmarks/results/selection-<machine>.md

25.5 million float32 weights in 54 leaves (97.3 MiB).
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

import jaxprune as jp
from benchmarks import timing
from experiments.usage import Parser, exit_with_one_line


def resnet50_shapes() -> list[tuple[int, ...]]:
    """The shapes of all kernels, HWIO and (in, out)."""
    shapes, inputs = [(7, 7, 3, 64)], 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            shapes += [(1, 1, inputs, width), (3, 3, width, width), (1, 1, width, 4 * width)]
            if block == 0:
                shapes.append((1, 1, inputs, 4 * width))
            inputs = 4 * width
    return [*shapes, (inputs, 1000)]


def bisection(tree, budget, halvings: int = 21):
    """The projection as published code finds it: halving an interval a fixed number of times."""
    total = lambda v: sum(jnp.sum(jnp.clip(leaf - v, 0.0, 1.0)) for leaf in tree)
    top = jnp.max(jnp.stack([jnp.max(leaf) for leaf in tree]))

    def halve(_, bracket):
        low, high = bracket
        middle = (low + high) / 2
        over = total(middle) > budget
        return jnp.where(over, middle, low), jnp.where(over, high, middle)

    low, high = jax.lax.fori_loop(0, halvings, halve, (jnp.float32(0), top))
    return [jnp.clip(leaf - (low + high) / 2, 0.0, 1.0) for leaf in tree]


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints two tables."""
    Parser(__doc__).parse_args(arguments)  # for --help: there are no flags
    shapes = resnet50_shapes()
    keys = jax.random.split(jax.random.key(0), len(shapes))
    normal = [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]
    size = sum(leaf.size for leaf in normal)
    print(timing.machine())

    magnitudes = [jnp.abs(leaf) for leaf in normal]
    kept = size // 10
    sort = lambda tree: jnp.sort(jnp.concatenate([leaf.ravel() for leaf in tree]))
    top_k = lambda tree: jp.top_k_mask(tree, kept)
    half = [leaf.astype(jnp.bfloat16) for leaf in magnitudes]
    equal = [jnp.ones_like(leaf) for leaf in magnitudes]
    timed = timing.compare(
        {
            "top_k_mask, float32": (top_k, (magnitudes,)),
            "top_k_mask, all scores equal": (top_k, (equal,)),
            "top_k_mask, bfloat16": (top_k, (half,)),
            "jnp.sort of the concatenation": (sort, (magnitudes,)),
        },
        repeats=5,
    )
    print(timing.table(f"Keep 10% of {size:,} scores", timed, "top_k_mask, float32"))

    clip = lambda tree: [jnp.clip(leaf, 0.0, 1.0) for leaf in tree]
    project = lambda density: lambda tree: jp.projection_capped_simplex(tree, density * size)
    step = [1.0 - 0.006 * jnp.minimum(leaf, 1.0) for leaf in magnitudes]
    at_budget = jax.jit(project(0.1))([0.1 + 0.3 * leaf for leaf in normal])
    steady = [prob + 0.006 * leaf + 0.002 for prob, leaf in zip(at_budget, normal, strict=True)]
    spread = [0.3 + 0.5 * leaf for leaf in normal]
    for title, tree, density in (
        ("first step below density 1", step, 0.98),
        ("a step at the final density 0.1", steady, 0.1),
        ("far from the budget: N(0.3, 0.5) to density 0.1", spread, 0.1),
    ):
        timed = timing.compare(
            {
                "one clip of the tree": (clip, (tree,)),
                "projection_capped_simplex": (project(density), (tree,)),
                "bisection, 21 halvings": (lambda t, d=density: bisection(t, d * size), (tree,)),
            }
        )
        print(timing.table(f"Projection: {title}", timed, "one clip of the tree"))


if __name__ == "__main__":
    exit_with_one_line(main)
