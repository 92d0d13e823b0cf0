"""Where records come from in a run, and how they reach the step that trains on them.

A `Source` serves training through a `Feed`: before each call of the compiled program the host hands
out a payload, from which the program takes the records of one or more steps. Which records a step
sees is a function of a key and the step's number alone, so a resumed run sees what it would have
seen. `Held` keeps all records on the devices: a payload is all of them and the order of an epoch.
`Streamed` reads those of one step, ahead of it.
"""

import functools
from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

import jax
import jax.numpy as jnp

from experiments.data.described import Described, DescribedSource
from experiments.data.records import Records, count, epoch_batches
from experiments.data.streamed import Stored, Streamed
from experiments.devices import Devices

Payload: TypeAlias = Any


class Feed(Protocol):
    """The records of a phase, batch by batch."""

    def payload(self, step: int) -> Payload:
        """What the program needs to go on from a step; asked for in rising order of steps."""
        ...

    def serves_until(self, step: int) -> int:
        """The step that a payload for `step` is good for, exclusively."""
        ...

    def records(self, payload: Payload, step: jax.Array) -> Records:
        """The records of one step, shared among the devices; inside `jax.jit`."""
        ...

    def close(self) -> None:
        """Nothing is asked for any more."""
        ...


class Source(Protocol):
    """Records of one split."""

    @property
    def count(self) -> int:
        """How many there are."""
        ...

    def feed(self, batch: int, key: jax.Array) -> Feed:
        """Endless batches in random order, each record once an epoch."""
        ...

    def scorer(self, scores_of: Callable[..., jax.Array], at_once: int) -> Callable[..., jax.Array]:
        """The function of arguments that gives `scores_of(*arguments, records)` of all records.

        About so many are `at_once` on the devices.
        """
        ...

    def first(self, number: int) -> Records:
        """The first records, on every device."""
        ...


def source(records: Records | Stored | Described, devices: Devices) -> Source:
    """Arrays lie on the devices, what is on disk stays there."""
    if isinstance(records, Described):
        return DescribedSource(records, devices)
    return Streamed(records, devices) if isinstance(records, Stored) else Held(records, devices)


class Held:
    """Records that lie on every device."""

    def __init__(self, records: Records, devices: Devices):
        self._records, self._devices = devices.held(records), devices
        self.count = count(records)

    def feed(self, batch: int, key: jax.Array) -> "HeldFeed":
        """Each epoch has an order of its own."""
        return HeldFeed(self._records, self._devices, batch, key)

    def scorer(self, scores_of: Callable[..., jax.Array], at_once: int) -> Callable[..., jax.Array]:
        """One program for all records, in batches that the devices share."""
        devices = self._devices

        @functools.partial(jax.jit, out_shardings=devices.everywhere)
        def scores(records, *arguments):
            size = devices.sharing * -(-min(at_once, self.count) // devices.sharing)
            # Indices past the last record clamp to it, and don't count.
            batches = jnp.arange(-(-self.count // size) * size).reshape(-1, size)
            of_batch = lambda indices: scores_of(*arguments, devices.picked(records, indices))
            return jax.lax.map(of_batch, batches).ravel()[: self.count].astype(jnp.float32)

        return lambda *arguments: scores(self._records, *arguments)

    def first(self, number: int) -> Records:
        """The first records."""
        return jax.tree.map(lambda array: array[:number], self._records)


class HeldFeed:
    """Batches of records that lie on every device."""

    def __init__(self, records: Records, devices: Devices, batch: int, key: jax.Array):
        self._records, self._devices = records, devices
        self._in_epoch = count(records) // batch
        self._key, self._epoch = key, -1
        self._order_of = jax.jit(
            lambda key, epoch: epoch_batches(jax.random.fold_in(key, epoch), count(records), batch)
        )

    def payload(self, step: int) -> Payload:
        """All records, and the order of the step's epoch."""
        if self._epoch != step // self._in_epoch:
            self._epoch = step // self._in_epoch
            self._order = self._order_of(self._key, self._epoch)
        return self._records, self._order

    def serves_until(self, step: int) -> int:
        """The end of the epoch."""
        return (step // self._in_epoch + 1) * self._in_epoch

    def records(self, payload: Payload, step: jax.Array) -> Records:
        """Those that the order has for this step."""
        records, order = payload
        return self._devices.picked(records, order[step % self._in_epoch])

    def close(self) -> None:
        """Nothing runs here."""
