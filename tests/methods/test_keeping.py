"""What goes wrong inside a jitted step is noted, does the least harm, and is said."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp
from tests.methods.link_table import half_mask, kernels, step_of, weights


def after(tx, params, steps):
    step, state = jax.jit(step_of(tx)), tx.init(params)
    for _ in range(steps):
        params, state = step(params, state)
    return params, state


KEEP = {
    "keep_mask": lambda: jp.keep_mask(half_mask()),
    "keep_sparse": lambda: jp.keep_sparse(0.5),
    "keep_sparse every 7": lambda: jp.keep_sparse(0.5, every=7),
    "keep_sparse 2:4": lambda: jp.keep_sparse("2:4", every=7),
    "keep_sparse transposable": lambda: jp.keep_sparse(jp.NM(2, 4, transposable=True)),
}
every_link = pytest.mark.parametrize("make", KEEP.values(), ids=KEEP)


@every_link
def test_in_the_right_order_there_is_no_problem(make, relaxed):
    tx = optax.chain(optax.add_decayed_weights(0.1), relaxed(optax.adam(0.1)), make())
    _, state = after(tx, weights(), 9)
    assert jp.problems(state) == []


WRONG = {
    "adam after the link": lambda link, relaxed: optax.chain(link, relaxed(optax.adam(0.1))),
    "decay after the link": lambda link, relaxed: optax.chain(
        link, optax.add_decayed_weights(-0.1)
    ),
    "noise after the link": lambda link, relaxed: optax.chain(
        optax.sgd(0.1), link, relaxed(optax.add_noise(0.1, 0.5, jax.random.key(0)))
    ),
    "inside a partition": lambda link, relaxed: optax.partition(
        {"all": optax.chain(link, optax.scale(0.5))}, "all"
    ),
}


@every_link
@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_a_wrong_order_is_noticed_at_the_second_update(make, wrong, relaxed):
    _, state = after(wrong(make(), relaxed), weights(), 2)
    (problem,) = jp.problems(state)
    assert problem.startswith("opt_state")
    assert "put the link last in the chain" in problem
    assert problem in jp.table(state)


def test_what_happens_later_is_noticed_later():
    params = weights()
    tx = optax.chain(optax.sgd(0.1), jp.keep_mask(half_mask()))
    params, state = after(tx, params, 2)
    params = jax.tree.map(lambda p: p + 1, params)  # by other code of the user's
    step = jax.jit(tx.update)
    for _ in range(100):
        _, state = step(optax.tree.zeros_like(params), state, params)
    assert len(jp.problems(state)) == 1


def test_weights_behind_a_straight_through_estimator_are_no_problem(relaxed):
    tx = jp.straight_through(relaxed(optax.adam(0.1)), jp.keep_sparse("2:4", every=3))
    _, state = after(tx, weights(), 7)
    assert jp.problems(state) == []
    _, state = after(optax.chain(tx, optax.scale(0.5)), weights(), 7)
    assert len(jp.problems(state)) == 1


@pytest.mark.parametrize("wrong", [jnp.nan, 1.5, 90.0, -0.1, jnp.inf])
@pytest.mark.parametrize("every", [1, 2])
def test_a_sparsity_out_of_range_keeps_the_mask_in_force(wrong, every):
    schedule = lambda step: jnp.where(step < 3, 0.5, wrong)
    params, state = after(
        optax.chain(optax.sgd(0.1), jp.keep_sparse(schedule, every=every)), weights(), 6
    )
    assert jp.count(jax.tree.map(lambda p: p != 0, kernels(params))) == 32
    (problem,) = jp.problems(state)
    assert "sparsities lie in [0, 1]" in problem
    _, state = after(optax.chain(optax.sgd(0.1), jp.keep_sparse(lambda step: 0.5)), weights(), 6)
    assert jp.problems(state) == []


def test_a_sparsity_that_is_never_valid_prunes_nothing():
    params, _ = after(optax.chain(optax.sgd(0.1), jp.keep_sparse(lambda step: 90.0)), weights(), 2)
    assert jp.count(jax.tree.map(lambda p: p != 0, kernels(params))) == 64


@pytest.mark.parametrize("wrong", [jnp.nan, 5, -1])
@pytest.mark.parametrize("transposable", [False, True])
def test_an_n_out_of_range_keeps_the_mask_in_force(transposable, wrong):
    pattern = jp.NM(lambda step: jnp.where(step < 2, 2.0, wrong), 4, transposable=transposable)
    tx = optax.chain(optax.sgd(0.1), jp.keep_sparse(pattern))
    params, state = after(tx, weights(), 4)
    assert jp.count(jax.tree.map(lambda p: p != 0, kernels(params))) == 32
    (problem,) = jp.problems(state)
    assert "n of N:M in 0 to m" in problem


@pytest.mark.parametrize(
    "link", [jp.keep_sparse(target) for target in (0.5, "2:4", jp.NM(2, 4, transposable=True))]
)
def test_nan_weights_hold_the_mask(link):
    params, tx = weights(), optax.chain(optax.sgd(0.1), link)
    params, state = after(tx, params, 2)
    before = optax.tree.get(state, "mask")
    params["head"]["kernel"] = params["head"]["kernel"].at[1, 2].set(jnp.nan)
    _, state = jax.jit(tx.update)(optax.tree.zeros_like(params), state, params)
    jax.tree.map(np.testing.assert_array_equal, optax.tree.get(state, "mask"), before)
    assert any("scores or probabilities were NaN" in problem for problem in jp.problems(state))


@pytest.mark.parametrize(
    "wrap", [lambda link: link, lambda link: jp.straight_through(optax.identity(), link)]
)
def test_a_given_mask_sees_nan_when_it_looks(wrap):
    """At the second update, and at every hundredth."""
    params, tx = weights(), wrap(jp.keep_mask(half_mask()))
    grads = optax.tree.zeros_like(params)
    step, fresh = jax.jit(tx.update), tx.init(params)
    grads["dense"]["kernel"] = grads["dense"]["kernel"].at[0, 0].set(jnp.nan)
    # What it sees are the weights as they come in.
    noted, state = [], fresh
    for _ in range(3):
        updates, state = step(grads, state, params)
        params = optax.apply_updates(params, updates)
        noted.append(any("NaN" in problem for problem in jp.problems(state)))
    assert noted[:2] == [False, True]


def test_no_problem_without_links():
    assert jp.problems(optax.adam(0.1).init(weights())) == []
