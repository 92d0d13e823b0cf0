"""A function's jaxpr as one list of steps, whose values are numbers of slots.

Calls (`jit`, `remat`, `custom_jvp`) are written out, so that whoever follows an axis through a
network sees primitives alone. What depends on neither parameters nor inputs is a constant.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

# Primitives that only call what is inside them, and where that is. Not `custom_vjp_call`: written
# out, it would lose its own derivative.
_CALLS = {"jit": "jaxpr", "remat2": "jaxpr", "checkpoint": "jaxpr", "custom_jvp_call": "call_jaxpr"}


class Step(NamedTuple):
    """One primitive; `inputs` and `outputs` are slots."""

    name: str
    equation: Any
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


class Program(NamedTuple):
    """Steps in their order; `avals` has each slot's shape and dtype, `known` the given constants.

    `constant` says of each slot whether it depends on neither parameters nor inputs.
    """

    steps: list[Step]
    avals: list[Any]
    inputs: list[int]
    outputs: list[int]
    known: dict[int, Any]
    constant: list[bool]


def traced(function: Callable[..., Any], *args: Any) -> tuple[Program, Any]:
    """The function's program for arguments of such shapes, and the structure of its result."""
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
    return written_out(closed), jax.tree.structure(shapes)


def written_out(closed: ClosedJaxpr) -> Program:
    """The program of a closed jaxpr."""
    program = Program([], [], [], [], {}, [])
    program.inputs.extend(_slot(program, x.aval, False) for x in closed.jaxpr.invars)
    program.outputs.extend(_append(program, closed, program.inputs))
    return program


def _slot(program: Program, aval, constant: bool) -> int:
    program.avals.append(aval)
    program.constant.append(constant)
    return len(program.avals) - 1


def _given(program: Program, value, aval) -> int:
    slot = _slot(program, aval, True)
    program.known[slot] = value
    return slot


def _append(program: Program, closed: ClosedJaxpr, inputs: list[int]) -> list[int]:
    """Appends the steps of a jaxpr with such inputs; the slots of its outputs."""
    slots = dict(zip(closed.jaxpr.invars, inputs, strict=True))
    for variable, value in zip(closed.jaxpr.constvars, closed.consts, strict=True):
        slots[variable] = _given(program, value, variable.aval)
    slot = lambda x: _given(program, x.val, x.aval) if isinstance(x, Literal) else slots[x]

    for equation in closed.jaxpr.eqns:
        name = equation.primitive.name
        operands = [slot(x) for x in equation.invars]
        if name in _CALLS:
            inner = equation.params[_CALLS[name]]
            inner = ClosedJaxpr(inner, ()) if isinstance(inner, Jaxpr) else inner
            results = _append(program, inner, operands)
        else:
            constant = all(program.constant[i] for i in operands)
            results = [_slot(program, x.aval, constant) for x in equation.outvars]
            program.steps.append(Step(name, equation, tuple(operands), tuple(results)))
        slots.update(zip(equation.outvars, results, strict=True))
    return [slot(x) for x in closed.jaxpr.outvars]


def is_constant(program: Program, step: Step) -> bool:
    """Whether a step depends on neither parameters nor inputs."""
    return all(program.constant[i] for i in step.inputs)


def bind(step: Step, values, **changed) -> list[Any]:
    """The results of a step's primitive, with some of its parameters changed."""
    primitive = step.equation.primitive
    bound = primitive.get_bind_params(step.equation.params | changed)
    functions, params = bound if isinstance(bound, tuple) else ([], bound)  # before JAX 0.12
    with step.equation.ctx.manager:
        results = primitive.bind(*functions, *values, **params)
    return list(results) if primitive.multiple_results else [results]


def constants(program: Program) -> dict[int, Any]:
    """The values of all constants."""
    values = dict(program.known)
    for step in program.steps:
        if is_constant(program, step):
            results = bind(step, [values[i] for i in step.inputs])
            values.update(zip(step.outputs, results, strict=True))
    return values
