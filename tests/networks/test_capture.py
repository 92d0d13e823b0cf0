"""Products that are found compute what the model computes, in every framework."""

import equinox as eqx
import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxprune.networks import capture, walking


def normal(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


def seen(apply, params, *args, stacks=()):
    """The products and their rows."""
    trace = capture.trace(apply, params, *args, stacks=stacks)
    met = walking.walk(trace, [jax.tree.leaves(params)], [args])
    return [(product, product.layout.rows(operands[0][0])) for product, operands in met]


def check(apply, params, inputs, output=None):
    """The only product gives the output, up to its shape."""
    ((product, rows),) = seen(apply, params, inputs)
    leaf = jax.tree.leaves(params)[product.leaf]
    matrix = capture.as_matrix(leaf, product)
    output = apply(params, inputs) if output is None else output
    ours = rows @ matrix
    assert ours.size == output.size
    np.testing.assert_allclose(ours.reshape(output.shape), output, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(capture.with_matrix(leaf, matrix, product), leaf)
    assert rows.shape[1] == np.prod([leaf.shape[axis] for axis in product.inputs])
    return product


with_own_jvp = jax.custom_jvp(jnp.matmul)
with_own_jvp.defjvp(lambda primals, tangents: (jnp.matmul(*primals), tangents[0]))
with_own_vjp = jax.custom_vjp(jnp.matmul)
with_own_vjp.defvjp(lambda x, w: (x @ w, None), lambda _, g: (g, g))

PRODUCTS = {
    "x @ w": (lambda w, x: x @ w, (8, 3), (5, 8)),
    "batches": (lambda w, x: x @ w, (8, 3), (2, 5, 8)),
    "x @ w.T": (lambda w, x: x @ w.T, (3, 8), (5, 8)),
    "heads": (lambda w, x: jnp.einsum("bi,ihd->bhd", x, w), (8, 2, 3), (5, 8)),
    "out of heads": (lambda w, x: jnp.einsum("bhd,hdo->bo", x, w), (2, 3, 4), (5, 2, 3)),
    "inside jit": (lambda w, x: jax.jit(jnp.matmul)(x, w), (8, 3), (5, 8)),
    "inside remat": (lambda w, x: jax.checkpoint(lambda w: jnp.sin(x) @ w)(w), (8, 3), (5, 8)),
    "inside custom_jvp": (lambda w, x: with_own_jvp(x, w), (8, 3), (5, 8)),
    "inside custom_vjp": (lambda w, x: with_own_vjp(x, w), (8, 3), (5, 8)),
    "after a loop": (
        lambda w, x: jax.lax.fori_loop(0, 3, lambda _, y: jnp.sin(y), x) @ w, (8, 3), (5, 8)
    ),
    "inside vmap": (lambda w, x: jax.vmap(lambda row: row @ w)(x), (8, 3), (5, 8)),
}  # fmt: skip


@pytest.mark.parametrize("name", PRODUCTS)
def test_matrix_products(name):
    apply, shape, inputs = PRODUCTS[name]
    product = check(apply, normal(*shape), normal(*inputs, seed=1))
    assert product.channels == np.prod(inputs[-len(product.inputs) :])


def test_the_leaf_on_the_left():
    w, x = normal(3, 8), normal(8, 5, seed=1)
    check(lambda w, x: w @ x, w, x, output=(w @ x).T)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"window_strides": (2, 1)},
        {"padding": "VALID"},
        {"padding": ((0, 2), (1, 0))},
        {"rhs_dilation": (2, 1)},
        {"lhs_dilation": (1, 2), "padding": ((1, 1), (1, 2))},
        {"dimension_numbers": ("NCHW", "OIHW", "NHWC")},
    ],
)
def test_convolutions(options):
    options = {"window_strides": (1, 1), "padding": "SAME"} | options
    options.setdefault("dimension_numbers", ("NHWC", "HWIO", "NHWC"))
    if options["dimension_numbers"][0] == "NCHW":
        kernel, images = normal(6, 4, 3, 2), normal(2, 4, 7, 8, seed=1)
    else:
        kernel, images = normal(3, 2, 4, 6), normal(2, 7, 8, 4, seed=1)
    product = check(lambda k, x: jax.lax.conv_general_dilated(x, k, **options), kernel, images)
    assert product.channels == 4
    assert kernel.shape[product.inputs[-1]] == 4  # channels last, as patterns want them


def test_one_dimensional_convolution():
    numbers = ("NWC", "WIO", "NWC")
    apply = lambda k, x: jax.lax.conv_general_dilated(x, k, (2,), "SAME", dimension_numbers=numbers)
    check(apply, normal(3, 4, 6), normal(2, 9, 4, seed=1))


def found(apply, params, *args):
    paths = [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in jax.tree_util.tree_leaves_with_path(params)
    ]
    return [
        (paths[product.leaf].removesuffix("/value"), rows.shape)
        for product, rows in seen(apply, params, *args)
    ]


def test_nnx():
    class Net(nnx.Module):
        def __init__(self):
            rngs = nnx.Rngs(0)
            self.conv = nnx.Conv(3, 4, (3, 3), rngs=rngs)
            self.norm = nnx.BatchNorm(4, rngs=rngs)
            self.attention = nnx.MultiHeadAttention(2, 4, decode=False, rngs=rngs)
            self.head = nnx.Linear(4, 5, dtype=jnp.bfloat16, rngs=rngs)

        def __call__(self, x):
            x = nnx.relu(self.norm(self.conv(x), use_running_average=True))
            x = self.attention(x.reshape(len(x), -1, 4))
            return self.head(x.mean(1))

    graph, params, rest = nnx.split(Net(), nnx.Param, ...)
    apply = lambda params, x: nnx.merge(graph, params, rest, copy=True)(x)
    assert found(apply, params, normal(2, 4, 4, 3)) == [
        ("conv/kernel", (32, 27)),
        ("attention/query/kernel", (32, 4)),
        ("attention/key/kernel", (32, 4)),
        ("attention/value/kernel", (32, 4)),
        ("attention/out/kernel", (32, 4)),
        ("head/kernel", (2, 4)),
    ]


def test_linen():
    model = flax.linen.Sequential(
        [flax.linen.Conv(4, (3, 3)), flax.linen.relu, flax.linen.DenseGeneral((2, 3))]
    )
    images = normal(2, 4, 4, 3)
    params = model.init(jax.random.key(0), images)["params"]
    apply = lambda params, x: model.apply({"params": params}, x)
    assert found(apply, params, images) == [
        ("layers_0/kernel", (32, 27)),
        ("layers_2/kernel", (32, 4)),
    ]


def test_equinox():
    model = eqx.nn.MLP(4, 2, 8, 2, key=jax.random.key(0))
    params, static = eqx.partition(model, eqx.is_inexact_array)
    apply = lambda params, x: jax.vmap(eqx.combine(params, static))(x)
    assert found(apply, params, normal(5, 4)) == [
        ("layers/0/weight", (5, 4)),
        ("layers/1/weight", (5, 8)),
        ("layers/2/weight", (5, 8)),
    ]


def test_what_is_not_seen():
    w = normal(4, 4)
    in_loop = lambda w, x: jax.lax.fori_loop(0, 2, lambda _, y: y @ w, x)
    assert not seen(in_loop, w, normal(5, 4))
    assert not seen(lambda w, x: x @ (w * 2), w, normal(5, 4))
    assert not seen(lambda w, x: jnp.einsum("eb,ebd->ed", x, w), normal(2, 5, 4), normal(2, 5))
    grouped = lambda k, x: jax.lax.conv_general_dilated(
        x, k, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"), feature_group_count=2
    )
    assert not seen(grouped, normal(3, 2, 4), normal(1, 5, 4))


def test_a_leaf_that_is_used_twice():
    w = normal(4, 4)
    products = seen(lambda w, x: jnp.sin(x @ w) @ w, w, normal(5, 4))
    assert [product.leaf for product, _ in products] == [0, 0]
    np.testing.assert_allclose(products[1][1], jnp.sin(normal(5, 4) @ w), rtol=1e-6)


def of_stack(params, x, **options):
    """Layers stacked along different axes, with the sum of what each gives beside the result."""

    def layer(x, own):
        a, b = own
        x = jnp.tanh(x @ a) @ b.T
        return x, x.sum()

    x, sums = jax.lax.scan(layer, x, (params["a"], jnp.moveaxis(params["b"], 2, 0)), **options)
    return x @ params["head"] + sums.sum()


STACK = {"a": normal(3, 4, 6), "b": normal(4, 6, 3, seed=2), "head": normal(4, 2, seed=3)}


@pytest.mark.parametrize("reverse", [False, True])
def test_layers_of_a_stack(reverse):
    """Each layer of a stack is met on its own, in the order in which they run."""
    x = normal(5, 4, seed=4)
    apply = lambda params, x: of_stack(params, x, reverse=reverse)
    met = seen(apply, STACK, x, stacks=(0, 1))
    order = [2, 1, 0] if reverse else [0, 1, 2]
    expected = [layer for i in order for layer in ((0, ((0, i),)), (1, ((2, i),)))]
    assert [product.layer for product, _ in met] == [*expected, (2, ())]
    for (first, rows), (second, hidden) in zip(met[:6:2], met[1:6:2], strict=True):
        np.testing.assert_allclose(rows, x, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(
            hidden, jnp.tanh(rows @ capture.as_matrix(STACK["a"], first)), rtol=1e-5, atol=1e-6
        )
        x = hidden @ capture.as_matrix(STACK["b"], second)
    np.testing.assert_allclose(met[-1][1], x, rtol=1e-5, atol=1e-6)
    changed = capture.with_matrix(STACK["b"], jnp.zeros((6, 4)), met[1][0])
    np.testing.assert_array_equal((changed == 0).all((0, 1)), np.arange(3) == order[0])
    assert len(seen(apply, STACK, x)) == 1  # without need, loops stay loops


def test_equal_stretches_are_compiled_once():
    trace = capture.trace(of_stack, STACK, normal(5, 4), stacks=(0, 1))
    functions = {}
    last = walking._last_uses(trace)
    starts = [0, *(product.step for product in trace.products)]
    for start, product in zip(starts, trace.products, strict=False):
        walking._compiled(walking._stretch(trace, start, product, last), functions)
    assert len(trace.products) == 7
    assert len(functions) == 4  # up to a stack, inside a layer, between two, and out


def test_leaves_that_change_on_the_way():
    """What comes after a product sees the leaves as they are then, however early they were read."""
    params = {"a": normal(4, 4), "b": normal(4, 4, seed=1), "c": normal(4, 4, seed=2)}

    def apply(params, x):
        a, b, c = (params[name].T for name in "abc")
        return jnp.sin(jnp.sin(x @ a) @ b) @ c

    x = normal(5, 4, seed=3)
    new, dense = jax.tree.leaves(params), jax.tree.leaves(params)
    rows = []
    for product, operands in walking.walk(capture.trace(apply, params, x), [new, dense], [x]):
        rows.append(operands[0])
        new[product.leaf] = 2 * dense[product.leaf]
    by_hand = [[x, jnp.sin(x @ (s * a.T))] for s in (2, 1) for a in dense[:1]]
    np.testing.assert_allclose(rows[1][0], by_hand[0][1], rtol=1e-6)
    np.testing.assert_allclose(rows[1][1], by_hand[1][1], rtol=1e-6)
    np.testing.assert_allclose(rows[2][0], jnp.sin(rows[1][0] @ (2 * dense[1].T)), rtol=1e-5)
