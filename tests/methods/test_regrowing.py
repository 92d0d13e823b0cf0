"""`regrow` against a loop in numpy."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp
from jaxprune.trees import sampling
from tests.methods.link_table import distance, step_of
from tests.methods.regrow_checks import check_zero, falling, mask_of, pruned


def largest(scores, count):
    """The positions of so many largest scores, equal ones in order."""
    kept = np.zeros(scores.size, bool)
    kept[np.argsort(-scores.ravel(), kind="stable")[:count]] = True
    return kept.reshape(scores.shape)


class Reference:
    """RigL with Adam, one leaf. (With a small eps what grows takes equal steps, and so ties.)"""

    def __init__(self, weight, mask):
        self.weight, self.mask = np.where(mask, weight, 0.0).astype(np.float64), np.array(mask)
        self.mu = self.nu = np.zeros_like(self.weight)

    def step(self, gradient, score, count, fraction, every, rate):
        if count > 0 and count % every == 0:
            drop = int(np.round(np.float32(fraction) * np.float32(self.mask.sum())))
            held = np.where(self.mask, np.abs(self.weight), -1)
            stays = largest(held, self.mask.sum() - drop)
            self.mask = stays | largest(np.where(stays, -np.inf, score), drop)
            self.weight, self.mu, self.nu = (
                np.where(self.mask, x, 0) for x in (self.weight, self.mu, self.nu)
            )
        masked = np.where(self.mask, gradient, 0)
        self.mu = 0.9 * self.mu + 0.1 * masked
        self.nu = 0.999 * self.nu + 0.001 * masked**2
        first, second = 1 - 0.9 ** (count + 1), 1 - 0.999 ** (count + 1)
        self.weight = self.weight - rate * (self.mu / first) / (np.sqrt(self.nu / second) + 0.1)


def least_gradients(weight, gradient):
    del weight
    return -jnp.abs(gradient)


@pytest.mark.parametrize("by", ["gradient", least_gradients], ids=["gradient", "function"])
def test_masks_weights_and_moments_are_those_of_a_loop_in_numpy(by, relaxed):
    fraction = falling(0.4, 9)
    params, mask = pruned()
    tx = jp.regrow(relaxed(optax.adam(0.1, eps=0.1)), mask, by=by, every=2, fraction=fraction)
    state, step = tx.init(params), jax.jit(tx.update)
    loops = {n: Reference(params[n]["kernel"], mask[n]["kernel"]) for n in ("dense", "head")}
    changed = 0
    for count in range(12):
        grads = jax.grad(lambda p: distance(jax.tree.map(jnp.sin, p)))(params)
        for name, loop in loops.items():
            gradient = np.asarray(grads[name]["kernel"], np.float64)
            score = np.abs(gradient) if by == "gradient" else -np.abs(gradient)
            loop.step(gradient, score, count, float(fraction(count)), 2, 0.1)
        before = mask_of(state)
        updates, state = step(grads, state, params)
        params = optax.apply_updates(params, updates)
        check_zero(params, state, mask)
        changed += not np.array_equal(before["head"]["kernel"], mask_of(state)["head"]["kernel"])
        moments = {key: optax.tree.get(state, key) for key in ("mu", "nu")}
        for name, loop in loops.items():
            np.testing.assert_array_equal(mask_of(state)[name]["kernel"], loop.mask)
            np.testing.assert_allclose(params[name]["kernel"], loop.weight, atol=1e-5)
            for key, moment in moments.items():
                np.testing.assert_allclose(moment[name]["kernel"], getattr(loop, key), atol=1e-6)
                assert np.all(np.asarray(moment[name]["kernel"])[~loop.mask] == 0)
    assert 1 <= changed <= 4  # at 2, 4, 6, 8; from 9 on the schedule gives 0


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("by", ["gradient", "random", least_gradients])
def test_choices_among_ties_and_infinities_are_those_of_numpy(by, dtype):
    """Of small integers, with infinite gradients in front: what stays comes before them."""
    key = jax.random.key(5)

    @jax.jit
    def mask_after(weight, mask, gradient, fraction):
        tx = jp.regrow(optax.sgd(0.0), {"w": mask}, by=by, every=1, fraction=fraction, key=key)
        state = tx.init({"w": weight})._replace(count=jnp.int32(1))
        return mask_of(tx.update({"w": gradient}, state, {"w": weight})[1])["w"]

    drawn = jax.random.fold_in(jax.random.fold_in(key, 0), 1)
    uniform = sampling.open_uniform(jnp.ones((6, 7)), drawn, sampling.counter_bits)
    for seed in range(20):
        draw = np.random.default_rng(seed)
        mask = draw.random((6, 7)) < draw.random()
        weight = np.where(mask, draw.integers(-2, 3, (6, 7)), 0).astype(float)
        gradient = draw.integers(-2, 3, (6, 7)).astype(float)
        gradient[0, :2] = np.inf, -np.inf
        share = np.float32(draw.random())
        kept = mask.sum()
        dropped = int(np.round(share * np.float32(kept)))
        stays = largest(np.where(mask, np.abs(weight), -1), kept - dropped)
        scores = {"gradient": np.abs(gradient), "random": np.asarray(uniform, float)}
        score = np.where(stays, -np.inf, scores.get(by, -np.abs(gradient)))
        # Of those that stay none competes, even where scores are -inf too.
        order = np.lexsort((np.arange(42), -score.ravel(), stays.ravel()))
        expected = stays.ravel()
        expected[order[:dropped]] = True
        found = mask_after(
            jnp.asarray(weight, dtype), jnp.asarray(mask), jnp.asarray(gradient, dtype), share
        )
        np.testing.assert_array_equal(found.ravel(), expected)


def test_random_growth_drops_the_smallest_and_draws_evenly_and_anew():
    weight = jnp.where(jnp.arange(64) < 32, 1 + jnp.linspace(0.0, 1.0, 64), 0.0).reshape(8, 8)
    params, first = {"w": weight}, {"w": weight != 0}

    @jax.jit
    def mask_after(count, key):
        tx = jp.regrow(optax.sgd(0.0), first, by="random", every=1, fraction=0.5, key=key)
        state = tx.init(params)._replace(count=count)
        return mask_of(tx.update({"w": jnp.zeros((8, 8))}, state, params)[1])["w"].ravel()

    masks = np.stack([mask_after(jnp.int32(1), jax.random.key(seed)) for seed in range(300)])
    assert np.all(masks[:, 16:32]) and np.all(masks.sum(1) == 32)
    free = np.delete(masks.sum(0), np.arange(16, 32))  # 48 places for 16: a third of the time
    assert abs(free - 100).max() < 5 * np.sqrt(300 * 2 / 9)
    assert not np.array_equal(masks[0], mask_after(jnp.int32(2), jax.random.key(0)))


def test_between_changes_only_kept_weights_learn():
    params, mask = pruned()
    tx = jp.regrow(optax.sgd(0.1), mask)
    updates, state = tx.update(jax.grad(distance)(params), tx.init(params), params)
    expected = jax.tree.map(lambda g: -0.1 * g, jax.grad(distance)(params))
    chex.assert_trees_all_close(updates, jp.apply_mask(expected, mask))
    chex.assert_trees_all_equal(mask_of(state), mask)


@pytest.mark.parametrize("fraction", [0.0, 1.0])
@pytest.mark.parametrize("sparsity", [0.0, 0.1, 1.0])
def test_ends_of_the_ranges(fraction, sparsity):
    """A function of small integers, too."""
    params, mask = pruned(sparsity)
    by = lambda weight, gradient: jnp.sign(gradient).astype(jnp.int8)
    tx = jp.regrow(optax.sgd(0.1), mask, by=by, every=1, fraction=fraction)
    state, step = tx.init(params), jax.jit(step_of(tx))
    for _ in range(3):
        params, state = step(params, state)
        check_zero(params, state, mask)


# Problems -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fraction", "gradient", "text"),
    [
        (2.0, 1.0, "fractions too"),
        (np.nan, 1.0, "fractions too"),
        (0.5, np.nan, "scores or probabilities were NaN"),
    ],
)
def test_a_mask_that_cannot_be_chosen_stays(fraction, gradient, text):
    params, mask = pruned()
    tx = jp.regrow(optax.set_to_zero(), mask, every=1, fraction=lambda count: fraction)
    state, grads = tx.init(params), jax.tree.map(lambda p: p * gradient, params)
    for _ in range(2):
        updates, state = tx.update(grads, state, params)
    (problem,) = jp.problems(state)
    assert text in problem
    chex.assert_trees_all_equal(mask_of(state), mask)
    chex.assert_trees_all_equal(optax.apply_updates(params, updates), params)


def test_a_transformation_after_it_is_noticed():
    params, mask = pruned()
    tx = optax.chain(jp.regrow(optax.sgd(0.1), mask), optax.add_decayed_weights(0.1))
    state, step = tx.init(params), jax.jit(step_of(tx))
    params = jax.tree.map(lambda p: p + 1, params)
    for _ in range(2):
        params, state = step(params, state)
        params = jax.tree.map(lambda p: p + 1, params)
    assert len(jp.problems(state)) == 1
