"""Records that lie on disk and become arrays on the host, by Grain, ahead of the devices.

What a step trains on is one element of a `grain.MapDataset`: which records it has follows from a
seed and the step, and what is drawn for a record from the seed and its place in the order. Any
element can be asked for at once. So all that the iterator of a stopped run would have to say is the
step, which the state of training holds, and a run goes on with the very next record, whatever the
number of processes and workers.
"""

import dataclasses
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from typing import Any, NamedTuple

import grain
import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments.data.progress import chunks, reported
from experiments.data.records import Records
from experiments.devices import Devices

_ON_EACH = 128  # records of a batch in evaluation, at most
_THREADS = min(16, os.cpu_count() or 1)


@dataclasses.dataclass(frozen=True)
class Stored:
    """Records on disk, and how the host makes arrays of one of them.

    It stands where a tree of arrays would, with a length and with slices. `train` and `evaluate`
    give arrays, all of one shape; `train` may draw, from the generator that it is given. It goes to
    other processes if there are `workers`; without, and in evaluation, threads of this one read.
    """

    title: str
    source: grain.MapDataset
    train: Callable[[Any, np.random.Generator], Records]
    evaluate: Callable[[Any], Records]
    workers: int = 0

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, part: slice) -> "Stored":
        return dataclasses.replace(self, source=self.source[part])


class Part(NamedTuple):
    """The part of each batch that a process reads."""

    index: int
    count: int

    @classmethod
    def here(cls, devices: Devices) -> "Part":
        """This process's, which is that of its devices."""
        rows = np.arange(devices.sharing)
        held = devices.by_record.addressable_devices_indices_map(rows.shape).values()
        mine = {int(row) for part in held for row in rows[part]}
        return cls(min(mine) // len(mine), devices.sharing // len(mine))


class Streamed:
    """Records that are read while a run needs them, each process those of its devices."""

    def __init__(self, records: Stored, devices: Devices, part: Part | None = None):
        self._records, self._devices = records, devices
        self._part = part or Part.here(devices)
        self.count = len(records)

    def feed(self, batch: int, key: jax.Array) -> "StreamedFeed":
        """Each epoch has an order of its own."""
        records = self._records.source.seed(int(jax.random.bits(key))).shuffle()
        batches = _batches(records.random_map(self._records.train), batch, self._part)
        return StreamedFeed(self._records, batches, self._devices)

    def scorer(self, scores_of: Callable[..., jax.Array], at_once: int) -> Callable[..., jax.Array]:
        """One program for a batch; it runs while the next one is read."""
        of_batch = jax.jit(lambda records, *arguments: scores_of(*arguments, records))
        joined = jax.jit(
            lambda scores: jnp.concatenate(scores)[: self.count].astype(jnp.float32),
            out_shardings=self._devices.everywhere,
        )

        def scores(*arguments):
            sharing = self._devices.sharing
            most = min(at_once, _ON_EACH * sharing, self.count)
            size = sharing * -(-most // sharing)
            cut = chunks(self.count, size)
            # The last batch is filled up with the first records again, which don't count.
            filled = self._records.source.repeat()[: len(cut) * size]
            batches = _batches(filled.map(self._records.evaluate), size, self._part)
            found = []
            with closing(iterator(batches)) as read:  # workers would start anew each time
                for _ in reported(self._records.title, cut, self.count):
                    found.append(of_batch(_spread(next(read), self._devices), *arguments))
                    jax.block_until_ready(found[-2:-1])  # the host stays one batch ahead, no more
            return joined(found)

        return scores

    def first(self, number: int) -> Records:
        """The first records, as in evaluation."""
        records = self._records.source[:number].map(self._records.evaluate)
        return self._devices.replicated(records.batch(number)[0])


class StreamedFeed:
    """Batches that are read ahead, from whichever step is asked for first.

    The training loop asks for a payload while the step before it runs, and the transfer begins at
    once: batches are on the devices when their step begins.
    """

    def __init__(self, records: Stored, batches: grain.MapDataset, devices: Devices):
        self._records, self._batches, self._devices = records, batches, devices
        self._iterator: grain.DatasetIterator | None = None
        self._step = 0  # the one whose records the iterator has next

    def payload(self, step: int) -> Records:
        """The records of the step, shared among the devices."""
        if self._iterator is None or step != self._step:
            self.close()
            if workers := self._records.workers:
                print(f"{self._records.title}: {workers} workers start", file=sys.stderr)
            self._iterator = iterator(self._batches[step:], workers)
        self._step = step + 1
        return _spread(next(self._iterator), self._devices)

    def serves_until(self, step: int) -> int:
        """The next step."""
        return step + 1

    def records(self, payload: Records, step: jax.Array) -> Records:
        """The payload."""
        return payload

    def close(self) -> None:
        """Ends threads and workers."""
        if self._iterator is not None:
            self._iterator.close()


def _batches(records: grain.MapDataset, batch: int, part: Part) -> grain.MapDataset:
    """A process's part of each whole batch of an epoch, epoch after epoch."""
    steps = len(records) // batch
    parts = records.batch(batch // part.count, drop_remainder=True)
    return parts[part.index : steps * part.count : part.count].repeat()


def iterator(batches: grain.MapDataset, workers: int = 0) -> grain.DatasetIterator:
    """Batches in order, read ahead by worker processes, or else by threads."""
    threads = 0 if workers else _THREADS
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
    processes = grain.MultiprocessingOptions(num_workers=workers)
    read = batches.to_iter_dataset(options)
    flags.FLAGS.mark_as_parsed()  # Grain asks for its own flags, and the runner has none of absl's
    return iter(read.mp_prefetch(processes, _end_with_parent) if workers else read)


def _end_with_parent(index: int, count: int) -> None:
    """Lets a worker end when the process that started it is killed."""

    parent = multiprocessing.parent_process()

    def wait():
        if parent is not None:
            parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _spread(records: Records, devices: Devices) -> Records:
    """This process's part of a batch, each device with its part of that."""
    spread = lambda array: jax.make_array_from_process_local_data(devices.by_record, array)
    return jax.tree.map(spread, records)
