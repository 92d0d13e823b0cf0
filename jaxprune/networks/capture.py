"""What each layer of a model multiplies its kernel by, for any model that is a function in JAX.

The function is traced to a jaxpr and evaluated equation by equation; where a leaf of the
parameters, perhaps transposed or converted, is an operand of a matrix product or a convolution, the
other operand is noted. So Flax, Equinox and plain functions need no hooks.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, jaxpr_as_fun

# Primitives that only call what is inside them, and where that is.
_CALLS = {
    "jit": "jaxpr",
    "remat2": "jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
}


class Product(NamedTuple):
    """Rows (samples, inputs) times a leaf, given by its number in the tree.

    `inputs` are the axes of the leaf that are summed over, in the order of the rows' entries,
    `outputs` its other axes. A convolution has one row for each position of the kernel.
    """

    leaf: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    rows: jax.Array


def as_matrix(leaf: jax.Array, product: Product) -> jax.Array:
    """The leaf as (inputs, outputs), so that `rows @ matrix` is what the model calculates."""
    axes = product.inputs + product.outputs
    size = math.prod(leaf.shape[axis] for axis in product.inputs)
    return leaf.transpose(axes).reshape(size, -1)


def from_matrix(matrix: jax.Array, leaf: jax.Array, product: Product) -> jax.Array:
    """The matrix in the shape and dtype of the leaf."""
    axes = product.inputs + product.outputs
    turned = matrix.reshape([leaf.shape[axis] for axis in axes])
    return turned.transpose([axes.index(i) for i in range(leaf.ndim)]).astype(leaf.dtype)


class _View(NamedTuple):
    """A leaf whose axis `axes[i]` is axis i here."""

    leaf: int
    axes: tuple[int, ...]


def products(apply: Callable[..., Any], params: chex.ArrayTree, *args: Any) -> list[Product]:
    """Evaluates `apply(params, *args)` and returns its products with leaves, in their order.

    Loops and branches are evaluated, but products inside them aren't seen; nor are grouped
    convolutions.
    """
    closed = jax.make_jaxpr(apply)(params, *args)
    leaves = jax.tree.leaves(params)
    values = [*leaves, *jax.tree.leaves(args)]
    views = [_View(i, tuple(range(jnp.ndim(leaf)))) for i, leaf in enumerate(leaves)]
    found: list[Product] = []
    _evaluate(closed, values, [*views, *[None] * (len(values) - len(views))], found)
    return found


def _evaluate(closed, values, views, found):
    """The outputs of a jaxpr, and which of them are views of leaves; notes products."""
    env: dict[Any, Any] = dict(zip(closed.jaxpr.constvars, closed.consts, strict=True))
    env.update(zip(closed.jaxpr.invars, values, strict=True))
    seen = dict(zip(closed.jaxpr.invars, views, strict=True))
    value = lambda x: x.val if isinstance(x, Literal) else env[x]
    view = lambda x: None if isinstance(x, Literal) else seen.get(x)

    for equation in closed.jaxpr.eqns:
        name = equation.primitive.name
        inputs = [value(x) for x in equation.invars]
        input_views = [view(x) for x in equation.invars]
        output_views = [None] * len(equation.outvars)
        if name in _CALLS:
            inner = equation.params[_CALLS[name]]
            inner = ClosedJaxpr(inner, ()) if isinstance(inner, Jaxpr) else inner
            outputs, output_views = _evaluate(inner, inputs, input_views, found)
        else:
            outputs = _evaluate_one(closed.jaxpr, equation, value)
            if name == "dot_general":
                found += _matrix_products(inputs, input_views, **equation.params)
            elif name == "conv_general_dilated" and input_views[1]:
                found += _convolutions(inputs, input_views[1], **equation.params)
            elif name == "convert_element_type":
                output_views = input_views
            elif name == "transpose" and input_views[0]:
                leaf, axes = input_views[0]
                output_views = [_View(leaf, tuple(axes[i] for i in equation.params["permutation"]))]
        env.update(zip(equation.outvars, outputs, strict=True))
        seen.update(zip(equation.outvars, output_views, strict=True))
    results = closed.jaxpr.outvars
    return [value(x) for x in results], [view(x) for x in results]


def _evaluate_one(jaxpr, equation, value):
    """The outputs of one equation."""
    variables = list({x for x in equation.invars if not isinstance(x, Literal)})
    alone = jaxpr.replace(constvars=(), invars=variables, outvars=equation.outvars, eqns=[equation])
    return jaxpr_as_fun(ClosedJaxpr(alone, ()))(*map(value, variables))


def _matrix_products(operands, views, *, dimension_numbers, **_):
    """Of either operand that is a leaf, without batch dimensions, with the other one."""
    contracted, batched = dimension_numbers
    if batched[0]:
        return
    for kernel, other in ((0, 1), (1, 0)):
        if views[kernel]:
            leaf, names = views[kernel]
            summed = contracted[kernel]
            inputs = tuple(names[i] for i in summed)
            outputs = tuple(name for name in names if name not in inputs)
            rows = jnp.moveaxis(operands[other], contracted[other], range(-len(summed), 0))
            rows = rows.reshape(-1, math.prod(operands[kernel].shape[i] for i in summed))
            yield Product(leaf, inputs, outputs, rows)


def _convolutions(operands, view, *, dimension_numbers, **params):
    """As a matrix product of patches (inputs, height, width, ...) with the kernel."""
    if params["feature_group_count"] > 1 or params["batch_group_count"] > 1:
        return
    images, kernel = operands
    image_axes, (output, *summed), _ = dimension_numbers
    patches = jax.lax.conv_general_dilated_patches(
        images.transpose(image_axes),
        [kernel.shape[i] for i in summed[1:]],
        params["window_strides"],
        params["padding"],
        lhs_dilation=params["lhs_dilation"],
        rhs_dilation=params["rhs_dilation"],
        precision=jax.lax.Precision.HIGHEST,
    )  # (batch, inputs * height * width, ...)
    rows = jnp.moveaxis(patches, 1, -1).reshape(-1, patches.shape[1])
    inputs = tuple(view.axes[i] for i in summed)
    yield Product(view.leaf, inputs, (view.axes[output],), rows)
