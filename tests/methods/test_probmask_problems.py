"""What the links of probabilities and logits note, keep where something goes wrong, and let be."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp
from tests.methods.link_table import COSTS, logits, probabilities, rising_sparsity, step_of, total


class Link(NamedTuple):
    """A link, made for a sparsity, and the tree it updates."""

    make: Callable[..., optax.GradientTransformation]
    params: Callable


def falling_sparsity(count):
    return 0.75 - rising_sparsity(count)


def cost_of_layers(probs):
    """8 at most, of which nothing is free: to keep nothing costs 1."""
    dense, head = probs["dense"]["kernel"], probs["head"]["kernel"]
    return 1.0 + 3.0 * jnp.mean(dense) + 4.0 * jnp.mean(dense) * jnp.mean(head)


def in_bfloat16():
    return optax.tree.cast(probabilities(), jnp.bfloat16)


LINKS = {
    "by weight": Link(jp.project_probabilities, probabilities),
    "costs": Link(lambda s: jp.project_probabilities(s, costs=COSTS), probabilities),
    "function": Link(lambda s: jp.project_probabilities(s, costs=cost_of_layers), probabilities),
    "bfloat16": Link(jp.project_probabilities, in_bfloat16),
    "logits": Link(jp.project_logits, logits),
}
every_link = pytest.mark.parametrize("link", LINKS.values(), ids=LINKS)


def after(tx, params, steps):
    def run(params, state):
        body = lambda carry, _: (step_of(tx)(*carry), None)
        return jax.lax.scan(body, (params, state), None, length=steps)[0]

    params = jax.tree.map(jnp.copy, params)
    return jax.jit(run, donate_argnums=(0, 1))(params, tx.init(params))


@every_link
@pytest.mark.parametrize("sparsity", [0.75, rising_sparsity, falling_sparsity])
def test_in_the_right_order_there_is_no_problem(link, sparsity, relaxed):
    _, state = after(optax.chain(relaxed(optax.adam(0.1)), link.make(sparsity)), link.params(), 9)
    assert jp.problems(state) == []


def test_a_sparsity_set_from_outside_may_rise(relaxed):
    """What was allowed at the last update is known to the state alone."""
    tx = optax.inject_hyperparams(lambda sparsity: jp.project_probabilities(sparsity))(
        lambda count: jnp.minimum(0.2 * count, 0.8)
    )
    _, state = after(relaxed(tx), probabilities(), 9)
    assert jp.problems(state) == []


WRONG = {
    "adam": lambda link, relaxed: optax.chain(link, relaxed(optax.adam(0.1))),
    "decay": lambda link, relaxed: optax.chain(link, optax.add_decayed_weights(0.5)),
    "half a step": lambda link, relaxed: optax.partition(
        {"all": optax.chain(optax.sgd(0.1), link, optax.scale(0.5))}, "all"
    ),
}


@pytest.mark.parametrize(
    ("link", "wrong"),
    [*((link, "adam") for link in LINKS), ("by weight", "decay"), ("by weight", "half a step")],
)
def test_a_wrong_order_is_noticed_at_the_second_update(link, wrong, relaxed):
    make, params = LINKS[link]
    _, state = after(WRONG[wrong](make(0.75), relaxed), params(), 2)
    (problem,) = jp.problems(state)
    assert problem.startswith("opt_state") and "weren't within [0, 1] and the budget" in problem
    assert "put the link last in the chain" in problem


@pytest.mark.parametrize(
    ("name", "wrong"),
    [*((name, jnp.nan) for name in LINKS), *(("by weight", x) for x in (1.5, 90.0, -0.1, jnp.inf))],
)
def test_a_sparsity_out_of_range_keeps_the_budget_in_force(name, wrong):
    link = LINKS[name]
    tx = optax.chain(optax.sgd(0.1), link.make(lambda step: jnp.where(step < 3, 0.5, wrong)))
    params, state = after(tx, link.params(), 6)
    (problem,) = jp.problems(state)
    assert "sparsities lie in [0, 1]" in problem
    assert float(optax.tree.get(state, "density")) == 0.5
    if name == "by weight":
        assert total(params) <= 32.0001


def test_a_budget_that_no_probabilities_meet_is_out_of_range():
    """Of 8, nothing at all costs 1."""
    link = jp.project_probabilities(lambda s: jnp.array([0.5, 0.875, 0.9])[s], costs=cost_of_layers)
    params, state = after(link, probabilities(), 2)
    assert jp.problems(state) == []
    assert float(cost_of_layers(params)) == pytest.approx(1, rel=1e-5)
    _, state = after(link, probabilities(), 3)
    assert "out of range" in jp.problems(state)[0]
    assert float(state.density) == 0.125


@every_link
def test_what_becomes_nan_stays_nan_and_the_rest_goes_on(link):
    params = link.params()
    tx = optax.chain(optax.sgd(0.1), link.make(0.5))
    params, state = after(tx, params, 2)
    grads = jax.tree.map(lambda p: jnp.full_like(p, 0.1), params)
    grads["head"]["kernel"] = grads["head"]["kernel"].at[1, 2].set(jnp.nan)
    for _ in range(2):
        assert jp.problems(state) == []  # it is noted when the next update begins
        updates, state = jax.jit(tx.update)(grads, state, params)
        params, before = optax.apply_updates(params, updates), params
        nan = jax.tree.map(lambda p, g: jnp.all(jnp.isnan(p) == jnp.isnan(g)), params, grads)
        assert all(jax.tree.leaves(nan))
    moved = jax.tree.map(lambda a, b: jnp.mean(a != b), params, before)
    assert min(float(share) for share in jax.tree.leaves(moved)) > 0.9
    (problem,) = jp.problems(state)
    assert "probabilities were NaN" in problem


def test_nan_that_was_there_stays_and_is_noted():
    params = {"w": jnp.array([0.5, jnp.nan, 0.7]), "v": jnp.array([0.9])}
    link = jp.project_probabilities(0.5)
    updates, state = jax.jit(link.update)(optax.tree.zeros_like(params), link.init(params), params)
    probs = optax.apply_updates(params, updates)
    np.testing.assert_allclose(probs["w"], [0.46666667, np.nan, 0.6666667], rtol=1e-6)
    assert "NaN" in jp.problems(state)[0]


def test_masks_are_found_beside_probabilities():
    params = {"weights": {"w": jnp.ones((2, 2))}, "probs": {"w": jnp.ones((2, 2))}}
    keep = jp.keep_mask({"weights": {"w": jnp.eye(2, dtype=bool)}, "probs": None})
    wrong = optax.chain(jp.project_probabilities(0.5), optax.scale(0.5))
    names = {"weights": "weights", "probs": "probs"}
    tx = optax.partition({"weights": keep, "probs": wrong}, names)
    _, state = after(tx, params, 2)
    mask = jp.current_mask(params, state)
    assert mask["probs"] == {"w": None} and jp.count(mask) == 2
    *lines, problem = jp.table(state).splitlines()
    assert lines[-1].split() == ["total", "2", "4", "50.000%"] and "the budget" in problem
    alone = jp.project_probabilities(0.5).init(params["probs"])
    with pytest.raises(ValueError, match="keeps to a mask"):
        jp.current_mask(params["probs"], alone)


def test_a_table_of_probabilities_alone_says_their_problems():
    params = {"w": jnp.ones((2, 2))}
    _, state = after(optax.chain(jp.project_probabilities(0.5), optax.scale(0.5)), params, 2)
    assert jp.table(state).splitlines() == jp.problems(state) != []
