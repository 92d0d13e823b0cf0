"""Image classification sets held in memory, gathered and augmented on the device.

A set is read once into uint8 NumPy arrays. A training loop puts them on the device, and its jitted
step picks a row of `epoch_batches`, gathers those records, and augments and normalises them. No
input pipeline runs beside the device, and the order and the augmentation of the batches depend on
nothing but a key, so a resumed run sees the batches it would have seen.
"""

import functools
import os
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image


class Dataset(NamedTuple):
    """Training and test records of one set.

    Images are uint8 (records, height, width, channels), labels int32 (records,). `mean` and `std`
    have one entry a channel and are in units where 255 is 1. `augment` says whether random crops
    and flips keep the label.
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    name: str
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: bool

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of one image."""
        return self.train_images.shape[1:]


class _Arrays(NamedTuple):
    """The first four fields of a `Dataset`: what is read, and what the cache holds."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


class _Source(NamedTuple):
    """What is known of a set before it is read; `image_shape` None: sizes vary."""

    version: str
    test_split: str
    image_shape: tuple[int, int, int] | None
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: bool


_CIFAR_SHAPE = (32, 32, 3)
_SOURCES = {
    "mnist": _Source("3.0.1", "test", (28, 28, 1), 10, (0.1307,), (0.3081,), False),
    "cifar10": _Source(
        "3.0.2", "test", _CIFAR_SHAPE, 10, (0.491, 0.482, 0.447), (0.247, 0.243, 0.262), True
    ),
    "cifar100": _Source(
        "3.0.2", "test", _CIFAR_SHAPE, 100, (0.507, 0.487, 0.441), (0.267, 0.256, 0.276), True
    ),
    "imagenet2012": _Source(
        "5.1.0", "validation", None, 1000, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), True
    ),
}
_NAMES = ("digits", *_SOURCES)
_RECORDS_PER_READ = 500
_SECONDS_BETWEEN_REPORTS = 5.0


def load(
    name: str = "digits",
    data_dir: str | os.PathLike | None = None,
    *,
    cache_dir: str | os.PathLike | None = None,
    limit: int | None = None,
    image_size: int | None = None,
) -> Dataset:
    """Reads a whole image classification set into host memory.

    `digits` comes with scikit-learn: 8x8 images, 1,437 for training and 360 for testing, always the
    same ones. The other sets are read with `tfds.data_source`, without TensorFlow, from ArrayRecord
    files that were prepared before; nothing is downloaded.

    `imagenet2012` has images of all sizes. The central 224/256 of the short side is cut out and
    resized to `image_size`. All of it at 224 pixels takes 190 GB of host memory (and as much
    disk in `cache_dir`): smaller images and a `limit` bring that down.

    Args:
        name: 'digits', 'mnist', 'cifar10', 'cifar100' or 'imagenet2012'.
        data_dir: the folder with the prepared sets; by default that of TensorFlow Datasets.
        cache_dir: where to keep the decoded arrays, so that the next call takes a moment. The file
            is named by set, version, `image_size` and `limit`, not by `data_dir`.
        limit: keep only so many training records, the first ones; they are stored shuffled. The
            test records all stay.
        image_size: height and width in pixels of `imagenet2012`, 224 by default.

    Raises:
        ValueError: unknown `name`, `limit` outside 1..training records, or an `image_size` that is
            not positive or goes with a set of fixed size.
        FileNotFoundError: the set is not prepared in `data_dir`.
    """
    if name not in _NAMES:
        raise ValueError(f"unknown data set {name!r}: choose one of {', '.join(_NAMES)}")
    if image_size is not None and name != "imagenet2012":
        raise ValueError(
            f"image_size={image_size} was given, but {name} has images of one size: leave it out"
        )
    if image_size is not None and image_size < 1:
        raise ValueError(f"image_size must be at least 1, got {image_size}")
    if name == "digits":
        return _load_digits(limit)

    source = _SOURCES[name]
    image_shape = source.image_shape or (image_size or 224, image_size or 224, 3)
    read = functools.partial(_read_prepared, name, source, data_dir, limit, image_shape)
    if cache_dir is None:
        arrays = read()
    else:
        arrays = _cached(_cache_path(cache_dir, name, source, limit, image_shape), read)
    return Dataset(*arrays, name, source.classes, source.mean, source.std, source.augment)


def _load_digits(limit: int | None) -> Dataset:
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    images = np.round(np.asarray(pixels) * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    labels = np.asarray(labels, np.int32)
    # RandomState, unlike Generator, promises the same permutation in every version of NumPy.
    order = np.random.RandomState(0).permutation(len(images))
    train, test = order[:1437], order[1437:]
    train = train[: _training_count(limit, len(train))]
    return Dataset(
        train_images=images[train],
        train_labels=labels[train],
        test_images=images[test],
        test_labels=labels[test],
        name="digits",
        classes=10,
        mean=(0.305,),
        std=(0.376,),
        augment=False,
    )


def _training_count(limit: int | None, available: int) -> int:
    if limit is None:
        return available
    if not 1 <= limit <= available:
        raise ValueError(f"limit must be between 1 and the {available} training records: {limit}")
    return limit


def _cache_path(cache_dir, name, source, limit, image_shape) -> Path:
    size = f"-{image_shape[0]}px" if source.image_shape is None else ""
    first = "" if limit is None else f"-first{limit}"
    return Path(cache_dir) / f"{name}-{source.version}{size}{first}.npz"


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


def _read_prepared(name, source, data_dir, limit, image_shape) -> _Arrays:
    import tensorflow_datasets as tfds

    folder = tfds.core.Path(data_dir or tfds.core.constants.DATA_DIR).expanduser()
    _check_prepared(folder, name, source.version)
    train, test = (
        tfds.data_source(f"{name}:{source.version}", split=split, data_dir=folder, download=False)
        for split in ("train", source.test_split)
    )
    resize = functools.partial(_central_square, size=image_shape[0])
    convert = resize if source.image_shape is None else np.asarray
    train_count = _training_count(limit, len(train))
    return _Arrays(
        *_read_records(f"{name} train", train, train_count, image_shape, convert),
        *_read_records(f"{name} test", test, len(test), image_shape, convert),
    )


def _check_prepared(folder: Any, name: str, version: str) -> None:
    prepared = folder / name / version
    if prepared.exists() and any(prepared.glob("*.array_record*")):
        return
    raise FileNotFoundError(
        f"{name} {version} is not prepared: no ArrayRecord file in {prepared}. Pass the data_dir "
        f"that holds {name}/{version}, or prepare it (this step needs TensorFlow) with "
        f"`tfds build {name}:{version} --file_format=array_record --data_dir={folder}`, or load "
        "'digits', which needs no files."
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
    for indices in _reported_chunks(title, count):
        for index, record in zip(indices, source.__getitems__(indices), strict=True):
            images[index] = convert(record["image"])
            labels[index] = record["label"]
    return images, labels


def _reported_chunks(title: str, count: int) -> Iterator[range]:
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


def _central_square(image: np.ndarray, size: int) -> np.ndarray:
    height, width = image.shape[:2]
    side = min(height, width) * 224 / 256
    left, top = (width - side) / 2, (height - side) / 2
    box = (left, top, left + side, top + side)
    square = Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR, box=box)
    return np.asarray(square)


def holdout(dataset: Dataset, count: int) -> tuple[Dataset, tuple[np.ndarray, np.ndarray]]:
    """Splits off the last `count` training records, to choose masks and settings by.

    Returns the set without them and the pair (images, labels) of them.

    Raises:
        ValueError: `count` leaves no record on one of the two sides.
    """
    available = len(dataset.train_labels)
    if not 1 <= count < available:
        raise ValueError(f"count must be between 1 and {available - 1}, got {count}")
    kept = dataset._replace(
        train_images=dataset.train_images[:-count], train_labels=dataset.train_labels[:-count]
    )
    return kept, (dataset.train_images[-count:], dataset.train_labels[-count:])


def without_standardization(dataset: Dataset) -> Dataset:
    """The set with pixels that `normalize` leaves in [0, 1]."""
    channels = len(dataset.mean)
    return dataset._replace(mean=(0.0,) * channels, std=(1.0,) * channels)


def normalize(images: jax.Array, mean: tuple[float, ...], std: tuple[float, ...]) -> jax.Array:
    """Scales uint8 images (..., channels) to float32 with the given mean and deviation taken out.

    Raises:
        ValueError: `mean` or `std` does not have one entry a channel.
    """
    channels = images.shape[-1]
    if not len(mean) == len(std) == channels:
        raise ValueError(
            f"mean and std must have one entry for each of {channels} channels, "
            f"got {len(mean)} and {len(std)}"
        )

    def per_pixel(values):
        return jnp.broadcast_to(jnp.asarray(values, jnp.float32), images.shape)

    return (images.astype(jnp.float32) / 255 - per_pixel(mean)) / per_pixel(std)


def random_crop_flip(key: jax.Array, images: jax.Array, pad: int = 4) -> jax.Array:
    """Shifts each image by up to `pad` pixels both ways, filling with zeros, and mirrors half.

    Takes and returns images (batch, height, width, channels) of any dtype.
    """
    batch = len(images)
    row_key, column_key, mirror_key = jax.random.split(key, 3)
    rows = jax.random.randint(row_key, (batch,), 0, 2 * pad + 1)
    columns = jax.random.randint(column_key, (batch,), 0, 2 * pad + 1)
    mirrored = jax.random.bernoulli(mirror_key, shape=(batch,))
    return crop_flip(images, rows, columns, mirrored, pad)


def crop_flip(
    images: jax.Array, rows: jax.Array, columns: jax.Array, mirrored: jax.Array, pad: int
) -> jax.Array:
    """Cuts the window at (`rows`, `columns`) from each zero-padded image and mirrors some of them.

    Takes and returns images (batch, height, width, channels); `rows` and `columns` are int32
    (batch,) in [0, 2 * pad], where `pad` means no shift, and `mirrored` is bool (batch,).
    """
    batch, height, width, _ = images.shape
    padded = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    down = jax.lax.broadcasted_iota(jnp.int32, (batch, height), 1)
    right = jax.lax.broadcasted_iota(jnp.int32, (batch, width), 1)
    # Mirrored column indices do the flip within the gather of the crop: one pass over the pixels.
    right = jnp.where(mirrored[:, None], width - 1 - right, right)
    window = padded.at[
        jnp.arange(batch)[:, None, None],
        (rows[:, None] + down)[:, :, None],
        (columns[:, None] + right)[:, None, :],
    ]
    return window.get(mode="promise_in_bounds")


def epoch_batches(key: jax.Array, count: int, batch: int) -> jax.Array:
    """Puts the indices of `count` records in random order and cuts them into batches.

    Returns int32 (count // batch, batch). The last `count % batch` indices of the order are left
    out, so that all batches have one static shape; another key leaves out other ones.

    Raises:
        ValueError: `batch` is not between 1 and `count`.
    """
    if not 1 <= batch <= count:
        raise ValueError(f"batch must be between 1 and the {count} records, got {batch}")
    steps = count // batch
    return jax.random.permutation(key, count)[: steps * batch].reshape(steps, batch)
