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
        (lambda: jp.keep_sparse("2:4"), {"second", "head"}),
        (lambda: jp.keep_sparse(jp.NM(2, 4, axis="outputs")), {"first", "second"}),
        (lambda: jp.keep_sparse(jp.NM(2, 4, axis=-1)), {"first", "second"}),
        (lambda: jp.keep_sparse(jp.NM(2, 4, transposable=True)), {"second"}),
        (lambda: jp.keep_sparse("2:4", where="kernel"), {"first", "second", "head"}),
        (
            lambda: jp.keep_sparse(jp.NM(2, 4, transposable=True), where="(first|head)/kernel"),
            {"first", "head"},
        ),
    ],
)
def test_leaves_that_divide_are_chosen_by_default(link, chosen):
    mask = link().init(network()).mask
    assert {name for name, leaves in mask.items() if leaves["kernel"] is not None} == chosen


def test_no_bias_and_no_scale_is_chosen_by_default():
    stack = {
        "kernel": jnp.ones((4, 8, 8)),
        "bias": jnp.ones((4, 8)),
        "norm": {"scale": jnp.ones((4, 8))},
    }
    query = {"kernel": jnp.ones((8, 2, 4)), "bias": jnp.ones((4, 4))}
    _, mask = jp.prune_to({"layers": stack, "query": query}, "2:4")
    assert jp.count(mask) == jp.count((mask["layers"]["kernel"], mask["query"]["kernel"])) == 160
    assert (
        mask["layers"]["bias"] is mask["layers"]["norm"]["scale"] is mask["query"]["bias"] is None
    )


def test_a_chosen_leaf_that_does_not_divide_keeps_at_most_n():
    tx = optax.chain(optax.sgd(0.1), jp.keep_sparse(jp.NM(2, 4, transposable=True), where="kernel"))
    params, _ = steps_of(tx, network(), 1)[0]
    first, head = params["first"]["kernel"] != 0, params["head"]["kernel"] != 0
    assert (first.sum(2) <= 2).all()
    assert (head.reshape(4, 4, 10).sum(1) <= 2).all()
    assert (head[:, 8:].sum(1) <= 2).all()
    assert head.sum() >= 16 * 8 // 2


def test_the_mask_is_the_best_of_the_weights_when_it_is_renewed():
    """Behind a straight-through estimator these are the dense ones, before the update."""
    tx = jp.straight_through(
        optax.sgd(0.5), jp.keep_sparse(jp.NM(2, 4, transposable=True), every=3)
    )
    seen = steps_of(tx, {"kernel": normal(16, 8)}, 7)
    masks = [np.asarray(optax.tree.get(state, "mask")["kernel"]) for _, state in seen]
    same = [bool((a == b).all()) for a, b in itertools.pairwise(masks)]
    assert same == [True, True, False, True, True, False]
    before, dense = (optax.tree.get(seen[i][1], "dense")["kernel"] for i in (2, 3))
    best = jp.transposable_nm_mask(abs(before), 2, 4)
    assert (best != jp.transposable_nm_mask(abs(dense), 2, 4)).any()
    np.testing.assert_array_equal(masks[3], best)
    np.testing.assert_allclose(seen[3][0]["kernel"], jnp.where(best, dense, 0), atol=1e-6)


def test_in_one_chain_with_hoyer_square_and_a_global_budget(relaxed):
    links = jp.add_hoyer_square(1e-3), relaxed(optax.adam(1e-2)), jp.keep_sparse(0.75)
    tx = optax.chain(*links, jp.keep_sparse("2:4"))
    params, _ = steps_of(tx, {"kernel": normal(64, 32)}, 5)[-1]
    kept = params["kernel"] != 0
    assert (kept.reshape(16, 4, 32).sum(1) <= 2).all()
    assert kept.sum() <= 64 * 32 // 4


def test_beside_the_probabilities_of_probmask(relaxed):
    weights = {"kernel": normal(64, 32)}
    params = {"weights": weights, "probs": jp.init_probabilities(weights, value=0.5)}
    hoyer = jp.add_hoyer_square(1e-3)
    links = {
        "weights": jp.straight_through(
            optax.chain(hoyer, optax.sgd(0.1)), jp.keep_sparse(jp.NM(2, 4, transposable=True))
        ),
        "probs": optax.chain(relaxed(optax.adam(6e-3)), jp.project_probabilities(0.7)),
    }
    tx = optax.partition(links, {"weights": "weights", "probs": "probs"})
    params, _ = steps_of(tx, params, 3)[-1]
    kept = params["weights"]["kernel"] != 0
    assert (kept.reshape(16, 4, 32).sum(1) == 2).all()
    assert (kept.reshape(64, 8, 4).sum(2) == 2).all()
    assert params["probs"]["kernel"].mean() == pytest.approx(0.3, rel=1e-5)
    # The pattern can also be chosen by the probabilities, at the end.
    mask = jp.transposable_nm_mask(params["probs"], 2, 4)["kernel"]
    assert params["probs"]["kernel"][mask].mean() > params["probs"]["kernel"].mean()


def test_the_number_kept_follows_a_schedule():
    schedule = lambda step: jnp.maximum(4 - step, 1)  # 4:4, 3:4, 2:4, 1:4
    for transposable in (False, True):
        pattern = jp.NM(schedule, 4, transposable=transposable)
        tx = optax.chain(optax.sgd(0.1), jp.keep_sparse(pattern))
        for (params, _), kept in zip(
            steps_of(tx, {"kernel": normal(16, 8)}, 5), [4, 3, 2, 1, 1], strict=True
        ):
            groups = (params["kernel"] != 0).reshape(4, 4, 8).sum(1)
            assert (groups == kept).all()


# The straight-through estimator -------------------------------------------------------------------


def masked(kernel, n=2, m=4):
    return jnp.where(jp.nm_mask(abs(kernel), n, m), kernel, 0)


def straight_through_by_hand(kernel, gradients, learning_rate, decay):
    """The parameters after each step, by the equations of the docstring."""
    dense, sparse, seen = kernel, kernel, []
    for gradient in gradients:
        gradient = gradient + decay * jnp.where(sparse == 0, dense, 0)
        dense = dense - learning_rate * gradient
        sparse = masked(dense)
        seen.append(sparse)
    return seen


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_straight_through_is_its_equations(decay):
    tx = jp.straight_through(optax.sgd(0.5), jp.keep_sparse("2:4"), decay=decay)
    kernel = normal(16, 8)
    gradients = [normal(16, 8, seed=i) for i in range(6)]
    # `steps_of` draws the gradient of step i with key i.
    seen = [params["kernel"] for params, _ in steps_of(tx, {"kernel": kernel}, 6)]
    for ours, by_hand in zip(
        seen, straight_through_by_hand(kernel, gradients, 0.5, decay), strict=True
    ):
        np.testing.assert_allclose(ours, by_hand, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(ours == 0, by_hand == 0)


def test_without_a_gradient_pruned_weights_decay_and_kept_ones_stay():
    kernel, rate, decay = normal(16, 8), 0.5, 0.2
    tx = jp.straight_through(optax.sgd(rate), jp.keep_sparse("2:4"), decay=decay)
    params, state = {"kernel": kernel}, tx.init({"kernel": kernel})
    for _ in range(11):  # the first makes them sparse
        updates, state = tx.update(optax.tree.zeros_like(params), state, params)
        params = optax.apply_updates(params, updates)
    kept = jp.nm_mask(abs(kernel), 2, 4)
    dense = optax.tree.get(state, "dense")["kernel"]
    np.testing.assert_array_equal(dense[kept], kernel[kept])
    np.testing.assert_allclose(dense[~kept], kernel[~kept] * (1 - rate * decay) ** 10, rtol=1e-5)
    np.testing.assert_array_equal(params["kernel"], jnp.where(kept, kernel, 0))


def test_a_pruned_weight_returns_under_a_straight_through_gradient_only():
    kernel = jnp.array([[1.0], [-2.0], [3.0], [0.5]])
    push = {"kernel": jnp.array([[0.0], [0.0], [0.0], [-1.0]])}

    def final(tx):
        params, state = {"kernel": kernel}, tx.init({"kernel": kernel})
        for _ in range(30):
            updates, state = tx.update(push, state, params)
            params = optax.apply_updates(params, updates)
        return params["kernel"].ravel() != 0

    projection = jp.keep_sparse("2:4")
    assert final(optax.chain(optax.sgd(0.1), projection)).tolist() == [False, True, True, False]
    assert final(jp.straight_through(optax.sgd(0.1), projection)).tolist() == [
        False, False, True, True,
    ]  # fmt: skip


def test_bfloat16_parameters_have_float32_weights_behind_them(relaxed_promotion):
    tx = jp.straight_through(optax.sgd(0.1), jp.keep_sparse("2:4"))
    kernel = normal(16, 8).astype(jnp.bfloat16)
    params, state = {"kernel": kernel}, tx.init({"kernel": kernel})
    small, update = {"kernel": jnp.full((16, 8), 1e-3, jnp.bfloat16)}, jax.jit(tx.update)
    for _ in range(100):  # each step is less than a bfloat16 can hold beside most weights
        updates, state = update(small, state, params)
        params = optax.apply_updates(params, updates)
    dense = optax.tree.get(state, "dense")["kernel"]
    assert dense.dtype == jnp.float32
    step = 0.1 * np.float32(small["kernel"][0, 0])
    np.testing.assert_allclose(dense, np.float32(kernel) - 100 * step, atol=1e-5)
    assert params["kernel"].dtype == jnp.bfloat16
    kept = jp.nm_mask(abs(dense), 2, 4)
    np.testing.assert_array_equal(params["kernel"] != 0, kept)
    np.testing.assert_allclose(
        np.float32(params["kernel"])[kept], dense[kept], rtol=2.0**-8, atol=1e-6
    )


def test_straight_through_with_a_chain_of_projections(relaxed):
    projection = optax.chain(
        jp.keep_sparse(0.75), jp.keep_sparse(jp.NM(2, 4, transposable=True), every=3)
    )
    inner = optax.chain(jp.add_hoyer_square(1e-3), relaxed(optax.adamw(1e-2)))
    tx = jp.straight_through(inner, projection, decay=1e-3)
    params, _ = steps_of(tx, {"kernel": normal(64, 32)}, 7)[-1]
    kept = params["kernel"] != 0
    assert (kept.reshape(16, 4, 32).sum(1) <= 2).all()
    assert (kept.reshape(64, 8, 4).sum(2) <= 2).all()
    assert 0 < kept.sum() <= 64 * 32 // 4
