"""Text as records of consecutive bytes: the Python standard library's source, and sets of TFDS.

A document ends with a zero byte; the documents are strung together and cut into windows of
`context + 1` bytes, whose rest that fills none is left out. All of it is held in memory.
"""

import hashlib
import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.data import prepared
from experiments.data.described import Described
from experiments.data.progress import chunks, reported
from experiments.data.records import Dataset, checked_limit
from experiments.tasks.language import Language
from experiments.usage import UsageError

_DOCUMENTS_PER_READ = 500
_MANY = 1_000_000
_TASK = Language()
_END = b"\0"
_NOT_THE_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idle_test"}


class TextSet(NamedTuple):
    """A set of TFDS whose records are documents in a feature `text`."""

    name: str
    version: str
    test_split: str


PREPARED = (
    TextSet("lm1b", "1.1.0", "test"),
    TextSet("tiny_shakespeare", "1.0.0", "test"),
    TextSet("wiki40b/en", "1.3.0", "test"),
    TextSet("c4/en", "3.1.0", "validation"),
)


# The standard library -------------------------------------------------------------------------


def load_python(
    data_dir, cache_dir, limit: int | None, *, context: int = 256, test_records: int | None = None
) -> Dataset:
    """The source of the standard library of the Python that runs, 10 MB, without its tests.

    Files come in the order of a hash of their paths, one in ten for testing, so that any stretch is
    a fair sample and what is held out is of other files. A `limit` and `test_records` take records
    that are spread evenly over all of it.

    Raises:
        UsageError: no source on this machine, or a number out of range.
    """
    train, test = (_windows(b"".join(texts), context) for texts in library())
    return Dataset(
        "python",
        _TASK,
        _spread(train, checked_limit(limit, len(train))),
        _spread(test, _checked_test_records(test_records, len(test))),
    )


def library() -> tuple[list[bytes], list[bytes]]:
    """The files for training and those for testing."""
    root = Path(sysconfig.get_paths()["stdlib"])
    paths = [path.relative_to(root) for path in root.rglob("*.py")]
    paths = sorted((path for path in paths if not _NOT_THE_LIBRARY & {*path.parts}), key=_hash)
    if not paths:
        raise UsageError(f"the source of Python's standard library isn't in {root}")
    train = [path for path in paths if _hash(path) % 10]
    test = [path for path in paths if _hash(path) % 10 == 0]
    return [_text(root / path) for path in train], [_text(root / path) for path in test]


def _text(path: Path) -> bytes:
    return path.read_bytes() + _END


def _hash(path: Path) -> int:
    """Of its name, the same everywhere and in every version."""
    return int.from_bytes(hashlib.sha256(path.as_posix().encode()).digest()[:8], "big")


def _spread(records: np.ndarray, count: int) -> np.ndarray:
    """So many of them, at equal distances."""
    return records[np.arange(count) * len(records) // count]


# TensorFlow Datasets --------------------------------------------------------------------------


def load_prepared(
    text: TextSet,
    data_dir: str | os.PathLike | None,
    cache_dir,
    limit: int | None,
    *,
    context: int = 256,
    test_records: int | None = None,
) -> Dataset:
    """A set of TFDS; no more documents are read than `limit` and `test_records` need.

    Raises:
        UsageError: the set is not prepared in `data_dir`, or a number is out of range.
    """
    train, test = prepared.opened(text, data_dir, instead="python").values()
    train = _first_windows(f"{text.name} train", train, context, limit)
    test = _first_windows(f"{text.name} test", test, context, test_records)
    return Dataset(
        text.name,
        _TASK,
        train[: checked_limit(limit, len(train))],
        test[: _checked_test_records(test_records, len(test))],
    )


def described_prepared(
    text: TextSet, limit: int | None, *, context: int = 256, test_records: int | None = None
) -> Dataset:
    """The same unread, with as many records as asked for, or a million."""
    shape = jax.ShapeDtypeStruct((context + 1,), np.uint8)
    train, test = (Described(shape, n or _MANY, held=True) for n in (limit, test_records))
    return Dataset(text.name, _TASK, train, test)


def _first_windows(title: str, source: Any, context: int, count: int | None) -> np.ndarray:
    """At least `count` windows, or all there are."""
    enough, read, texts = (count or np.inf) * (context + 1), 0, []
    for text in _documents(title, source):
        texts.append(text)
        read += len(text)
        if read >= enough:
            break
    return _windows(b"".join(texts), context)


def _documents(title: str, source: Any) -> Iterator[bytes]:
    for indices in reported(title, chunks(len(source), _DOCUMENTS_PER_READ), len(source)):
        for record in source.__getitems__(indices):
            yield record["text"] + _END


# Both -----------------------------------------------------------------------------------------


def _windows(text: bytes, context: int) -> np.ndarray:
    """Uint8 (records, context + 1)."""
    if not 1 <= context < len(text):
        raise UsageError(
            f"context must be between 1 and the {len(text) - 1:,} bytes of the text before its "
            f"last, got {context}"
        )
    count = len(text) // (context + 1)
    return np.frombuffer(text, np.uint8, count * (context + 1)).reshape(count, context + 1)


def _checked_test_records(wanted: int | None, available: int) -> int:
    if wanted is not None and not 1 <= wanted <= available:
        raise UsageError(
            f"test_records must be between 1 and the {available} test records, got {wanted}"
        )
    return available if wanted is None else wanted
