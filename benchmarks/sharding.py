"""Training whose state is fully sharded, against replicated state and against one device.

    JAX_NUM_CPU_DEVICES=8 python -m benchmarks.sharding

The same 50 steps of the runner each time: how far losses come apart, how many bytes of state and of
all else a device holds, and whether the mask that the last scores give is the same to the bit.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType

import jaxprune as jp
from experiments import training
from experiments.data import Dataset
from experiments.devices import Devices
from experiments.experiment import Experiment
from experiments.phases import Search, TrainPattern
from experiments.room import Room
from experiments.run import initial_network
from experiments.tasks.classification import Classification
from experiments.usage import Parser, exit_with_one_line

STEPS, BATCH = 50, 32
NEVER = 2**62

CASES = {
    "LeNet-5, ProbMask": (
        "lenet5",
        Search(
            epochs=1,
            batch=BATCH,
            draws=1,
            learning_rate=0.02,
            dense_until=0.4,
            reach_sparsity_at=0.9,
        ),
    ),
    "LeNet-300-100, transposable 2:4, straight-through, Adam": (
        "lenet300100",
        TrainPattern(
            epochs=1,
            batch=BATCH,
            transposable=True,
            where="fc[12]/kernel",
            optimizer="adam",
            learning_rate=1e-3,
        ),
    ),
}


class Trained(NamedTuple):
    """What 50 steps gave: bytes are those of the first device."""

    losses: np.ndarray
    state: training.State
    state_bytes: int
    temporary_bytes: int


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints one table for each case."""
    Parser(__doc__).parse_args(arguments)  # for --help: there are no flags
    for title, (model, phase) in CASES.items():
        experiment = Experiment(model, "digits", (phase,), sparsity=0.9)
        found = {name: trained(experiment, devices) for name, devices in layouts().items()}
        print(f"\n{title}\n\n{table(found, phase)}")


def layouts() -> dict[str, Devices]:
    """The devices of each row."""
    alone = jax.make_mesh((1, 1), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    by_outputs = {"(conv|fc)": -1}
    return {
        "one device": Devices(alone),
        "data:8, replicated": Devices.all(shard_from=NEVER),
        "data:8, fully sharded": Devices.all(),
        "data:4,model:2, fully sharded": Devices.of("data:4,model:2", model_axes=by_outputs),
    }


def trained(experiment: Experiment, devices: Devices) -> Trained:
    """The losses of each step, and what a device holds."""
    (phase,), dataset = experiment.phases, images()
    network, graph = devices.made(
        functools.partial(initial_network, experiment.model, dataset.task), jax.random.key(0)
    )
    room = Room(graph, dataset, devices=devices)
    steps = training.Steps.of(phase, room.train.count, experiment)
    optimizer = phase.links(network, experiment.sparsity, steps.total, room)
    feed = room.train.feed(phase.batch, jax.random.key(1))
    params = phase.begin(network, experiment.sparsity)
    first = training.first_state(params, network.rest, optimizer, jax.random.key(2))
    state, losses = devices.placed(first), []
    run = training.compiled(phase, optimizer, room, feed, steps).run_until
    program = run.lower(state, feed.payload(0), 1).compile()
    state_bytes = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(state))
    for step in range(STEPS):
        state, loss = program(state, feed.payload(step), step + 1)
        losses.append(float(loss))
        state = state._replace(loss=jnp.zeros_like(state.loss))
    temporary = program.memory_analysis().temp_size_in_bytes
    return Trained(np.array(losses), state, state_bytes, temporary)


def images() -> Dataset:
    """Ten noisy patterns to tell apart."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, STEPS * BATCH).astype(np.int32)
    patterns = rng.integers(0, 256, (10, 28, 28, 1))
    noisy = patterns[labels] + rng.normal(0, 100, (len(labels), 28, 28, 1))
    records = noisy.clip(0, 255).astype(np.uint8), labels
    task = Classification(10, (28, 28, 1), mean=(0.5,), std=(0.25,))
    return Dataset("patterns", task, records, jax.tree.map(lambda array: array[:80], records))


def mask_of(phase: Any, params: Any) -> Any:
    """The mask that a phase would end with."""
    if isinstance(phase, Search):
        return jp.top_k_mask(params["probs"], round(0.1 * jp.count(jp.prunable(params["weights"]))))
    magnitudes = jax.tree.map(
        lambda weight, keep: None if keep is None else abs(weight),
        params,
        jp.prunable(params, phase.where),
    )
    return jp.transposable_nm_mask(magnitudes, phase.n, phase.m)


def differing(phase: Any, params: Any) -> int:
    """Entries of the mask that one device would choose otherwise, from the same parameters."""
    here, alone = (mask_of(phase, tree) for tree in (params, jax.device_get(params)))
    differ = jax.tree.map(lambda one, other: int(np.sum(one != np.asarray(other))), here, alone)
    return sum(jax.tree.leaves(differ))


def table(found: dict[str, Trained], phase: Any) -> str:
    """One row for each layout."""
    lines = [
        "| | state, bytes a device | temporary, bytes a device | first loss | last loss | largest "
        "difference of losses from replicated | entries of the mask other than one device's |",
        "|---|---|---|---|---|---|---|",
    ]
    replicated = found["data:8, replicated"].losses
    for name, each in found.items():
        apart = np.abs(each.losses - replicated).max()
        cells = (
            name,
            f"{each.state_bytes:,}",
            f"{each.temporary_bytes:,}",
            f"{each.losses[0]:.4f}",
            f"{each.losses[-1]:.4f}",
            f"{apart:.1e}",
            f"{differing(phase, each.state.params)}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    exit_with_one_line(main)
