"""Records on the devices: batches, and scores of all of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import data
from experiments.devices import Devices

RECORDS = {"number": np.arange(250, dtype=np.int32), "row": np.ones((250, 3), np.float32)}


@pytest.fixture
def held():
    return data.Held(RECORDS, Devices.all())


def epoch(feed, first, steps):
    """The numbers of the records of so many steps."""
    found = [feed.records(feed.payload(step), step)["number"] for step in range(first, steps)]
    return np.concatenate(found)


def test_each_epoch_has_an_order_of_its_own(held):
    first, again = (epoch(held.feed(32, jax.random.key(0)), 0, 7) for _ in range(2))
    second = epoch(held.feed(32, jax.random.key(0)), 7, 14)
    assert len({*first}) == len({*second}) == 7 * 32
    assert (first == again).all() and (first != second).any()


def test_a_payload_serves_until_its_epoch_ends(held):
    feed = held.feed(32, jax.random.key(0))
    assert [feed.serves_until(step) for step in (0, 6, 7)] == [7, 7, 14]
    batch = feed.records(feed.payload(0), jnp.int32(3))
    assert (batch["number"] == feed.records(feed.payload(3), 3)["number"]).all()
    assert batch["row"].shape == (32, 3)


def test_every_record_is_scored_once_and_in_order(held):
    scores = held.scorer(lambda factor, records: factor * records["number"], 64)
    np.testing.assert_array_equal(scores(2), 2 * RECORDS["number"])


def test_first_records(held):
    np.testing.assert_array_equal(held.first(5)["number"], range(5))
