"""Operations of leaves, against formulas and what whole functions are counted to have."""

import jax
import jax.numpy as jnp
import pytest

import jaxprune as jp
from experiments.costs.flops import flops
from tests.networks import nets

pytestmark = pytest.mark.usefixtures("relaxed_promotion")
normal = nets.normal
W, X = {"w": normal(8, 3)}, normal(5, 8)


def spent(apply, params, *inputs):
    return jp.leaf_flops(apply, params, *inputs)


def scanned(params, x):
    step = lambda h, layer: (jnp.tanh(h @ layer["w"]) + layer["b"][None], None)
    return jax.lax.scan(step, x, params)[0]


def indexed(params, x):
    layer = lambda i: jax.lax.dynamic_index_in_dim(params["w"], i, keepdims=False)
    return jax.lax.fori_loop(0, 4, lambda i, h: jnp.tanh(h @ layer(i)), x)


def with_own_derivative():
    product = jax.custom_vjp(jnp.matmul)
    product.defvjp(lambda x, w: (x @ w, None), lambda _, g: (g, g))
    return lambda p, x: product(x, p["w"])


HALF = normal(8, 3) > 0
STACK = {"w": normal(4, 8, 8), "b": normal(4, 8)}
TABLE = normal(9, 8)
ONE = 2 * 5 * 8 * 3  # of the product X @ w
CASES = {
    "product": (lambda p, x: x @ p["w"], W, X, {"w": ONE}),
    "transposed": (lambda p, x: x @ p["w"].T, {"w": normal(3, 8)}, X, {"w": ONE}),
    "from the left": (lambda p, x: p["w"].T @ x.T, W, X, {"w": ONE}),
    "in bfloat16": (lambda p, x: x @ p["w"].astype(jnp.bfloat16), W, X, {"w": ONE}),
    "masked": (lambda p, x: x @ jnp.where(HALF, p["w"], 0), W, X, {"w": ONE}),
    "normalized": (lambda p, x: x @ (p["w"] / jnp.linalg.norm(p["w"])), W, X, {"w": ONE}),
    "twice": (lambda p, x: (x @ p["w"]) @ p["w"].T, W, X, {"w": 2 * ONE}),
    "in two parts": (lambda p, x: x[:, :4] @ p["w"][:4] + x @ p["w"], W, X, {"w": 3 * ONE // 2}),
    "heads": (
        lambda p, x: jnp.einsum("bi,ihd->bhd", x, p["w"]), {"w": normal(8, 2, 3)}, X, {"w": 2 * ONE}
    ),
    "of constants": (lambda p, x: x + jnp.ones((5, 8)) @ p["w"] @ p["v"],
                     {"w": normal(8, 3), "v": normal(3, 8)}, X, {"w": ONE, "v": ONE}),
    "custom_vjp": (with_own_derivative(), W, X, {"w": ONE}),
    "remat": (jax.checkpoint(lambda p, x: x @ p["w"]), W, X, {"w": ONE}),
    "a stack": (scanned, STACK, X, {"w": 4 * 2 * 5 * 64, "b": 0}),
    "a stack by index": (indexed, {"w": STACK["w"]}, X, {"w": 4 * 2 * 5 * 64}),
    "one leaf in a loop": (
        lambda p, x: jax.lax.scan(lambda h, _: (h @ p["w"], None), x, None, 7)[0],
        {"w": normal(8, 8)}, X, {"w": 7 * 2 * 5 * 64},
    ),
    "embedding": (lambda p, x: (p["e"][x] @ p["e"].T).sum(), {"e": TABLE}, jnp.arange(5),
                  {"e": 2 * 5 * 8 * 9}),
    "attention": (lambda p, x: (x @ p["q"]) @ (x @ p["k"]).T,
                  {"q": normal(8, 3), "k": normal(8, 3)}, X, {"q": ONE, "k": ONE}),
    "two leaves": (lambda p, x: x @ (p["a"] @ p["b"]),
                   {"a": normal(8, 2), "b": normal(2, 3)}, X, {"a": 0, "b": 0}),
    "convolution": (
        lambda p, x: jax.lax.conv(x, p["w"], (1, 1), "SAME"), {"w": normal(4, 3, 3, 3)},
        normal(2, 3, 8, 8), {"w": 2 * 2 * 64 * 4 * 27},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_formulas(case):
    apply, params, inputs, expected = CASES[case]
    assert spent(apply, params, inputs) == expected
    shapes = jax.eval_shape(lambda: (params, inputs))
    assert spent(apply, *shapes) == expected
    assert all(type(number) is int for number in expected.values())


NETS = [nets.lenet, nets.residual, nets.depthwise, nets.grouped, nets.dense_net,
        nets.squeeze_excite, nets.equinox]  # fmt: skip


@pytest.mark.parametrize("net", NETS, ids=lambda net: net.__name__)
def test_all_operations_without_attention_are_of_leaves(net):
    apply, params, inputs = net()
    found = spent(apply, params, inputs)
    assert jax.tree.structure(found) == jax.tree.structure(params)
    assert sum(jax.tree.leaves(found)) == flops(apply, params, inputs)
    assert all(leaf.ndim > 1 for leaf in leaves_with(found, params))


def leaves_with(found, params):
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(params), strict=True)
    return [leaf for number, leaf in pairs if number]


def test_a_decoder_has_attention_besides():
    apply, params, inputs = nets.decoder()
    found = spent(apply, params, inputs)
    attention = flops(apply, params, inputs) - sum(jax.tree.leaves(found))
    twice = jnp.concatenate([inputs, inputs])
    assert spent(apply, params, twice) == jax.tree.map(lambda number: 2 * number, found)
    assert 0 < attention < sum(jax.tree.leaves(found))
    assert [p.ndim for p in leaves_with(found, params)] == [2] * 8  # the tied embedding too


def test_the_table_of_a_network():
    params = {"w": normal(8, 3), "b": normal(3), "v": normal(3, 2).astype(jnp.bfloat16)}
    apply = lambda p, x: jnp.tanh(x @ p["w"] + p["b"][None]) @ p["v"].astype(jnp.float32)
    mask = {"w": jp.top_k_mask(params["w"], 6), "b": None, "v": jnp.eye(3, 2) > 0}
    flops = spent(apply, params, X)
    lines = [line.split() for line in jp.table(mask, params=params, flops=flops).splitlines()]
    assert lines[1:] == [
        ["v", "3x2", "2", "6", "33.333%", "12", "5", "60", "20"],
        ["w", "8x3", "6", "24", "25.000%", "96", "27", "240", "60"],
        ["others", "12", "12", "0", "0"],
        ["total", "8", "30", "26.667%", "120", "44", "300", "80"],
    ]


def test_the_first_and_the_last_layer_stay_dense_by_the_order_of_the_program():
    """Names and the tree's order say nothing: the first leaf used is the last one of the tree."""
    params = {name: normal(8, 8) for name in "abcd"} | {"bias": normal(8)}

    def apply(params, x):
        for name in "dcab":
            x = jnp.tanh(x @ params[name].T + params["bias"][None])
        return x

    where = jp.inner_layers(apply, params, X)
    assert [name for name in params if where(name, params[name])] == ["a", "c"]
    shapes = jax.eval_shape(lambda: params)
    again = jp.inner_layers(apply, shapes, jax.eval_shape(lambda: X))
    assert [name for name in params if again(name, params[name])] == ["a", "c"]
