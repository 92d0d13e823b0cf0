"""ImageNet (ILSVRC 2012), its images cut and scaled to one size."""

import functools

import numpy as np
from PIL import Image

from experiments.data import prepared
from experiments.data.records import Dataset
from experiments.tasks.classification import Classification
from experiments.usage import UsageError


def load(
    data_dir, cache_dir, limit: int | None, *, image_size: int = 224, standardize: bool = True
) -> Dataset:
    """1,281,167 images for training and 50,000 for testing, 1,000 classes.

    The central 224/256 of the short side is cut out and resized to `image_size` pixels. All of it
    at 224 pixels takes 190 GB of host memory (and as much disk in `cache_dir`): smaller images and
    a `limit` bring that down.

    Raises:
        UsageError: an `image_size` that is not positive.
    """
    if image_size < 1:
        raise UsageError(f"image_size must be at least 1, got {image_size}")
    task = Classification(
        1000,
        (image_size, image_size, 3),
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        augment=True,
    )
    images = prepared.ImageSet(
        "imagenet2012", "5.1.0", "validation", task, variant=f"-{image_size}px"
    )
    convert = functools.partial(central_square, size=image_size)
    return prepared.load(images, data_dir, cache_dir, limit, standardize, convert)


def central_square(image: np.ndarray, size: int) -> np.ndarray:
    """The middle of an image of any size, as `size` by `size` pixels."""
    height, width = image.shape[:2]
    side = min(height, width) * 224 / 256
    left, top = (width - side) / 2, (height - side) / 2
    box = (left, top, left + side, top + side)
    square = Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR, box=box)
    return np.asarray(square)
