"""Patterns drawn from logits: always exact N:M, with the right probabilities and gradients."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType

import jaxprune as jp

KINDS = [
    *[(2, 4, False), (1, 4, False), (4, 8, False), (31, 32, False)],
    *[(2, 4, True), (1, 4, True), (1, 3, True), (4, 5, True)],
]


def normal(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


def check_pattern(mask, n, m, transposable):
    """Of a mask (..., inputs, outputs) of booleans or of 0 and 1."""
    *batch, inputs, outputs = mask.shape
    kept = np.asarray(mask, int)
    assert (kept.reshape(*batch, inputs // m, m, outputs).sum(-2) == n).all()
    if transposable:
        assert (kept.reshape(*batch, inputs, outputs // m, m).sum(-1) == n).all()


def side(m):
    return 6 * m


@pytest.mark.parametrize(("n", "m", "transposable"), KINDS)
def test_draws_are_exact_patterns(n, m, transposable):
    params = {"conv": normal(3, 3, side(m), 4 * m), "dense": normal(side(m), side(m)), "b": None}
    kinds = dict(n=n, m=m, transposable=transposable)
    logits = jp.init_pattern_logits(params, **kinds)
    draw = jax.jit(functools.partial(jp.gumbel_pattern_mask, **kinds))
    mask = draw(jax.random.key(0), params, logits)
    assert set(np.unique(mask["conv"])) == {0.0, 1.0}
    for name in ("conv", "dense"):
        check_pattern(mask[name], **kinds)
        check_pattern(jp.pattern_mask(params, logits, **kinds)[name], **kinds)
    assert mask["b"] is None


@pytest.mark.parametrize(
    ("transposable", "best"), [(False, jp.nm_mask), (True, jp.transposable_nm_mask)]
)
def test_a_prior_alone_gives_the_best_mask_of_magnitudes(transposable, best):
    params = {"conv": normal(3, 3, 8, 16), "dense": normal(16, 8)}
    logits = jp.init_pattern_logits(params, 2, 4, transposable=transposable, prior=1.0)
    mask = jp.pattern_mask(params, logits, 2, 4, transposable=transposable)
    expected = best(jax.tree.map(jnp.abs, params), 2, 4)
    for name in params:
        np.testing.assert_array_equal(mask[name], expected[name])


@pytest.mark.parametrize(("transposable", "classes"), [(False, 6), (True, 90)])
def test_patterns_are_drawn_with_their_probabilities(transposable, classes):
    params = jnp.zeros((4, 4))
    groups = 1 if transposable else 4
    one = jnp.zeros(classes).at[0].set(2.0).at[classes - 1].set(1.0)
    logits = jnp.broadcast_to(one.reshape(classes, 1, 1), (classes, 1, groups))
    keys = jax.random.split(jax.random.key(0), 20_000)
    draw = lambda key: jp.gumbel_pattern_mask(key, params, logits, 2, 4, transposable=transposable)
    mean = jax.jit(lambda keys: jnp.mean(jax.vmap(draw)(keys), 0))(keys)
    # By the definition: the sum over patterns of probability times pattern.
    probs = np.asarray(jax.nn.softmax(one))
    if transposable:
        rows = list(itertools.combinations(range(4), 2))
        tables = []
        for choice in itertools.product(rows, repeat=4):
            table = np.array([[j in row for j in range(4)] for row in choice])
            if (table.sum(0) == 2).all():
                tables.append(table)
        expected = np.tensordot(probs, np.array(tables, float), 1)
    else:
        tables = [[i in c for i in range(4)] for c in itertools.combinations(range(4), 2)]
        expected = np.repeat((probs @ np.array(tables, float))[:, None], 4, axis=1)
    np.testing.assert_allclose(mean, expected, atol=0.015)


@pytest.mark.parametrize("transposable", [False, True])
def test_the_gradient_is_that_of_the_soft_choice(transposable):
    """A soft mask is linear in softmax((logits + noise) / temperature), and the noise is the same
    at every temperature and for every weight in the sum."""
    params, weights, key = normal(8, 8), normal(8, 8, seed=1), jax.random.key(2)
    logits = jp.init_pattern_logits(params, 2, 4, transposable=transposable, prior=0.5)

    def total(logits, temperature):
        mask = jp.gumbel_pattern_mask(
            key, params, logits, 2, 4, transposable=transposable, temperature=temperature
        )
        return jnp.sum(mask * weights)

    gradient = jax.grad(total)(logits, 1.0)
    # Classes of one group share a softmax: their gradients add up to zero.
    np.testing.assert_allclose(gradient.sum(0), 0, atol=1e-5)
    assert abs(gradient).max() > 0.01
    (own,) = jax.random.split(key, 1)
    keys = jax.random.split(own, len(logits))  # of each class
    words = np.stack([jp.counter_bits(key, logits.shape[1:]) for key in keys])
    bits = np.asarray(words >> 9, np.float64)
    noisy = np.asarray(logits, np.float64) - np.log(-np.log((bits + 0.5) * 2.0**-23))
    probs = np.exp(noisy) / np.exp(noisy).sum(0)
    # What each class would give, from one-hot logits.
    gains = np.stack([_gain(c, logits, params, weights, transposable) for c in range(len(logits))])
    expected = probs * (gains - (probs * gains).sum(0))
    np.testing.assert_allclose(gradient, expected, atol=1e-5)


def _gain(c, logits, params, weights, transposable):
    """The sum of weights under pattern c in each group, in the shape of a group's logits."""
    only = jnp.zeros_like(logits).at[c].set(1.0)
    kept = jnp.where(jp.pattern_mask(params, only, 2, 4, transposable=transposable), weights, 0)
    groups = np.asarray(kept, np.float64).reshape(2, 4, *((2, 4) if transposable else (8,)))
    return groups.sum((1, 3) if transposable else 1)


@pytest.mark.parametrize("transposable", [False, True])
def test_the_right_patterns_are_learned(transposable, relaxed_promotion):
    """Weights are frozen; the loss asks for a pattern that isn't that of the magnitudes."""
    params, wanted = normal(8, 8), normal(8, 8, seed=1)
    best = (jp.transposable_nm_mask if transposable else jp.nm_mask)(wanted, 2, 4)
    logits = jp.init_pattern_logits(params, 2, 4, transposable=transposable, prior=0.5)
    tx = optax.adam(0.1)

    def step(state, key):
        logits, opt_state = state
        loss = lambda logits: (
            -jnp.sum(
                wanted
                * jp.gumbel_pattern_mask(key, params, logits, 2, 4, transposable=transposable)
            )
        )
        updates, opt_state = tx.update(jax.grad(loss)(logits), opt_state)
        return (optax.apply_updates(logits, updates), opt_state), None

    keys = jax.random.split(jax.random.key(0), 300)
    (logits, _), _ = jax.lax.scan(step, (logits, tx.init(logits)), keys)
    found = jp.pattern_mask(params, logits, 2, 4, transposable=transposable)
    reached = jnp.sum(jnp.where(found, wanted, 0)) / jnp.sum(jnp.where(best, wanted, 0))
    assert reached > 0.97
    check_pattern(found, 2, 4, transposable)


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("transposable", [False, True])
def test_on_a_mesh_the_masks_and_gradients_of_one_device(axis_type, transposable):
    params = {"w": normal(32, 32), "b": jnp.ones(3)}
    logits = jp.init_pattern_logits(params, 2, 4, transposable=transposable, prior=0.5)

    @jax.jit
    def drawn(logits, params):
        def total(logits):
            key = jax.random.key(1)
            mask = jp.gumbel_pattern_mask(key, params, logits, 2, 4, transposable=transposable)
            return jnp.sum(mask["w"] * params["w"]), mask["w"]

        gradient, mask = jax.grad(total, has_aux=True)(logits)
        return mask, jp.pattern_mask(params, logits, 2, 4, transposable=transposable), gradient

    expected = drawn(logits, params)
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(axis_type, axis_type))
    place = lambda x, *spec: jax.device_put(x, jax.NamedSharding(mesh, jax.P(*spec)))
    on_mesh = drawn(
        logits | {"w": place(logits["w"], None, "a", "b")},
        {"w": place(params["w"], "a", "b"), "b": place(params["b"])},
    )
    for found, one in zip(jax.tree.leaves(on_mesh), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(found, one, atol=1e-6)
    assert on_mesh[0].sharding.spec == jax.P("a", "b")


def test_memory_is_what_the_docstring_says():
    params = normal(64, 64)
    for transposable, bytes_a_weight in ((False, 6.0), (True, 22.5)):
        logits = jp.init_pattern_logits(params, 2, 4, transposable=transposable)
        assert logits.nbytes / params.size == bytes_a_weight


def test_errors():
    ones = {"w": jnp.ones((6, 8))}
    with pytest.raises(ValueError, match="'w' has 6 inputs and 8 outputs; choose leaves"):
        jp.init_pattern_logits(ones, 2, 4)
    with pytest.raises(ValueError, match="4:8 has 116,963,796,250 patterns"):
        jp.init_pattern_logits({"w": jnp.ones((8, 8))}, 4, 8, transposable=True)
    with pytest.raises(ValueError, match="1:6 has 720 patterns of 36 entries"):
        jp.init_pattern_logits({"w": jnp.ones((6, 6))}, 1, 6, transposable=True)
    with pytest.raises(ValueError, match="got n = 5, m = 4"):
        jp.init_pattern_logits(ones, 5, 4)
    params = {"w": jnp.ones((8, 8))}
    logits = jp.init_pattern_logits(params, 2, 4)
    with pytest.raises(ValueError, match=r"logits of leaf 'w' must have shape \(90, 2, 2\)"):
        jp.pattern_mask(params, logits, 2, 4, transposable=True)
    with pytest.raises(ValueError, match="the logits must have the structure of the parameters"):
        jp.pattern_mask(params, logits | {"b": jnp.ones(8)}, 2, 4)
    with pytest.raises(ValueError, match="temperature must be positive, got 0"):
        jp.gumbel_pattern_mask(jax.random.key(0), params, logits, 2, 4, temperature=0)
    with pytest.raises(ValueError, match=r"must have shape \(4, 2, 8\), got \(6, 2, 8\)"):
        jp.gumbel_pattern_mask(jax.random.key(0), params, logits, 1, 4)
