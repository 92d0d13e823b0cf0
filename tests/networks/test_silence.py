"""What is known of slices: numbers, found where the arrays lie."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from jaxprune.networks import silence
from tests.networks import nets

NAN = np.nan


def mesh():
    auto = (jax.sharding.AxisType.Auto,) * 2
    return jax.make_mesh((4, 2), ("x", "y"), axis_types=auto)


def lying(*spec):
    return jax.sharding.NamedSharding(mesh(), jax.P(*spec))


@pytest.mark.parametrize("spec", [(), ("x",), (None, "y"), (("x", "y"),), ("x", "y")])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.int8, bool])
def test_numbers_of_slices(spec, dtype):
    value = np.ones((8, 4))
    value[3] = value[:, 2] = 0
    value = jax.device_put(jnp.asarray(value, dtype), lying(*spec))
    rows, columns = silence.numbers_of(value)
    np.testing.assert_array_equal(rows, [NAN] * 3 + [0] + [NAN] * 4)
    np.testing.assert_array_equal(columns, [NAN, NAN, 0, NAN])


def test_numbers_that_are_not_zero():
    np.testing.assert_array_equal(silence.numbers_of(jnp.array([2.0, NAN, 0.0]))[0], [2, NAN, 0])
    assert silence.numbers_of(jnp.float32(1)) == ()
    (unknown,) = silence.numbers_of(jax.random.split(jax.random.key(0), 2))
    assert np.isnan(unknown).all()


def test_only_numbers_leave_the_devices():
    """No device ever has a whole leaf, or so much as a row of it."""
    value = jax.device_put(jnp.ones((256, 128)), lying("x", "y"))
    lowered = jax.jit(silence._ends, out_shardings=lying()).lower(value)
    text = lowered.compile().as_text()
    assert "[64,64]" in text
    assert "[256,128]" not in text and "[64,128]" not in text and "[256,64]" not in text
    with jax.transfer_guard_device_to_host("disallow"):
        jax.block_until_ready(silence._ends_on_devices(value))


def test_running_sums_are_not_zero_where_their_terms_are():
    """A row of zeros in a sum along rows has what came before."""

    def apply(p, x):
        sums = jnp.cumsum(p["c"], 0)[None] * jax.nn.sigmoid(x @ p["a"])[:, None]
        return sums.reshape(len(x), -1) @ p["b"]

    params = {"a": nets.normal(3, 4), "c": nets.normal(2, 4).at[1].set(0), "b": nets.normal(8, 2)}
    params["b"] = params["b"].at[1].set(0)  # of the second channel, what the first row sends
    mask = {"a": jnp.ones((3, 4), bool).at[:, 1].set(False), "b": None, "c": None}
    x = nets.normal(5, 3)
    assert jp.shrink(apply, params, mask, x, partial="keep").params["a"].shape == (3, 4)


@pytest.mark.parametrize("spec", [(None, "x"), ("y", None)])
def test_constraints_of_sharding(spec):
    """They stay where the axes can still be divided."""

    def apply(p, x):
        hidden = jax.lax.with_sharding_constraint(jax.nn.relu(x @ p["a"] + p["m"]), lying(*spec))
        return hidden @ p["b"] + p["n"]

    params = {"a": nets.normal(3, 8), "m": nets.normal(1, 8), "b": nets.normal(8, 2)}
    params["n"] = jnp.zeros((1, 2))
    for dead in (4, 3):
        mask = {
            "a": jnp.ones((3, 8), bool).at[:, :dead].set(False),
            "b": None,
            "m": None,
            "n": None,
        }
        small = jp.shrink(apply, params, mask, nets.normal(4, 3))
        assert small.params["b"].shape == (8 - dead, 2)
        assert small.folded == ("n",)
        text = jax.jit(small.apply).lower(small.params, nets.normal(4, 3)).as_text()
        divisible = "x" not in spec or dead != 3
        assert ("sharding_constraint" in text or "@Sharding" in text) == divisible
