"""Windows of a text on disk: those of the same text in memory, in training and in evaluation."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from experiments import data, outcomes, run
from experiments.data import windows
from experiments.data.records import Reading
from experiments.devices import Devices
from experiments.experiment import Experiment
from experiments.phases import Dense
from experiments.tasks.language import Language
from experiments.usage import UsageError
from tests.experiments.data.stored import prepare_text

CONTEXT = 7


class Documents(list):
    """As `tfds.data_source` gives them; notes which are read."""

    def __init__(self, texts):
        super().__init__({"text": text} for text in texts)
        self.read = []

    def __getitem__(self, place):
        self.read.append(place)
        return super().__getitem__(place)


def stored(documents, context=CONTEXT, wanted=None, **reading):
    return windows.stored("some text", documents, context, wanted, Reading(**reading))


def in_memory(documents, context=CONTEXT):
    return windows.held(windows.strung(each["text"] for each in documents), context)


def all_of(records):
    return np.stack([records.source[i] for i in range(len(records))])


@given(texts=st.lists(st.binary(max_size=40), min_size=1, max_size=12), context=st.integers(1, 20))
def test_windows_on_disk_are_those_in_memory(texts, context):
    documents = Documents(texts)
    if len(windows.strung(texts)) <= context + 1:
        return
    lengths = np.array([len(text) + 1 for text in texts])
    source = windows.Windows(documents, lengths, context + 1)
    expected = in_memory(documents, context)
    assert len(source) == len(expected)
    for number in range(len(source)):
        np.testing.assert_array_equal(source[number], expected[number])


def test_a_window_reads_its_documents_alone():
    documents = Documents([b"abcdefg", b"hij", b"klm", b"nopqrstuvwx"])
    source = windows.Windows(documents, np.array([8, 4, 4, 12]), 8)
    assert [bytes(source[number]) for number in (1, 0)] == [b"hij\0klm\0", b"abcdefg\0"]
    assert documents.read == [1, 2, 0]


def test_no_more_documents_are_read_than_are_needed(monkeypatch, tmp_path):
    monkeypatch.setattr(windows, "_DOCUMENTS_PER_READ", 1)
    documents = Documents([b"abc"] * 9)
    assert len(stored(documents, wanted=2)) == 2
    kept = tmp_path / "some-text-first16.npz"
    stored(documents, wanted=2, cache_dir=tmp_path)
    assert np.load(kept)["lengths"].tolist() == [4] * 4


def test_lengths_are_kept(tmp_path):
    documents = Documents([bytes(range(n)) for n in range(40)])
    first = all_of(stored(documents, cache_dir=tmp_path))
    documents.read.clear()
    again = stored(documents, cache_dir=tmp_path)
    assert documents.read == []
    np.testing.assert_array_equal(all_of(again), first)


@pytest.mark.parametrize("context", [0, -3])
def test_windows_hold_something(context):
    documents = Documents([b"abc"])
    with pytest.raises(UsageError, match=f"context must be at least 1, got {context}"):
        stored(documents, context)
    assert documents.read == []


# A set ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder with a set whose documents don't fit the windows."""
    folder = tmp_path_factory.mktemp("text")
    prepare_text(folder, "lm1b", None, "1.1.0", {"train": 90, "test": 23})
    return folder


@pytest.fixture
def dataset(prepared):
    return data.load("lm1b", prepared, context=CONTEXT)


def test_an_epoch_has_every_window_once(dataset):
    expected = all_of(dataset.train)
    steps = len(expected) // 8
    feed = data.source(dataset.train, Devices.all()).feed(8, jax.random.key(0))
    found = np.concatenate([jax.device_get(feed.payload(step)) for step in range(steps)])
    feed.close()
    assert found.shape == (8 * steps, CONTEXT + 1) and found.dtype == np.uint8
    rows = {row.tobytes() for row in expected}
    assert len(rows) > 80
    assert {row.tobytes() for row in found} <= rows
    assert (found != expected[: len(found)]).any()


def test_evaluation_sees_all_test_records(dataset):
    score = lambda records: jnp.sin(records.astype(jnp.float32)).sum(-1)
    expected = all_of(dataset.test)
    assert len(expected) % 8
    streamed, held = (
        data.source(each, Devices.all()).scorer(score, 8) for each in (dataset.test, expected)
    )
    assert streamed().shape == (len(expected),)
    np.testing.assert_array_equal(streamed(), held())


@pytest.mark.slow
def test_workers_read_what_threads_read(prepared):
    feeds = [
        data.source(
            data.load("lm1b", prepared, context=CONTEXT, workers=workers).train, Devices.all()
        ).feed(8, jax.random.key(0))
        for workers in (0, 1)
    ]
    chex.assert_trees_all_equal(*(feed.payload(3) for feed in feeds))
    for feed in feeds:
        feed.close()


class Pairs(nnx.Module):
    """The next byte from the one before it."""

    def __init__(self, rngs):
        self.following = nnx.Linear(256, 256, use_bias=False, rngs=rngs)

    def __call__(self, tokens, train):
        return self.following(jax.nn.one_hot(tokens, 256))


class OfPairs(Language):
    def build(self, model, rngs):
        return Pairs(rngs)


EXPERIMENT = Experiment("pairs", "lm1b", (Dense(epochs=2, batch=32),), evaluations=2)


@pytest.mark.usefixtures("relaxed_promotion", "one_device", "no_pictures")
def test_a_stopped_run_goes_on_with_the_very_next_record(
    dataset, tmp_path, stopped_before, handed_out
):
    dataset = dataset._replace(task=OfPairs())
    run.run(EXPERIMENT, dataset, tmp_path / "whole")
    expected, handed_out[:] = [*handed_out], []
    steps = 2 * (len(dataset.train) // 32)
    assert [step for step, _ in expected] == [*range(steps)]
    stopped_before(steps - 2, lambda: run.run(EXPERIMENT, dataset, tmp_path / "stopped"))
    run.run(EXPERIMENT, dataset, tmp_path / "stopped")
    assert [step for step, _ in handed_out] == [*range(steps)]
    chex.assert_trees_all_equal(handed_out, expected)
    like, _ = run.initial_network("pairs", OfPairs(), jax.random.key(0))
    chex.assert_trees_all_equal(
        *(
            outcomes.load(tmp_path / name / "network-0-dense", like, Devices.all())
            for name in ("whole", "stopped")
        )
    )
