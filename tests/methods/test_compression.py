"""Compression to a budget, the pull of ADMM, and training on grids."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType

import jaxprune as jp


def weights():
    """Kernels of three spreads, and a bias."""
    random = np.random.default_rng(0)
    draw = lambda scale, *shape: jnp.asarray(scale * random.standard_normal(shape), jnp.float32)
    return {
        "a": {"kernel": draw(0.3, 8, 16), "bias": jnp.ones(16)},
        "b": {"kernel": draw(0.05, 16, 64)},
        "c": {"kernel": draw(1.0, 64, 4)},
    }


def kernels(tree):
    return {name: layer["kernel"] for name, layer in tree.items()}


def bits_of(mask, grids, place_bits=0):
    pairs = [(kernels(mask)[name], kernels(grids)[name]) for name in "abc"]
    return sum((int(grid.bits) + place_bits) * int(keep.sum()) for keep, grid in pairs)


def distance(params, others):
    pairs = zip(jax.tree.leaves(params), jax.tree.leaves(others), strict=True)
    return sum(float(jnp.sum((p - o) ** 2)) for p, o in pairs)


@pytest.fixture(scope="module")
def compressed():
    with jax.numpy_dtype_promotion("strict"):
        return {budget: jp.compress_to(weights(), budget) for budget in (20, 60, 200, 10_000)}


@pytest.mark.parametrize("budget", [20, 60, 200])
def test_a_budget_in_bytes_is_held_to_the_bit(compressed, budget):
    found, mask, grids = compressed[budget]
    spent = bits_of(mask, grids)
    assert spent <= 8 * budget < spent + min(int(g.bits) for g in kernels(grids).values())
    for name, kernel in kernels(found).items():
        keep, grid = kernels(mask)[name], kernels(grids)[name]
        np.testing.assert_array_equal(kernel == 0, ~keep)
        half = 2 ** (int(grid.bits) - 1)
        codes = np.asarray(kernel)[np.asarray(keep)] / float(grid.step) - 0.5
        np.testing.assert_allclose(codes, np.clip(np.round(codes), -half, half - 1), atol=1e-3)
    np.testing.assert_array_equal(found["a"]["bias"], 1.0)
    assert mask["a"]["bias"] is None
    assert grids["a"]["bias"] is None


@pytest.mark.parametrize("budget", [20, 60, 200])
def test_it_is_nearer_than_one_width_for_all(compressed, budget):
    params = weights()
    size = jp.count(jp.prunable(params))
    for bits in (1, 2, 3, 4, 6):
        kept = min(8 * budget // bits, size)
        mask = jp.prune_to(params, 1 - kept / size)[1]
        other, _ = jp.quantize_to(params, mask, bits)
        assert distance(params, compressed[budget][0]) <= 1.001 * distance(params, other)


def test_a_budget_for_everything_keeps_eight_bits(compressed):
    found, mask, grids = compressed[10_000]
    assert {int(grid.bits) for grid in kernels(grids).values()} == {8}
    assert jp.sparsity(mask) < 0.02  # what rounds to more than twice itself is better pruned
    assert distance(weights(), found) < 1e-3 * distance(weights(), optax.tree.zeros_like(found))


@pytest.mark.slow
def test_places_cost_bits_too():
    _, mask, grids = jp.compress_to(weights(), 600, place_bits=8)
    assert 4800 - 16 < bits_of(mask, grids, 8) <= 4800
    # A weight that costs nine bits in any case gets more of its own.
    _, other, narrow = jp.compress_to(weights(), 200)
    assert bits_of(mask, grids) / jp.count(mask) > 1.2 * bits_of(other, narrow) / jp.count(other)


def test_on_a_mesh_as_on_one_device(compressed):
    """To the bit: what is added up are integers."""
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    place = lambda x: jax.device_put(
        x, jax.NamedSharding(mesh, jax.P("a", "b") if x.ndim == 2 else jax.P())
    )
    found = jp.compress_to(jax.tree.map(place, weights()), 60)
    chex.assert_trees_all_equal(found, compressed[60])
    assert found[0]["b"]["kernel"].sharding.spec == jax.P("a", "b")


def test_inside_a_function_that_is_differentiated():
    """A mask lets the gradient of what it keeps through; what is rounded has none."""
    own = {"w": weights()["a"]["kernel"], "b": jnp.ones(3)}

    def loss(params):
        compressed, mask, _ = jp.compress_to(params, 5)
        masked = jp.apply_mask(params, mask)
        total = lambda tree: jnp.sum(tree["w"]) + jnp.sum(tree["b"])
        return total(compressed) + 2 * total(masked), mask

    slopes, mask = jax.grad(loss, has_aux=True)(own)
    np.testing.assert_array_equal(slopes["w"], jnp.where(mask["w"], 2.0, 0.0))
    np.testing.assert_array_equal(slopes["b"], 3.0)


def half(weights):
    return jp.prune_to(weights, 0.5)[0]


def test_the_pull_is_that_of_admm():
    """Against the equations, in NumPy, over three projections."""
    rho, every, rate = 0.5, 2, 0.1
    params = {"w": jnp.float32([[3.0, -1.0], [0.5, 2.0]]), "b": jnp.ones(2)}
    tx = optax.chain(jp.add_admm(half, rho, every=every), optax.sgd(rate))
    state, step = tx.init(params), jax.jit(tx.update)
    w, y = np.float32(params["w"]), np.zeros((2, 2), np.float32)
    for count in range(6):
        if count % every == 0:
            free = w + y / rho
            v = np.where(np.abs(free) >= np.sort(np.abs(free).ravel())[2], free, 0)
            y = rho * (free - v)
        gradient = np.float32([[1.0, 0.0], [0.0, -1.0]])
        grads = {"w": jnp.asarray(gradient), "b": jnp.ones(2)}
        updates, state = step(grads, state, params)
        params = optax.apply_updates(params, updates)
        w = w - rate * (gradient + y + rho * (w - v))
        np.testing.assert_allclose(params["w"], w, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(params["b"], 1 - 6 * rate, rtol=1e-5)


@pytest.mark.usefixtures("relaxed_promotion")  # for Adam
def test_training_ends_near_the_set():
    """Of least squares: W and V meet, and V is better than the projection of what fits best."""
    random = np.random.default_rng(3)
    inputs = jnp.asarray(
        random.standard_normal((64, 8)) @ random.standard_normal((8, 8)), jnp.float32
    )
    best = {"w": jnp.asarray(random.standard_normal((8, 8)), jnp.float32)}
    loss = lambda p: jnp.mean(jnp.square(inputs @ (p["w"] - best["w"])))
    tx = optax.chain(jp.add_admm(half, 1.0, every=20), optax.adam(3e-2))

    @jax.jit
    def step(_, carry):
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    params, _ = jax.lax.fori_loop(0, 2000, step, (best, tx.init(best)))
    found = half(params)
    assert distance(params, found) < 0.1 * distance(best, half(best))
    assert loss(found) < 0.7 * loss(half(best))


def test_a_scheduled_strength_and_narrow_updates():
    params = {"w": jnp.asarray([[3.0, -1.0]], jnp.bfloat16)}
    tx = jp.add_admm(half, optax.linear_schedule(1.0, 3.0, 2), every=5)
    state, pulls = tx.init(params), []
    for _ in range(3):
        updates, state = tx.update(optax.tree.zeros_like(params), state, params)
        assert updates["w"].dtype == jnp.bfloat16
        pulls.append(updates["w"].tolist()[0])
    # Y stays what it was at the projection, rho (W - V) grows.
    assert pulls == [[0.0, -2.0], [0.0, -3.0], [0.0, -4.0]]


def test_a_strength_that_starts_at_zero():
    params = {"w": jnp.float32([[3.0, -1.0]])}
    tx = jp.add_admm(half, optax.linear_schedule(0.0, 2.0, 2), every=2)
    state, pulls, update = tx.init(params), [], jax.jit(tx.update)
    for _ in range(4):
        updates, state = update(optax.tree.zeros_like(params), state, params)
        pulls.append(updates["w"].tolist()[0])
    # At the second projection Y = 2 (W - V).
    assert pulls == [[0.0, 0.0], [0.0, -1.0], [0.0, -4.0], [0.0, -4.0]]


def test_training_on_grids():
    """Two bits learn a target that lies on a grid, behind a mask; the step is learned with it."""
    target = jnp.float32([[0.6, -0.2], [0.2, -0.6], [0.6, 0.2]])
    mask = {"w": jnp.array([[True, True], [True, True], [True, False]]), "b": None}
    params = {"w": jnp.float32([[0.3, -0.3], [0.1, -0.9], [0.2, 0.4]]), "b": jnp.zeros(2)}
    _, grids = jp.quantize_to(params, mask, 2)
    tx = jp.straight_through(optax.sgd(0.02), jp.keep_quantized(mask, grids))
    loss = lambda p: jnp.sum(jnp.square(p["w"] - target)) + jnp.sum(jnp.square(p["b"] - 1))

    @jax.jit
    def step(_, carry):
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    params, state = jax.lax.fori_loop(0, 400, step, (params, tx.init(params)))
    np.testing.assert_allclose(params["w"], jnp.where(mask["w"], target, 0), atol=0.02)
    np.testing.assert_allclose(params["b"], 1, atol=1e-2)
    found = optax.tree.get(state, "grids")["w"]
    assert found.step == pytest.approx(0.4, abs=0.02)
    np.testing.assert_array_equal(jp.current_mask(params, state)["w"], mask["w"])


AROUND = {
    "masked": lambda keep: optax.masked(keep, {"a": True, "b": False}),
    "partition": lambda keep: optax.partition(
        {"grid": keep, "free": optax.identity()}, {"a": "grid", "b": "free"}
    ),
}


@pytest.mark.parametrize("around", AROUND.values(), ids=AROUND)
def test_grids_of_some_leaves(around):
    params = {"a": jnp.float32([[0.9, -1.1, 0.1, 3.0]]), "b": jnp.ones((2, 2))}
    mask = {"a": jnp.abs(params["a"]) > 0.5, "b": None}
    quantized, grids = jp.quantize_to(params, mask, 2)
    tx = jp.straight_through(optax.identity(), around(jp.keep_quantized(mask, grids)))
    updates, state = tx.update(optax.tree.zeros_like(params), tx.init(params), params)
    chex.assert_trees_all_close(optax.apply_updates(params, updates), quantized, rtol=1e-6)
    np.testing.assert_array_equal(jp.current_mask(params, state)["a"], mask["a"])


def test_bits_beside_hidden_leaves():
    params = {"a": jnp.float32([[0.9, -1.1]]), "b": optax.MaskedNode()}
    for bits in (2, {"a": 2, "b": 3}):
        quantized, grids = jp.quantize_to(params, {"a": jnp.ones((1, 2), bool), "b": None}, bits)
        assert int(grids["a"].bits) == 2
        assert quantized["b"] == params["b"]
