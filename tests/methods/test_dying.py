"""The link that counts dying channels: against numpy, in any chain, and changing nothing."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

import jaxprune as jp
from jaxprune.trees import norms

SCALE = jnp.array([1.0, -1e-4, 5e-4, 2e-3, 0.0])


def params(dtype=jnp.float32):
    norm = {"scale": SCALE.astype(dtype), "bias": jnp.zeros(5, dtype)}
    return {"conv": {"kernel": jnp.zeros((3, 3, 4, 5), dtype)}, "norm": norm}


def dying(state):
    return jax.tree.map(int, optax.tree.get(state, "dying"))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("below", [1e-3, 1e-2])
def test_counts_are_those_of_numpy(dtype, below):
    found = dying(jp.count_dying(below).init(params(dtype)))
    small = np.sum(np.abs(np.asarray(SCALE, np.float64)) < below)
    assert found == {"conv": {"kernel": None}, "norm": {"scale": small, "bias": None}}


@pytest.mark.usefixtures("relaxed_promotion")
def test_a_chain_does_what_it_does_without_the_link():
    def trained(*links):
        tx = optax.chain(*links, optax.adam(1e-5))
        step = jax.jit(lambda p, state: tx.update(p, state, p))
        tree, state = params(), tx.init(params())
        for _ in range(3):
            updates, state = step(tree, state)
            tree = optax.apply_updates(tree, updates)
        assert step._cache_size() == 1
        return tree, state

    watched, state = trained(jp.count_dying())
    jax.tree.map(np.testing.assert_array_equal, watched, trained()[0])
    assert dying(state)["norm"]["scale"] == 3  # as the last update found them


@pytest.mark.usefixtures("relaxed_promotion")
def test_adam_with_l2_kills_scales_that_the_loss_does_not_need():
    """And the link sees it: of two scales one has no use."""
    useful = jnp.array([1.0, 0.0])
    tx = optax.chain(optax.add_decayed_weights(1e-2), optax.adam(1e-2), jp.count_dying(1e-2))
    tree = {"scale": jnp.ones(2)}
    state = tx.init(tree)
    loss = lambda tree: jnp.sum(useful * (tree["scale"] - 2.0) ** 2)
    step = jax.jit(lambda p, state: tx.update(jax.grad(loss)(p), state, p))
    for _ in range(300):
        updates, state = step(tree, state)
        tree = optax.apply_updates(tree, updates)
    assert dying(state) == {"scale": 1}


def test_it_sees_its_part_of_a_partition():
    tree = {"a": params(), "b": params()}
    links = {"a": jp.count_dying(), "b": optax.set_to_zero()}
    state = optax.partition(links, {"a": "a", "b": "b"}).init(tree)
    assert sum(jax.tree.leaves(dying(state))) == 3


def test_where_chooses_other_leaves():
    assert dying(jp.count_dying(where="bias").init(params()))["norm"] == {"scale": None, "bias": 5}


def test_a_network_without_norms_has_nothing():
    tx = jp.count_dying()
    state = tx.init({"kernel": jnp.ones((2, 2))})
    assert jax.tree.leaves(state) == []
    with pytest.raises(ValueError, match=r"no leaf can be pruned.*'gamma'"):
        jp.count_dying(where="gamma").init({"kernel": jnp.ones((2, 2))})


def trees():
    """Of each framework a layer and a norm."""
    key = jax.random.key(0)
    linen_layers = linen.Sequential([linen.Dense(3), linen.LayerNorm()])
    rngs = nnx.Rngs(0)
    nnx_layers = nnx.Sequential(nnx.Linear(2, 3, rngs=rngs), nnx.LayerNorm(3, rngs=rngs))
    eqx_layers = eqx.nn.Sequential([eqx.nn.Linear(2, 3, key=key), eqx.nn.LayerNorm(3)])
    return {
        "linen": linen_layers.init(key, jnp.ones((1, 2))),
        "nnx": nnx.state(nnx_layers, nnx.Param),
        "equinox": eqx.filter(eqx_layers, eqx.is_array),
    }


@pytest.mark.parametrize("framework", ["linen", "nnx", "equinox"])
def test_norms_are_found_in_each_framework(framework):
    tree = trees()[framework]
    (scale,) = norms.scales(tree)
    both = norms.scales_and_shifts(tree)
    assert len(both) == 2 and scale in both
    assert all("1" in name for name in both)  # of the norm, not of the layer before it
    assert sum(jax.tree.leaves(dying(jp.count_dying(2.0).init(tree)))) == 3
