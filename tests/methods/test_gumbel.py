"""What the mathematics of Gumbel-softmax extraction says, by the numbers of the paper's facts."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp


def normal(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


# Samples ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("random_bits", [jax.random.bits, jp.counter_bits])
@pytest.mark.parametrize("temperature", [0.1, 1.0, 5.0])
def test_a_weight_is_kept_with_the_probability_of_its_logit(temperature, random_bits):
    logits, draws = jnp.array([-3.0, -1.0, 0.0, 2.0]), 200_000
    many = jnp.broadcast_to(logits[:, None], (4, draws))
    mask = jp.gumbel_mask(jax.random.key(1), many, temperature, random_bits=random_bits)
    assert set(np.unique(mask)) == {0.0, 1.0}
    probs = jax.nn.sigmoid(logits)
    error = jnp.sqrt(probs * (1 - probs) / draws)
    assert (abs(mask.mean(1) - probs) < 3 * error).all()


def noise_of(key, shape):
    """The logistic noise of a single leaf: what a hard sample adds to logits."""
    (own,) = jax.random.split(key, 1)
    bits = jp.counter_bits(own, shape) >> 9
    uniform = (np.asarray(bits, np.float64) + 0.5) * 2.0**-23
    return np.log(uniform) - np.log1p(-uniform)


def weighted(key, logits, temperature, weights):
    return jnp.sum(jp.gumbel_mask(key, logits, temperature) * weights)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_gradient_is_that_of_the_soft_sample(temperature):
    logits, weights, key = normal(1000), normal(1000, seed=1), jax.random.key(7)
    gradient = jax.grad(weighted, argnums=1)(key, logits, temperature, weights)
    noise = noise_of(key, (1000,))
    y = 1 / (1 + np.exp(-(np.asarray(logits, np.float64) + noise) / temperature))
    np.testing.assert_allclose(gradient, weights * y * (1 - y) / temperature, atol=1e-6)
    np.testing.assert_array_equal(jp.gumbel_mask(key, logits, temperature), y > 0.5)


def test_the_mean_gradient_at_zero_is_a_sixth():
    gradient = jax.grad(weighted, argnums=1)(jax.random.key(0), jnp.zeros(200_000), 1.0, 1.0)
    assert gradient.mean() == pytest.approx(1 / 6, abs=5e-4)


@pytest.mark.parametrize("shift", [-30.0, 0.0, 30.0])
def test_two_latents_are_one_logit(shift):
    """Softmax of (a + c, b + c) and noise is the sigmoid of a - b and the noises' difference."""
    a, b, key = normal(1000), normal(1000, seed=1), jax.random.key(3)
    difference = jnp.float32(noise_of(key, (1000,)))

    def two_classes(a, b):
        y = jax.nn.softmax(jnp.stack([a + shift + difference, b + shift]), axis=0)[0]
        return jp.surrogate_gradient(y > 0.5, y)

    one_logit = lambda a, b: jp.gumbel_mask(key, a - b)
    clear = abs(a - b + difference) > 1e-4  # shifted sums round
    np.testing.assert_array_equal(two_classes(a, b)[clear], one_logit(a, b)[clear])
    for argument in (0, 1):
        gradients = [
            jax.grad(lambda *latents, f=f: jnp.sum(f(*latents)), argnums=argument)(a, b)
            for f in (two_classes, one_logit)
        ]
        np.testing.assert_allclose(*gradients, atol=2e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_trees_dtypes_and_transformations(dtype):
    logits = {"a": normal(6, 5).astype(dtype), "b": None}
    key = jax.random.key(0)
    mask = jp.gumbel_mask(key, logits)
    assert mask["a"].dtype == jnp.float32
    assert mask["b"] is None
    jitted = jax.jit(jp.gumbel_mask)(key, logits, jnp.float32(0.7))
    chex.assert_trees_all_equal(jitted, mask)  # at any temperature
    keys = jax.random.split(key, 3)
    mapped = jax.vmap(lambda key: jp.gumbel_mask(key, logits))(keys)
    np.testing.assert_array_equal(mapped["a"][1], jp.gumbel_mask(keys[1], logits)["a"])
    gradient = jax.grad(lambda x: jnp.sum(jp.gumbel_mask(key, x)["a"]))(logits)
    assert gradient["a"].dtype == dtype


def test_no_logits():
    with pytest.raises(TypeError, match=r"probabilities or logits needs .* leaf 'w' is int"):
        jp.gumbel_mask(jax.random.key(0), {"w": jnp.ones(2, int)})


@pytest.mark.parametrize("temperature", [0, -1.0])
def test_a_temperature_that_is_not_positive(temperature):
    for sample in (jp.gumbel_mask, jp.relaxed_bernoulli):
        with pytest.raises(ValueError, match=f"temperature must be positive, got {temperature}"):
            sample(jax.random.key(0), jnp.full(3, 0.5), temperature)


def test_surrogate_gradients_of_the_rivals():
    scores, key = normal(50), jax.random.key(0)
    supermask = lambda a: jp.surrogate_gradient(
        jp.bernoulli_mask(key, jax.nn.sigmoid(a)), jax.nn.sigmoid(a)
    )
    p = jax.nn.sigmoid(scores)
    np.testing.assert_allclose(
        jax.grad(lambda a: jnp.sum(supermask(a)))(scores), p * (1 - p), rtol=1e-5
    )
    popup = lambda s: jp.surrogate_gradient(jp.top_k_mask(abs(s), 10), abs(s))
    assert popup(scores).sum() == 10
    np.testing.assert_array_equal(jax.grad(lambda s: jnp.sum(popup(s)))(scores), jnp.sign(scores))


def test_surrogate_gradient_of_infinite_scores():
    scores = jnp.array([-jnp.inf, 1.0, 2.0, jnp.inf, jnp.nan])
    kept = lambda s: jp.surrogate_gradient(jnp.array([False, False, True, True, False]), s)
    np.testing.assert_array_equal(kept(scores), [0, 0, 1, 1, np.nan])
    slopes = jax.grad(lambda s: jnp.sum(kept(s)[:4]))(scores)
    np.testing.assert_array_equal(slopes, [0, 1, 1, 0, 0])


# Weights and scales -------------------------------------------------------------------------------


def network():
    return {"a": normal(12, 8), "b": normal(8, 8, seed=1), "c": normal(8, 3, seed=2)}


def logits_of(weights, x):
    *inner, last = jax.tree.leaves(weights)
    for kernel in inner:
        x = jax.nn.relu(x @ kernel)
    return x @ last


def test_signed_constant():
    weights = network() | {"bias": normal(5)}
    constant = jp.signed_constant(weights, jp.prunable(weights))
    np.testing.assert_array_equal(constant["bias"], weights["bias"])
    for name in "abc":
        assert np.unique(abs(constant[name])).tolist() == [np.float32(jnp.std(weights[name]))]
        np.testing.assert_array_equal(jnp.sign(constant[name]), jnp.sign(weights[name]))


def test_scales_of_relu_layers_are_one_inverse_temperature():
    weights, x, labels = network(), normal(20, 12, seed=5), jnp.arange(20) % 3
    mask = jp.gumbel_mask(jax.random.key(0), jax.tree.map(jnp.zeros_like, weights))
    scales = {"a": jnp.float32(1.0), "b": jnp.float32(0.5), "c": jnp.float32(2.0)}

    def outputs(scales):
        return logits_of(jp.rescale(jp.apply_mask(weights, mask), scales), x)

    def loss(scales):
        losses = optax.softmax_cross_entropy_with_integer_labels(outputs(scales), labels)
        return losses.mean()

    gradient = jax.grad(loss)(scales)
    products = [float(scales[name] * gradient[name]) for name in "abc"]
    np.testing.assert_allclose(products, products[0], rtol=1e-5)
    larger = scales | {"b": scales["b"] * 7}
    np.testing.assert_array_equal(outputs(scales).argmax(-1), outputs(larger).argmax(-1))


def test_rescale_and_inverse_density():
    weights = {"w": normal(4, 4).astype(jnp.bfloat16), "bias": jnp.ones(3)}
    mask = {"w": jnp.zeros((4, 4)).at[0].set(1.0), "bias": None}
    scaled = jp.rescale(weights, jp.inverse_density(mask))
    assert scaled["w"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(scaled["w"], weights["w"] * jnp.bfloat16(4))
    assert jp.inverse_density(jnp.zeros(3, bool)) == 1
    gradient = jax.grad(lambda m: jnp.sum(jp.inverse_density(m)))(mask["w"])
    np.testing.assert_array_equal(gradient, 0)


def test_scales_of_another_tree():
    assert jp.rescale({"a": jnp.ones(2)}, {"a": 2.0})["a"].tolist() == [2.0, 2.0]
    with pytest.raises(ValueError, match="the scales must have the structure of the parameters"):
        jp.rescale({"a": jnp.ones(2), "b": jnp.ones(2)}, {"a": jnp.float32(1)})


def test_the_extracted_network_is_the_trained_one_bit_for_bit():
    weights = network()
    logits = jax.tree.map(lambda w: normal(*w.shape, seed=9).at[0].set(0.0), weights)
    scales = {"a": jnp.float32(1.37), "b": jnp.float32(0.61), "c": jnp.float32(2.03)}
    mask = jax.tree.map(lambda a: a >= 0, logits)
    assert mask["a"][0].all()  # a logit that was never touched keeps its weight
    plain = jp.rescale(jp.apply_mask(weights, mask), scales)
    as_floats = jax.tree.map(lambda m: m.astype(jnp.float32), mask)
    in_training = jp.rescale(jp.apply_mask(weights, as_floats), scales)
    for name in "abc":
        expected = scales[name] * jnp.where(mask[name], weights[name], 0)
        np.testing.assert_array_equal(plain[name], expected)
        np.testing.assert_array_equal(in_training[name], expected)


# A chosen sparsity --------------------------------------------------------------------------------


def probabilities(logits):
    return np.concatenate([jax.nn.sigmoid(leaf).ravel() for leaf in jax.tree.leaves(logits)])


@pytest.mark.parametrize("density", [0.05, 0.3, 1.0])
def test_projected_logits_are_within_the_budget(density, relaxed):
    logits = jax.tree.map(lambda w: 3 * w, network())
    tx = optax.chain(relaxed(optax.adam(0.1)), jp.project_logits(1 - density))
    state = tx.init(logits)

    @jax.jit
    def step(logits, state):
        updates, state = tx.update(jax.tree.map(jnp.sign, logits), state, logits)
        return optax.apply_updates(logits, updates), state

    logits, state = step(logits, state)  # from a mean of about a half
    budget = min(density, probabilities(logits).mean())
    assert budget == pytest.approx(density, rel=1e-3) or density == 1.0
    for _ in range(3):
        logits, state = step(logits, state)
        assert probabilities(logits).mean() <= density * (1 + 1e-5)


@pytest.mark.parametrize("density", [1e-2, 1e-3, 1e-4])
def test_a_tiny_budget_contains_what_the_limits_leave(density):
    logits = {"w": normal(100_000).at[0].set(-50.0)}
    tx = jp.project_logits(1 - density)
    updates, _ = tx.update({"w": jnp.zeros(100_000)}, tx.init(logits), logits)
    projected = optax.apply_updates(logits, updates)
    assert probabilities(projected).mean(dtype=float) == pytest.approx(density, rel=1e-4)
    assert projected["w"][0] == -50.0
    assert projected["w"][1:].min() == -10.0


@pytest.mark.parametrize("sparsity", [1.0, optax.constant_schedule(jnp.float32(1.0))])
def test_a_budget_of_nothing_takes_logits_to_the_limit(sparsity):
    logits = {"w": normal(100)}
    tx = jp.project_logits(sparsity)
    updates, _ = tx.update({"w": jnp.zeros(100)}, tx.init(logits), logits)
    np.testing.assert_allclose(optax.apply_updates(logits, updates)["w"], -10.0, rtol=1e-6)


def test_logits_within_the_budget_are_left_alone():
    logits = {"w": normal(100)}
    tx = optax.chain(optax.sgd(1.0), jp.project_logits(0.1))
    gradient = {"w": normal(100, seed=1)}
    updates, _ = tx.update(gradient, tx.init(logits), logits)
    np.testing.assert_allclose(updates["w"], -gradient["w"], rtol=1e-5, atol=1e-6)


def test_a_sparsity_out_of_range():
    with pytest.raises(ValueError, match=r"sparsity must lie in \[0, 1\], got 1.2"):
        jp.project_logits(1.2)
