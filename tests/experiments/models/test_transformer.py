"""The decoder: what it may look at, its parts by themselves, one stack of layers for many."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments import models
from experiments.models.transformer import Attention, Decoder, Size, rotated
from experiments.usage import UsageError
from tests.experiments.models.functional import parameters_by_path

TINY = Size(width=16, depth=2, heads=4, groups=2, hidden=24)
TOKENS = jax.random.randint(jax.random.key(1), (2, 12), 0, 256)


@functools.cache
def decoder(scanned):
    return Decoder(TINY, scanned, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("scanned", [False, True])
def test_a_later_byte_changes_no_earlier_logits(scanned):
    other = TOKENS.at[:, 7].add(1)
    before, after = map(nnx.jit(decoder(scanned)), (TOKENS, other))
    assert before.shape == (2, 12, 256) and before.dtype == jnp.float32
    np.testing.assert_array_equal(before[:, :7], after[:, :7])
    assert bool((before[:, 7:] != after[:, 7:]).any(-1).all())


def test_products_of_turned_features_depend_on_their_distance_alone():
    query, key = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 8))
    everywhere = lambda x: rotated(jnp.broadcast_to(x, (1, 9, 1, 8)))[0, :, 0]
    products = everywhere(query) @ everywhere(key).T
    for distance in range(-8, 9):
        diagonal = jnp.diagonal(products, distance)
        np.testing.assert_allclose(diagonal, diagonal[0], rtol=1e-4, atol=1e-5)
    assert abs(products[0, 0] - products[0, 1]) > 1e-2
    np.testing.assert_allclose(rotated(query), query, rtol=1e-6)  # at the first place
    norms = jnp.linalg.norm(everywhere(query), axis=-1)
    np.testing.assert_allclose(norms, jnp.linalg.norm(query), rtol=1e-5)


def test_groups_are_heads_whose_keys_and_values_repeat():
    shared = Attention(TINY, rngs=nnx.Rngs(0))
    alone = Attention(TINY._replace(groups=4), rngs=nnx.Rngs(0))
    for name in ("queries", "mixed"):
        getattr(alone, name).kernel[...] = getattr(shared, name).kernel[...]
    for name in ("keys", "values"):
        kernel = getattr(shared, name).kernel[...].reshape(16, 2, 4)
        getattr(alone, name).kernel[...] = jnp.repeat(kernel, 2, axis=1).reshape(16, 16)
    features = jax.random.normal(jax.random.key(2), (2, 5, 16))
    np.testing.assert_allclose(shared(features), alone(features), rtol=1e-4, atol=1e-6)


def test_a_stack_of_layers_is_its_layers_one_after_the_other():
    stacked, listed = decoder(True), nnx.clone(decoder(False))
    of_stack = nnx.state(stacked)
    of_list = nnx.state(listed)
    for name in ("embedding", "norm"):
        of_list[name] = of_stack[name]
    for number in range(TINY.depth):
        of_list["layers"][number] = jax.tree.map(lambda x, i=number: x[i], of_stack["layers"])
    nnx.update(listed, of_list)

    def loss(graph, state):
        return jnp.mean(jnp.sin(nnx.merge(graph, state)(TOKENS)))

    values = [
        jax.jit(jax.value_and_grad(lambda state, graph=graph: loss(graph, state)))(state)
        for graph, state in (nnx.split(stacked), nnx.split(listed))
    ]
    np.testing.assert_allclose(values[0][0], values[1][0], rtol=1e-5)
    layers = [values[1][1]["layers"][number] for number in range(TINY.depth)]
    restacked = jax.tree.map(lambda *each: jnp.stack(each), *layers)
    chex.assert_trees_all_close(values[0][1]["layers"], restacked, rtol=1e-3, atol=1e-6)


def test_layers_of_a_stack_differ_and_start_as_large_as_by_themselves():
    kernels = nnx.state(decoder(True).layers.mlp)
    gate, down = (kernels[name]["kernel"][...] for name in ("gate", "down"))
    assert gate.shape == (2, 16, 24) and len(jnp.unique(gate)) == gate.size
    np.testing.assert_allclose(gate.std((1, 2)), 16**-0.5, rtol=0.15)
    np.testing.assert_allclose(down.std((1, 2)), (4 * 24) ** -0.5, rtol=0.15)  # four terms add up


@pytest.mark.usefixtures("relaxed_promotion")
def test_half_precision_computes_and_single_precision_is_kept():
    exact = decoder(True)
    half = Decoder(TINY._replace(dtype=jnp.bfloat16), True, rngs=nnx.Rngs(0))
    assert {leaf.dtype for leaf in parameters_by_path(half).values()} == {jnp.dtype("float32")}
    logits, wanted = (nnx.jit(model)(TOKENS) for model in (half, exact))
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, wanted, atol=0.1)
    assert bool(jnp.any(logits != wanted))


@pytest.mark.parametrize(
    ("name", "weights", "total"),
    [
        ("decoder1m", 958_464, 1_008_960),
        ("decoder1m_scanned", 958_464, 1_008_960),
        ("decoder4m", 4_128_768, 4_197_632),
        ("decoder25m", 23_592_960, 23_732_736),
        ("decoder350m_scanned", 352_321_536, 352_642_048),
        ("decoder1b_scanned", 973_078_528, 973_670_400),
        ("decoder7b_scanned", 6_979_321_856, 6_980_636_672),
    ],
)
def test_sizes_are_what_their_names_say(name, weights, total):
    model = nnx.eval_shape(lambda: models.decoder(name, nnx.Rngs(0)))
    sizes = {path: leaf.size for path, leaf in parameters_by_path(model).items()}
    assert sum(size for path, size in sizes.items() if path.endswith("kernel")) == weights
    assert sum(sizes.values()) == total


def test_what_cannot_be_built_is_said():
    with pytest.raises(UsageError, match=r"unknown model 'decoder1': .*did you mean decoder1"):
        models.decoder("decoder1", nnx.Rngs(0))
