"""Every link of the table in a training step: jit, scan, vmap, donation, precision, its state."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp
from tests.methods.link_table import (
    distance,
    every_link,
    every_link_some_slow,
    half_mask,
    kernels,
    probabilities,
    pruned_are_zero,
    sgd_then,
    step_of,
    train,
    weight_links,
    weights,
)


@every_link
def test_link_optimizes_under_jit_without_retrace(row):
    chex.clear_trace_counter()
    tx, params = sgd_then(row.make()), row.params()
    state, start = tx.init(params), distance(params)
    step = jax.jit(chex.assert_max_traces(step_of(tx), n=1))
    for count in range(1, 13):
        params, state = step(params, state)
        row.holds(params, count)
    assert distance(params) < start or row.name == "logits"  # which end far away, at -10


@every_link
def test_link_keeps_structure_dtypes_and_shapes(row):
    params, link = row.params(), row.make()
    state = link.init(params)
    updates, new_state = link.update(jax.tree.map(jnp.ones_like, params), state, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(updates, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(new_state, state)
    assert jax.tree.structure(new_state) == jax.tree.structure(state)


@every_link
def test_link_needs_params(row):
    params, tx = row.params(), optax.chain(optax.sgd(0.1), row.make())
    with pytest.raises(ValueError, match="needs the parameters"):
        tx.update(params, tx.init(params))


@every_link_some_slow
def test_link_in_scan_equals_loop(row):
    tx, params = sgd_then(row.make()), row.params()
    scanned, _ = jax.jit(
        lambda carry: jax.lax.scan(lambda c, _: (step_of(tx)(*c), None), carry, None, length=5)[0]
    )((params, tx.init(params)))
    row.holds(scanned, 5)
    chex.assert_trees_all_close(scanned, train(tx, params)[0], atol=1e-6)


@every_link_some_slow
def test_link_under_vmap_trains_an_ensemble(row):
    tx, members = sgd_then(row.make()), [row.params(), jax.tree.map(jnp.sqrt, probabilities())]
    if row.params is weights:
        members[1] = jax.tree.map(lambda p: p + 0.25, weights())
    params = jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)
    state, step = jax.vmap(tx.init)(params), jax.jit(jax.vmap(step_of(tx)))
    for _ in range(5):
        params, state = step(params, state)
    for i, member in enumerate(members):
        one = jax.tree.map(lambda p, i=i: p[i], params)
        row.holds(one, 5)
        chex.assert_trees_all_close(one, train(tx, member)[0], atol=1e-6)


@every_link_some_slow
def test_link_with_donated_params_and_state(row):
    tx, params = sgd_then(row.make()), row.params()
    expected, _ = train(tx, params)
    step, state = jax.jit(step_of(tx), donate_argnums=(0, 1)), tx.init(params)
    first = params
    for _ in range(5):
        params, state = step(params, state)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(first))
    chex.assert_trees_all_equal(params, expected)


def test_keep_mask_leaves_the_users_mask_alive_when_state_is_donated():
    mask = half_mask()
    tx, params = sgd_then(jp.keep_mask(mask)), weights()
    state = tx.init(params)
    jax.block_until_ready(jax.jit(step_of(tx), donate_argnums=(0, 1))(params, state))
    assert jp.count(mask) == 32
    pruned_are_zero(train(tx, weights())[0], 5)


# bfloat16: `optax.apply_updates` itself adds float32 to bfloat16, so promotion is relaxed.


DTYPES = {
    "bfloat16_params_float32_grads": (jnp.bfloat16, jnp.float32),
    "bfloat16_params_bfloat16_grads": (jnp.bfloat16, jnp.bfloat16),
    "float32_params_bfloat16_grads": (jnp.float32, jnp.bfloat16),
}


@pytest.mark.usefixtures("relaxed_promotion")
@pytest.mark.parametrize("dtypes", DTYPES.values(), ids=DTYPES)
@every_link_some_slow
def test_link_in_mixed_precision(row, dtypes):
    of_params, of_grads = dtypes
    params = optax.tree.cast(row.params(), of_params)
    tx = optax.chain(optax.sgd(0.1), row.make())
    state = tx.init(params)

    @jax.jit
    def step(params, state):
        grads = optax.tree.cast(jax.grad(distance)(params), of_grads)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for count in range(1, 5):
        params, state = step(params, state)
        row.holds(params, count)
        assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(of_params)}


@pytest.mark.usefixtures("relaxed_promotion")
def test_narrow_grads_leave_pruned_weights_exactly_zero_inside_apply_if_finite_outside():
    """The exact update -p of a float32 weight is float32, so `apply_if_finite` stands inside."""
    params = weights()
    tx = optax.chain(optax.apply_if_finite(optax.sgd(0.1), 3), jp.keep_mask(half_mask()))
    grads = optax.tree.cast(params, jnp.bfloat16)
    updates, _ = jax.jit(tx.update)(grads, tx.init(params), params)
    pruned_are_zero(optax.apply_updates(params, updates), 1)


# The state ----------------------------------------------------------------------------------------

NESTINGS = {
    "chain": lambda link: optax.chain(optax.clip(1.0), optax.chain(optax.sgd(0.1), link)),
    "multi_steps": lambda link: optax.MultiSteps(sgd_then(link), 2),
    "partition": lambda link: optax.partition({"all": sgd_then(link)}, "all"),
    "masked": lambda link: optax.masked(sgd_then(link), True),
    "apply_if_finite": lambda link: optax.apply_if_finite(sgd_then(link), 3),
    "inject_hyperparams": lambda link: optax.inject_hyperparams(
        lambda learning_rate: optax.chain(optax.sgd(learning_rate), link)
    )(0.1),
    "named_chain": lambda link: optax.named_chain(("sgd", optax.sgd(0.1)), ("prune", link)),
}


@pytest.mark.parametrize("nesting", NESTINGS)
@weight_links
def test_mask_is_found_in_nested_state(row, nesting):
    params = weights()
    state = NESTINGS[nesting](row.make()).init(params)
    mask = optax.tree.get(state, "mask")
    assert jax.tree.structure(mask) == jax.tree.structure(kernels(params))
    assert {leaf.dtype for leaf in jax.tree.leaves(mask)} == {jnp.dtype(bool)}


# What a mask update may cost: only the choice of the mask is conditional --------------


def equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
        ):
            if hasattr(inner, "eqns"):
                yield from equations(getattr(inner, "jaxpr", inner))


@pytest.mark.parametrize(
    "link",
    [jp.keep_sparse(0.75, every=3), jp.keep_sparse("2:4", every=3), jp.keep_mask(half_mask())],
)
def test_a_branch_reads_what_lies_in_memory_and_gives_a_mask(link, relaxed):
    """The parameters and the mask, but no update, which would have to be written for it."""
    tx, params = optax.chain(relaxed(optax.adam(0.1)), link), weights()
    jaxpr = jax.make_jaxpr(tx.update)(params, tx.init(params), params).jaxpr
    (branch,) = [e for e in jaxpr.eqns if e.primitive.name == "cond"]
    assert {v.aval.dtype for v in branch.outvars if v.aval.size > 1} <= {jnp.dtype(bool)}
    assert {v for v in branch.invars[1:] if v.aval.size > 1} <= set(jaxpr.invars)


def test_count_is_exact_when_xla_fuses_scores_with_what_comes_before():
    """A score that is calculated twice, once with and once without FMA, would miss its own cut."""
    tx = optax.chain(optax.sgd(0.1), jp.keep_sparse(0.5))

    @jax.jit
    def step(params, grads):
        updates, _ = tx.update(grads, tx.init(params), params)
        return jnp.count_nonzero(optax.apply_updates(params, updates))

    for seed in range(100):
        params, grads = jax.random.normal(jax.random.key(seed), (2, 32, 64))
        assert int(step(params, grads)) == 1024


def random_walk(link, updates):
    """Parameters and masks after each of so many updates by noise."""
    params = jax.tree.map(jnp.copy, weights())
    update, state, seen = jax.jit(link.update), link.init(params), []
    for step in range(updates):
        noise = jax.tree.map(
            lambda p, step=step: jax.random.normal(jax.random.key(step), p.shape), params
        )
        changes, state = update(noise, state, params)
        params = optax.apply_updates(params, changes)
        seen.append((params, np.concatenate([m.ravel() for m in jax.tree.leaves(state.mask)])))
    return seen


def test_the_mask_is_chosen_from_the_parameters_as_they_come_in():
    rising = lambda step: jnp.array([0.0, 0.0, 0.25, 0.25, 0.25, 0.5, 0.75])[step]
    seen = random_walk(jp.keep_sparse(rising, every=3), 7)
    masks = [mask for _, mask in seen]
    assert [mask.mean() for mask in masks] == [1, 1, 1, 0.75, 0.75, 0.75, 0.25]
    for before, at in ((2, 3), (5, 6)):
        largest = jp.top_k_mask(jax.tree.map(jnp.abs, kernels(seen[before][0])), 64 * 3 // 4)
        if at == 6:
            largest = jp.top_k_mask(jax.tree.map(jnp.abs, kernels(seen[before][0])), 16)
        expected = np.concatenate([m.ravel() for m in jax.tree.leaves(largest)])
        np.testing.assert_array_equal(masks[at], expected)


def test_a_pruned_weight_stays_zero_until_the_sparsity_falls():
    seen = random_walk(jp.keep_sparse(lambda step: jnp.where(step < 4, 0.75, 0.5), every=2), 6)
    masks = [mask for _, mask in seen]
    assert [mask.mean() for mask in masks] == [0.25] * 4 + [0.5] * 2
    assert all(np.array_equal(mask, masks[0]) for mask in masks[:4])
    assert np.all(masks[4] >= masks[0])
