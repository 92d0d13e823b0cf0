"""How much smaller and faster a network became when channels left it."""

import functools
import statistics
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp

import jaxprune as jp
from experiments.phases.base import Network
from experiments.room import Room

_BATCH, _REPEATS = 32, 15


class Size(NamedTuple):
    """Parameters, flops of one record (two a multiplication and addition), and time of a batch."""

    parameters: int
    flops: float
    milliseconds: float


class Leaf(NamedTuple):
    """The shapes of one leaf of the weights."""

    path: str
    before: tuple[int, ...]
    after: tuple[int, ...]


def leaves(before: Network, after: Network) -> list[Leaf]:
    """The leaves of the weights, in the tree's order."""
    name = functools.partial(jax.tree_util.keystr, simple=True, separator="/")
    pairs = zip(
        jax.tree_util.tree_leaves_with_path(before.weights),
        jax.tree.leaves(after.weights),
        strict=True,
    )
    return [Leaf(name(path), old.shape, new.shape) for (path, old), new in pairs]


def sizes(before: Network, after: Network, room: Room) -> dict[str, Size]:
    """Of both networks; timed in turn, in evaluation, on batches of 32 records."""
    networks = {"before": before, "after": after}
    milliseconds = _milliseconds([*networks.values()], room)
    return {
        when: Size(_parameters(network), _flops(network, room), time)
        for (when, network), time in zip(networks.items(), milliseconds, strict=True)
    }


def _parameters(network: Network) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(network.weights))


def _flops(network: Network, room: Room) -> float:
    channels = room.channels(network)
    whole = tuple(jnp.ones(family.size, bool) for family in channels.groups)
    return float(jp.channel_cost(channels, whole, of="flops"))


def _milliseconds(networks, room: Room) -> list[float]:
    inputs = room.task.inputs(room.test.first(_BATCH))
    run = jax.jit(room.outputs)
    times = [[] for _ in networks]
    for turn in range(1 + _REPEATS):
        for network, own in zip(networks, times, strict=True):
            start = time.perf_counter()
            jax.block_until_ready(run(network.parameters(), inputs))
            if turn:  # the first one compiles
                own.append(1e3 * (time.perf_counter() - start))
    return [statistics.median(own) for own in times]


def text(size: Size) -> str:
    """For people."""
    return (
        f"{size.parameters:,} parameters, {size.flops:,.0f} flops a record, "
        f"{size.milliseconds:.3g} ms a batch of {_BATCH}"
    )


def table(rows: list[Leaf]) -> str:
    """Shapes before and after, a line a leaf."""
    shape = lambda sizes: "x".join(map(str, sizes))
    cells = [("leaf", "before", "after")]
    cells += [(row.path, shape(row.before), shape(row.after)) for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in cells)
    return "\n".join(lines)
