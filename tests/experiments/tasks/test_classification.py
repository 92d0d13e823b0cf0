import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.tasks import Metric
from experiments.tasks.classification import Classification

TASK = Classification(3, (1, 2, 1), mean=(0.5,), std=(0.25,))
PIXELS = jnp.array([[[[0], [255]]], [[[255], [0]]], [[[255], [255]]]], jnp.uint8)
LABELS = jnp.array([1, 0, 2], jnp.int32)


def model(images, train):
    """Logits are the two pixels and 0; in training they are doubled."""
    logits = jnp.pad(images.reshape(-1, 2), ((0, 0), (0, 1)))
    return 2 * logits if train else logits


def test_batches_are_normalised_and_the_loss_is_that_of_training():
    inputs, labels = batch = TASK.batch((PIXELS, LABELS), jax.random.key(0))
    np.testing.assert_array_equal(inputs.reshape(-1, 2), [[-2, 2], [2, -2], [2, 2]])
    expected = optax.softmax_cross_entropy_with_integer_labels(model(inputs, True), labels)
    chex.assert_trees_all_close(TASK.loss(model, batch), expected.mean())


def test_scores_say_which_records_are_right():
    assert TASK.scores(model, (PIXELS, LABELS)).tolist() == [True, True, False]


def test_augmented_batches_depend_on_the_key():
    task = Classification(3, (1, 2, 1), mean=(0.5,), std=(0.25,), augment=True)
    records = (jnp.tile(PIXELS, (20, 1, 1, 1)), jnp.tile(LABELS, 20))
    one, same, other = (task.batch(records, jax.random.key(key))[0] for key in (0, 0, 1))
    chex.assert_trees_all_equal(one, same)
    assert jnp.any(one != other) and jnp.any(one != task.inputs(records))


@pytest.mark.parametrize(
    ("metric", "text"),
    [
        (Metric("accuracy", higher_is_better=True, fraction=True), "12.30%"),
        (Metric("bits", higher_is_better=False), "0.1230"),
    ],
)
def test_metrics_are_shown(metric, text):
    assert metric.text(0.123) == text
