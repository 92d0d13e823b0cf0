"""Relaxed and hard samples against closed forms; counter_bits against statistical tests.

Keys are fixed, so each statistical test has one outcome; bounds are at 4 or more standard errors.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax.sharding import AxisType

import jaxprune as jp
from jaxprune.trees import sampling

GENERATORS = {"threefry": jax.random.bits, "counter": jp.counter_bits}
DRAWS = 1_000_000

relaxed = jax.jit(jp.relaxed_bernoulli, static_argnames="random_bits")
hard = jax.jit(jp.bernoulli_mask, static_argnames="random_bits")


@pytest.fixture(params=GENERATORS)
def random_bits(request):
    return GENERATORS[request.param]


def soft_draws(seed, prob, inverse_temperature, random_bits):
    probs = jnp.full(DRAWS, prob, jnp.float32)
    key, temperature = jax.random.key(seed), jnp.float32(1 / inverse_temperature)
    return np.asarray(relaxed(key, probs, temperature, random_bits=random_bits), np.float64)


MEANS = [(1, 0.183985), (2, 0.127457), (5, 0.104708), (30, 0.100132)]


@pytest.mark.parametrize(("inverse_temperature", "mean"), MEANS)
def test_mean_of_soft_masks(inverse_temperature, mean, random_bits):
    draws = soft_draws(1, 0.1, inverse_temperature, random_bits)
    assert abs(draws.mean() - mean) < 4 * draws.std() / math.sqrt(DRAWS) + 1e-6
    assert 0 <= draws.min() < draws.max() <= 1


@pytest.mark.parametrize("prob", [0.01, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("inverse_temperature", [1, 30])
def test_above_one_half_with_the_given_probability(prob, inverse_temperature, random_bits):
    above = (soft_draws(2, prob, inverse_temperature, random_bits) > 0.5).mean()
    assert abs(above - prob) < 4 * math.sqrt(prob * (1 - prob) / DRAWS)


@pytest.mark.parametrize("prob", [0.01, 0.1, 0.3])
def test_means_of_s_and_one_minus_s_add_up_to_one(prob, random_bits):
    low, high = (soft_draws(i, p, 2, random_bits) for i, p in ((3, prob), (4, 1 - prob)))
    error = math.hypot(low.std(), high.std()) / math.sqrt(DRAWS)
    assert abs(low.mean() + high.mean() - 1) < 4 * error


def logistic_bits(noise):
    """A generator whose logistic noise is given, to 23 bits."""
    word = int(2**23 / (1 + math.exp(-noise))) << 9
    return lambda key, shape, dtype: jnp.full(shape, word, dtype)


def rounded(noise):
    """The noise that those bits stand for."""
    uniform = (int(2**23 / (1 + math.exp(-noise))) + 0.5) / 2**23
    return math.log(uniform / (1 - uniform))


@pytest.mark.parametrize("noise", [-3, 0, 3])
@pytest.mark.parametrize("inverse_temperature", [1, 5, 30])
def test_gradient_has_its_closed_form(inverse_temperature, noise):
    s = np.array([0.01, 0.1, 0.5, 0.9])
    m = 1 / (1 + np.exp(-inverse_temperature * (np.log(s / (1 - s)) + rounded(noise))))
    sample = lambda probs: jp.relaxed_bernoulli(
        jax.random.key(0), probs, 1 / inverse_temperature, random_bits=logistic_bits(noise)
    )
    np.testing.assert_allclose(sample(jnp.asarray(s, jnp.float32)), m, rtol=1e-4, atol=1e-7)
    gradient = jax.grad(lambda probs: sample(probs).sum())(jnp.asarray(s, jnp.float32))
    expected = inverse_temperature * m * (1 - m) / (s * (1 - s))
    rounding = 2.0**-23 * inverse_temperature / (s * (1 - s))  # of 1 - m, enlarged by the slope
    assert (np.abs(gradient - expected) <= 1e-4 * expected + rounding).all()


@pytest.mark.parametrize("temperature", [1.0, 0.2, 0.03])
def test_gradient_is_finite_at_both_ends_and_zero_at_one(temperature, random_bits):

    def total(probs):
        return relaxed(jax.random.key(5), probs, temperature, random_bits=random_bits).sum()

    for prob in (0.0, 1.0):
        probs = jnp.full(100_000, prob)
        gradient = jax.grad(total)(probs)
        assert jnp.isfinite(gradient).all()
        assert jnp.isfinite(total(probs))
        if prob == 1:
            assert (gradient == 0).all()


@pytest.mark.parametrize("word", [0, 1, 2**9 - 1, 2**31, 2**32 - 2**9, 2**32 - 1])
@pytest.mark.parametrize("temperature", [1.0, 0.03, 1e-3, 5.0])
def test_extreme_bits_give_finite_samples(temperature, word):
    probs = jnp.array([0.0, 1e-38, 1e-20, 1e-7, 0.5, 1 - 2**-24, 1.0])
    bits = lambda key, shape, dtype: jnp.full(shape, word, dtype)
    sample = lambda p: jp.relaxed_bernoulli(jax.random.key(0), p, temperature, random_bits=bits)
    values, gradient = sample(probs), jax.grad(lambda p: sample(p).sum())(probs)
    assert jnp.isfinite(values).all()
    assert jnp.isfinite(gradient).all()
    assert ((values >= 0) & (values <= 1)).all()
    kept = jp.bernoulli_mask(jax.random.key(0), probs, random_bits=bits)
    assert not kept[0]
    assert kept[-1]


def test_end_points_of_hard_masks(random_bits):
    probs = {"never": jnp.zeros(100_000), "always": jnp.ones(100_000)}
    mask = hard(jax.random.key(6), probs, random_bits=random_bits)
    assert not mask["never"].any()
    assert mask["always"].all()


def test_sizes_of_hard_masks(random_bits):
    probs = jnp.asarray(np.random.default_rng(7).beta(0.5, 2.0, 2_000), jnp.float32)
    keys = jax.random.split(jax.random.key(7), 1_000)
    masks = jax.vmap(lambda key: hard(key, probs, random_bits=random_bits))(keys)
    sizes, s = np.asarray(masks).sum(axis=1), np.asarray(probs, np.float64)
    variance = (s * (1 - s)).sum()
    assert abs(sizes.mean() - s.sum()) < 4 * math.sqrt(variance / 1_000)
    assert sizes.var() == pytest.approx(variance, rel=0.15)
    rates = np.asarray(masks).mean(axis=0)
    error = np.sqrt(s * (1 - s) / 1_000)
    assert (np.abs(rates - s) <= 5 * error + 1e-3).all()


def test_form_and_dtypes(random_bits):
    probs = {"a": jnp.full((2, 3), 0.5, jnp.bfloat16), "b": None, "c": [jnp.float32(0.5)]}
    soft = relaxed(jax.random.key(8), probs, 0.5, random_bits=random_bits)
    mask = hard(jax.random.key(8), probs, random_bits=random_bits)
    for tree, dtype in ((soft, jnp.float32), (mask, bool)):
        assert jax.tree.structure(tree) == jax.tree.structure(probs)
        assert [(x.shape, x.dtype) for x in jax.tree.leaves(tree)] == [((2, 3), dtype), ((), dtype)]


def test_leaves_and_keys_draw_apart(random_bits):
    probs = [jnp.full(1_000, 0.5), jnp.full(1_000, 0.5)]
    first, second = (hard(jax.random.key(i), probs, random_bits=random_bits) for i in (9, 10))
    again = hard(jax.random.key(9), probs, random_bits=random_bits)
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    for a, b in ((first[0], first[1]), (first[0], second[0]), (first[1], second[0])):
        assert 400 < int((a == b).sum()) < 600


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_the_same_sample_on_one_and_eight_devices(axis_type, random_bits):
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(axis_type, axis_type))
    probs = {"w": jnp.linspace(0, 1, 128).reshape(16, 8), "v": jnp.linspace(0, 1, 40)}
    specs = {"w": jax.P("a", "b"), "v": jax.P(("b", "a"))}
    sharded = {k: jax.device_put(p, jax.NamedSharding(mesh, specs[k])) for k, p in probs.items()}
    key = jax.random.key(11)
    one_ulp = functools.partial(np.testing.assert_allclose, rtol=2e-7)  # logarithms may differ
    for sample, same in (
        (lambda p: hard(key, p, random_bits=random_bits), np.testing.assert_array_equal),
        (lambda p: relaxed(key, p, 0.5, random_bits=random_bits), one_ulp),
    ):
        on_mesh = sample(sharded)
        jax.tree.map(same, on_mesh, sample(probs))
        for name, leaf in on_mesh.items():
            assert leaf.sharding.is_equivalent_to(sharded[name].sharding, leaf.ndim)


UNFIT = {
    "empty": ({}, ValueError, "the tree has no leaves"),
    "nothing but None": ({"a": None}, ValueError, "the tree has no leaves"),
    "integers": ([jnp.ones(2, jnp.int32)], TypeError, "leaf '0' is int32"),
    "booleans": ([jnp.ones(2, bool)], TypeError, "leaf '0' is bool"),
}


@pytest.mark.parametrize("case", UNFIT)
def test_unfit_probabilities_are_an_error(case):
    probs, error, message = UNFIT[case]
    with pytest.raises(error, match="sampling of probabilities or logits needs.*" + message):
        jp.relaxed_bernoulli(jax.random.key(0), probs, 1.0)
    with pytest.raises(error, match=message):
        jp.bernoulli_mask(jax.random.key(0), probs)


@pytest.mark.parametrize("temperature", [0.0, -1.0, -np.inf, np.nan])
def test_a_traced_temperature_that_is_not_positive_draws_what_any_other_does(temperature):
    """Negative ones would swap what is kept and what is pruned."""
    key, probs = jax.random.key(0), {"w": jnp.linspace(0.0, 1.0, 1000)}
    logits = jax.tree.map(jax.scipy.special.logit, probs)
    soft = jax.jit(jp.relaxed_bernoulli)(key, probs, temperature)["w"]
    np.testing.assert_array_equal(soft > 0.5, jp.relaxed_bernoulli(key, probs, 1.0)["w"] > 0.5)
    np.testing.assert_allclose(soft, jnp.round(soft), atol=1e-3)
    hard = jax.jit(jp.gumbel_mask)(key, logits, temperature)["w"]
    np.testing.assert_array_equal(hard, jp.gumbel_mask(key, logits, 1.0)["w"])
    slope = jax.jit(jax.grad(lambda a, t: jnp.sum(jp.gumbel_mask(key, a, t)["w"])))
    assert jnp.all(jnp.isfinite(slope(logits, temperature)["w"][1:-1]))


# counter_bits

LENGTH = 2**20
stream = jax.jit(lambda key: jp.counter_bits(key, (LENGTH,)))
KEYS = [jax.random.key(seed) for seed in (0, 1, 12345)]


def bits_of(words):
    """Shape (..., 32) of 0 and 1, lowest bit first."""
    return (np.asarray(words)[..., None] >> np.arange(32, dtype=np.uint32)) & 1


@pytest.mark.parametrize("key", KEYS, ids=["0", "1", "12345"])
def test_bytes_are_uniform(key):
    words = np.asarray(stream(key))
    for place in range(4):
        counts = np.bincount((words >> (8 * place)) & 0xFF, minlength=256)
        assert 1e-4 < scipy.stats.chisquare(counts).pvalue < 1 - 1e-4


@pytest.mark.parametrize("key", KEYS, ids=["0", "1", "12345"])
def test_every_bit_is_balanced_and_independent_of_the_others(key):
    signs = bits_of(stream(key)[: 2**18]).astype(np.float32) * 2 - 1
    correlation = signs.T @ signs / 2**18
    assert np.abs(signs.mean(axis=0)).max() < 5 / 2**9
    assert np.abs(correlation - np.eye(32)).max() < 5 / 2**9


LAGS = [1, 2, 3, 4, 8, 64, 100, 512, 784, 1024, 4096, 65_536]


@pytest.mark.parametrize("key", KEYS, ids=["0", "1", "12345"])
def test_no_serial_correlation(key):
    uniform = np.asarray(stream(key)) / 2.0**32 - 0.5
    for lag in LAGS:
        z = (uniform[lag:] * uniform[:-lag]).mean() * 12 * math.sqrt(LENGTH - lag)
        assert abs(z) < 4.5, lag


def test_successive_pairs_fill_the_square():
    words = np.asarray(stream(KEYS[0]))
    counts = np.bincount((words[::2] >> 26 << 6) | (words[1::2] >> 26), minlength=4096)
    assert 1e-4 < scipy.stats.chisquare(counts).pvalue < 1 - 1e-4


NEIGHBOURS = {
    "split": jax.random.split(jax.random.key(3), 6),
    "fold_in": jnp.stack([jax.random.fold_in(jax.random.key(3), i) for i in range(6)]),
    "seeds": jnp.stack([jax.random.key(i) for i in range(6)]),
}


@pytest.mark.parametrize("kind", NEIGHBOURS)
def test_neighbouring_keys_are_uncorrelated(kind):
    streams = np.stack([stream(key) for key in NEIGHBOURS[kind]]) / 2.0**32 - 0.5
    for lag in (0, 1, 7):
        pairs = streams[:, lag:] @ streams[:, : LENGTH - lag].T * 12 / math.sqrt(LENGTH - lag)
        if lag == 0:
            np.fill_diagonal(pairs, 0)
        assert np.abs(pairs).max() < 4.5, lag


def assert_avalanche(before, after):
    """A changed input bit flips each output bit half the time, each by itself."""
    flips = bits_of(np.asarray(before) ^ np.asarray(after))
    rates = flips.mean(axis=tuple(range(flips.ndim - 1)))
    assert np.abs(rates - 0.5).max() < 0.02
    assert np.abs(flips.sum(axis=-1).mean() - 16) < 0.1


@pytest.mark.parametrize("bit", range(0, 20, 3))
def test_avalanche_of_the_position(bit):
    words = np.asarray(stream(KEYS[0]))
    position = np.arange(2**16)
    assert_avalanche(words[position], words[position ^ (1 << bit)])


@pytest.mark.parametrize("bit", [0, 1, 7, 16, 31])
@pytest.mark.parametrize("word", [0, 1])
def test_avalanche_of_the_key(word, bit):
    changed = np.asarray(jax.random.key_data(KEYS[0])).copy()
    changed[word] ^= np.uint32(1 << bit)
    other = jax.random.wrap_key_data(jnp.asarray(changed))
    assert_avalanche(stream(KEYS[0])[: 2**16], stream(other)[: 2**16])


@pytest.mark.parametrize("shape", [(), (1,), (0,), (24,), (4, 6), (2, 3, 4), (1, 24, 1), (3, 0, 2)])
def test_shapes_equal_the_flat_order(shape):
    bits = jp.counter_bits(KEYS[0], shape)
    assert (bits.shape, bits.dtype) == (shape, jnp.uint32)
    np.testing.assert_array_equal(bits.ravel(), jp.counter_bits(KEYS[0], (24,))[: bits.size])


@pytest.mark.parametrize("implementation", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_any_key_implementation(implementation):
    bits = jp.counter_bits(jax.random.key(0, impl=implementation), (1_000,))
    assert abs(int(bits_of(bits).sum()) - 16_000) < 5 * math.sqrt(32_000) / 2


def test_under_vmap_over_keys():
    keys = NEIGHBOURS["split"]
    batch = jax.vmap(lambda key: jp.counter_bits(key, (5,)))(keys)
    np.testing.assert_array_equal(batch, [jp.counter_bits(key, (5,)) for key in keys])


def test_other_dtypes_are_an_error():
    with pytest.raises(ValueError, match="makes uint32, not float32"):
        jp.counter_bits(KEYS[0], (2,), jnp.float32)


def test_positions_that_come_round_have_other_bits():
    """Of 3 x 2**31 entries the first and the last row have the same positions modulo 2**32."""
    jax.eval_shape(lambda key: jp.counter_bits(key, (3, 2**31)), KEYS[0])
    words = jax.random.bits(KEYS[0], (2,), jnp.uint32)
    second = sampling._second_word((3, 2**31), words)
    assert second.shape == (3, 1)
    hashed = sampling._scramble(jnp.arange(2**16, dtype=jnp.uint32) + words[0])
    first, _, last = np.asarray(sampling._scramble(hashed[None] + second))
    assert_avalanche(first, last)


def test_a_longer_axis_than_positions_is_an_error():
    """Before anything of that size is made."""
    with pytest.raises(ValueError, match=r"counts to 2\*\*32, but an axis"):
        jax.eval_shape(lambda key: jp.counter_bits(key, (2, 2**32)), KEYS[0])
