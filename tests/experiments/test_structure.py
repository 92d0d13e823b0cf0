import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import structure

MNIST = (28, 28, 1)


def chain(*sizes, kept=()):
    """Masks of layers between these sizes that keep the paths of single units given."""
    masks = [np.zeros(shape, bool) for shape in itertools.pairwise(sizes)]
    for path in kept:
        for mask, edge in zip(masks, itertools.pairwise(path), strict=False):
            if None not in edge:
                mask[edge] = True
    return {f"fc{i}": {"kernel": jnp.asarray(mask), "bias": None} for i, mask in enumerate(masks)}


def test_dead_units_take_their_weights_with_them():
    alive = [(0, 0, 0, 0), (1, 0, 1, 1)]
    leads_nowhere, comes_from_nowhere, through_the_dead = (2, 3, None), (None, 2, 2, 1), (3, 4, 4)
    mask = chain(5, 6, 5, 2, kept=[*alive, leads_nowhere, comes_from_nowhere, through_the_dead])
    left = structure.without_dead_units(mask)
    for name, layer in chain(5, 6, 5, 2, kept=alive).items():
        np.testing.assert_array_equal(left[name]["kernel"], layer["kernel"])
        assert left[name]["bias"] is None


def test_flattened_features_belong_to_their_channel():
    conv = np.zeros((3, 3, 1, 4), bool)
    conv[1, 1, 0, [1, 2]] = True
    linear = np.zeros((2 * 2 * 4, 5), bool)  # height, width, channel
    linear[[0 * 4 + 1, 3 * 4 + 1, 2 * 4 + 3], 0] = True
    left = structure.without_dead_units([jnp.asarray(conv), jnp.asarray(linear)])
    assert np.argwhere(left[0]).tolist() == [[1, 1, 0, 1]]
    assert np.argwhere(left[1]).tolist() == [[1, 0], [13, 0]]


def test_macs_of_lenet300100():
    layers = [np.zeros(shape, bool) for shape in ((784, 300), (300, 100), (100, 10))]
    for layer, inputs, outputs in zip(layers, (353, 45, 11), (45, 11, 10), strict=True):
        layer[:inputs, :outputs] = True
    left = structure.of("lenet300100", MNIST, [jnp.asarray(layer) for layer in layers])
    assert left == ((353, 45, 11), 353 * 45 + 45 * 11 + 11 * 10, 266_200)


def test_macs_of_lenet5_are_those_of_the_paper():
    conv1, conv2 = np.zeros((5, 5, 1, 20), bool), np.zeros((5, 5, 20, 50), bool)
    fc1, fc2 = np.zeros((4, 4, 50, 500), bool), np.zeros((500, 10), bool)
    conv1[..., :5] = conv2[..., :5, :12] = True
    fc1.reshape(16, 50, 500)[:12, :12, :13] = fc2[:13] = True
    fc1[3, 3, 0, 0] = True  # 145 features
    mask = [jnp.asarray(layer) for layer in (conv1, conv2, fc1.reshape(800, 500), fc2)]
    left = structure.of("lenet5", MNIST, mask)
    assert left.inputs == (1, 5, 145, 13)
    assert left.macs == 24**2 * 25 * 5 + 8**2 * 25 * 5 * 12 + 145 * 13 + 13 * 10
    assert left.macs_before == 24**2 * 25 * 20 + 8**2 * 25 * 20 * 50 + 800 * 500 + 500 * 10


@pytest.mark.parametrize("model", ["resnet20", "vgg19"])
def test_of_other_models_nothing_is_said(model):
    assert structure.of(model, MNIST, chain(3, 4, 2)) is None
