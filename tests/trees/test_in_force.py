"""The mask in force, of trees of every kind and through every nesting."""

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from optax import contrib

import jaxprune as jp


def normal(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


def layer(seed=0):
    return {"kernel": normal(4, 8, seed=seed), "bias": jnp.ones(8)}


def nnx_model():
    return nnx.Sequential(
        nnx.Linear(4, 8, rngs=nnx.Rngs(0)), nnx.relu, nnx.Linear(8, 4, rngs=nnx.Rngs(1))
    )


TREES = {
    "NNX": lambda: nnx.state(nnx_model(), nnx.Param),
    "Linen": lambda: {"params": {"Dense_0": layer(), "Dense_1": layer(1)}},
    "Equinox": lambda: eqx.filter(
        eqx.nn.MLP(4, 4, 8, 1, key=jax.random.key(0)), eqx.is_inexact_array
    ),
    "tuple": lambda: (normal(4, 8), jnp.ones(8), (normal(8, 4),)),
    "list": lambda: [layer(), [normal(8, 4), None]],
    "an array": lambda: normal(4, 8),
}
NESTINGS = {
    "alone": lambda link: link,
    "chain": lambda link: after_sgd(link),
    "chain in a chain": lambda link: optax.chain(optax.clip(1.0), after_sgd(link)),
    "named_chain": lambda link: optax.named_chain(("a", optax.adam(0.1)), ("b", link)),
    "MultiSteps": lambda link: optax.MultiSteps(after_sgd(link), 2),
    "apply_if_finite": lambda link: optax.apply_if_finite(after_sgd(link), 3),
    "inject_hyperparams": lambda link: optax.inject_hyperparams(
        lambda learning_rate: optax.chain(optax.sgd(learning_rate), link)
    )(0.1),
    "masked": lambda link: optax.masked(link, lambda params: jax.tree.map(lambda _: True, params)),
    "partition": lambda link: optax.partition(
        {"all": after_sgd(link)}, lambda params: jax.tree.map(lambda _: "all", params)
    ),
    "straight_through": lambda link: jp.straight_through(optax.adam(0.1), link),
    "schedule_free": lambda link: contrib.schedule_free(after_sgd(link), 0.1),
}


def after_sgd(*links):
    return optax.chain(optax.sgd(0.1, momentum=0.9), *links)


def drawn(params, seed=0):
    keys = iter(jax.random.split(jax.random.key(seed), 100))
    draw = lambda keep: jax.random.bernoulli(next(keys), 0.5, keep.shape)
    return jax.tree.map(draw, jp.prunable(params))


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("nesting", NESTINGS)
def test_trees_and_nestings(tree, nesting):
    params = TREES[tree]()
    mask = drawn(params)
    state = NESTINGS[nesting](jp.keep_mask(mask)).init(params)
    chex.assert_trees_all_equal(jp.current_mask(params, state), mask)


TWO = {"a": layer(), "b": layer(1), "c": [normal(4, 4)]}


def test_partition_merges_partial_masks():
    links = {
        "top": after_sgd(jp.keep_sparse(0.75)),
        "nm": optax.MultiSteps(after_sgd(jp.keep_sparse("1:4")), 1),
        "dense": optax.adam(0.1),
    }
    tx = optax.partition(links, {"a": "top", "b": "nm", "c": "dense"})
    with jax.numpy_dtype_promotion("standard"):  # for MultiSteps
        updates, state = tx.update(TWO, tx.init(TWO), TWO)
    params = optax.apply_updates(TWO, updates)
    mask = jp.current_mask(params, state)
    nonzero = jax.tree.map(lambda p: p != 0, params)
    for name in "ab":
        expected = {"kernel": nonzero[name]["kernel"], "bias": None}
        chex.assert_trees_all_equal(mask[name], expected)
    assert mask["c"] == [None]
    assert jp.count(mask) == 8 + 8
    assert jp.table(state).splitlines()[-1].split() == ["total", "16", "64", "25.000%"]
    average = optax.incremental_update(params, TWO, 0.5)
    assert jp.count({"k": jp.apply_mask(average, mask)["a"]["kernel"] != 0}) == 8


def test_parameters_may_be_called_problems():
    params = {"problems": normal(4, 4), "mask": normal(4, 4)}
    state = optax.chain(optax.adam(0.1), jp.keep_sparse(0.5)).init(params)
    assert jp.problems(state) == []
    assert jp.count(jp.current_mask(params, state)) == 32


def test_what_masked_hides_stays_dense():
    tx = optax.masked(jp.keep_sparse("2:4"), {"a": True, "b": False, "c": False})
    mask = jp.current_mask(TWO, tx.init(TWO))
    chex.assert_trees_all_equal(mask, {**jp.prunable(TWO), "b": no_mask("b"), "c": [None]})


def no_mask(name):
    return jax.tree.map(lambda _: None, TWO[name])


def only(mask, name):
    return {key: own if key == name else no_mask(key) for key, own in mask.items()}


def test_links_on_different_leaves():
    mask = drawn(TWO)
    tx = after_sgd(*(jp.keep_mask(only(mask, name)) for name in TWO))
    chex.assert_trees_all_equal(jp.current_mask(TWO, tx.init(TWO)), mask)


def test_links_on_the_same_leaves_keep_what_both_keep():
    one, other = drawn(TWO), only(drawn(TWO, seed=1), "b")
    tx = after_sgd(jp.keep_mask(one), jp.keep_mask(other))
    mask = jp.current_mask(TWO, tx.init(TWO))
    both = np.asarray(one["b"]["kernel"]) & np.asarray(other["b"]["kernel"])
    np.testing.assert_array_equal(mask["b"]["kernel"], both)
    updates, _ = tx.update(TWO, tx.init(TWO), TWO)
    params = optax.apply_updates(TWO, updates)
    chex.assert_trees_all_equal(params, jp.apply_mask(params, mask))


def test_parameters_that_are_called_mask_are_no_mask():
    params = {"mask": normal(4, 8), "problems": {"mask": normal(4, 8)}}
    mask = drawn(params)
    state = optax.chain(optax.adam(0.1), jp.keep_mask(mask)).init(params)
    chex.assert_trees_all_equal(jp.current_mask(params, state), mask)


def test_inside_jit_and_of_shapes():
    mask = drawn(TWO)
    tx = after_sgd(jp.keep_mask(mask), jp.keep_mask(mask))
    state, shapes = tx.init(TWO), jax.eval_shape(lambda: TWO)
    chex.assert_trees_all_equal(jax.jit(jp.current_mask)(TWO, state), mask)
    chex.assert_trees_all_equal(jp.current_mask(shapes, state), mask)


def test_nnx_optimizer():
    model = nnx_model()
    params = nnx.state(model, nnx.Param)
    mask = drawn(params)
    optimizer = nnx.Optimizer(model, after_sgd(jp.keep_mask(mask)), wrt=nnx.Param)
    chex.assert_trees_all_equal(jp.current_mask(params, optimizer.opt_state), mask)


def test_average_of_parameters_under_a_changing_mask():
    """The first mask keeps other weights than the last, and an average has both."""
    params = average = {"kernel": jnp.array([[1.0], [2.0], [3.0], [4.0]])}
    tx = jp.straight_through(optax.sgd(1.0), jp.keep_sparse("2:4"))
    state = tx.init(params)
    for slope in (0.0, -10.0):
        grads = {"kernel": slope * (4 - jnp.arange(4.0).reshape(4, 1))}
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        average = optax.incremental_update(params, average, 0.5)
    assert jnp.all(average["kernel"] != 0)
    sparse = jp.apply_mask(average, jp.current_mask(params, state))
    np.testing.assert_array_equal(sparse["kernel"] != 0, params["kernel"] != 0)
    assert float(jp.sparsity(sparse)) == 0.5
