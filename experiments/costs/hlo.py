"""A compiled program, read from its text: the arrays in memory and what moves between chips.

XLA replicates not only by gathers: an all-reduce of an array that each chip has padded to the whole
does the same. So sizes are looked at, of every array and every collective, and no names.
"""

import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax

_COMPUTATION = re.compile(r"^(?:ENTRY )?%(\S+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%(\S+) = (.*?) ([a-z][a-z0-9-]*)\(([^)]*)(.*)$")
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+)(?:e\dm\d\w*)?\[([\d,]*)\](\{[^}]*\})?")
_CONDITION = re.compile(r"condition=%([\w.-]+)")
_NAME = re.compile(r"%([\w.-]+)")
_BITS = {"pred": 8}  # of an entry; others have their bits in their names
_COLLECTIVES = {
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-broadcast",
    "collective-permute",
    "ragged-all-to-all",
    "reduce-scatter",
}
# These name arrays that lie somewhere already.
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast"}


class Array(NamedTuple):
    """An array of a program, and whether it lies in HBM."""

    entries: int
    bytes: int
    in_hbm: bool


class Instruction(NamedTuple):
    """One line of a compiled program."""

    kind: str
    arrays: list[Array]  # its result
    arguments: str
    operands: list[str]
    rest: str


Computation = dict[str, Instruction]


class Collective(NamedTuple):
    """A collective, the bytes of the largest array that it takes or gives on a chip, its runs."""

    name: str
    bytes: int
    runs: int


class Program:
    """The computations of a program; the one that runs first has no name.

    Loops that end by what they compute run for so many `turns`.
    """

    def __init__(self, text: str, turns: int = 1):
        self._turns = turns
        self.computations: dict[str, Computation] = {}
        name = ""
        for line in text.splitlines():
            if opened := _COMPUTATION.match(line):
                name = "" if line.startswith("ENTRY") else opened[1]
                self.computations[name] = {}
            elif found := _INSTRUCTION.match(line):
                own, result, kind, arguments, rest = found.groups()
                self.computations[name][own] = Instruction(
                    kind, [*arrays(result)], arguments, _NAME.findall(arguments), rest
                )
        # XLA gives each instruction of a program a name of its own.
        self.all = {k: v for body in self.computations.values() for k, v in body.items()}

    def collectives(self, computation: str = "") -> Iterator[Collective]:
        """All collectives of a run."""
        for line in self.computations[computation].values():
            name = line.kind.removesuffix("-start")
            if name in _COLLECTIVES:
                yield Collective(name, max((each.bytes for each in line.arrays), default=0), 1)
            turns = self.turns(line) if line.kind == "while" else 1
            for called in self.called(line):
                for each in self.collectives(called):
                    yield each._replace(runs=turns * each.runs)

    def in_memory(self) -> Iterator[Array]:
        """All arrays but those inside fusions, which aren't written to memory."""
        fusions = (line for line in self.all.values() if line.kind == "fusion")
        fused = {name for line in fusions for name in self.called(line)}
        for name in self.computations.keys() - fused:
            for line in self.computations[name].values():
                yield from line.arrays

    def called(self, line: Instruction) -> list[str]:
        """The computations that an instruction runs."""
        return [name for name in _NAME.findall(line.rest) if name in self.computations]

    def turns(self, loop: Instruction) -> int:
        """Of a loop from zero whose condition does nothing but compare with a constant, that."""
        condition = self.computations[_CONDITION.findall(loop.rest)[0]].values()
        limits = [line.arguments for line in condition if line.kind == "constant"]
        work = [line.rest for line in condition if line.kind not in FREE]
        counted = len(limits) == len(work) == 1 and "direction=LT" in work[0]
        return int(limits[0]) if counted else self._turns


def arrays(shape: str) -> Iterator[Array]:
    """The arrays of a shape; the memory of S(n), n > 0, is the chip's own."""
    for dtype, sizes, layout in _ARRAY.findall(shape):
        entries = math.prod(int(size) for size in sizes.split(",") if size)
        bits = _BITS.get(dtype) or int(re.sub(r"\D", "", dtype))
        yield Array(entries, -(-entries * bits // 8), "S(" not in layout)


class Summary(NamedTuple):
    """`largest_array` in entries; `temporary` in bytes a chip; `moved` the largest collective."""

    temporary: int
    largest_array: int
    moved: Collective | None


def summary(compiled: jax.stages.Compiled) -> Summary:
    """What a compiled function holds and moves."""
    memory: Any = compiled.memory_analysis()
    program = Program(compiled.as_text() or "")
    return Summary(
        memory.temp_size_in_bytes,
        max(array.entries for array in program.in_memory()),
        max(program.collectives(), key=lambda moved: moved.bytes, default=None),
    )
