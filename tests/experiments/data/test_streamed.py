"""Records on disk: their order, the parts that processes read, scores of all of them."""

import chex
import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import data
from experiments.data import progress
from experiments.data.streamed import Part
from experiments.devices import Devices

COUNT, BATCH = 50, 16
STEPS = COUNT // BATCH


def drawn(number, random):
    return {"number": np.int32(number), "drawn": np.float32(random.random())}


def plain(number):
    return {"number": np.int32(number), "drawn": np.float32(0)}


NUMBERS = data.Stored("numbers", grain.MapDataset.range(COUNT), drawn, plain)


def source(part=None, records=NUMBERS):
    return data.Streamed(records, Devices.all(), part)


def payloads(first, stop, part=None, key=0):
    """What a feed hands out that is asked for these steps."""
    feed = source(part).feed(BATCH, jax.random.key(key))
    found = [jax.device_get(feed.payload(step)) for step in range(first, stop)]
    feed.close()
    return found


def numbers(payloads):
    return np.concatenate([payload["number"] for payload in payloads])


def test_an_epoch_has_no_record_twice_and_an_order_of_its_own():
    epochs = np.split(numbers(payloads(0, 3 * STEPS)), 3)
    for epoch in epochs:
        assert len({*epoch}) == STEPS * BATCH and {*epoch} <= {*range(COUNT)}
    assert (epochs[0] != epochs[1]).any() and (epochs[1] != epochs[2]).any()
    assert {*np.concatenate(epochs)} == {*range(COUNT)}  # others are left out each time


def test_batches_follow_from_key_and_step():
    first, other = payloads(0, 2 * STEPS), payloads(0, 2 * STEPS, key=1)
    chex.assert_trees_all_equal(payloads(0, 2 * STEPS), first)
    assert (numbers(first) != numbers(other)).any()


@pytest.mark.parametrize("step", [1, STEPS, STEPS + 1, 1000 * STEPS + 1])
def test_a_feed_goes_on_at_any_step(step):
    chex.assert_trees_all_equal(payloads(step, step + 2)[1:], payloads(step + 1, step + 2))
    if step <= STEPS:
        chex.assert_trees_all_equal(payloads(0, step + 1)[-1:], payloads(step, step + 1))


def test_what_is_drawn_for_a_record_is_drawn_anew_each_epoch():
    found = [
        dict(zip(payload["number"].tolist(), payload["drawn"].tolist(), strict=True))
        for payload in payloads(0, 2 * STEPS)
    ]
    draws = [draw for payload in found for draw in payload.values()]
    assert len({*draws}) == len(draws)


def test_a_feed_that_is_asked_for_another_step_goes_there():
    feed = source().feed(BATCH, jax.random.key(0))
    steps = [0, 1, 7, 8, 2]
    found = [jax.device_get(feed.payload(step)) for step in steps]
    feed.close()
    whole = payloads(0, 9)
    chex.assert_trees_all_equal(found, [whole[step] for step in steps])
    assert [feed.serves_until(step) for step in steps] == [step + 1 for step in steps]


# Several processes ------------------------------------------------------------------------------


def test_processes_read_the_parts_of_the_same_batches():
    whole, parts = payloads(0, 2 * STEPS), [payloads(0, 2 * STEPS, Part(i, 2)) for i in (0, 1)]
    joined = [
        jax.tree.map(lambda *part: np.concatenate(part), *each) for each in zip(*parts, strict=True)
    ]
    chex.assert_trees_all_equal(joined, whole)


def test_the_part_of_this_process_is_that_of_its_devices():
    assert Part.here(Devices.all()) == Part(0, 1)


# Evaluation -------------------------------------------------------------------------------------


def test_every_record_is_scored_once_and_in_order():
    scores = source().scorer(lambda factor, records: factor * records["number"], 1000)
    for factor in (2, 3):
        np.testing.assert_array_equal(scores(factor), factor * np.arange(COUNT))
    assert scores(2).dtype == jnp.float32


def test_scores_are_those_of_records_in_memory():
    held = data.source(plain(np.arange(COUNT)) | {"drawn": np.zeros(COUNT)}, Devices.all())
    score = lambda records: jnp.sin(records["number"].astype(jnp.float32)) + records["drawn"]
    streamed = source().scorer(score, 1000)()
    np.testing.assert_allclose(streamed, held.scorer(score, 1000)(), rtol=1e-6)


def test_long_evaluations_say_how_far_they_are(monkeypatch, capsys):
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_REPORTS", 0.0)
    source().scorer(lambda records: records["number"], 1000)()
    assert "numbers: 50 of 50 records, " in capsys.readouterr().err


# In the place of arrays -------------------------------------------------------------------------


def test_first_records_are_those_of_evaluation():
    chex.assert_trees_all_equal(
        jax.device_get(source().first(3)),
        {"number": np.arange(3, dtype=np.int32), "drawn": np.zeros(3, np.float32)},
    )
    assert data.count(source().first(COUNT + 1)) == COUNT


def test_holdout_takes_the_last_records():
    kept, held = data.holdout(data.Dataset("numbers", None, NUMBERS, NUMBERS), 20)
    assert data.count(kept.train) == 30 and data.count(held) == 20
    np.testing.assert_array_equal(source(records=held).first(20)["number"], range(30, 50))
    feed = source(records=kept.train).feed(24, jax.random.key(0))
    assert {*numbers([jax.device_get(feed.payload(step)) for step in range(20)])} == {*range(30)}
    feed.close()


def test_no_holdout_leaves_all_records():
    kept, held = data.holdout(data.Dataset("numbers", None, NUMBERS, NUMBERS), 0)
    assert data.count(kept.train) == COUNT
    assert source(records=held).count == 0
