"""MNIST."""

from experiments.data import prepared
from experiments.data.records import Dataset, Reading
from experiments.tasks.classification import Classification

_MNIST = prepared.ImageSet(
    "mnist",
    "3.0.1",
    "test",
    Classification(10, (28, 28, 1), mean=(0.1307,), std=(0.3081,)),
    counts=(60_000, 10_000),
)


def load(reading: Reading, limit: int | None, *, standardize: bool = True) -> Dataset:
    """60,000 images of 28x28 pixels for training and 10,000 for testing."""
    return prepared.load(_MNIST, reading, limit, standardize)


def described(limit: int | None, *, standardize: bool = True) -> Dataset:
    """The same unread."""
    return prepared.described(_MNIST, limit, standardize, held=True)
