"""Image classification sets that TensorFlow Datasets has prepared, read without TensorFlow."""

import functools
import os
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.data.records import Dataset, checked_limit
from experiments.tasks.classification import Classification
from experiments.usage import UsageError

_RECORDS_PER_READ = 500
_SECONDS_BETWEEN_REPORTS = 5.0


class ImageSet(NamedTuple):
    """What is known of a set before it is read; `variant` is for the name of its cache file."""

    name: str
    version: str
    test_split: str
    task: Classification
    variant: str = ""


class _Arrays(NamedTuple):
    """What is read, and what the cache holds."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


def load(
    images: ImageSet,
    data_dir: str | os.PathLike | None,
    cache_dir: str | os.PathLike | None,
    limit: int | None,
    standardize: bool,
    convert: Callable[[np.ndarray], np.ndarray] = np.asarray,
) -> Dataset:
    """Reads a set, or its cache; `convert` makes images of one size of those that are stored.

    Raises:
        UsageError: the set is not prepared in `data_dir`, or `limit` is out of range.
    """
    read = functools.partial(_read, images, data_dir, limit, convert)
    if cache_dir is None:
        arrays = read()
    else:
        first = "" if limit is None else f"-first{limit}"
        name = f"{images.name}-{images.version}{images.variant}{first}.npz"
        arrays = _cached(Path(cache_dir) / name, read)
    task = images.task if standardize else images.task.without_standardization()
    return Dataset(images.name, task, arrays[:2], arrays[2:])


def _cached(path: Path, read: Callable[[], _Arrays]) -> _Arrays:
    if path.exists():
        with np.load(path) as stored:
            return _Arrays(*(stored[field] for field in _Arrays._fields))
    arrays = read()
    path.parent.mkdir(parents=True, exist_ok=True)
    # A run that is killed, or one beside it, must never leave half a file under the final name.
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    try:
        with partial.open("wb") as file:
            np.savez(file, **arrays._asdict())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return arrays


def _read(images: ImageSet, data_dir, limit, convert) -> _Arrays:
    import tensorflow_datasets as tfds

    folder = tfds.core.Path(data_dir or tfds.core.constants.DATA_DIR).expanduser()
    check_prepared(folder, images.name, images.version, instead="digits")
    train, test = (
        tfds.data_source(
            f"{images.name}:{images.version}", split=split, data_dir=folder, download=False
        )
        for split in ("train", images.test_split)
    )
    shape = images.task.image_shape
    train_count = checked_limit(limit, len(train))
    return _Arrays(
        *_read_records(f"{images.name} train", train, train_count, shape, convert),
        *_read_records(f"{images.name} test", test, len(test), shape, convert),
    )


def check_prepared(folder: Any, name: str, version: str, instead: str) -> None:
    """Raises a UsageError, which names another set, if this one has no files in the folder."""
    prepared = folder / name / version
    if prepared.exists() and any(prepared.glob("*.array_record*")):
        return
    raise UsageError(
        f"{name} {version} is not prepared: no ArrayRecord file in {prepared}. Pass the data_dir "
        f"that holds {name}/{version}, or prepare it (this step needs TensorFlow) with "
        f"`tfds build {name}:{version} --file_format=array_record --data_dir={folder}`, or load "
        f"{instead!r}, which needs no files."
    )


def _read_records(
    title: str,
    source: Any,
    count: int,
    image_shape: tuple[int, int, int],
    convert: Callable[[np.ndarray], np.ndarray],
) -> tuple[np.ndarray, np.ndarray]:
    images = np.empty((count, *image_shape), np.uint8)
    labels = np.empty(count, np.int32)
    for indices in reported_chunks(title, count):
        for index, record in zip(indices, source.__getitems__(indices), strict=True):
            images[index] = convert(record["image"])
            labels[index] = record["label"]
    return images, labels


def reported_chunks(title: str, count: int) -> Iterator[range]:
    """Cuts `range(count)` into chunks and, when they take long, says how far they are."""
    started = reported = time.monotonic()
    for start in range(0, count, _RECORDS_PER_READ):
        chunk = range(start, min(start + _RECORDS_PER_READ, count))
        yield chunk
        now = time.monotonic()
        if now - reported >= _SECONDS_BETWEEN_REPORTS:
            reported = now
            rate = chunk.stop / (now - started)
            print(
                f"{title}: {chunk.stop:,} of {count:,} records, {rate:,.0f} a second, "
                f"{(count - chunk.stop) / rate:,.0f} s left",
                file=sys.stderr,
            )
