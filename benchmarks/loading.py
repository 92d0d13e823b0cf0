"""ImageNet's path on a synthetic folder of the real layout: speed, waiting, memory.

python -m benchmarks.loading > benchmarks/results/loading.md
python -m benchmarks.loading --tables=loader,memory --images=400 --folder=/tmp/imagenet

The images are parts of scikit-learn's two photographs, as large in pixels and in bytes as those of
ImageNet. The first table reads alone, by threads and by worker processes; the second trains with
the runner's own loop and asks how long it waits for batches, beside records that are held in
memory; the third follows the memory of all processes over an epoch.
"""

import contextlib
import io
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

from benchmarks import image_sets, timing
from experiments import checkpoints, data, run, training
from experiments.data import imagenet, streamed
from experiments.devices import Devices
from experiments.experiment import Experiment
from experiments.log import Log
from experiments.phases import Dense
from experiments.room import Room
from experiments.usage import Parser, check_names, exit_with_one_line

_SHAPES = ((500, 375), (500, 375), (375, 500), (500, 333))  # width, height


# The folder -------------------------------------------------------------------------------------


def photographs(number: int, seed: int) -> Iterator[bytes]:
    """Files of about 110 kB."""
    sources = [Image.fromarray(each) for each in load_sample_images().images]
    random = np.random.default_rng(seed)
    for _ in range(number):
        source = sources[random.integers(len(sources))]
        shape = np.array(_SHAPES[random.integers(len(_SHAPES))])
        part = shape * random.uniform(0.7, 1) * (np.array(source.size) / shape).min()
        corner = random.uniform(0, source.size - part)
        box = (*corner, *(corner + part))
        file = io.BytesIO()
        source.resize(tuple(shape), Image.Resampling.BICUBIC, box).save(file, "jpeg", quality=98)
        yield file.getvalue()


def write(folder: Path, images: int) -> None:
    """The set with so many images for training, and a tenth for evaluation."""
    import tensorflow_datasets as tfds

    features = {
        "file_name": tfds.features.Text(),
        "image": tfds.features.Image(encoding_format="jpeg"),
        "label": tfds.features.ClassLabel(num_classes=1000),
    }

    def records(split, number, seed):
        for i, file in enumerate(photographs(number, seed)):
            yield {"file_name": f"{split}_{i}.JPEG", "image": io.BytesIO(file), "label": i % 1000}

    splits = {
        split: records(split, number, seed)
        for seed, (split, number) in enumerate(
            {"train": images, "validation": images // 10}.items()
        )
    }
    image_sets.prepare(folder, "imagenet2012", "5.1.0", features, splits, shards=8)


# Reading alone ----------------------------------------------------------------------------------


def reading(folder: Path, batch: int, workers: int, steps: int, threads: int):
    """Hands out the seconds of each batch of an epoch and more."""
    streamed._THREADS = threads
    records = data.load("imagenet2012", folder, workers=workers).train
    feed = data.source(records, Devices.all()).feed(batch, jax.random.key(0))
    with contextlib.closing(feed):
        for step in range(steps):
            start = time.perf_counter()
            jax.block_until_ready(feed.payload(step))
            yield time.perf_counter() - start


def loader(folder: Path, batch: int = 64) -> None:
    """Prints images a second, and the seconds to the first batch."""
    print("| | images a second | seconds to the first batch |")
    print("|---|---|---|")
    cores = os.cpu_count() or 1
    ways = {
        f"{threads} thread(s)": (0, threads) for threads in dict.fromkeys((1, cores, 2 * cores))
    }
    ways |= {f"{workers} worker(s)": (workers, 0) for workers in dict.fromkeys((1, 2, cores))}
    for name, (workers, threads) in ways.items():
        first, *others = reading(folder, batch, workers, 24, threads)
        print(f"| {name} | {batch * len(others) / sum(others):,.0f} | {first:.1f} |", flush=True)
    print()


def decoding(folder: Path, number: int = 300) -> None:
    """Prints what an image costs on one core, at several sizes."""
    source = data.load("imagenet2012", folder).train.source
    records, random = [source[i] for i in range(number)], np.random.default_rng(0)
    kilobytes = sum(len(record["image"]) for record in records) / number / 1e3
    print(f"One image ({kilobytes:.0f} kB) on one core:\n")
    print("| pixels | random part, ms | middle, ms |")
    print("|---|---|---|")
    for size in (64, 128, 224):
        cases = (
            lambda record, size=size: imagenet.training_record(record, random, size),
            lambda record, size=size: imagenet.evaluation_record(record, size),
        )
        cells = []
        for case in cases:
            start = time.process_time()
            for record in records:
                case(record)
            cells.append(f"{1e3 * (time.process_time() - start) / number:.2f}")
        print(f"| {size} | {' | '.join(cells)} |", flush=True)
    print()


# Training ---------------------------------------------------------------------------------------


class Timed:
    """A feed that notes when each batch was asked for, and how long that took."""

    def __init__(self, feed: data.Feed):
        self._feed = feed
        self.asked, self.waited = [], []

    def payload(self, step: int) -> Any:
        """The feed's."""
        self.asked.append(time.perf_counter())
        payload = self._feed.payload(step)
        self.waited.append(time.perf_counter() - self.asked[-1])
        return payload

    def serves_until(self, step: int) -> int:
        """The next step, so that each is timed."""
        return step + 1

    def __getattr__(self, name: str) -> Any:
        return getattr(self._feed, name)


def held(dataset: data.Dataset) -> data.Dataset:
    """The images in memory, the middle of each."""

    def arrays(records: data.Stored):
        found = [records.evaluate(records.source[i]) for i in range(len(records))]
        return tuple(np.stack(each) for each in zip(*found, strict=True))

    return dataset._replace(train=arrays(dataset.train), test=arrays(dataset.test))


def trained(model: str, dataset: data.Dataset, batch: int, folder: Path) -> Timed:
    """Trains for an epoch."""
    experiment = Experiment(model, dataset.name, (Dense(epochs=1, batch=batch),), evaluations=1)
    key, phase = jax.random.key(0), experiment.phases[0]
    network, graph = run.initial_network(model, dataset.task, key)
    room = Room(graph, dataset)
    timed, feed = [], room.train.feed
    room.train.feed = lambda *args: timed.append(Timed(feed(*args))) or timed[-1]
    log = Log(folder / "metrics.jsonl", dataset.task.metric).of_phase(0, phase.name)
    saved = checkpoints.saved_in(folder / "checkpoints", 1e9, room.devices)
    with contextlib.redirect_stdout(None):
        training.train(phase, room.devices.replicated(network), experiment, room, key, log, saved)
    return timed[0]


def training_steps(folder: Path) -> None:
    """Prints a row for each network and way to its records."""
    print("| | batch | records | ms a step | of them waiting | images a second |")
    print("|---|---|---|---|---|---|")
    cases = (
        ("lenet300100", 64, 64, 12),
        ("resnet18", 64, 16, 8),
        ("resnet18", 224, 4, 8),
        ("resnet50", 224, 4, 8),
    )
    for model, size, batch, steps in cases:
        dataset = data.load("imagenet2012", folder, image_size=size, limit=batch * steps)
        dataset = dataset._replace(test=dataset.test[:batch])
        for name, way in (("streamed", lambda each: each), ("held", held)):
            with tempfile.TemporaryDirectory() as scratch:
                timed = trained(model, way(dataset), batch, Path(scratch))
            # The first steps compile, and the loop runs one step ahead.
            seconds = np.diff(timed.asked)[3:].mean()
            waiting = statistics.mean(timed.waited[3:-1]) / seconds
            print(
                f"| {model}, {size} pixels | {batch} | {name} | {1e3 * seconds:,.0f} | "
                f"{waiting:.1%} | {batch / seconds:,.1f} |",
                flush=True,
            )
    print()


# Memory -----------------------------------------------------------------------------------------


def resident() -> int:
    """MiB of this process and of its workers."""
    processes = ["self", *(str(child.pid) for child in multiprocessing.active_children())]
    pages = (int(Path(f"/proc/{each}/statm").read_text().split()[1]) for each in processes)
    return sum(pages) * os.sysconf("SC_PAGE_SIZE") >> 20


def memory(folder: Path, batch: int = 64) -> None:
    """Prints the resident memory at each eighth of an epoch, and of the next."""
    steps = len(data.load("imagenet2012", folder).train) // batch
    marks = [max(1, steps * eighth // 8) for eighth in range(1, 17)]
    print(f"| eighths of an epoch of {steps} batches | {' | '.join(map(str, range(1, 17)))} |")
    print("|---" * 17 + "|")
    for name, workers, threads in (("2 threads", 0, 2), ("2 workers", 2, 0)):
        found = []
        for step, _ in enumerate(reading(folder, batch, workers, marks[-1], threads), 1):
            found += [resident()] * marks.count(step)
        print(f"| {name}, MiB | {' | '.join(map(str, found))} |", flush=True)
    print()


_TABLES = {
    "decoding": decoding,
    "loader": loader,
    "training": training_steps,
    "memory": memory,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """The tables, as Markdown."""
    parser = Parser(__doc__)
    parser.add_argument("--tables", default=",".join(_TABLES))
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--folder", type=Path, help="where to write the set, or where it is")
    flags = parser.parse_args(arguments)
    names = flags.tables.split(",")
    check_names("--tables", names, _TABLES)
    with tempfile.TemporaryDirectory() as scratch:
        folder = flags.folder or Path(scratch)
        if not (folder / "imagenet2012").exists():
            write(folder, flags.images)
        print(timing.machine())
        for name in names:
            _TABLES[name](folder)


if __name__ == "__main__":
    exit_with_one_line(main)
