"""The floating-point operations of a function, counted from its jaxpr as it stands."""

import math

import jax
from jax.extend import core


def flops(function, *args):
    """Two for each multiplication and addition of matrix products and convolutions."""
    return _of(jax.make_jaxpr(function)(*args).jaxpr)


def _of(jaxpr):
    return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation):
    name, params = equation.primitive.name, equation.params
    outputs = math.prod(equation.outvars[0].aval.shape) if equation.outvars else 0
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        return 2 * outputs * math.prod(equation.invars[0].aval.shape[i] for i in contracted)
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        return 2 * outputs * math.prod(kernel) // kernel[params["dimension_numbers"].rhs_spec[0]]
    inner = params.get("jaxpr", params.get("call_jaxpr"))
    if inner is None:
        return 0
    times = params["length"] if name == "scan" else 1
    return times * _of(inner.jaxpr if isinstance(inner, core.ClosedJaxpr) else inner)
