"""Groups of channels are learned under a budget of operations, and leave: on handwritten digits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.datasets import load_digits

import jaxprune as jp
from experiments.costs.flops import flops
from tests.networks import nets

pytestmark = pytest.mark.usefixtures("relaxed_promotion")


def digits():
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    return np.float32(images[order] / 16), labels[order]


IMAGES, LABELS = digits()


def apply(params, x):
    """A convolution with a residual stream of 12, and two dense layers."""
    x = x.reshape(-1, 8, 8, 1)
    convolve = functools.partial(
        jax.lax.conv_general_dilated,
        padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    x = jax.nn.relu(convolve(x, params["in"], (2, 2)))
    x = x + convolve(jax.nn.relu(convolve(x, params["a"], (1, 1))), params["b"], (1, 1))
    return jax.nn.relu(x.reshape(len(x), -1) @ params["c"]) @ params["out"]


SHAPES = {
    "in": (3, 3, 1, 24),
    "a": (3, 3, 24, 24),
    "b": (3, 3, 24, 24),
    "c": (384, 64),
    "out": (64, 10),
}


def loss(params, x, y):
    return optax.softmax_cross_entropy_with_integer_labels(apply(params, x), y).mean()


def accuracy(apply, params):
    logits = jax.jit(apply)(params, IMAGES[1280:])
    return float((logits.argmax(-1) == LABELS[1280:]).mean())


def test_probmask_over_groups_to_a_budget_of_flops():
    """A quarter of the operations, and nearly the accuracy of the whole network."""
    params = nets.shaken({name: jnp.zeros(shape) for name, shape in SHAPES.items()})
    channels = jp.channel_groups(apply, params, IMAGES[:1])
    assert [family.size for family in channels.groups] == [24, 24, 64]
    cost = functools.partial(jp.channel_cost, channels, of="flops")
    budget = 0.25 * cost([None] * 3)
    sparsity = jp.cubic_sparsity(0.75, begin=20, end=100)
    learned = {"weights": params, "probs": tuple(jnp.ones(f.size) for f in channels.groups)}
    tx = optax.partition(
        {
            "weights": optax.adam(5e-3),
            "probs": optax.chain(
                optax.adam(0.02),
                jp.project_probabilities(sparsity, costs=lambda tree: cost(tree["probs"])),
            ),
        },
        {"weights": "weights", "probs": "probs"},
    )

    def sampled_loss(learned, key, x, y):
        keep = jp.relaxed_bernoulli(key, learned["probs"], 0.3)
        mask = jp.channel_mask(learned["weights"], channels, keep)
        return loss(jp.apply_mask(learned["weights"], mask), x, y)

    @jax.jit
    def step(learned, state, key):
        draw, key = jax.random.split(key)
        rows = jax.random.randint(draw, (64,), 0, 1280)
        x, y = jnp.asarray(IMAGES)[rows], jnp.asarray(LABELS)[rows]
        updates, state = tx.update(jax.grad(sampled_loss)(learned, key, x, y), state, learned)
        return optax.apply_updates(learned, updates), state

    state = tx.init(learned)
    for key in jax.random.split(jax.random.key(0), 200):
        learned, state = step(learned, state, key)
    assert cost(learned["probs"]) <= budget * (1 + 1e-5)
    keep = jp.budget_mask(learned["probs"], budget, cost, least=1)
    assert 0.85 * budget < cost(keep) <= budget
    weights = learned["weights"]
    small = jp.shrink(apply, weights, jp.channel_mask(weights, channels, keep), IMAGES[:1])
    assert flops(small.apply, small.params, IMAGES[:1]) == cost(keep)
    assert accuracy(small.apply, small.params) > 0.93
