"""scikit-learn's digits: 8x8 images that come with the package."""

import numpy as np

from experiments.data.records import Dataset, Reading, first
from experiments.tasks.classification import Classification

_TASK = Classification(10, (8, 8, 1), mean=(0.305,), std=(0.376,))


def load(reading: Reading, limit: int | None, *, standardize: bool = True) -> Dataset:
    """1,437 images for training and 360 for testing, always the same ones."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    images = np.round(np.asarray(pixels) * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    labels = np.asarray(labels, np.int32)
    # RandomState, unlike Generator, promises the same permutation in every version of NumPy.
    order = np.random.RandomState(0).permutation(len(images))
    train, test = order[:1437], order[1437:]
    return Dataset(
        name="digits",
        task=_TASK if standardize else _TASK.without_standardization(),
        train=first((images[train], labels[train]), limit),
        test=(images[test], labels[test]),
    )
