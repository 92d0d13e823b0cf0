import chex
import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits

from experiments import data


def test_digits_are_split_once_and_for_all():
    dataset = data.load()
    (train, labels), (test, test_labels) = dataset.train, dataset.test
    chex.assert_trees_all_equal(dataset.train, data.load("digits").train)
    assert train.shape == (1437, 8, 8, 1)
    assert test.shape == (360, 8, 8, 1)
    assert train.dtype == np.uint8
    assert labels.dtype == test_labels.dtype == np.int32
    assert labels[:8].tolist() == [2, 8, 2, 6, 6, 7, 1, 9]
    assert dataset.task.image_shape == (8, 8, 1)
    assert not dataset.task.augment


def test_digits_on_the_two_sides_are_all_digits_once():
    dataset = data.load()
    images, labels = map(np.concatenate, zip(dataset.train, dataset.test, strict=True))
    found = sorted(zip(images.reshape(-1, 64).tolist(), labels.tolist(), strict=True))
    digits = load_digits()
    scaled = np.round(digits.data * 255 / 16).astype(int)
    assert found == sorted(zip(scaled.tolist(), digits.target.tolist(), strict=True))


def test_normalized_digits_have_mean_zero_and_deviation_one():
    dataset = data.load()
    inputs = dataset.task.inputs(jax.tree.map(jnp.asarray, dataset.train))
    assert abs(float(inputs.mean())) < 2e-3
    assert abs(float(inputs.std()) - 1) < 2e-3
