"""Records, whatever they are: a tree of arrays whose first axis counts them.

In the place of the arrays there can be anything with a length and with slices: records on disk. The
order of batches depends on nothing but a key, so a resumed run sees those it would have seen.
"""

import os
from typing import Any, NamedTuple, TypeAlias

import jax

from experiments.tasks import Task
from experiments.usage import UsageError

Records: TypeAlias = Any


class Reading(NamedTuple):
    """Where and how a set is read; the records are the same whatever it says."""

    data_dir: str | os.PathLike | None = None
    cache_dir: str | os.PathLike | None = None
    workers: int = 0


class Dataset(NamedTuple):
    """Training and test records of one set, and the task that they are for."""

    name: str
    task: Task
    train: Records
    test: Records


def count(records: Records) -> int:
    """How many there are."""
    return len(jax.tree.leaves(records)[0])


def first(records: Records, limit: int | None) -> Records:
    """The first so many records, or all.

    Raises:
        UsageError: there are not so many, or `limit` is not positive.
    """
    return jax.tree.map(lambda array: array[: checked_limit(limit, count(records))], records)


def checked_limit(limit: int | None, available: int) -> int:
    """How many of the available records to take; raises a UsageError if there aren't so many."""
    if limit is None:
        return available
    if not 1 <= limit <= available:
        raise UsageError(f"limit must be between 1 and the {available} training records: {limit}")
    return limit


def holdout(dataset: Dataset, held: int) -> tuple[Dataset, Records]:
    """Splits off the last `held` training records, to choose masks and settings by.

    Returns the set without them, and them; with `held` 0 there are none.

    Raises:
        UsageError: `held` is negative or leaves no training record.
    """
    available = count(dataset.train)
    if not 0 <= held < available:
        raise UsageError(f"holdout must be between 0 and {available - 1}, got {held}")
    kept, apart = (
        jax.tree.map(lambda array, part=part: array[part], dataset.train)
        for part in (slice(available - held), slice(available - held, None))
    )
    return dataset._replace(train=kept), apart


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
