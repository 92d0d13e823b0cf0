"""Channels, neurons, heads and widths of any network, as groups that can leave it.

The axes of the function's jaxpr say which indices of which leaves go together (`coupling`); groups
that would change what stays even if all of their parameters were zero, such as those that a
softmax runs over, are fixed as well (`silence`), unless the user wants to approximate. Groups of
one kind make a family.
"""

from __future__ import annotations

import collections
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import numpy as np

from jaxprune.networks import costs, silence
from jaxprune.networks.coupling import Coupled, coupled
from jaxprune.networks.program import traced
from jaxprune.trees import checks, masks

Members = dict[int, dict[tuple[int, int], list[int]]]
Statistics = dict[int, list[silence.Sum]]


class Analysis(NamedTuple):
    """The names of leaves, the terms of all axes, the groups that can leave, and what they change.

    `statistics` has the sums that hear of a group even when its parameters are zero; there are none
    unless they may be approximated.
    """

    names: list[str]
    found: Coupled
    members: Members
    statistics: Statistics


class Place(NamedTuple):
    """Where a family's groups lie in one axis of a leaf.

    `indices` is an int array (groups, entries): what each group has of the axis. The name is such
    as `conv/kernel[:, :, :, i]`, or `out/kernel[i, :] x64` where each group has 64 entries.
    """

    name: str
    leaf: str
    axis: int
    indices: np.ndarray


class ChannelGroups(NamedTuple):
    """A family of groups of one kind, and what leaves with any one of them.

    `parameters` and `flops` (two for each multiplication and addition of a matrix product or
    convolution, for the example inputs) are what the removal of one group saves while all others
    stay. `approximated` says what the removal changes even if the group's parameters are zero, such
    as "`reduce_max` of float32[1,3]"; nothing, unless this was asked for.
    """

    name: str
    places: tuple[Place, ...]
    parameters: int
    flops: int
    approximated: str = ""

    @property
    def size(self) -> int:
        """The number of groups."""
        return len(self.places[0].indices)


class FixedAxis(NamedTuple):
    """Indices of an axis of a leaf that can't leave, and the reason for the first of them."""

    name: str
    leaf: str
    axis: int
    indices: np.ndarray
    reason: str


class Channels(NamedTuple):
    """The families of groups of a network, and what is fixed. As text, it is a table.

    `costs` has what `channel_cost` calculates with.
    """

    groups: tuple[ChannelGroups, ...]
    fixed: tuple[FixedAxis, ...]
    costs: dict[str, costs.Cost]

    def __str__(self):
        """The families and the fixed axes, one a line."""
        rows: list[tuple[str, ...]] = [("groups", "number", "parameters", "flops", "with them")]
        for family in self.groups:
            others = [place.name for place in family.places if place.name != family.name]
            numbers = (family.size, family.parameters, family.flops)
            rows.append((family.name, *map("{:,}".format, numbers), ", ".join(others)))
        widths = [*[max(map(len, column)) for column in zip(*rows, strict=True)][:-1], 0]
        lines = (
            "  ".join(
                cell.rjust(width) if i in (1, 2, 3) else cell.ljust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        )
        reasons: dict[str, list[str]] = {}
        for axis in self.fixed:
            reasons.setdefault(axis.reason, []).append(axis.name)
        fixed = (f"fixed, as {reason}: {', '.join(axes)}" for reason, axes in reasons.items())
        approximated = (
            f"approximated, as it changes {family.approximated}: {family.name}"
            for family in self.groups
            if family.approximated
        )
        return "\n".join([*(line.rstrip() for line in lines), *approximated, *fixed])


def channel_groups(
    apply: Callable[..., Any],
    params: chex.ArrayTree,
    *example_inputs: Any,
    approximate: bool = False,
) -> Channels:
    """Finds what can leave a network: which indices of which parameters must go together.

    The function is traced, and every axis followed through it: through products, convolutions,
    sums, concatenations, reshapes (flattened images, heads, fused queries, keys and values). What
    isn't understood stays: inputs, outputs, axes of space and time, loops, and whatever would give
    something else if the group's parameters were all zero, such as a softmax over it.

    Args:
      apply: pure function `apply(params, *inputs)`, with BatchNorm in its evaluation form. Running
        averages may be among the parameters (Linen's whole `variables`) or in the closure.
      params: any tree of arrays, or of their shapes. Leaves that aren't floating-point stay.
      *example_inputs: trees of arrays, or of their shapes.
      approximate: whether groups may leave that a statistic runs over (the sum and the largest
        entry of a softmax, the variance of a LayerNorm), which is another one without them. Their
        families say so in `approximated`.

    Returns:
      `Channels(groups, fixed)`: families of groups, each with a `name`, `size`, `places`
      (leaf, axis, indices), and the `parameters` and `flops` that the removal of one group saves;
      and the axes that are fixed, with reasons. `print` shows a table.

    Raises:
      TypeError: for an `apply` that is no function or what is no tree of arrays.

    >>> import jax.numpy as jnp
    >>> import jaxprune as jp
    >>> params = {"a": jnp.ones((2, 3)), "bias": jnp.ones(3), "b": jnp.ones((3, 4))}
    >>> apply = lambda p, x: jnp.tanh(x @ p["a"] + p["bias"]) @ p["b"]
    >>> print(jp.channel_groups(apply, params, jnp.ones((1, 2))))
    groups   number  parameters  flops  with them
    a[:, i]       3           7     12  b[i, :], bias[i]
    fixed, as it is the inputs': a[i, :]
    fixed, as it is the output's: b[:, i]
    """
    return described(*analysed(apply, params, example_inputs, approximate))


def analysed(
    apply: Callable[..., Any], params: chex.ArrayTree, inputs: Sequence[Any], approximate: bool
) -> Analysis:
    """Which groups a network has."""
    checks.function("`apply`", apply)
    checks.tree("the parameters", params)
    names = [masks.path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    program, _ = traced(apply, params, *inputs)
    found = coupled(program, len(names), approximate)
    for axis in itertools.chain(*found.leaves):
        if len(roots := np.unique(found.terms.roots(axis))) == 1:
            found.terms.fix(int(roots[0]), "it is all there is")
    of = members(found)
    heard = _heard_in_any_case(found, of)
    if approximate:
        return Analysis(names, found, of, heard)
    for variable, places in heard.items():
        found.terms.fix(variable, f"it changes {places[0]} even when its parameters are zero")
        del of[variable]
    return Analysis(names, found, of, {})


def _heard_in_any_case(found: Coupled, of: Members) -> Statistics:
    """The groups that something depends on even when their parameters are zero."""
    heard: Statistics = {}
    for variables in _apart(found, of):
        gone = found.terms.leaving(variables)
        zeros = [tuple(np.where(gone[axis], 0.0, np.nan) for axis in axes) for axes in found.leaves]
        places = silence.heard(found, silence.sums(found, zeros))
        heard |= {variable: places[variable] for variable in variables & places.keys()}
    return heard


def _apart(found: Coupled, of: Members) -> list[set[int]]:
    """Sets of groups that share nothing, such as heads, and the entries of heads.

    If both were zero at once, what each of them leaves behind would go unnoticed.
    """
    beside: dict[int, set[int]] = collections.defaultdict(set)
    for together in {found.terms.variables(root) for root in found.terms.parts}:
        for variable in together:
            beside[variable] |= together
    sets: list[set[int]] = []
    for variable in of:
        free = (one for one in sets if one.isdisjoint(beside[variable]))
        own = next(free, None)
        if own is None:
            sets.append(own := set())
        own.add(variable)
    return sets


def members(found: Coupled) -> Members:
    """Of each variable that can leave, what it has of each (leaf, axis)."""
    of: Members = collections.defaultdict(lambda: collections.defaultdict(list))
    variables = functools.cache(found.terms.variables)
    for leaf, axes in enumerate(found.leaves):
        for axis, terms in enumerate(axes):
            for index, root in enumerate(found.terms.roots(terms).tolist()):
                for variable in sorted(variables(root)):
                    of[variable][leaf, axis].append(index)
    return of


def families(of: Members) -> dict[tuple, list[int]]:
    """The variables of each kind: those with as much of the same axes, but none of it shared.

    So the heads of a flat axis are one family and the entries of a head another, though both may
    take the same number of indices along.
    """
    alike: dict[tuple, list[int]] = {}
    taken: dict[tuple, set] = {}
    for variable, places in of.items():
        kind = tuple((place, len(indices)) for place, indices in places.items())
        entries = {(place, index) for place, indices in places.items() for index in indices}
        number = 0
        while not taken.setdefault((kind, number), set()).isdisjoint(entries):
            number += 1
        taken[kind, number] |= entries
        alike.setdefault((kind, number), []).append(variable)
    return alike


def described(names: list[str], found: Coupled, of: Members, statistics: Statistics) -> Channels:
    """The public form of families and fixed axes."""
    alike = [*families(of).values()]
    number = {variable: i for i, variable in enumerate(itertools.chain(*alike))}
    polynomials = costs.polynomials(found, number)
    groups = []
    for variables in alike:
        without = np.arange(len(number)) != number[variables[0]]
        saves = {name: cost.saved_by(without) for name, cost in polynomials.items()}
        family = _family(names, found, of, variables, saves)
        groups.append(family._replace(approximated=_changed(variables, statistics)))
    return Channels(tuple(groups), tuple(_fixed_axes(names, found)), polynomials)


def _family(names, found: Coupled, of: Members, variables: list[int], saves: dict[str, int]):
    places = []
    ranks = {}
    for leaf, axis in of[variables[0]]:
        rank = len(found.leaves[leaf])
        indices = np.array([of[variable][leaf, axis] for variable in variables])
        entries = indices.shape[1]
        name = axis_name(names[leaf], axis, rank) + (f" x{entries}" if entries > 1 else "")
        places.append(Place(name, names[leaf], axis, indices))
        ranks[name] = (-rank, -axis)
    name = min((place.name for place in places), key=ranks.__getitem__)
    return ChannelGroups(name, tuple(places), saves["parameters"], saves["flops"])


def _changed(variables: list[int], statistics: Statistics) -> str:
    """The first statistic that one of the groups changes."""
    return next((str(statistics[v][0]) for v in variables if v in statistics), "")


def axis_name(leaf: str, axis: int, rank: int) -> str:
    """Such as `kernel[:, i]`."""
    return f"{leaf}[{', '.join('i' if i == axis else ':' for i in range(rank))}]"


def _fixed_axes(names, found: Coupled):
    for leaf, axes in enumerate(found.leaves):
        for axis, terms in enumerate(axes):
            fixed = np.flatnonzero(~found.terms.can_leave(terms))
            if len(fixed):
                reason = found.terms.reason(int(terms[fixed[0]]))
                name = axis_name(names[leaf], axis, len(axes))
                yield FixedAxis(name, names[leaf], axis, fixed, reason)
