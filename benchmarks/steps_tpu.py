"""What a training step of an MLP of 268 million weights moves on a TPU v5e, without a TPU.

python -m benchmarks.steps_tpu > benchmarks/results/steps-tpu-v5e.md

libtpu compiles ahead of time for one chip that it only has described (`make test-tpu` has its
environment). HBM traffic is counted from the compiled program, of the instructions that run between
two choices of a mask.
"""

import functools
from collections.abc import Callable, Sequence

import jax
from jax.experimental import topologies

from benchmarks import steps
from experiments.costs.hlo import Program
from experiments.costs.traffic import traffic
from experiments.usage import Parser, exit_with_one_line

WIDTH = 14336  # weights of 1 GB, of which little can stay in the chip's own 128 MiB


def chip():
    """The described device."""
    (device,) = topologies.get_topology_desc(
        platform="tpu", topology_name="v5e:1x1", chips_per_host_bounds=[1, 1, 1]
    ).devices
    return device


def compiled(function: Callable, arguments, device, donated=(0, 1)) -> jax.stages.Compiled:
    """A function compiled for a device from abstract arguments."""
    place = jax.sharding.SingleDeviceSharding(device)
    there = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), arguments
    )
    return jax.jit(function, donate_argnums=donated).lower(*there).compile()


def cases() -> tuple[int, dict[str, tuple[Callable, tuple]]]:
    """How many weights there are, and functions with abstract arguments: nothing is allocated."""
    functions = {}

    def arguments():
        weights, task = steps.on_batch(functools.partial(steps.mlp, width=WIDTH))
        found = steps.cases(weights, task)
        functions.update({name: function for name, (function, _) in found.items()})
        return weights, {name: own for name, (_, own) in found.items()}

    weights, shapes = jax.eval_shape(arguments)
    size = sum(leaf.size for leaf in weights)
    return size, {name: (function, shapes[name]) for name, function in functions.items()}


def row(function: Callable, arguments, device) -> tuple[float, ...]:
    """Bytes in HBM; those more for a turn, or in a choosing step; XLA's count; of temporaries."""
    program = compiled(function, arguments, device)
    text = program.as_text()
    moved = traffic(Program(text))
    return (
        moved,
        traffic(Program(text, turns=2)) - moved,
        traffic(Program(text), branch=max) - moved,
        program.cost_analysis()["bytes accessed"],
        program.memory_analysis().temp_size_in_bytes,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table."""
    Parser(__doc__).parse_args(arguments)  # for --help: there are no flags
    device = chip()
    size, found = cases()
    if "jaxpruner" not in " ".join(found):
        print("jaxpruner isn't installed: its row is missing.\n")
    fixed, *_ = row(*found["keep_mask"], device)
    print(f"jax {jax.__version__}, compiled for {device.device_kind}, one chip\n")
    print(f"### mlp, {size:,} weights, batch {steps.BATCH}\n")
    print(
        "In MiB. A turn: what each turn after the first adds, of loops that end by what they "
        "compute.\nA choice: what is added in a step that runs the other branch of its "
        "conditionals, one turn of such loops.\n\n"
        "| | HBM | times *keep_mask* | a turn | a choice | cost analysis | temporary |\n"
        "|---|---|---|---|---|---|---|"
    )
    for name, (function, arguments) in found.items():
        try:
            numbers = row(function, arguments, device)
            moved, *others = [f"{number / 2**20:,.1f}" for number in numbers]
            cells = [moved, f"{numbers[0] / fixed:.3f}", *others]
        except jax.errors.JaxRuntimeError as error:
            cells = [str(error).split(". ")[0]]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    exit_with_one_line(main)
