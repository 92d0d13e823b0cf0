import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments import models

MNIST, CIFAR, IMAGENET = (28, 28, 1), (32, 32, 3), (224, 224, 3)

# name, classes, image shape, options, weights in kernels, all parameters
SIZES = [
    ("lenet300100", 10, MNIST, {}, 266_200, 266_200),
    ("lenet300100", 10, MNIST, {"bias": True}, 266_200, 266_610),
    ("lenet300100", 10, (8, 8, 1), {}, 50_200, 50_200),
    ("lenet5", 10, MNIST, {}, 430_500, 431_080),
    ("conv2", 10, CIFAR, {}, 4_300_992, 4_300_992),
    ("conv4", 10, CIFAR, {}, 2_425_024, 2_425_024),
    ("conv6", 10, CIFAR, {}, 2_261_184, 2_261_184),
    ("conv8", 10, CIFAR, {}, 5_275_840, 5_275_840),
    ("conv2", 10, CIFAR, {"bias": True}, 4_300_992, 4_301_642),
    ("conv4", 10, CIFAR, {"bias": True}, 2_425_024, 2_425_930),
    ("conv6", 10, CIFAR, {"bias": True}, 2_261_184, 2_262_602),
    ("resnet20", 10, CIFAR, {}, 270_896, 272_464),
    ("resnet56", 10, CIFAR, {}, 851_504, 855_760),
    ("resnet32", 10, CIFAR, {}, 1_855_584, 1_860_512),
    ("resnet32", 100, CIFAR, {}, 1_867_104, 1_872_032),
    ("vgg19", 10, CIFAR, {}, 20_024_000, 20_035_008),
    ("vgg19", 100, CIFAR, {}, 20_070_080, 20_081_088),
    ("resnet18", 1000, IMAGENET, {}, 11_678_912, 11_689_512),
    ("resnet50", 1000, IMAGENET, {}, 25_502_912, 25_557_032),
]


def strided_block():
    return models.Residual(3, ((4, 3, 2), (4, 3, 1)), rngs=nnx.Rngs(0))


def parameters_by_path(model):
    leaves = jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def fan_in(kernel):
    return math.prod(kernel.shape[:-1])


@pytest.mark.parametrize(("name", "classes", "image_shape", "options", "weights", "total"), SIZES)
def test_parameter_counts_are_those_of_the_papers(
    name, classes, image_shape, options, weights, total
):
    model = nnx.eval_shape(lambda: models.build(name, classes, image_shape, nnx.Rngs(0), **options))
    sizes = {path: math.prod(leaf.shape) for path, leaf in parameters_by_path(model).items()}
    assert sum(size for path, size in sizes.items() if path.endswith("kernel")) == weights
    assert sum(sizes.values()) == total


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize(
    ("name", "image_shape"),
    [
        ("lenet300100", (8, 8, 1)),
        ("lenet5", MNIST),
        ("lenet5", (16, 17, 1)),
        ("conv2", (8, 8, 1)),
        ("conv4", (9, 6, 1)),
        ("conv6", (8, 8, 1)),
        ("conv8", CIFAR),
        ("resnet32", (8, 8, 1)),
        ("resnet32", CIFAR),
        ("vgg19", CIFAR),
        ("vgg19", (64, 33, 3)),
        ("resnet18", (64, 64, 3)),
        ("resnet50", (64, 64, 3)),
    ],
)
def test_logits_have_one_row_an_image(name, image_shape, train):
    def logits(images):
        return models.build(name, 7, image_shape, nnx.Rngs(0))(images, train=train)

    images = jax.ShapeDtypeStruct((5, *image_shape), jnp.float32)
    assert jax.eval_shape(logits, images) == jax.ShapeDtypeStruct((5, 7), jnp.float32)


def test_lenet300100_is_three_matrix_products():
    model = models.LeNet300100(10, 64, bias=True, rngs=nnx.Rngs(0))
    images = jax.random.normal(jax.random.key(1), (3, 8, 8, 1))
    hidden = images.reshape(3, 64)
    for layer in (model.fc1, model.fc2):
        hidden = jnp.maximum(hidden @ layer.kernel[...] + layer.bias[...][None], 0)
    expected = hidden @ model.fc3.kernel[...] + model.fc3.bias[...][None]
    chex.assert_trees_all_close(model(images), expected, atol=1e-5)


RESNET50 = pytest.param("resnet50", marks=pytest.mark.slow)


def gradient_and_rest(graphdef, params, rest, images):
    """What one training step needs of a functional model: gradient and new running statistics."""

    def loss_and_rest(params):
        model = nnx.merge(graphdef, params, rest, copy=True)
        loss = jnp.mean(model(images, train=True) ** 2)
        return loss, nnx.state(model, nnx.Not(nnx.Param))

    return jax.grad(loss_and_rest, has_aux=True)(params)


@pytest.mark.parametrize("name", ["lenet5", "resnet32", "vgg19", RESNET50])
def test_gradient_and_statistics_keep_the_form_of_the_split_model(name):
    model = nnx.eval_shape(lambda: models.build(name, 10, CIFAR, nnx.Rngs(0)))
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    images = jax.ShapeDtypeStruct((2, *CIFAR), jnp.float32)
    step = functools.partial(gradient_and_rest, graphdef)
    gradients, updated = jax.eval_shape(step, params, rest, images)
    chex.assert_trees_all_equal_shapes_and_dtypes(gradients, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(updated, rest)


def test_gradient_through_a_copying_merge_updates_running_statistics():
    block = strided_block()
    graphdef, params, rest = nnx.split(block, nnx.Param, ...)
    images = jax.random.normal(jax.random.key(1), (6, 8, 8, 3))
    before = jax.tree.map(jnp.copy, rest)

    gradients, updated = jax.jit(gradient_and_rest, static_argnums=0)(
        graphdef, params, rest, images
    )
    chex.assert_tree_all_finite(gradients)
    assert all(jnp.any(leaf != 0) for leaf in jax.tree.leaves(gradients))
    chex.assert_trees_all_equal(rest, before)
    batch_mean = jnp.mean(block.shortcut.conv(images), axis=(0, 1, 2))
    running_mean = updated["shortcut"]["norm"]["mean"][...]
    chex.assert_trees_all_close(running_mean, 0.1 * batch_mean, atol=1e-6)


def test_evaluation_leaves_the_running_statistics_and_treats_images_one_by_one():
    block = strided_block()
    before = jax.tree.map(jnp.copy, nnx.state(block, nnx.BatchStat))
    images = jax.random.normal(jax.random.key(1), (6, 8, 8, 3))
    together, first = block(images, train=False), block(images[:1], train=False)
    chex.assert_trees_all_close(together[:1], first, atol=1e-5)
    chex.assert_trees_all_equal(nnx.state(block, nnx.BatchStat), before)


@pytest.fixture(scope="module")
def lenet5_parameters():
    return parameters_by_path(models.build("lenet5", 10, MNIST, nnx.Rngs(0)))


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


def test_same_seed_same_weights_and_other_seed_other_weights():
    first, again, other = (
        parameters_by_path(models.build("lenet300100", 10, (8, 8, 1), nnx.Rngs(seed)))
        for seed in (0, 0, 1)
    )
    chex.assert_trees_all_equal(first, again)
    assert all(jnp.any(first[path] != other[path]) for path in first)


def test_strided_convolutions_are_centred_where_the_shortcut_samples():
    layer = models.ConvNorm(1, 1, 3, 2, rngs=nnx.Rngs(0))
    layer.conv.kernel[...] = jnp.zeros((3, 3, 1, 1)).at[1, 1].set(1.0)
    images = jax.random.normal(jax.random.key(0), (2, 8, 8, 1))
    chex.assert_trees_all_equal(layer.conv(images), images[:, ::2, ::2])


@pytest.mark.parametrize(
    ("name", "image_shape", "message"),
    [
        ("lenet", MNIST, "unknown model 'lenet': choose one of lenet300100, lenet5, conv2"),
        ("lenet300100", (28, 28), r"must be \(height, width, channels\), got \(28, 28\)"),
        ("lenet5", (8, 8, 1), "LeNet5 needs images of at least 16x16 pixels, got 8x8"),
        ("conv8", (8, 8, 1), "depth 8 needs images of at least 16x16 pixels, got 8x8"),
        ("vgg19", (32, 28, 3), "VGG19 needs images of at least 32x32 pixels, got 32x28"),
    ],
)
def test_what_cannot_be_built_is_said(name, image_shape, message):
    with pytest.raises(ValueError, match=message):
        models.build(name, 10, image_shape, nnx.Rngs(0))


def test_convnet_depth_and_options_are_checked():
    with pytest.raises(ValueError, match="depth must be 2, 4, 6 or 8, got 3"):
        models.ConvNet(3, 10, rngs=nnx.Rngs(0))
    with pytest.raises(TypeError, match="bias"):
        models.build("vgg19", 10, CIFAR, nnx.Rngs(0), bias=True)
