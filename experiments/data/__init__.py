"""The data sets, in memory or on disk: a file a set or family, a line here a set."""

import functools
import inspect
import os
from typing import Any

from experiments.data import cifar, digits, imagenet, mnist, text
from experiments.data.described import Described
from experiments.data.records import Dataset, Reading, count, holdout
from experiments.data.sources import Feed, Held, Source, source
from experiments.data.streamed import Stored, Streamed
from experiments.usage import UsageError, check_type, nearest

__all__ = [
    "Dataset",
    "Feed",
    "Held",
    "Source",
    "Stored",
    "Streamed",
    "check",
    "count",
    "described",
    "holdout",
    "load",
    "options",
    "source",
]

_LOADERS = {
    "digits": digits.load,
    "mnist": mnist.load,
    "cifar10": cifar.load_10,
    "cifar100": cifar.load_100,
    "imagenet2012": imagenet.load,
    "python": text.load_python,
    **{each.name: functools.partial(text.load_prepared, each) for each in text.PREPARED},
}

_DESCRIBED = {
    "mnist": mnist.described,
    "cifar10": cifar.described_10,
    "cifar100": cifar.described_100,
    "imagenet2012": imagenet.described,
    **{each.name: functools.partial(text.described_prepared, each) for each in text.PREPARED},
}


def load(
    name: str = "digits",
    data_dir: str | os.PathLike | None = None,
    *,
    cache_dir: str | os.PathLike | None = None,
    workers: int = 0,
    limit: int | None = None,
    **chosen: Any,
) -> Dataset:
    """A set in host memory, or a large one that stays on disk and is read while it is needed.

    `digits` comes with scikit-learn, `python` is the source of Python's standard library as it lies
    on this machine. The other sets are read with `tfds.data_source`, without
    TensorFlow, from ArrayRecord files that were prepared before; nothing is downloaded.

    Args:
        name: of images 'digits', 'mnist', 'cifar10', 'cifar100' or 'imagenet2012'; of text
            'python', 'lm1b', 'tiny_shakespeare', 'wiki40b/en' or 'c4/en'.
        data_dir: the folder with the prepared sets; by default that of TensorFlow Datasets.
        cache_dir: where to keep the decoded images of a set that is held in memory, and the
            lengths of the documents of a text that isn't, so that the next call takes a moment.
            The file is named by set, version and `limit`, not by `data_dir`.
        workers: how many processes read a set on disk for training, instead of threads: of use
            where a host has more cores than threads of one process can fill.
        limit: keep only so many training records, the first ones; they are stored shuffled. The
            test records all stay.
        **chosen: the set's own options: `standardize=False` leaves pixels in [0, 1];
            `image_size` is the height and width in pixels of `imagenet2012`, 224 by default;
            `context` is how many bytes of text a model sees, 256 by default, and
            `test_records` how many records of the test text are kept.

    Raises:
        UsageError: unknown `name` or option, `limit` outside 1..training records, negative
            `workers`, or a set that is not prepared in `data_dir`, or not whole.
    """
    check(name, chosen)
    if workers < 0:
        raise UsageError(f"workers must be at least 0, got {workers}")
    return _LOADERS[name](Reading(data_dir, cache_dir, workers), limit, **chosen)


def described(name: str, limit: int | None = None, **chosen: Any) -> Dataset:
    """What `load` gives, unread if it isn't at hand: shapes, for what is compiled ahead of time.

    Raises:
        UsageError: as `load` does, but for a set that is not prepared.
    """
    check(name, chosen)
    if name in _DESCRIBED:
        return _DESCRIBED[name](limit, **chosen)
    dataset = _LOADERS[name](Reading(), limit, **chosen)
    train, test = map(Described.like, (dataset.train, dataset.test))
    return dataset._replace(train=train, test=test)


def options(name: str) -> dict[str, Any]:
    """The options of a set, each with its type.

    Raises:
        UsageError: unknown `name`.
    """
    if name not in _LOADERS:
        raise UsageError(
            f"unknown data set {name!r}: choose one of {', '.join(_LOADERS)}"
            f"{nearest(name, _LOADERS)}"
        )
    parameters = inspect.signature(_LOADERS[name]).parameters.values()
    return {each.name: each.annotation for each in parameters if each.kind == each.KEYWORD_ONLY}


def check(name: str, chosen: dict[str, Any]) -> None:
    """Raises a UsageError if there is no such set, or if it has no such options."""
    known = options(name)
    for option, value in chosen.items():
        if option not in known:
            raise UsageError(
                f"{name} has no option {option!r}: it has {[*known]}{nearest(option, known)}"
            )
        check_type(f"{option} of {name}", value, known[option])
