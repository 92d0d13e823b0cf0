"""Learning rates over a phase, and what optimizers do to weights."""

import jax.numpy as jnp
import optax
import pytest

from experiments.phases import Dense, Search
from experiments.phases.descent import decayed

pytestmark = pytest.mark.usefixtures("relaxed_promotion")


@pytest.mark.parametrize(
    ("decay", "warmup", "rates"),
    [
        ("constant", 0.0, {0: 2.0, 99: 2.0}),
        ("cosine", 0.0, {0: 2.0, 50: 1.0, 100: 0.0}),
        ((0.5, 0.75), 0.0, {49: 2.0, 50: 0.2, 75: 0.02}),
        ("constant", 0.1, {0: 0.0, 5: 1.0, 10: 2.0, 99: 2.0}),
        ("cosine", 0.2, {0: 0.0, 20: 2.0, 60: 1.0, 100: 0.0}),
        ("constant", 0.001, {0: 0.0, 1: 2.0}),
    ],
)
def test_the_learning_rate_rises_and_decays(decay, warmup, rates):
    schedule = decayed(2.0, decay, 100, warmup)
    assert {step: float(schedule(step)) for step in rates} == pytest.approx(rates, abs=1e-6)


def first_update(optimizer, gradient, **options):
    phase = Dense(1, learning_rate=0.1, optimizer=optimizer, decay="constant", **options)
    weights = {"w": jnp.array([1.0, -2.0])}
    link = phase.links(None, 0.5, 10, None)
    updates, _ = link.update({"w": jnp.array(gradient)}, link.init(weights), weights)
    return updates["w"].tolist()


def test_weight_decay_is_in_the_gradient_or_beside_it():
    decay = {"weight_decay": 0.5}
    assert first_update("sgd", [0.0, 0.0], **decay) == pytest.approx([-0.05, 0.1])
    assert first_update("adam", [0.0, 0.0], **decay) == pytest.approx(
        [-0.1, 0.1], rel=1e-4
    )  # its sign
    assert first_update("adamw", [0.0, 0.0], **decay) == pytest.approx([-0.05, 0.1])
    assert first_update("adamw", [7.0, 7.0], **decay) == pytest.approx([-0.15, 0.0], abs=1e-4)


def test_large_gradients_are_clipped():
    assert first_update("sgd", [3.0, 4.0], weight_decay=0.0) == pytest.approx([-0.3, -0.4])
    clipped = first_update("sgd", [3.0, 4.0], weight_decay=0.0, clip=1.0)
    assert clipped == pytest.approx([-0.06, -0.08])


def test_probmask_trains_weights_by_the_same_optimizers():
    weights = {"w": jnp.array([1.0, -2.0])}
    params = {"weights": weights, "probs": {"w": jnp.array([0.5, 0.5])}}
    link = Search(1, optimizer="adamw", weight_decay=0.5, decay="constant").links(
        None, 0.5, 10, None
    )
    updates, _ = link.update(optax.tree.zeros_like(params), link.init(params), params)
    assert updates["weights"]["w"].tolist() == pytest.approx([-0.05, 0.1])


@pytest.mark.parametrize(
    "option", [{"optimizer": "lion"}, {"decay": "linear"}, {"warmup": 1.0}, {"warmup": -0.1}]
)
@pytest.mark.parametrize("phase", [Dense, Search])
def test_options_are_checked(phase, option):
    (name,) = option
    with pytest.raises(ValueError, match=f"{name} must be "):
        phase(1, **option)
