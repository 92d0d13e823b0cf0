"""What a compiled program holds on a chip and moves between chips, read from its text.

XLA replicates not only by gathers: an all-reduce of an array that each chip has padded to the whole
does the same. So sizes are looked at, of every array and every collective, and no names.
"""

import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax

_BITS = {"pred": 8}  # of an entry; others have their bits in their names
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+)(?:e\dm\d\w*)?\[([\d,]*)\]")
_COLLECTIVE = re.compile(
    r"= (?P<arrays>.*?) (?P<name>all-gather|all-reduce|all-to-all|collective-broadcast|"
    r"collective-permute|ragged-all-to-all|reduce-scatter)(?:-start)?\("
)


_CALLED = re.compile(r" fusion\(.*\bcalls=(%[\w.\-]+)")
_HEAD = re.compile(r"\s*(?:ENTRY )?(?P<name>%[\w.\-]+) \(")


class Moved(NamedTuple):
    """A collective, and the bytes of the largest array that it takes or gives on a chip."""

    name: str
    bytes: int


class Program(NamedTuple):
    """`largest_array` in entries; `temporary` in bytes a chip; `moved` the largest collective."""

    temporary: int
    largest_array: int
    moved: Moved | None


def arrays(text: str) -> Iterator[tuple[int, int]]:
    """Entries and bytes of every array that a text names."""
    for dtype, shape in _ARRAY.findall(text):
        entries = math.prod(int(size) for size in shape.split(",") if size)
        bits = _BITS.get(dtype) or int(re.sub(r"\D", "", dtype))
        yield entries, -(-entries * bits // 8)


def collectives(text: str) -> Iterator[Moved]:
    """All collectives of a program's text, in order."""
    for found in _COLLECTIVE.finditer(text):
        yield Moved(found["name"], max(size for _, size in arrays(found["arrays"])))


def in_memory(text: str) -> str:
    """A program's text without the bodies of fusions, whose arrays aren't written to memory."""
    fused = set(_CALLED.findall(text))
    return "\n".join(part for part in text.split("\n\n") if _name(part) not in fused)


def _name(computation: str) -> str | None:
    found = _HEAD.match(computation)
    return found and found["name"]


def read(compiled: jax.stages.Compiled) -> Program:
    """What a compiled function holds and moves."""
    text: str = compiled.as_text() or ""
    memory: Any = compiled.memory_analysis()
    return Program(
        memory.temp_size_in_bytes,
        max(entries for entries, _ in arrays(in_memory(text))),
        max(collectives(text), key=lambda moved: moved.bytes, default=None),
    )
