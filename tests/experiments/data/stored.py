"""Small data sets, as TensorFlow Datasets stores the real ones."""

import io

import numpy as np
from PIL import Image

from benchmarks import image_sets

# name, version, image shape (None: sizes vary), split -> records
PREPARED = [
    ("mnist", "3.0.1", (28, 28, 1), {"train": 9, "test": 3}),
    ("cifar10", "3.0.2", (32, 32, 3), {"train": 6, "test": 2}),
    ("cifar100", "3.0.2", (32, 32, 3), {"train": 5, "test": 2}),
    ("imagenet2012", "5.1.0", (None, None, 3), {"train": 25, "validation": 11}),
]


def record_image(label, image_shape):
    """An image of noise that the label determines; free sizes depend on the label too."""
    height, width, channels = image_shape
    shape = (height or 40 + label, width or 50 - label, channels)
    return np.random.default_rng(label).integers(0, 256, shape, dtype=np.uint8)


def encoded(image, form="png"):
    """The bytes of a file."""
    file = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(file, form)
    return file.getvalue()


def prepare(folder, name, version, image_shape, splits, shards=1, file_of=None):
    """Writes a small set of images under the name of a stock one; each label once a split.

    `file_of(label)` is the file of an image, a PNG by default.
    """
    import tensorflow_datasets as tfds

    features = {
        "image": tfds.features.Image(shape=image_shape),
        "label": tfds.features.ClassLabel(num_classes=100),
        "file_name": tfds.features.Text(),
    }
    file_of = file_of or (lambda label: encoded(record_image(label, image_shape)))

    def records(count):
        for label in range(count):
            image = io.BytesIO(file_of(label))
            yield {"image": image, "label": label, "file_name": f"{label}.JPEG"}

    of_splits = {split: records(count) for split, count in splits.items()}
    image_sets.prepare(folder, name, version, features, of_splits, shards)


def prepare_text(folder, name, config, version, splits):
    """Writes a small set of documents, such as `document 3`, under the name of a stock one."""
    import tensorflow_datasets as tfds

    records = lambda count: ({"text": f"document {number}"} for number in range(count))
    of_splits = {split: records(count) for split, count in splits.items()}
    features = {"text": tfds.features.Text()}
    image_sets.prepare(folder, name, version, features, of_splits, config=config)
