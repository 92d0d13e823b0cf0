"""What a training step of the MLP of 4.2 million weights moves on a TPU v5e, without a TPU.

python -m benchmarks.steps_tpu > benchmarks/results/steps-tpu-v5e.md

libtpu compiles ahead of time for one chip that it only has described (`make test-tpu` has its
environment). XLA's own cost analysis counts of a conditional the branch that costs most, and what a
fusion reads from the chip's own memory like what it reads from HBM. So HBM traffic is counted here
from the compiled program: the operands and results in HBM of each instruction that runs between two
choices of a mask. Of a conditional that is the branch that moves least, of a loop the body as often
as the compiler knows that it runs, or else once.
"""

import collections
import math
import re
from typing import NamedTuple

import jax
from jax.experimental import topologies

from benchmarks import steps

_COMPUTATION = re.compile(r"^(?:ENTRY )?%(\S+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%(\S+) = (.*?) ([a-z][a-z0-9-]*)\((.*)$")
_ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\](\{[^}]*\})?")
_NAME = re.compile(r"%([\w.-]+)")
_TRIPS = re.compile(r'known_trip_count[^\d]*"?n"?[^\d]*(\d+)')
_BITS = {"pred": 8, "bf16": 16}
# These name arrays that lie somewhere already; the second half of a copy is counted with the first.
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "iota"}


class Instruction(NamedTuple):
    """One line of a compiled program."""

    name: str
    result: str  # its shapes and layouts
    kind: str
    arguments: str
    rest: str

    @property
    def operands(self) -> list[str]:
        """Their names."""
        return _NAME.findall(self.arguments)


def parsed(program: str) -> dict[str, list[Instruction]]:
    """The instructions of each computation; the entry's are under ''."""
    computations, name = collections.defaultdict(list), ""
    for line in program.splitlines():
        if opened := _COMPUTATION.match(line):
            name = "" if line.startswith("ENTRY") else opened[1]
        elif found := _INSTRUCTION.match(line):
            inside, _, rest = found[4].partition(")")
            computations[name].append(Instruction(found[1], found[2], found[3], inside, rest))
    return computations


def traffic(program: str) -> float:
    """Bytes between HBM and the chip in one run of a compiled program, between two choices."""
    computations = parsed(program)

    def of(name: str) -> float:
        instructions = computations[name]
        results = {each.name: each.result for each in instructions}
        return sum(moved(each, results) for each in instructions)

    def moved(each: Instruction, results) -> float:
        called = [name for name in _NAME.findall(each.rest) if name in computations]
        if each.kind in _FREE or each.kind.endswith("-done") or "ConcatBitcast" in each.rest:
            return 0.0
        if each.kind == "conditional":
            return min(map(of, called))
        if each.kind == "while":
            trips = _TRIPS.search(each.rest)
            return int(trips[1] if trips else 1) * sum(map(of, called))
        if each.kind == "call":
            return sum(map(of, called))
        if each.kind == "copy-start":
            return _hbm(_ARRAY.findall(each.result))  # what is copied, where it was and where it is
        if each.kind == "slice-start":
            source, part, *_ = _ARRAY.findall(each.result)
            return _hbm([part]) + _bytes(part) * (not _on_chip(source))
        if each.kind == "fusion":
            return _of_fusion(each, results, computations[called[0]])
        read = sum(_hbm(_ARRAY.findall(results[name])) for name in each.operands if name in results)
        return read + _hbm(_ARRAY.findall(each.result))

    return of("")


def _of_fusion(each: Instruction, results, body: list[Instruction]) -> float:
    """What it reads and writes; of a large array that is only sliced or updated, that part."""
    numbers = {line.name: int(line.arguments) for line in body if line.kind == "parameter"}
    shapes = {line.name: line.result for line in body}
    whole, parts = set(), collections.Counter()
    updated = 0.0
    for line in body:
        for place, name in enumerate(line.operands):
            if name not in numbers:
                continue
            if line.kind in ("dynamic-slice", "slice") and place == 0:
                parts[name] += sum(map(_bytes, _ARRAY.findall(line.result)))
            elif line.kind == "dynamic-update-slice" and place == 0:
                updated += sum(map(_bytes, _ARRAY.findall(shapes[line.operands[1]])))
            else:
                whole.add(name)
    read = 0.0
    for name, number in numbers.items():
        arrays = _ARRAY.findall(results.get(each.operands[number], ""))
        read += _hbm(arrays) if name in whole else parts[name] * bool(_hbm(arrays))
    written = _hbm(_ARRAY.findall(each.result))
    return read + (min(updated, written) if updated else written)


def _hbm(arrays) -> float:
    return float(sum(_bytes(array) for array in arrays if not _on_chip(array)))


def _on_chip(array) -> bool:
    return "S(" in array[2]


def _bytes(array) -> float:
    kind, shape, _ = array
    bits = _BITS.get(kind) or int(re.sub(r"\D", "", kind) or 0)
    return math.prod(int(size) for size in shape.split(",") if size) * bits / 8


def main() -> None:
    """Prints the table."""
    (device,) = topologies.get_topology_desc(
        platform="tpu", topology_name="v5e:1x1", chips_per_host_bounds=[1, 1, 1]
    ).devices
    weights, task = steps.on_batch(steps.mlp)
    cases = steps.cases(weights, task)
    fixed = report(*cases["keep_mask"], device)
    print(f"jax {jax.__version__}, compiled for {device.device_kind}, one chip\n")
    print(f"### mlp, {sum(leaf.size for leaf in weights):,} weights, batch {steps.BATCH}\n")
    print(
        "| | HBM MiB | times *keep_mask* | cost analysis MiB | GFLOP | temporary MiB |\n"
        "|---|---|---|---|---|---|"
    )
    for name, (function, arguments) in cases.items():
        row = report(function, arguments, device)
        numbers = [row[0], row[0] / fixed[0], *row[1:]]
        cells = [name, *(f"{number:.4g}" for number in numbers)]
        print("| " + " | ".join(cells) + " |", flush=True)


def report(function, arguments, device) -> tuple[float, float, float, float]:
    """HBM MiB, MiB and GFLOP of XLA's cost analysis, and temporary MiB."""
    place = jax.sharding.SingleDeviceSharding(device)
    there = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), arguments
    )
    compiled = jax.jit(function, donate_argnums=(0, 1)).lower(*there).compile()
    cost = compiled.cost_analysis()
    memory = compiled.memory_analysis().temp_size_in_bytes
    bytes_moved = traffic(compiled.as_text())
    return (
        bytes_moved / 2**20,
        cost["bytes accessed"] / 2**20,
        cost["flops"] / 1e9,
        memory / 2**20,
    )


if __name__ == "__main__":
    main()
