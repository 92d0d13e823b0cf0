import chex
import jax
import jax.numpy as jnp
import pytest

from experiments import data
from experiments.data.records import epoch_batches
from experiments.usage import UsageError


def test_holdout_takes_the_last_training_records():
    dataset = data.load(limit=100)
    kept, held = data.holdout(dataset, 30)
    chex.assert_trees_all_equal(kept.train, tuple(array[:70] for array in dataset.train))
    chex.assert_trees_all_equal(held, tuple(array[70:] for array in dataset.train))
    assert kept.test is dataset.test and kept.task is dataset.task
    assert data.count(held) == 30


def test_no_holdout_leaves_all_records():
    dataset = data.load(limit=100)
    kept, held = data.holdout(dataset, 0)
    chex.assert_trees_all_equal(kept.train, dataset.train)
    assert data.count(held) == 0


@pytest.mark.parametrize("held", [-1, 100])
def test_holdout_leaves_records_to_train_on(held):
    with pytest.raises(UsageError, match=f"holdout must be between 0 and 99, got {held}"):
        data.holdout(data.load(limit=100), held)


@pytest.mark.parametrize(("count", "batch"), [(12, 4), (13, 4), (5, 5), (7, 1)])
def test_epoch_batches_are_a_permutation_cut_to_whole_batches(count, batch):
    batches = epoch_batches(jax.random.key(0), count, batch)
    assert batches.shape == (count // batch, batch)
    assert batches.dtype == jnp.int32
    indices = batches.ravel().tolist()
    assert len(set(indices)) == len(indices)
    assert set(indices) <= set(range(count))


def test_epoch_batches_depend_on_the_key_alone():
    draw = jax.jit(epoch_batches, static_argnums=(1, 2))
    first, again = draw(jax.random.key(3), 100, 10), epoch_batches(jax.random.key(3), 100, 10)
    chex.assert_trees_all_equal(first, again)
    assert jnp.any(first != draw(jax.random.key(4), 100, 10))


@pytest.mark.parametrize("batch", [0, 11])
def test_epoch_batches_refuse_a_batch_that_does_not_fit(batch):
    with pytest.raises(ValueError, match=f"between 1 and the 10 records, got {batch}"):
        epoch_batches(jax.random.key(0), 10, batch)
