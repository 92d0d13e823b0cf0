"""CIFAR-10 and CIFAR-100."""

from experiments.data import prepared
from experiments.data.records import Dataset, Reading
from experiments.tasks.classification import Classification

_SHAPE = (32, 32, 3)
_CIFAR10 = prepared.ImageSet(
    "cifar10",
    "3.0.2",
    "test",
    Classification(10, _SHAPE, (0.491, 0.482, 0.447), (0.247, 0.243, 0.262), augment=True),
    counts=(50_000, 10_000),
)
_CIFAR100 = prepared.ImageSet(
    "cifar100",
    "3.0.2",
    "test",
    Classification(100, _SHAPE, (0.507, 0.487, 0.441), (0.267, 0.256, 0.276), augment=True),
    counts=(50_000, 10_000),
)


def load_10(reading: Reading, limit: int | None, *, standardize: bool = True) -> Dataset:
    """50,000 images of 32x32 pixels for training and 10,000 for testing, 10 classes."""
    return prepared.load(_CIFAR10, reading, limit, standardize)


def load_100(reading: Reading, limit: int | None, *, standardize: bool = True) -> Dataset:
    """As many images, 100 classes."""
    return prepared.load(_CIFAR100, reading, limit, standardize)


def described_10(limit: int | None, *, standardize: bool = True) -> Dataset:
    """CIFAR-10 unread."""
    return prepared.described(_CIFAR10, limit, standardize, held=True)


def described_100(limit: int | None, *, standardize: bool = True) -> Dataset:
    """CIFAR-100 unread."""
    return prepared.described(_CIFAR100, limit, standardize, held=True)
