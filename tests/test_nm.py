"""What links of N:M masks choose and when; `test_links.py` runs them in every surrounding."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp


def normal(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


def network():
    return {
        "first": {"kernel": normal(3, 3, 3, 8), "bias": jnp.ones(8)},
        "second": {"kernel": normal(3, 3, 8, 16)},
        "head": {"kernel": normal(16, 10)},
    }


def steps_of(tx, params, count):
    """Parameters after each step under changing gradients."""

    @jax.jit
    def step(params, state, i):
        gradients = jax.tree.map(lambda p: jax.random.normal(jax.random.key(i), p.shape), params)
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    state, seen = tx.init(params), []
    for i in range(count):
        params, state = step(params, state, i)
        seen.append((params, state))
    return seen


@pytest.mark.parametrize(
    ("link", "chosen"),
    [
        (lambda: jp.keep_nm(2, 4), {"second", "head"}),
        (lambda: jp.keep_nm(2, 4, axis="outputs"), {"first", "second"}),
        (lambda: jp.keep_nm(2, 4, axis=-1), {"first", "second"}),
        (lambda: jp.keep_transposable_nm(2, 4), {"second"}),
        (lambda: jp.keep_nm(2, 4, where="kernel"), {"first", "second", "head"}),
        (lambda: jp.keep_transposable_nm(2, 4, where="first|head"), {"first", "head"}),
    ],
)
def test_leaves_that_divide_are_chosen_by_default(link, chosen):
    mask = link().init(network()).mask
    assert {name for name, leaves in mask.items() if leaves["kernel"] is not None} == chosen


def test_a_chosen_leaf_that_does_not_divide_keeps_at_most_n():
    tx = optax.chain(optax.sgd(0.1), jp.keep_transposable_nm(2, 4, where="kernel"))
    params, _ = steps_of(tx, network(), 1)[0]
    first, head = params["first"]["kernel"] != 0, params["head"]["kernel"] != 0
    assert (first.sum(2) <= 2).all()
    assert (head.reshape(4, 4, 10).sum(1) <= 2).all()
    assert (head[:, 8:].sum(1) <= 2).all()
    assert head.sum() >= 16 * 8 // 2


def test_the_mask_is_the_best_of_the_updated_weights_when_it_is_renewed():
    tx = optax.chain(optax.sgd(0.5), jp.keep_transposable_nm(2, 4, every=3))
    seen = steps_of(tx, {"kernel": normal(16, 8)}, 7)
    masks = [np.asarray(optax.tree.get(state, "mask")["kernel"]) for _, state in seen]
    same = [bool((a == b).all()) for a, b in itertools.pairwise(masks)]
    assert same == [True, True, False, True, True, False]
    before = seen[2][0]["kernel"]
    updated = before - 0.5 * jax.random.normal(jax.random.key(3), (16, 8))
    best = jp.transposable_nm_mask(abs(updated), 2, 4)
    np.testing.assert_array_equal(masks[3], best)
    np.testing.assert_array_equal(seen[3][0]["kernel"], jnp.where(best, updated, 0))


def test_in_one_chain_with_hoyer_square_and_a_global_budget(relaxed):
    links = jp.add_hoyer_square(1e-3), relaxed(optax.adam(1e-2)), jp.project_top_k(0.75)
    tx = optax.chain(*links, jp.keep_nm(2, 4))
    params, _ = steps_of(tx, {"kernel": normal(64, 32)}, 5)[-1]
    kept = params["kernel"] != 0
    assert (kept.reshape(16, 4, 32).sum(1) <= 2).all()
    assert kept.sum() <= 64 * 32 // 4


@pytest.mark.parametrize("factory", [jp.keep_nm, jp.keep_transposable_nm])
def test_errors(factory):
    with pytest.raises(ValueError, match="got n = 5, m = 4"):
        factory(5, 4)
    with pytest.raises(ValueError, match="`every` must be at least 1, got 0"):
        factory(2, 4, every=0)
    with pytest.raises(ValueError, match=r"no leaf can be pruned.*\['kernel'\]"):
        factory(2, 4).init({"kernel": normal(6, 6)})
    with pytest.raises(ValueError, match="needs the parameters"):
        factory(2, 4).update({}, None)
