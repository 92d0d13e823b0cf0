import functools
import math

import chex
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from experiments import models
from tests.experiments.models.functional import gradient_and_rest, parameters_by_path

RESNET50 = pytest.param("resnet50", marks=pytest.mark.slow)
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


@pytest.mark.parametrize("name", ["lenet5", "resnet32", "vgg19", RESNET50])
def test_gradient_and_statistics_keep_the_form_of_the_split_model(name):
    model = nnx.eval_shape(lambda: models.build(name, 10, CIFAR, nnx.Rngs(0)))
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    images = jax.ShapeDtypeStruct((2, *CIFAR), jnp.float32)
    step = functools.partial(gradient_and_rest, graphdef)
    gradients, updated = jax.eval_shape(step, params, rest, images)
    chex.assert_trees_all_equal_shapes_and_dtypes(gradients, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(updated, rest)


def test_same_seed_same_weights_and_other_seed_other_weights():
    first, again, other = (
        parameters_by_path(models.build("lenet300100", 10, (8, 8, 1), nnx.Rngs(seed)))
        for seed in (0, 0, 1)
    )
    chex.assert_trees_all_equal(first, again)
    assert all(jnp.any(first[path] != other[path]) for path in first)


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


def test_options_are_those_of_the_model():
    with pytest.raises(TypeError, match="bias"):
        models.build("vgg19", 10, CIFAR, nnx.Rngs(0), bias=True)
