"""Small data sets, as TensorFlow Datasets stores the real ones."""

import io

import numpy as np
from PIL import Image

# name, version, image shape (None: sizes vary), split -> records
PREPARED = [
    ("mnist", "3.0.1", (28, 28, 1), {"train": 9, "test": 3}),
    ("cifar10", "3.0.2", (32, 32, 3), {"train": 6, "test": 2}),
    ("cifar100", "3.0.2", (32, 32, 3), {"train": 5, "test": 2}),
    ("imagenet2012", "5.1.0", (None, None, 3), {"train": 4, "validation": 2}),
]


def record_image(label, image_shape):
    """An image of noise that the label determines; free sizes depend on the label too."""
    height, width, channels = image_shape
    shape = (height or 40 + label, width or 50 - label, channels)
    return np.random.default_rng(label).integers(0, 256, shape, dtype=np.uint8)


def encoded(image):
    file = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(file, "png")
    file.seek(0)
    return file


def prepare(folder, name, version, image_shape, splits):
    """Writes a small set of images under the name of a stock one."""
    import tensorflow_datasets as tfds

    features = {
        "image": tfds.features.Image(shape=image_shape),
        "label": tfds.features.ClassLabel(num_classes=10),
    }

    def record(label):
        return {"image": encoded(record_image(label, image_shape)), "label": label}

    _prepare(folder, name, None, version, features, record, splits)


def prepare_text(folder, name, config, version, splits):
    """Writes a small set of documents, such as `document 3`, under the name of a stock one."""
    import tensorflow_datasets as tfds

    features = {"text": tfds.features.Text()}
    record = lambda number: {"text": f"document {number}"}
    _prepare(folder, name, config, version, features, record, splits)


def _prepare(folder, name, config, version, features, record, splits):
    """Writes records as TFDS does, without TensorFlow."""
    import tensorflow_datasets as tfds

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version(version)
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=config)] if config else []
        url_infos = {}  # noqa: RUF012 (nothing to download, so no checksums to look for)

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(count) for split, count in splits.items()}

        def _generate_examples(self, count):
            for number in range(count):
                yield number, record(number)

    Builder.name = name
    Builder(data_dir=folder, file_format="array_record").download_and_prepare()
