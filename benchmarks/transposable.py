"""The exact transposable masks against greedy, entropic and min-cost-flow ones: speed and quality.

python -m benchmarks.transposable > benchmarks/results/transposable-<machine>.md

Draws transposable.png in the working directory. With OR-tools installed
(`pip install ortools`) its min-cost flow, in C++ and one tile after the other, takes part too.
"""

import functools
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
from flax import nnx

import jaxprune as jp
from benchmarks import steps, timing
from experiments import models
from experiments.usage import Parser, exit_with_one_line

PATTERNS = [(2, 4), (4, 8), (8, 16), (16, 32)]
SIDE = 1024  # of the matrix for speed and quality
FLOW_TILES = 2**16  # weights for the flow library, which is slow
METHODS = ("exact", "greedy", "entropic")


def scores_of(kind: str, side: int = SIDE) -> jax.Array:
    """A matrix to choose from."""
    normal = jnp.abs(jax.random.normal(jax.random.key(0), (side, side)))
    match kind:
        case "Gaussian":
            return normal
        case "Gaussian bfloat16":
            return normal.astype(jnp.bfloat16)
        case "five values":
            return jnp.floor(2 * normal).clip(0, 4)
        case "half zeros":
            return jnp.where(normal < 0.6745, 0, normal)
    raise ValueError(kind)


def tiles(matrix: jax.Array, m: int) -> np.ndarray:
    """(tiles, m, m)."""
    side = len(matrix) // m
    return np.asarray(matrix).reshape(side, m, side, m).swapaxes(1, 2).reshape(-1, m, m)


def flow_masks(many: np.ndarray, n: int) -> np.ndarray:
    """The best masks of tiles by OR-tools' min-cost flow on integers."""
    from ortools.graph.python import min_cost_flow

    m = many.shape[-1]
    left, right = np.divmod(np.arange(m * m), m)
    capacities = np.ones(m * m, np.int64)
    supplies = np.repeat([n, -n], m)
    masks = []
    for tile in many:
        flow = min_cost_flow.SimpleMinCostFlow()
        costs = -np.round(tile.reshape(-1) * 2**20).astype(np.int64)
        arcs = flow.add_arcs_with_capacity_and_unit_cost(left, m + right, capacities, costs)
        flow.set_nodes_supplies(np.arange(2 * m), supplies)
        if flow.solve() != flow.OPTIMAL:
            raise RuntimeError("the flow library found no solution")
        masks.append(flow.flows(arcs).reshape(m, m) > 0)
    return np.stack(masks)


def flow_speed(matrix: jax.Array, n: int, m: int) -> str:
    """Millions of weights a second, or why there is no number."""
    try:
        many = tiles(matrix, m)[: FLOW_TILES // m**2]
        flow_masks(many[:1], n)
        start = time.perf_counter()
        masks = flow_masks(many, n)
        seconds = time.perf_counter() - start
    except ImportError:
        return "not installed"
    ours = tiles(jp.transposable_nm_mask(matrix, n, m), m)[: len(many)]
    if not np.isclose((many * masks).sum(), (many * ours).sum(), rtol=1e-6):
        raise RuntimeError("the flow library and the exact solver disagree")
    return f"{many.size / seconds / 1e6:.2f}"


def speeds() -> str:
    """Millions of weights a second of every method, pattern and kind of scores."""
    lines = [
        f"### Millions of weights a second, {SIDE} x {SIDE} float32 scores",
        "",
        "| scores | N:M | exact | greedy | entropic | min-cost flow | exact: compile s |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind in ("Gaussian", "Gaussian bfloat16", "five values", "half zeros"):
        matrix = scores_of(kind)
        for n, m in PATTERNS:
            methods = METHODS if kind == "Gaussian" else METHODS[:1]
            timed = timing.compare(
                {
                    method: (
                        functools.partial(jp.transposable_nm_mask, n=n, m=m, method=method),
                        (matrix,),
                    )
                    for method in methods
                },
                repeats=5,
            )
            rate = {name: SIDE**2 / row.milliseconds / 1e3 for name, row in timed.items()}
            cells = [f"{rate[name]:.3g}" if name in rate else "" for name in METHODS]
            flow = flow_speed(matrix, n, m) if kind == "Gaussian" else ""
            compile_seconds = f"{timed['exact'].compile_seconds:.1f}"
            lines.append(
                "| " + " | ".join([kind, f"{n}:{m}", *cells, flow, compile_seconds]) + " |"
            )
    return "\n".join(lines) + "\n"


def kept_shares() -> dict[str, list[float]]:
    """Kept over all magnitude by method, for each pattern."""
    matrix = scores_of("Gaussian")
    exactly = np.asarray(matrix, np.float64)
    share = lambda mask: float(exactly[np.asarray(mask)].sum() / exactly.sum())
    shares: dict[str, list[float]] = {
        f"transposable, {method}": [
            share(jp.transposable_nm_mask(matrix, n, m, method=method)) for n, m in PATTERNS
        ]
        for method in METHODS
    }
    shares["one direction"] = [share(jp.nm_mask(matrix, n, m)) for n, m in PATTERNS]
    half = share(jp.top_k_mask(matrix, matrix.size // 2))
    shares["unstructured"] = [half] * len(PATTERNS)
    return shares


def share_table(shares: dict[str, list[float]]) -> str:
    """The shares, and in brackets what is lost against the exact transposable mask."""
    names = [f"{n}:{m}" for n, m in PATTERNS]
    lines = [
        f"### Share of the magnitude that is kept, {SIDE} x {SIDE} Gaussian scores",
        "",
        f"| | {' | '.join(names)} |",
        "|---" * (1 + len(names)) + "|",
    ]
    exact = shares["transposable, exact"]
    for name, row in shares.items():
        lost = [
            f" (-{100 * (1 - x / best):.3f}%)" if x < best else ""
            for x, best in zip(row, exact, strict=True)
        ]
        cells = [f"{x:.4f}{loss}" for x, loss in zip(row, lost, strict=True)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def picture(shares: dict[str, list[float]], path: str) -> None:
    """Draws the shares, and what the rivals lose."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    names = [f"{n}:{m}" for n, m in PATTERNS]
    for name, row in shares.items():
        left.plot(names, row, marker="o", label=name)
    left.set_ylabel("kept share of the magnitude")
    left.legend(fontsize=8)
    exact = np.array(shares["transposable, exact"])
    for method in METHODS[1:]:
        lost = 100 * (1 - np.array(shares[f"transposable, {method}"]) / exact)
        right.plot(names, lost, marker="o", label=method)
    right.set_ylabel("lost against the exact mask, %")
    right.set_ylim(bottom=0)
    right.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def resnet50():
    """Weights and loss of a ResNet-50 in training on a batch of eight 224x224 images."""
    graph, weights, rest = nnx.split(
        models.build("resnet50", 1000, (224, 224, 3), nnx.Rngs(0)), nnx.Param, ...
    )
    images = jax.random.normal(jax.random.key(1), (8, 224, 224, 3))

    def task(weights):
        logits = nnx.merge(graph, weights, rest, copy=True)(images, train=True)
        return optax.softmax_cross_entropy_with_integer_labels(logits, jnp.arange(8)).mean()

    return weights, task


def chosen(weights) -> list[jax.Array]:
    """Magnitudes of the leaves that have whole tiles of every size here."""
    mask = jp.keep_sparse(jp.NM(16, 32, transposable=True)).init(weights).mask
    return jax.tree.leaves(
        jax.tree.map(lambda w, keep: None if keep is None else jnp.abs(w), weights, mask)
    )


def networks() -> str:
    """Time for all kernels of a network, and what renewing them every 40 steps costs training."""
    nets = {
        "convolutional net, batch 64": steps.on_batch(steps.conv_net),
        "MLP of 4.2M weights, batch 64": steps.on_batch(steps.mlp),
        "the same, batch 512": steps.on_batch(steps.mlp, batch=512),
        "ResNet-50, 224x224, batch 8": resnet50(),
    }
    lines = [
        "### All kernels of a network, and masks renewed every 40 steps as a share of training",
        "",
        "| network | weights with a mask | SGD step, ms | N:M | mask, ms | share | compile s |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, (weights, task) in nets.items():
        repeats = 5 if name.startswith("ResNet") else 21
        train = steps.step(optax.sgd(0.1, momentum=0.9), task, weights)
        step = timing.compare({"step": train}, repeats, carried=2)["step"].milliseconds
        kernels = chosen(weights)
        size = sum(leaf.size for leaf in kernels)
        for n, m in PATTERNS[:3]:
            of_tree = functools.partial(jp.transposable_nm_mask, n=n, m=m)
            mask = timing.compare({"mask": (of_tree, (kernels,))}, 5)["mask"]
            share = mask.milliseconds / 40 / step
            lines.append(
                f"| {name} | {size:,} | {step:.1f} | {n}:{m} | {mask.milliseconds:.1f} "
                f"| {share:.2%} | {mask.compile_seconds:.1f} |"
            )
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the tables and draws the picture."""
    Parser(__doc__).parse_args(arguments)  # for --help: there are no flags
    print(timing.machine())
    print(speeds())
    shares = kept_shares()
    print(share_table(shares))
    picture(shares, "transposable.png")
    print(networks())


if __name__ == "__main__":
    exit_with_one_line(main)
