"""What the compiler makes of an experiment for a TPU that isn't there: look before you rent.

libtpu compiles ahead of time for chips that it only has described. Each phase that trains is
compiled as it would run, on shapes alone: no record is read and no weight is made. Phases that
train nothing are left out: what follows them is compiled for the whole network. Operations are
counted in the step as it is written, rematerialisation included; memory, bytes and collectives in
what the compiler made of it.
"""

import collections
import functools
import importlib.util
import math
import os
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from experiments import data, training
from experiments.costs.flops import flops
from experiments.costs.hlo import Collective, Program
from experiments.costs.traffic import traffic
from experiments.devices import Devices
from experiments.experiment import Experiment
from experiments.log import announced
from experiments.phases.base import Network, Tree
from experiments.room import Room, initial_network
from experiments.usage import UsageError

_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class Step(NamedTuple):
    """The training step of a phase, on one chip of a mesh.

    In bytes `state` and `batch`, which are its arguments, `temporary` what it takes besides,
    `limit` what a chip has, and `traffic` what is read and written; in products and sums `flops`.
    Of each kind of collective, how many run and the bytes of all of them. `largest_array` is that
    of the largest in memory but records, relative to the largest whole leaf of the state. Of a step
    that the compiler refuses only arguments, flops and its words are known.
    """

    phase: str
    mesh: dict[str, int]
    state: int
    batch: int
    limit: int
    flops: float
    temporary: int | None = None
    traffic: float | None = None
    collectives: dict[str, tuple[int, float]] | None = None
    largest_array: float | None = None
    words: str | None = None

    @property
    def memory(self) -> int | None:
        """All that it takes, in bytes."""
        return None if self.temporary is None else self.state + self.batch + self.temporary

    @property
    def fits(self) -> bool:
        """Whether a chip holds it: the compiler accepts some steps that it doesn't."""
        return self.memory is not None and (not self.limit or self.memory <= self.limit)


def steps(experiment: Experiment, topology: str, mesh: str | None) -> list[Step]:
    """A step for each phase that trains, on chips such as v5e:4x4.

    Raises:
        UsageError: libtpu is missing, it doesn't know the topology, or the experiment doesn't fit
            the mesh.
    """
    chips = described(topology)
    rules = {"model_axes": experiment.model_axes, "shard_from": experiment.shard_from}
    devices = Devices.over(chips, mesh, **rules)
    dataset = data.described(experiment.dataset, experiment.limit, **experiment.dataset_options)
    initial = functools.partial(initial_network, experiment.model, dataset.task)
    network, graph = jax.eval_shape(initial, jax.random.key(0))
    network = devices.described(network)
    room, limit = Room(graph, dataset, experiment.holdout, devices), memory_of(chips[0])
    found = []
    for phase in experiment.phases:
        if phase.epochs:
            room.check(phase)
            with announced(f"{phase.name}: compiling for {topology}"):
                found.append(of_phase(phase, network, experiment, room, limit))
    return found


def of_phase(phase: Any, network: Network, experiment: Experiment, room: Room, limit: int) -> Step:
    """What the compiler makes of a phase's step."""
    key = jax.random.key(0)
    begun = lambda network: training.begun(phase, network, experiment, room, key)
    first = lambda network: begun(network).first_state(network, key)  # links may hold its mask
    state = room.devices.described(jax.eval_shape(first, network))
    start = begun(network)
    run: Any = start.programs.run_until
    payload, last = start.feed.payload(0), jax.ShapeDtypeStruct((), jnp.int32)
    step = Step(
        phase=phase.name,
        mesh=dict(room.devices.mesh.shape),
        state=on_chip(state),
        batch=on_chip(payload),
        limit=limit,
        flops=flops(run, state, payload, last) / room.devices.mesh.size,
    )
    try:
        program = run.lower(state, payload, last).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return step._replace(words=_reason(str(error)))
    return _read(step, program, state, payload)


def _read(step: Step, program: jax.stages.Compiled, state: Tree, payload: Tree) -> Step:
    """The step with what the compiled program says."""
    read = Program(program.as_text() or "")
    records = {leaf.size for leaf in jax.tree.leaves(payload)}
    sizes = {array.entries for array in read.in_memory()} - records
    return step._replace(
        temporary=held_besides(program.memory_analysis()),
        traffic=traffic(read),
        collectives=summed(read.collectives()),
        largest_array=max(sizes) / max(leaf.size for leaf in jax.tree.leaves(state)),
    )


def _reason(words: str) -> str:
    """The sentence of the compiler's that says how much is too much."""
    return next((part for part in re.split(r"\. |: |\n", words) if "HBM (" in part), words)


def held_besides(memory: Any) -> int:
    """What a program takes beside its arguments: temporaries, and results of their own."""
    own = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return memory.temp_size_in_bytes + own + memory.generated_code_size_in_bytes


def on_chip(tree: Tree) -> int:
    """The bytes of a tree of shapes on each chip."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * _itemsize(leaf)
        for leaf in jax.tree.leaves(tree)
    )


def _itemsize(leaf) -> int:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return math.prod(jax.eval_shape(jax.random.key_data, leaf).shape[leaf.ndim :]) * 4
    return leaf.dtype.itemsize


def summed(collectives: Iterable[Collective]) -> dict[str, tuple[int, float]]:
    """Of each kind, how many run in a step and their bytes."""
    found: dict[str, tuple[int, float]] = collections.defaultdict(lambda: (0, 0.0))
    for name, size, runs in collectives:
        count, total = found[name]
        found[name] = count + runs, total + runs * size
    return dict(found)


# Chips ------------------------------------------------------------------------------------------


def described(topology: str) -> Sequence[jax.Device]:
    """The chips of a topology, which need not be there.

    Raises:
        UsageError: libtpu is missing, or it doesn't know the topology.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise UsageError(
            "--compile_for takes the compiler for TPUs: pip install 'jax[tpu]' (no TPU is needed)"
        )
    # There may be no TPU host to ask about, and no TPU that two processes could want.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "true")
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    except Exception as error:  # of a type that differs by version
        raise UsageError(
            f"--compile_for={topology}: {error}; give it as v5e:4x4, v5p:8x8x8 or v6e:16x16"
        ) from error


def memory_of(chip: jax.Device) -> int:
    """The bytes that a program can have on a chip, as the compiler says when asked for too many."""
    place = jax.sharding.SingleDeviceSharding(chip)
    huge = jax.ShapeDtypeStruct((2**40,), jnp.int8, sharding=place)
    try:
        jax.jit(lambda x: x + x).lower(huge).compile()
    except jax.errors.JaxRuntimeError as error:
        if found := re.search(r"available HBM \(([\d.]+)([KMGT])\)", str(error)):
            return int(float(found[1]) * _UNITS[found[2]])
    return 0


# For people -------------------------------------------------------------------------------------


def text(found: Sequence[Step], topology: str) -> str:
    """What was found, a paragraph a phase."""
    shape = ", ".join(f"{name}:{size}" for name, size in found[0].mesh.items())
    lines = [f"{topology} as {shape}; figures are of a step, a chip"]
    for step in found:
        lines += ["", *_of_step(step)]
    return "\n".join(lines)


def _of_step(step: Step) -> list[str]:
    limit = size(step.limit) if step.limit else "an unknown limit"
    arguments = f"  state {size(step.state)}, records {size(step.batch)}"
    work = f"  {step.flops / 1e9:,.1f} Gflop"
    if step.memory is None:
        return [f"{step.phase}: DOES NOT FIT in {limit}", arguments, f"  {step.words}", work]
    part = f" ({step.memory / step.limit:.0%})" if step.limit else ""
    moved = [
        f"{runs:,} x {name} ({size(moved)} in all)"
        for name, (runs, moved) in sorted((step.collectives or {}).items())
    ]
    verdict = "fits" if step.fits else "DOES NOT FIT"
    return [
        f"{step.phase}: {verdict}, {size(step.memory)} of {limit}{part}",
        f"{arguments}, temporary {size(step.temporary or 0)}",
        f"{work}, {size(step.traffic or 0)} read and written in memory",
        f"  between chips: {', '.join(moved) or 'nothing'}",
        f"  largest array: {step.largest_array:.3g} of the largest whole leaf",
    ]


def size(count: float) -> str:
    """Bytes for people."""
    for unit, one in reversed(_UNITS.items()):
        if count >= one:
            return f"{count / one:.3g} {unit}iB"
    return f"{count:.3g} B"
