"""Image classification sets that TensorFlow Datasets has prepared, read without TensorFlow."""

import functools
import os
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from experiments.data.described import Described
from experiments.data.progress import chunks, reported
from experiments.data.records import Dataset, Reading, checked_limit, first
from experiments.tasks.classification import Classification
from experiments.usage import UsageError

_RECORDS_PER_READ = 500


class ImageSet(NamedTuple):
    """What is known of a set before it is read."""

    name: str
    version: str
    test_split: str
    task: Classification
    counts: tuple[int, int]


class _Arrays(NamedTuple):
    """What is read, and what the cache holds."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


def load(images: ImageSet, reading: Reading, limit: int | None, standardize: bool) -> Dataset:
    """Reads a set, or its cache.

    Raises:
        UsageError: the set is not prepared in `data_dir`, is not whole, or `limit` is out of range.
    """
    part = "" if limit is None else f"-first{limit}"
    name = f"{images.name}-{images.version}{part}"
    read = functools.partial(_read, images, reading.data_dir, limit)
    arrays = _Arrays(**cached(reading, name, lambda: read()._asdict()))
    task = images.task if standardize else images.task.without_standardization()
    return Dataset(images.name, task, arrays[:2], arrays[2:])


def described(images: ImageSet, limit: int | None, standardize: bool, held: bool) -> Dataset:
    """The same unread.

    Raises:
        UsageError: `limit` is out of range.
    """
    image = jax.ShapeDtypeStruct(images.task.image_shape, np.uint8)
    train, test = (
        Described((image, jax.ShapeDtypeStruct((), np.int32)), count, held)
        for count in images.counts
    )
    task = images.task if standardize else images.task.without_standardization()
    return Dataset(images.name, task, first(train, limit), test)


def cached(reading: Reading, name: str, read: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The arrays that `read` gives, or gave when the cache got a file of that name."""
    if reading.cache_dir is None:
        return read()
    path = Path(reading.cache_dir) / f"{name}.npz"
    if path.exists():
        with np.load(path) as stored:
            return {**stored}
    arrays = read()
    path.parent.mkdir(parents=True, exist_ok=True)
    # A run that is killed, or one beside it, must never leave half a file under the final name.
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    try:
        with partial.open("wb") as file:
            np.savez(file, **arrays)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return arrays


def _read(images: ImageSet, data_dir, limit) -> _Arrays:
    train, test = opened(images, data_dir, instead="digits").values()
    shape = images.task.image_shape
    train_count = checked_limit(limit, len(train))
    return _Arrays(
        *_read_records(f"{images.name} train", train, train_count, shape),
        *_read_records(f"{images.name} test", test, len(test), shape),
    )


def _read_records(
    title: str, source: Any, count: int, image_shape: tuple[int, int, int]
) -> tuple[np.ndarray, np.ndarray]:
    images = np.empty((count, *image_shape), np.uint8)
    labels = np.empty(count, np.int32)
    for indices in reported(title, chunks(count, _RECORDS_PER_READ), count):
        for index, record in zip(indices, source.__getitems__(indices), strict=True):
            images[index] = record["image"]
            labels[index] = record["label"]
    return images, labels


# The files of a set -----------------------------------------------------------------------------


class Named(Protocol):
    """What a set is known by."""

    @property
    def name(self) -> str:
        """As TensorFlow Datasets calls it."""
        ...

    @property
    def version(self) -> str:
        """Such as 3.0.1."""
        ...

    @property
    def test_split(self) -> str:
        """The split that isn't `train`."""
        ...


def opened(
    known: Named, data_dir: Any, *, instead: str, decoders: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The records on disk of the splits for training and for testing, with random access.

    An error names the set `instead`, which needs no files.

    Raises:
        UsageError: the set is not prepared in `data_dir`, or is not whole.
    """
    import tensorflow_datasets as tfds

    folder = tfds.core.Path(data_dir or tfds.core.constants.DATA_DIR).expanduser()
    _check(known, folder, instead)
    return {
        split: tfds.data_source(
            f"{known.name}:{known.version}",
            split=split,
            data_dir=folder,
            download=False,
            decoders=decoders,
        )
        for split in ("train", known.test_split)
    }


def _check(known: Named, folder: Any, instead: str) -> None:
    """Raises a UsageError if the set isn't in the folder, or isn't whole."""
    title, place = f"{known.name} {known.version}", folder / known.name / known.version
    remedy = (
        f"prepare it (this step needs TensorFlow) with `tfds build {known.name}:{known.version} "
        f"--file_format=array_record --data_dir={folder}`"
    )
    if not place.exists() or not any(place.glob("*.array_record*")):
        raise UsageError(
            f"{title} is not prepared: no ArrayRecord file in {place}. Pass the data_dir that "
            f"holds {known.name}/{known.version}, or {remedy}, or load {instead!r}, which "
            "needs no files."
        )
    if problem := _problem(known, folder, place):
        raise UsageError(
            f"{title} is not whole: {problem}. Copy it into {place} again, or remove that folder "
            f"and {remedy}."
        )


def _problem(known: Named, folder: Any, place: Any) -> str:
    """What is wrong with the first of the files with which something is, or nothing."""
    import tensorflow_datasets as tfds

    if not (place / "dataset_info.json").exists():
        return "dataset_info.json is missing"
    found = tfds.builder(f"{known.name}:{known.version}", data_dir=folder).info.splits
    splits = ("train", known.test_split)
    if absent := [split for split in splits if split not in found]:
        return f"it has no split {absent[0]}"
    files = [file for split in splits for file in found[split].file_instructions]
    with ThreadPoolExecutor(32) as threads:  # a disk of the cloud takes its time for each
        return next(filter(None, threads.map(_problem_of_file, files)), "")


def _problem_of_file(file: Any) -> str:
    from array_record.python.array_record_module import ArrayRecordReader

    path = Path(file.filename)
    if not path.exists():
        return f"{path.name} is missing"
    try:
        reader = ArrayRecordReader(str(path))
        found = reader.num_records()
        reader.close()
    except RuntimeError:
        return f"{path.name} is cut off or damaged"
    wanted = file.examples_in_shard
    return "" if found == wanted else f"{path.name} has {found} records instead of {wanted}"
