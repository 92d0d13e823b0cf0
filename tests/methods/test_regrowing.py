"""`regrow` against a loop in numpy, inside and around optax's transformations, and on meshes."""

import chex
import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType

import jaxprune as jp
from jaxprune.trees import sampling
from tests.methods.link_table import distance, step_of, weights
from tests.methods.test_links_frameworks import as_pure
from tests.methods.test_links_optimizers import EXTRA_ARGS, OPTIMIZERS
from tests.methods.test_links_placement import sharded, shardings


def some_slow(cases, *fast):
    """Of a table all cases, of which those that aren't named run as slow tests."""
    marks = lambda name: [pytest.mark.slow] * (name not in fast)
    return [pytest.param(case, id=name, marks=marks(name)) for name, case in cases.items()]


def pruned(sparsity=0.5, params=None, dtype=jnp.float32):
    """Parameters, with a bias that stays dense, and the mask that they are zero under."""
    params = jax.tree.map(lambda p: p.astype(dtype), weights() if params is None else params)
    mask = jp.random_mask(jax.random.key(3), params, sparsity)
    return jp.apply_mask(params, mask), mask


def mask_of(state):
    """The mask in force, with None for what `masked` and `partition` hide from the link."""
    hidden = lambda leaf: isinstance(leaf, optax.MaskedNode)
    mask = optax.tree.get(state, "mask")
    return jax.tree.map(lambda leaf: None if hidden(leaf) else leaf, mask, is_leaf=hidden)


def falling(start, steps):
    """RigL's schedule; under strict promotion that of optax takes floats alone."""
    cosine = optax.cosine_decay_schedule(start, steps)
    return lambda count: cosine(jnp.float32(count))


def check_zero(params, state, first):
    """Pruned weights are exactly zero, and each leaf keeps as many as at first."""
    mask = mask_of(state)
    chex.assert_trees_all_equal(params, jp.apply_mask(params, mask))
    assert [row.kept for row in jp.layers(mask)] == [row.kept for row in jp.layers(first)]
    assert jp.problems(state) == []


# A loop in numpy ----------------------------------------------------------------------------------


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
    [(2.0, 1.0, "fractions too"), (np.nan, 1.0, "fractions too"), (0.5, np.nan, "scores were NaN")],
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


# Trees --------------------------------------------------------------------------------------------


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(4)(nn.Dense(8)(x))


class Nnx(nnx.Module):
    def __init__(self):
        self.first = nnx.Linear(4, 8, rngs=nnx.Rngs(0))
        self.blocks = nnx.List([nnx.Linear(8, 4, rngs=nnx.Rngs(1))])


TREES = {
    "nnx": lambda: nnx.state(Nnx(), nnx.Param),
    "linen": lambda: Linen().init(jax.random.key(0), jnp.ones((1, 4))),
    "equinox": lambda: eqx.filter(eqx.nn.MLP(4, 4, 8, 1, key=jax.random.key(0)), eqx.is_array),
    "tuples": lambda: ((jnp.ones((4, 8)), jnp.ones(8)), [jnp.ones((8, 4)), jnp.ones((8, 4))]),
    "array": lambda: jnp.ones((8, 4)),
}


@pytest.mark.parametrize("tree", some_slow(TREES, "equinox", "tuples"))
def test_trees(tree, relaxed):
    params, mask = pruned(params=tree())
    tx = jp.regrow(relaxed(optax.adam(0.1)), mask, every=2)
    chex.clear_trace_counter()
    state, step = tx.init(params), jax.jit(chex.assert_max_traces(step_of(tx), n=1))
    for _ in range(5):
        params, state = step(params, state)
        check_zero(params, state, mask)
        moment = optax.tree.get(state, "mu")
        chex.assert_trees_all_equal(moment, jp.apply_mask(moment, mask_of(state)))
    assert not np.array_equal(jax.tree.leaves(mask)[0], jax.tree.leaves(mask_of(state))[0])


def test_nnx_optimizer():
    model = Nnx()
    params, mask = pruned(params=nnx.state(model, nnx.Param))
    nnx.update(model, params)
    with jax.numpy_dtype_promotion("standard"):
        optimizer = nnx.Optimizer(model, jp.regrow(optax.adam(0.1), mask, every=2), wrt=nnx.Param)

        @nnx.jit
        def step(model, optimizer):
            loss = lambda model: jnp.sum((model.blocks[0](model.first(jnp.ones((1, 4)))) - 1) ** 2)
            optimizer.update(model, nnx.grad(loss)(model))

        for _ in range(4):
            step(model, optimizer)
    now = nnx.state(model, nnx.Param)
    assert jp.count(as_pure(optax.tree.get(optimizer.opt_state, "mask"))) == jp.count(mask)
    assert float(jp.sparsity(now)) >= 0.5


# Other transformations ----------------------------------------------------------------------------

BY_NAME = dict(zip(OPTIMIZERS, OPTIMIZERS, strict=True))


@pytest.mark.parametrize("name", some_slow(BY_NAME, "adafactor", "rprop"))
def test_every_optimizer_of_optax(name, relaxed):
    params, first = pruned()
    tx = relaxed(jp.regrow(OPTIMIZERS[name](), first, every=2, fraction=0.5))
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=2 if name == "lbfgs" else 1)  # that of optax by itself needs two
    def step(params, state):
        value, grads = jax.value_and_grad(distance)(params)
        asked = {"value": value, "grad": grads, "value_fn": distance, "obj_fn": distance}
        extra_args = {argument: asked[argument] for argument in EXTRA_ARGS.get(name, [])}
        updates, state = tx.update(grads, state, params, **extra_args)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for count in range(4):
        before = mask_of(state)
        params, state = step(params, state)
        check_zero(params, state, first)
        chex.assert_tree_all_finite(params)
        if count == 2:
            grown = jax.tree.map(lambda old, new: new & ~old, before, mask_of(state))
            assert jp.count(grown) > 0
    assert np.all(params["dense"]["bias"] != 0)


LABELS = {"dense": {"kernel": "a", "bias": "b"}, "head": {"kernel": "a"}}
AROUND = {
    "chain": lambda link, mask: optax.chain(optax.clip(1.0), link(mask)),
    "apply_if_finite": lambda link, mask: optax.apply_if_finite(link(mask), 3),
    "masked": lambda link, mask: optax.chain(
        optax.masked(link(mask), {"dense": {"kernel": True, "bias": False}, "head": True}),
    ),
    "partition": lambda link, mask: optax.partition({"a": link(mask), "b": optax.sgd(0.1)}, LABELS),
    "MultiSteps": lambda link, mask: optax.MultiSteps(link(mask), 2).gradient_transformation(),
    "inject_hyperparams": lambda link, mask: optax.inject_hyperparams(
        lambda fraction: link(mask, fraction)
    )(fraction=falling(0.5, 100)),
}
INSIDE = {
    "chain": lambda: optax.chain(
        optax.add_decayed_weights(0.01), optax.trace(0.9), optax.scale(-0.1)
    ),
    "apply_if_finite": lambda: optax.apply_if_finite(optax.adam(0.1), 3),
    "masked": lambda: optax.chain(
        optax.masked(optax.adam(0.1), {"dense": True, "head": False}), optax.scale(0.1)
    ),
    "partition": lambda: optax.partition({"a": optax.adam(0.1), "b": optax.sgd(0.1)}, LABELS),
    "MultiSteps": lambda: optax.MultiSteps(optax.adam(0.1), 2).gradient_transformation(),
    "inject_hyperparams": lambda: optax.inject_hyperparams(optax.adam)(
        optax.cosine_decay_schedule(0.1, 9)
    ),
    "ema": lambda: optax.chain(optax.sgd(0.1), optax.ema(0.9)),
}


def check_training(tx, mask, params, steps=6):
    chex.clear_trace_counter()
    state, step = tx.init(params), jax.jit(chex.assert_max_traces(step_of(tx), n=1))
    for _ in range(steps):
        params, state = step(params, state)
        check_zero(params, state, mask)
    assert not np.array_equal(mask["head"]["kernel"], mask_of(state)["head"]["kernel"])
    assert np.all(params["dense"]["bias"] != 1)
    return params, state


@pytest.mark.parametrize("around", some_slow(AROUND, "partition", "inject_hyperparams"))
def test_inside_other_transformations(around, relaxed):
    params, mask = pruned()
    adam = optax.adam(0.1)
    link = lambda mask, fraction=0.5: jp.regrow(adam, mask, every=2, fraction=fraction)
    check_training(relaxed(around(link, mask)), mask, params)


@pytest.mark.parametrize("inside", some_slow(INSIDE, "partition", "MultiSteps"))
def test_around_other_transformations(inside, relaxed):
    params, mask = pruned()
    tx = jp.regrow(relaxed(inside()), mask, every=2, fraction=0.5)
    _, state = check_training(tx, mask, params)
    moments = optax.tree.get_all_with_path(state, "mu") + optax.tree.get_all_with_path(state, "ema")
    for _, moment in moments:
        for got, keep in zip(
            jax.tree.leaves(moment), jax.tree.leaves(mask_of(state)), strict=False
        ):
            if got.shape == keep.shape:
                assert np.all(np.asarray(got)[~np.asarray(keep)] == 0)


def test_multi_steps_changes_by_accumulated_gradients(relaxed):
    params, mask = pruned()
    tx = jp.regrow(optax.sgd(0.1), mask, every=1, fraction=0.5)
    multi = relaxed(optax.MultiSteps(tx, 2))
    grads = [jax.grad(distance)(params), jax.tree.map(jnp.cos, params)]
    mean = jax.tree.map(lambda a, b: (a + b) / 2, *grads)
    state, whole = multi.init(params), tx.init(params)
    for _ in range(2):
        for grad in grads:
            _, state = multi.update(grad, state, params)
        _, whole = tx.update(mean, whole, params)
    chex.assert_trees_all_equal(mask_of(state), mask_of(whole))


def test_fraction_and_every_may_be_traced():
    params, mask = pruned()
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(params, state, fraction, every):
        tx = jp.regrow(optax.sgd(0.1), mask, every=every, fraction=fraction)
        updates, state = tx.update(jax.grad(distance)(params), state, params)
        return optax.apply_updates(params, updates), state

    state = jp.regrow(optax.sgd(0.1), mask).init(params)
    changes = []
    for fraction, every in [(0.5, 2), (0.5, 2), (0.5, 3), (0.25, 3), (0.0, 1)]:
        before = mask_of(state)
        params, state = step(params, state, fraction, every)
        check_zero(params, state, mask)
        changes.append(jp.count(jax.tree.map(lambda a, b: a & ~b, before, mask_of(state))) > 0)
    assert changes == [False, False, False, True, False]


NARROW = {"bfloat16": jnp.bfloat16, "float16": jnp.float16}


@pytest.mark.parametrize("dtype", some_slow(NARROW, "bfloat16"))
def test_narrow_dtypes(dtype, relaxed):
    params, mask = pruned(dtype=dtype)
    tx = jp.regrow(relaxed(optax.adam(0.1)), mask, every=2)
    params, _ = check_training(tx, mask, params)
    assert params["head"]["kernel"].dtype == dtype


# Meshes -------------------------------------------------------------------------------------------


MESHES = {
    f"{name}-{by}": (kind, by)
    for name, kind in (("auto", AxisType.Auto), ("explicit", AxisType.Explicit))
    for by in ("gradient", "random")
}


@pytest.mark.parametrize("case", some_slow(MESHES, "explicit-random"))
def test_on_a_mesh_it_equals_one_device(case):
    kind, by = case
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind, kind))
    found = []
    for place in (lambda tree: tree, lambda tree: sharded(tree, mesh)):
        params, mask = map(place, pruned())
        inner = optax.sgd(0.1, momentum=0.9)
        tx = jp.regrow(inner, mask, by=by, every=2, key=jax.random.key(0))
        step, state = jax.jit(step_of(tx)), tx.init(params)
        before = shardings(params), shardings(state)
        for _ in range(5):
            params, state = step(params, state)
            assert (shardings(params), shardings(state)) == before
        found.append((params, state))
    chex.assert_trees_all_equal(*found)
