"""Text sets: the Python standard library's source, which lies in memory, and sets of TFDS.

Of those the small one lies in memory too; the large ones stay on disk.
"""

import hashlib
import sysconfig
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from experiments.data import prepared, windows
from experiments.data.described import Described
from experiments.data.records import Dataset, Reading, checked_limit, first
from experiments.tasks.language import Language
from experiments.usage import UsageError

_MANY = 1_000_000
_TASK = Language()
_NOT_THE_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idle_test"}


class TextSet(NamedTuple):
    """A set of TFDS whose records are documents in a feature `text`; small ones are `held`."""

    name: str
    version: str
    test_split: str
    held: bool = False


PREPARED = (
    TextSet("lm1b", "1.1.0", "test"),
    TextSet("tiny_shakespeare", "1.0.0", "test", held=True),
    TextSet("wiki40b/en", "1.3.0", "test"),
    TextSet("c4/en", "3.1.0", "validation"),
)


# The standard library -------------------------------------------------------------------------


def load_python(
    reading: Reading, limit: int | None, *, context: int = 256, test_records: int | None = None
) -> Dataset:
    """The source of the standard library of the Python that runs, 10 MB, without its tests.

    Files come in the order of a hash of their paths, one in ten for testing, so that any stretch is
    a fair sample and what is held out is of other files. A `limit` and `test_records` take records
    that are spread evenly over all of it.

    Raises:
        UsageError: no source on this machine, or a number out of range.
    """
    train, test = (windows.held(windows.strung(texts), context) for texts in library())
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
    read = lambda paths: [(root / path).read_bytes() for path in paths]
    return read(train), read(test)


def _hash(path: Path) -> int:
    """Of its name, the same everywhere and in every version."""
    return int.from_bytes(hashlib.sha256(path.as_posix().encode()).digest()[:8], "big")


def _spread(records: np.ndarray, count: int) -> np.ndarray:
    """So many of them, at equal distances."""
    return records[np.arange(count) * len(records) // count]


# TensorFlow Datasets --------------------------------------------------------------------------


def load_prepared(
    text: TextSet,
    reading: Reading,
    limit: int | None,
    *,
    context: int = 256,
    test_records: int | None = None,
) -> Dataset:
    """A set of TFDS; no more documents are read than `limit` and `test_records` need.

    Raises:
        UsageError: the set is not prepared in `data_dir`, or a number is out of range.
    """
    splits = prepared.opened(text, reading.data_dir, instead="python").items()
    train, test = (
        windows.held(windows.strung(each["text"] for each in documents), context)
        if text.held
        else windows.stored(
            f"{text.name} {text.version} {split}", documents, context, wanted, reading
        )
        for (split, documents), wanted in zip(splits, (limit, test_records), strict=True)
    )
    kept = _checked_test_records(test_records, len(test))
    return Dataset(text.name, _TASK, first(train, limit), test[:kept])


def described_prepared(
    text: TextSet, limit: int | None, *, context: int = 256, test_records: int | None = None
) -> Dataset:
    """The same unread, with as many records as asked for, or a million."""
    shape = jax.ShapeDtypeStruct((context + 1,), np.uint8)
    train, test = (Described(shape, n or _MANY, text.held) for n in (limit, test_records))
    return Dataset(text.name, _TASK, train, test)


# Both -----------------------------------------------------------------------------------------


def _checked_test_records(wanted: int | None, available: int) -> int:
    if wanted is not None and not 1 <= wanted <= available:
        raise UsageError(
            f"test_records must be between 1 and the {available} test records, got {wanted}"
        )
    return available if wanted is None else wanted
