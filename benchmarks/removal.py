"""Channels that leave a network: how exact it is, and how much smaller and faster it gets.

python -m benchmarks.removal > benchmarks/results/removal-<machine>.md
python -m benchmarks.removal --tables=exactness,speed,tpu

Half of the groups of each family leave, drawn at random. The first table compares the smaller
network with the masked one; the second times both in one run; the third asks XLA's cost analysis
of a TPU v5e, which need not be there (`pip install jax[tpu]`).
"""

import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

import jaxprune as jp
from benchmarks import timing
from benchmarks.networks import NETWORKS, classifier
from experiments.usage import Parser, check_names, exit_with_one_line


def kept(channels: jp.Channels, density: float) -> tuple[np.ndarray, ...]:
    """Of each family, this part of its groups, drawn at random, but at least one."""
    random = np.random.default_rng(0)

    def of_family(size):
        keep = np.arange(size) < max(1, round(density * size))
        return random.permutation(keep)

    return tuple(of_family(family.size) for family in channels.groups)


def shrunk(apply, params, inputs, density: float):
    """The network with this part of its channels."""
    channels = jp.channel_groups(apply, params, inputs)
    mask = jp.channel_mask(params, channels, kept(channels, density))
    return jp.shrink(apply, params, mask, inputs)


def count(params) -> int:
    """The number of floating-point parameters."""
    floating = lambda leaf: jnp.issubdtype(leaf.dtype, jnp.floating)
    return sum(leaf.size for leaf in jax.tree.leaves(params) if floating(leaf))


def exactness() -> None:
    """Prints a row for each kind of network."""
    columns = "families | groups | parameters | of them at half | Mflops | of them at half"
    print(f"| | {columns} | largest difference | seconds to find groups |")
    print("|---" * 9 + "|")
    for name, make in NETWORKS.items():
        apply, params, inputs = make()
        start = time.perf_counter()
        channels = jp.channel_groups(apply, params, inputs)
        seconds = time.perf_counter() - start
        keep = kept(channels, 0.5)
        small = jp.shrink(apply, params, jp.channel_mask(params, channels, keep), inputs)
        whole = tuple(np.ones(len(each), bool) for each in keep)
        flops = [float(jp.channel_cost(channels, each, of="flops")) for each in (whole, keep)]
        groups = sum(family.size for family in channels.groups)
        print(
            f"| {name} | {len(channels.groups)} | {groups:,} | {count(params):,} | "
            f"{count(small.params) / count(params):.1%} | {flops[0] / 1e6:,.1f} | "
            f"{flops[1] / flops[0]:.1%} | {small.difference:.1e} | {seconds:.1f} |",
            flush=True,
        )
    print()


_SPEED = {
    "ResNet-32": ("resnet32", 32, 10),
    "ResNet-50": ("resnet50", 224, 1000),
}


def cases(apply, params, inputs):
    """Inference, and the gradient of a training step with an update by it."""

    def train(params, inputs):
        loss = lambda params: jnp.mean(apply(params, inputs) ** 2)
        return jax.tree.map(lambda p, g: p - 1e-3 * g, params, jax.grad(loss)(params))

    return {"inference": (apply, (params, inputs)), "training step": (train, (params, inputs))}


def networks(model: str, pixels: int, classes: int, batch: int):
    """The network whole, and with half and a quarter of its channels."""
    apply, params, _ = classifier(model, pixels, classes=classes)
    inputs = jax.random.normal(jax.random.key(0), (batch, pixels, pixels, 3))
    found = {"whole": (apply, params, inputs)}
    for density in (0.5, 0.25):
        small = shrunk(apply, params, inputs[:1], density)
        found[f"{density:.0%} of the channels"] = (small.apply, small.params, inputs)
    return found


def speed() -> None:
    """Prints a table for each network and batch."""
    for name, (model, pixels, classes) in _SPEED.items():
        for batch in (1, 32):
            both = {
                label: cases(*network)
                for label, network in networks(model, pixels, classes, batch).items()
            }
            for kind in ("inference", "training step"):
                timed = timing.compare({label: each[kind] for label, each in both.items()}, 5)
                print(timing.table(f"{name}, batch {batch}, {kind}", timed, "whole"), flush=True)


def tpu() -> None:
    """Prints flops and bytes by XLA's cost analysis for one chip of a TPU v5e."""
    from jax.experimental import topologies

    chip = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices[0]
    place = jax.sharding.SingleDeviceSharding(chip)
    print("| | | Gflops | times fewer | MB moved | times fewer |")
    print("|---" * 6 + "|")
    for name, (model, pixels, classes) in _SPEED.items():
        first: dict[str, tuple[float, float]] = {}
        for label, network in networks(model, pixels, classes, 32).items():
            for kind, (function, arguments) in cases(*network).items():
                shapes = jax.tree.map(
                    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), arguments
                )
                cost = jax.jit(function).lower(*shapes).compile().cost_analysis()
                found = cost["flops"] / 1e9, cost["bytes accessed"] / 1e6
                before = first.setdefault(kind, found)
                print(
                    f"| {name}, batch 32, {kind} | {label} | {found[0]:,.1f} | "
                    f"{before[0] / found[0]:.2g} | {found[1]:,.0f} | {before[1] / found[1]:.2g} |",
                    flush=True,
                )
    print()


_TABLES = {"exactness": exactness, "speed": speed, "tpu": tpu}


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the tables that were asked for."""
    parser = Parser(__doc__)
    parser.add_argument("--tables", default="exactness,speed")
    names = parser.parse_args(arguments).tables.split(",")
    check_names("--tables", names, _TABLES)
    print(timing.machine())
    for name in names:
        _TABLES[name]()


if __name__ == "__main__":
    exit_with_one_line(main)
