"""A function's jaxpr as steps, whose values are numbers of slots.

Calls (`jit`, `remat`) are written out, so that whoever follows an axis through a network sees
primitives alone. Only loops (`scan`) and functions with a derivative of their own (`custom_jvp`)
stay steps, with bodies of steps. What depends on neither parameters nor inputs is a constant.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

# Primitives that only call what is inside them, and where that is. Written out, those with a
# derivative of their own lose it.
_CALLS = {"jit": "jaxpr", "remat2": "jaxpr", "checkpoint": "jaxpr"}
_CALLS_IN_RULES = _CALLS | {"custom_jvp_call": "call_jaxpr"}
_ALL_CALLS = _CALLS_IN_RULES | {"custom_vjp_call": "call_jaxpr"}


class Body(NamedTuple):
    """Steps in their order, and the slots of what comes in and goes out."""

    steps: list["Step"]
    inputs: list[int]
    outputs: list[int]


class Step(NamedTuple):
    """One primitive; `inputs` and `outputs` are slots.

    The body of a `scan` takes what is carried and one of each of what is scanned, that of a
    `custom_jvp_call` all inputs that aren't constants; it has another body for the derivative,
    which takes these inputs and then their tangents. Bodies see the slots around them.
    """

    name: str
    equation: Any
    inputs: list[int]
    outputs: list[int]
    bodies: tuple[Body, ...] = ()


class Program(NamedTuple):
    """A body, and of each slot its shape and dtype and whether it is constant.

    `known` has the values of the constants that aren't results of steps.
    """

    body: Body
    avals: list[Any]
    constant: list[bool]
    known: dict[int, Any]

    def is_constant(self, step: Step) -> bool:
        """Whether a step depends on neither parameters nor inputs."""
        return all(self.constant[i] for i in step.inputs)


def traced(
    function: Callable[..., Any], *args: Any, derivatives: bool = True
) -> tuple[Program, Any]:
    """The function's program for arguments of such shapes, and the structure of its result.

    Where no derivative is wanted, functions with their own are written out as well.
    """
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
    _check_shapes(closed.jaxpr)
    program = Program(Body([], [], []), [], [], {})
    program.body.inputs.extend(_slots(program, closed.jaxpr.invars))
    body = program.body
    calls = _CALLS if derivatives else _ALL_CALLS
    body.outputs.extend(_append(program, body.steps, closed, body.inputs, calls))
    return program, jax.tree.structure(shapes)


def _check_shapes(jaxpr: Jaxpr) -> None:
    """Raises a TypeError for symbolic sizes: axes are followed index by index."""
    for variable in jaxpr.invars:
        if not all(isinstance(size, int) for size in getattr(variable.aval, "shape", ())):
            raise TypeError(
                f"an input has the symbolic shape {variable.aval.str_short()}: a network can only "
                "be followed for shapes of numbers. Export it once for each batch size, or export "
                "the module of `shrink_module`, which takes symbolic shapes if the old one did"
            )


def _slot(program: Program, aval, constant: bool) -> int:
    program.avals.append(aval)
    program.constant.append(constant)
    return len(program.avals) - 1


def _slots(program: Program, variables) -> list[int]:
    return [_slot(program, x.aval, False) for x in variables]


def _given(program: Program, value, aval) -> int:
    slot = _slot(program, aval, True)
    program.known[slot] = value
    return slot


def _append(
    program: Program, steps: list[Step], closed: ClosedJaxpr, inputs, calls: dict[str, str]
) -> list[int]:
    """Appends the steps of a jaxpr with such inputs, `calls` written out; slots of its outputs."""
    slots = dict(zip(closed.jaxpr.invars, inputs, strict=True))
    for variable, value in zip(closed.jaxpr.constvars, closed.consts, strict=True):
        slots[variable] = _given(program, value, variable.aval)
    slot = lambda x: _given(program, x.val, x.aval) if isinstance(x, Literal) else slots[x]

    for equation in closed.jaxpr.eqns:
        name = equation.primitive.name
        operands = [slot(x) for x in equation.invars]
        constant = all(program.constant[i] for i in operands)
        bodies: tuple[Body, ...] = ()
        if name == "scan" and not constant:
            bodies = _scan(program, equation, operands, calls)
        elif name == "custom_jvp_call" and not (constant or name in calls):
            bodies = _custom_jvp(program, equation, operands)
        if name in {*calls, "custom_jvp_call"} and not bodies:
            inner = _closed(equation.params[_ALL_CALLS[name]])
            results = _append(program, steps, inner, operands, calls)
        else:
            results = [_slot(program, x.aval, constant) for x in equation.outvars]
            steps.append(Step(name, equation, operands, results, bodies))
        slots.update(zip(equation.outvars, results, strict=True))
    return [slot(x) for x in closed.jaxpr.outvars]


def _closed(jaxpr) -> ClosedJaxpr:
    return ClosedJaxpr(jaxpr, ()) if isinstance(jaxpr, Jaxpr) else jaxpr


def scan_counts(equation) -> tuple[int, int]:
    """How many inputs of a scan are the same in all iterations, and how many are carried."""
    params = equation.params
    if "ft_in" in params:  # since JAX 0.12
        constants, carried, _ = params["ft_in"].unpack()
        return len(constants), len(carried)
    return params["num_consts"], params["num_carry"]


def _scan(program: Program, equation, operands, calls: dict[str, str]) -> tuple[Body, ...]:
    closed = _closed(equation.params["jaxpr"])
    same, _ = scan_counts(equation)
    inputs = _slots(program, closed.jaxpr.invars[same:])
    return (_body(program, closed, [*operands[:same], *inputs], inputs, calls),)


def _custom_jvp(program: Program, equation, operands) -> tuple[Body, ...]:
    """No bodies where the derivative isn't one of a plain function of floating-point arrays."""
    params = equation.params
    moves = [not program.constant[i] for i in operands]
    inputs = [i for i, yes in zip(operands, moves, strict=True) if yes]
    floating = all(jnp.issubdtype(program.avals[i].dtype, jnp.floating) for i in inputs)
    if params["num_consts"] or params["symbolic_zeros"] or not floating:
        return ()
    jaxpr, constants, zeros = params["jvp_jaxpr_fun"].call_wrapped(*(not x for x in moves))
    if any(zeros):
        return ()
    rule = ClosedJaxpr(jaxpr, constants)
    tangents = [_slot(program, program.avals[i], False) for i in inputs]
    return (
        _body(program, _closed(params["call_jaxpr"]), operands, inputs, _CALLS),
        _body(program, rule, [*operands, *tangents], [*inputs, *tangents], _CALLS_IN_RULES),
    )


def _body(program: Program, closed, operands, inputs: list[int], calls: dict[str, str]) -> Body:
    body = Body([], inputs, [])
    body.outputs.extend(_append(program, body.steps, closed, operands, calls))
    return body


def bind(step: Step, values, **changed) -> list[Any]:
    """The results of a step's primitive, with some of its parameters changed."""
    primitive = step.equation.primitive
    bound = primitive.get_bind_params(step.equation.params | changed)
    functions, params = bound if isinstance(bound, tuple) else ([], bound)  # before JAX 0.12
    with step.equation.ctx.manager:
        results = primitive.bind(*functions, *values, **params)
    return list(results) if primitive.multiple_results else [results]


def all_steps(body: Body, times: int = 1) -> Iterator[tuple[Step, int]]:
    """The steps and those of the bodies in them; how often each one runs without derivatives."""
    for step in body.steps:
        yield step, times
        for number, inner in enumerate(step.bodies):
            inside = step.equation.params.get("length", 1) if number == 0 else 0
            yield from all_steps(inner, times * inside)


def constants(program: Program) -> dict[int, Any]:
    """The values of all constants."""
    values = dict(program.known)
    for step, _ in all_steps(program.body):
        if program.is_constant(step):
            results = bind(step, [values[i] for i in step.inputs])
            values.update(zip(step.outputs, results, strict=True))
    return values
