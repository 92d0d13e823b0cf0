import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments.models.lenet import LeNet5, LeNet300100
from tests.experiments.models.functional import parameters_by_path


def test_lenet300100_is_three_matrix_products():
    model = LeNet300100(10, (8, 8, 1), bias=True, rngs=nnx.Rngs(0))
    images = jax.random.normal(jax.random.key(1), (3, 8, 8, 1))
    hidden = images.reshape(3, 64)
    for layer in (model.fc1, model.fc2):
        hidden = jnp.maximum(hidden @ layer.kernel[...] + layer.bias[...][None], 0)
    expected = hidden @ model.fc3.kernel[...] + model.fc3.bias[...][None]
    chex.assert_trees_all_close(model(images), expected, atol=1e-5)


@pytest.fixture(scope="module")
def lenet5_parameters():
    return parameters_by_path(LeNet5(10, rngs=nnx.Rngs(0)))


def fan_in(kernel):
    return math.prod(kernel.shape[:-1])


@pytest.mark.parametrize("layer", ["conv1", "conv2", "fc1", "fc2"])
def test_kernels_start_kaiming_normal(lenet5_parameters, layer):
    kernel = lenet5_parameters[f"{layer}/kernel"]
    standardised = np.asarray(kernel) * math.sqrt(fan_in(kernel) / 2)
    assert abs(standardised.std() - 1) < 5 / math.sqrt(2 * kernel.size)
    # A truncated normal, rescaled to the same deviation, would end at 2.28.
    assert np.abs(standardised).max() > 2.5


@pytest.mark.parametrize("layer", ["conv1", "conv2", "fc1", "fc2"])
def test_biases_start_uniform_within_one_over_root_fan_in(lenet5_parameters, layer):
    bound = 1 / math.sqrt(fan_in(lenet5_parameters[f"{layer}/kernel"]))
    largest = np.abs(lenet5_parameters[f"{layer}/bias"]).max()
    assert 0.5 * bound < largest <= bound
