"""ImageNet (ILSVRC 2012), its images decoded and cut to one size on the host.

Training sees a random part of each image, mirrored or not, which is drawn anew each epoch (Szegedy
et al., arXiv:1409.4842, section 6); evaluation the middle of it.
"""

import functools
import io
import math
from collections.abc import Callable
from typing import TypeAlias

import grain
import numpy as np
from PIL import Image

from experiments.data import prepared
from experiments.data.records import Dataset, Reading, first
from experiments.data.streamed import Stored
from experiments.tasks.classification import Classification
from experiments.usage import UsageError

Box: TypeAlias = tuple[float, float, float, float]  # left, top, right, bottom, in pixels

_CLASSES = 1000
_COUNTS = 1_281_167, 50_000
_LEAST_AREA = 0.08
_WIDEST = 4 / 3


def load(
    reading: Reading, limit: int | None, *, image_size: int = 224, standardize: bool = True
) -> Dataset:
    """1,281,167 images for training and 50,000 for testing, 1,000 classes, read when needed.

    Images have `image_size` pixels along each side.

    Raises:
        UsageError: an `image_size` that is not positive, a set that is not prepared in `data_dir`
            or not whole, or a `limit` out of range.
    """
    import tensorflow_datasets as tfds

    images = _of_size(image_size)
    encoded = {"image": tfds.decode.SkipDecoding()}
    splits = prepared.opened(images, reading.data_dir, instead="digits", decoders=encoded)
    train, test = (
        Stored(
            title := f"{images.name} {split}",
            grain.MapDataset.source(source).map_with_index(functools.partial(_placed, title)),
            functools.partial(training_record, size=image_size),
            functools.partial(evaluation_record, size=image_size),
            reading.workers,
        )
        for split, source in splits.items()
    )
    task = images.task if standardize else images.task.without_standardization()
    return Dataset(images.name, task, first(train, limit), test)


def described(limit: int | None, *, image_size: int = 224, standardize: bool = True) -> Dataset:
    """The same unread."""
    return prepared.described(_of_size(image_size), limit, standardize, held=False)


def _of_size(image_size: int) -> prepared.ImageSet:
    if image_size < 1:
        raise UsageError(f"image_size must be at least 1, got {image_size}")
    shape = (image_size, image_size, 3)
    task = Classification(_CLASSES, shape, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    return prepared.ImageSet("imagenet2012", "5.1.0", "validation", task, _COUNTS)


# Records ----------------------------------------------------------------------------------------


def _placed(title: str, number: int, record: dict) -> dict:
    """The record, and where it lies."""
    return {**record, "place": f"record {number} of {title}"}


def training_record(record: dict, random: np.random.Generator, size: int):
    """A random part of the image, mirrored or not, and its label."""
    box_of = functools.partial(random_box, random=random)
    image = _image(record, box_of, size)
    return image[:, ::-1] if random.random() < 0.5 else image, np.int32(record["label"])


def evaluation_record(record: dict, size: int):
    """The middle of the image, and its label."""
    return _image(record, central_box, size), np.int32(record["label"])


def _image(record: dict, box_of: Callable[[int, int], Box], size: int) -> np.ndarray:
    try:
        return decoded(record["image"], box_of, size)
    except (OSError, SyntaxError) as error:  # what Pillow raises depends on the kind of file
        name = record["file_name"].decode()
        raise UsageError(
            f"{record['place']}, {name}, is no image that can be decoded: {error}; copy the set "
            f"into its folder again, or prepare it again from files of which {name} is whole"
        ) from error


def decoded(data: bytes, box_of: Callable[[int, int], Box], size: int) -> np.ndarray:
    """A box of an encoded image, `size` by `size` pixels in RGB; `box_of` has width and height.

    A JPEG that is more than twice as fine as needed is decoded at a half, a quarter or an eighth,
    in a fraction of the time. libjpeg averages blocks of pixels then, before Pillow averages what
    is left; values differ by about one of 255 from those of a full decoding.
    """
    image = Image.open(io.BytesIO(data))
    width, height = image.size
    left, top, right, bottom = box_of(width, height)
    needed = math.ceil(width * size / (right - left)), math.ceil(height * size / (bottom - top))
    reduced = image.draft(None, needed)
    scale = reduced[1][2] / width if reduced else 1.0
    box = scale * left, scale * top, scale * right, scale * bottom
    # Some of ImageNet's files are in CMYK or grey, and one is a PNG.
    image = image if image.mode == "RGB" else image.convert("RGB")
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box))


# Boxes ------------------------------------------------------------------------------------------


def random_box(width: int, height: int, random: np.random.Generator) -> Box:
    """A box with 8% to 100% of the area, 3:4 to 4:3, anywhere in the image."""
    for _ in range(10):
        area = width * height * random.uniform(_LEAST_AREA, 1)
        ratio = _WIDEST ** random.uniform(-1, 1)
        across, down = math.sqrt(area * ratio), math.sqrt(area / ratio)
        if across <= width and down <= height:
            left, top = random.uniform(0, width - across), random.uniform(0, height - down)
            return left, top, left + across, top + down
    # In an image that is long and thin hardly any fits: the largest one in the middle.
    return middle(width, height, min(width, height * _WIDEST), min(height, width * _WIDEST))


def central_box(width: int, height: int) -> Box:
    """The square in the middle, 224/256 of the short side."""
    side = min(width, height) * 224 / 256
    return middle(width, height, side, side)


def middle(width: int, height: int, across: float, down: float) -> Box:
    """The box of a size in the middle."""
    left, top = (width - across) / 2, (height - down) / 2
    return left, top, left + across, top + down
