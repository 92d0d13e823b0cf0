"""Records of which no more than shapes are known: enough to compile a step for them."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from experiments.data.records import Records
from experiments.devices import Devices

Shapes = Any


@dataclasses.dataclass(frozen=True)
class Described:
    """So many records, of each the shapes and dtypes; all `held` on every device, or streamed.

    It stands where a tree of arrays would, with a length and with slices.
    """

    record: Shapes
    count: int
    held: bool

    @classmethod
    def like(cls, records: Records) -> "Described":
        """Of records in memory."""
        shape = lambda array: jax.ShapeDtypeStruct(array.shape[1:], array.dtype)
        return cls(jax.tree.map(shape, records), len(jax.tree.leaves(records)[0]), held=True)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, part: slice) -> "Described":
        return dataclasses.replace(self, count=len(range(self.count)[part]))

    def batch(self, size: int) -> Shapes:
        """The shapes of so many."""
        shape = lambda each: jax.ShapeDtypeStruct((size, *each.shape), each.dtype)
        return jax.tree.map(shape, self.record)


class DescribedSource:
    """What stands in for records that aren't read; nothing can be evaluated."""

    def __init__(self, records: Described, devices: Devices):
        self._records, self._devices = records, devices
        self.count = len(records)

    def feed(self, batch: int, key: jax.Array) -> "DescribedFeed":
        """Shapes of what a step takes."""
        return DescribedFeed(self._records, self._devices, batch)

    def scorer(self, scores_of: Callable[..., jax.Array], at_once: int) -> Callable[..., jax.Array]:
        """A function that isn't called."""

        def scores(*arguments):
            raise ValueError("records that are only described have no scores")

        return scores

    def first(self, number: int) -> Records:
        """Zeros."""
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), self._records.batch(number))


class DescribedFeed:
    """Payloads as `HeldFeed` or `StreamedFeed` would hand them out, but shapes."""

    def __init__(self, records: Described, devices: Devices, batch: int):
        self._records, self._devices, self._batch = records, devices, batch
        self._in_epoch = len(records) // batch

    def payload(self, step: int) -> Shapes:
        """All records and the order of an epoch, or a batch."""
        if not self._records.held:
            return self._placed(self._records.batch(self._batch), self._devices.by_record)
        order = jax.ShapeDtypeStruct((self._in_epoch, self._batch), jnp.int32)
        every = self._records.batch(len(self._records))
        return self._placed((every, order), self._devices.everywhere)

    def serves_until(self, step: int) -> int:
        """The next step."""
        return step + 1

    def records(self, payload: Any, step: jax.Array) -> Records:
        """Those of the step."""
        if not self._records.held:
            return payload
        records, order = payload
        return self._devices.picked(records, order[step % self._in_epoch])

    def close(self) -> None:
        """Nothing is open."""

    def _placed(self, shapes: Shapes, place: jax.sharding.Sharding) -> Shapes:
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes
        )
