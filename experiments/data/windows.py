"""Text as windows of consecutive bytes, cut from memory or read from disk.

Documents, each with a zero byte at its end, are strung together in the order in which they are
stored, and cut into windows that neither overlap nor leave a byte out, but for a rest at the end
that fills none. So an epoch sees every byte once, and a long document counts for as much as it has.
On disk a window is found by where its documents begin. ArrayRecord doesn't say how long a record
is: before a run the documents that it needs are read through once, and their lengths kept.
"""

import re
from collections.abc import Iterable, Sequence
from contextlib import closing
from typing import Any

import grain
import numpy as np

from experiments.data.prepared import cached
from experiments.data.progress import chunks, reported
from experiments.data.records import Reading
from experiments.data.streamed import Stored, iterator
from experiments.usage import UsageError

_DOCUMENTS_PER_READ = 500
_END = b"\0"


def strung(documents: Iterable[bytes]) -> bytes:
    """One text of all documents."""
    return b"".join(document + _END for document in documents)


def held(text: bytes, context: int) -> np.ndarray:
    """The windows of a text in memory, uint8 (windows, context + 1)."""
    count = _count(len(text), context)
    return np.frombuffer(text, np.uint8, count * (context + 1)).reshape(count, context + 1)


def stored(
    title: str, documents: Any, context: int, wanted: int | None, reading: Reading
) -> Stored:
    """The windows of a text on disk: at least `wanted` of them, or all there are.

    `documents` is what `tfds.data_source` gives; `title` names set, version and split.

    Raises:
        UsageError: a `context` that is not positive or longer than the text.
    """
    if context < 1:
        raise UsageError(f"context must be at least 1, got {context}")
    size = context + 1
    enough = None if wanted is None else wanted * size
    part = "" if enough is None else f"-first{enough}"
    name = re.sub("[/ ]", "-", title) + part
    read = lambda: {"lengths": _lengths(title, documents, enough, reading.workers)}
    lengths = cached(reading, name, read)["lengths"]
    _count(int(lengths.sum()), context)
    source = grain.MapDataset.source(Windows(documents, lengths, size))
    return Stored(title, source, _as_it_is, _as_it_is, reading.workers)


class Windows:
    """Windows of so many bytes; each reads no other documents than those it has a part of."""

    def __init__(self, documents: Any, lengths: np.ndarray, size: int):
        self._documents, self._size = documents, size
        self._ends = np.cumsum(lengths, dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) // self._size

    def __getitem__(self, index: int) -> np.ndarray:
        start = int(index) * self._size
        bytes_at = [start, start + self._size - 1]
        first, last = map(int, np.searchsorted(self._ends, bytes_at, side="right"))
        before = int(self._ends[first - 1]) if first else 0
        # One by one: ArrayRecord starts threads of its own for each list that it is asked for.
        text = strung(self._documents[place]["text"] for place in range(first, last + 1))
        return np.frombuffer(text, np.uint8, self._size, start - before)


def _lengths(title: str, documents: Sequence, enough: int | None, workers: int) -> np.ndarray:
    """Bytes of the first documents, which come to `enough`, or of all, with the byte at the end."""
    batches = grain.MapDataset.source(documents).map(_length).batch(_DOCUMENTS_PER_READ)
    cut = chunks(len(documents), _DOCUMENTS_PER_READ)
    found, read = [np.zeros(0, np.int64)], 0
    with closing(iterator(batches, workers)) as lengths:
        for _ in reported(f"{title}: lengths", cut, len(documents)):
            found.append(next(lengths))
            read += int(found[-1].sum())
            if enough is not None and read >= enough:
                break
    return np.concatenate(found)


def _count(available: int, context: int) -> int:
    """How many windows so many bytes fill."""
    if not 1 <= context < available:
        raise UsageError(
            f"context must be between 1 and the {available - 1:,} bytes of the text before its "
            f"last, got {context}"
        )
    return available // (context + 1)


def _length(document: dict) -> int:
    return len(document["text"]) + len(_END)


def _as_it_is(window: np.ndarray, random: np.random.Generator | None = None) -> np.ndarray:
    """A window leaves nothing to draw."""
    return window
