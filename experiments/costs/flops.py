"""The floating-point operations of a function, counted from its jaxpr as it stands."""

import math
from typing import Any

import jax
from jax.extend import core


def flops(function, *args) -> int:
    """Two for each multiplication and addition of matrix products and convolutions.

    A scan counts as often as it runs, a `while_loop` once, and of a conditional the branch that
    costs most. The arguments may be shapes.
    """
    return _of(jax.make_jaxpr(function)(*args).jaxpr)


def _of(jaxpr: core.Jaxpr) -> int:
    return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation: core.JaxprEqn) -> int:
    name, params = equation.primitive.name, equation.params
    shape = lambda variable: variable.aval.shape
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        summed = math.prod(shape(equation.invars[0])[axis] for axis in contracted)
        return 2 * math.prod(shape(equation.outvars[0])) * summed
    if name == "conv_general_dilated":
        kernel = shape(equation.invars[1])
        summed = math.prod(kernel) // kernel[params["dimension_numbers"].rhs_spec[0]]
        return 2 * math.prod(shape(equation.outvars[0])) * summed
    if name == "cond":
        return max(map(_of_inner, params["branches"]))
    inner = next((params[key] for key in _INNER if key in params), None)
    times = params["length"] if name == "scan" else 1
    return 0 if inner is None else times * _of_inner(inner)


_INNER = ("jaxpr", "call_jaxpr", "fun_jaxpr", "body_jaxpr")


def _of_inner(inner: Any) -> int:
    return _of(inner.jaxpr if isinstance(inner, core.ClosedJaxpr) else inner)
