"""Which indices of which axes must leave a network together.

Every index of an axis is a term: a variable, or a tuple of variables of which any one takes the
index along. Where two axes meet index by index, their terms are unified, as in Prolog. A reshape
that splits an axis makes its indices tuples, so that what stays is a block in every shape: whoever
removes a head removes all of its entries from the flat axis. Terms can be fixed: inputs, outputs,
space, and all that nobody understands. The variables that are left are the groups.
"""

import functools
import itertools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxprune.networks.following import Follower, Passage
from jaxprune.networks.program import Program, Step
from jaxprune.networks.rules import Axes, Axis


class Terms:
    """Variables and tuples that are numbers, and which of them are one (union-find)."""

    def __init__(self):
        """There are none yet."""
        self.parents = np.arange(1024)
        self.plain = np.ones(1024, bool)  # neither fixed nor a tuple, ever
        self.count = 0
        self.parts: dict[int, tuple[int, ...]] = {}  # of roots that are tuples
        self.reasons: dict[int, str] = {}  # of roots that are fixed

    def fresh(self, count: int) -> Axis:
        """New variables."""
        start, self.count = self.count, self.count + count
        while (size := len(self.parents)) < self.count:
            self.parents = np.concatenate([self.parents, np.arange(size, 2 * size)])
            self.plain = np.concatenate([self.plain, np.ones(size, bool)])
        return np.arange(start, self.count)

    def roots(self, terms: Axis) -> Axis:
        """What stands for each term."""
        found = self.parents[terms]
        while not np.array_equal(found, above := self.parents[found]):
            found = above
        self.parents[terms] = found
        return found

    def root(self, term: int) -> int:
        """What stands for the term."""
        path = []
        while (above := int(self.parents[term])) != term:
            path.append(term)
            term = above
        if path:
            self.parents[path] = term
        return term

    def unify(self, a: Axis, b: Axis) -> None:
        """Makes one of each pair of terms."""
        a, b = self.roots(a), self.roots(b)
        a, b = a[a != b], b[a != b]
        both = np.concatenate([a, b])
        if self.plain[both].all() and len(np.unique(both)) == len(both):
            self.parents[b] = a
            return
        for pair in dict.fromkeys(zip(a.tolist(), b.tolist(), strict=True)):
            self._unify(*pair)

    def _unify(self, a: int, b: int) -> None:
        a, b = self._simplified(a), self._simplified(b)
        if a == b:
            return
        parts = [self._moving(x) for x in (a, b)]
        reason = self.reasons.get(a) or self.reasons.get(b)
        if self._inside(a, b) or self._inside(b, a):
            reason = reason or "it would have to be a part of itself"
        if all(parts) and len(parts[0]) != len(parts[1]):
            reason = reason or "it is split in two ways"
        tuples = [self.parts.pop(x, ()) for x in (a, b)]
        self.parents[b] = a
        self.plain[a] &= self.plain[b]
        self.reasons.pop(b, None)
        if reason:
            for part in itertools.chain(*tuples):
                self.fix(part, reason)
            self.reasons[a] = reason
        elif all(parts):
            self.parts[a] = tuples[0]
            for x, y in zip(*parts, strict=True):
                self._unify(x, y)
        elif any(tuples):
            self.parts[a] = tuples[0] or tuples[1]

    def _inside(self, a: int, b: int) -> bool:
        """Whether the tuple b has the term a in it."""
        return any(
            self.root(part) == a or self._inside(a, self.root(part))
            for part in self.parts.get(b, ())
        )

    def _moving(self, root: int) -> list[int]:
        """The parts of a tuple that aren't fixed."""
        roots = map(self.root, self.parts.get(root, ()))
        return [part for part in roots if part not in self.reasons]

    def _simplified(self, term: int) -> int:
        """The root; that of a tuple's part if the others are fixed."""
        root = self.root(term)
        if root not in self.parts:
            return root
        moving = self._moving(root)
        if not moving:
            self.fix(root, self.reasons[self.root(self.parts[root][0])])
        elif len(moving) == 1:
            del self.parts[root]
            self.parents[root] = moving[0]
        return self.root(root)

    def fix(self, term: int, reason: str) -> None:
        """Keeps the term for good, and with it all its parts."""
        root = self.root(term)
        self.reasons.setdefault(root, reason)
        self.plain[root] = False
        for part in self.parts.pop(root, ()):
            self.fix(part, reason)

    def tuples(self, axes: Sequence[Axis]) -> Axis:
        """Terms of the indices of a merged axis, the last of these axes running fastest."""
        columns = [grid.ravel() for grid in np.meshgrid(*axes, indexing="ij")]
        moves = [any(x not in self.reasons for x in set(self.roots(a).tolist())) for a in axes]
        moving = [column for column, yes in zip(columns, moves, strict=True) if yes]
        if len(moving) <= 1:
            return (moving or columns)[0]
        new = self.fresh(len(moving[0]))
        self.plain[new] = False
        tuples = zip(*(column.tolist() for column in moving), strict=True)
        self.parts.update(zip(new.tolist(), tuples, strict=True))
        return new

    def variables(self, term: int) -> frozenset[int]:
        """The variables that can leave, of which each takes the term along."""
        root = self.root(term)
        if root in self.reasons:
            return frozenset()
        if root not in self.parts:
            return frozenset([root])
        return frozenset().union(*map(self.variables, self.parts[root]))

    def can_leave(self, axis: Axis) -> np.ndarray:
        """Of each term, whether any variable takes it along."""
        roots, places = np.unique(self.roots(axis), return_inverse=True)
        return np.array([bool(self.variables(root)) for root in roots.tolist()], bool)[places]

    def reason(self, term: int) -> str:
        """Why the term is fixed, or all of its parts are."""
        root = self.root(term)
        return self.reasons.get(root) or self.reason(self.parts[root][0])

    def leaving(self, variables: Iterable[int]) -> np.ndarray:
        """Of each term, whether it leaves when these variables do."""
        gone = np.zeros(self.count, bool)
        gone[[root for variable in variables for root in self.carried(variable)]] = True
        return gone[self.roots(np.arange(self.count))]

    def carried(self, variable: int) -> list[int]:
        """The roots that a variable takes along: itself and tuples that it is in."""
        return [variable, *self._tuples_with.get(variable, ())]

    @functools.cached_property
    def _tuples_with(self) -> dict[int, list[int]]:
        found: dict[int, list[int]] = {}
        for root in self.parts:
            for variable in self.variables(root):
                found.setdefault(variable, []).append(root)
        return found


class Coupling:
    """The domain of terms: axes that meet are unified."""

    def __init__(self, program: Program, approximate: bool):
        """No axis has been followed yet."""
        self.program = program
        self.approximate = approximate
        self.terms = Terms()

    def begin(self, step: Step) -> None:
        """Remembers the step."""
        self.step = step

    def constant(self, slot: int) -> Axes:
        """A constant is calculated whole and cut to whatever it meets: it has new variables."""
        return tuple(self.terms.fresh(size) for size in self.program.avals[slot].shape)

    def copies(self, size: int) -> Axis:
        """There may be fewer copies."""
        return self.terms.fresh(size)

    def fixed(self, size: int, reason: str) -> Axis:
        """One term for all indices."""
        (term,) = self.terms.fresh(1)
        self.terms.fix(term, reason)
        return np.full(size, term)

    def fix(self, axis: Axis, reason: str) -> None:
        """Fixes all terms."""
        for term in set(self.terms.roots(axis).tolist()):
            self.terms.fix(term, reason)

    def elementwise(self, step: Step, axes: Sequence[Axis | None], size: int) -> Axis:
        """Axes of the same length are unified."""
        for axis in axes:
            if axis is not None and len(axis) != size:
                self.fix(axis, "it is broadcast")
        return self.alike([axis for axis in axes if axis is not None and len(axis) == size])

    def alike(self, axes: Sequence[Axis]) -> Axis:
        """Unifies."""
        for axis in axes[1:]:
            self.terms.unify(axes[0], axis)
        return axes[0]

    def padded(self, step: Step, axis: Axis) -> Axis:
        """As before."""
        return axis

    def either(self, a: Axis, b: Axis) -> Axis:
        """Unifies."""
        return self.alike([a, b])

    def summed(self, *operands: tuple[int, int, Axis]) -> None:
        """Unifies the axes of two operands."""
        self.alike([axis for _, _, axis in operands])

    def extreme(self, place: int, axis: Axis) -> None:
        """Fixes the axis, if nothing may be approximated."""
        if not self.approximate:
            self.fix(axis, f"`{self.step.name}` is taken over it")

    def reduced(self, step: Step, axis: Axis) -> Axis:
        """As before."""
        return axis

    def merged(self, axes: Sequence[Axis]) -> Axis:
        """Tuples."""
        return axes[0] if len(axes) == 1 else self.terms.tuples(axes)

    def split(self, axis: Axis, sizes: Sequence[int]) -> list[Axis]:
        """One of the new axes has the terms, if these differ along no other; or all new ones do."""
        for size in sizes:
            if size == len(axis):  # the others have one index
                return [axis if n == size else self.fixed(n, "it is single") for n in sizes]
        grid = self.terms.roots(axis).reshape(sizes)
        for i in range(len(sizes)):
            line = np.moveaxis(grid, i, 0).reshape(sizes[i], -1)
            if (line == line[:, :1]).all():
                whole = self.fixed(1, "it is split off").repeat
                return [line[:, 0] if i == j else whole(n) for j, n in enumerate(sizes)]
        new = [self.terms.fresh(size) for size in sizes]
        self.terms.unify(axis, self.terms.tuples(new))
        return new


class Coupled(NamedTuple):
    """A function's program with the terms of its axes.

    `leaves` has the axes of each leaf of the parameters, `passages` those around each step, by
    its `id`.
    """

    program: Program
    terms: Terms
    leaves: list[Axes]
    passages: dict[int, Passage]


def coupled(program: Program, number_of_leaves: int, approximate: bool = False) -> Coupled:
    """Follows the axes of the first inputs, which are the leaves of the parameters.

    With `approximate`, axes over which the largest entry is taken may become shorter too.
    """
    domain = Coupling(program, approximate)
    avals = [program.avals[i] for i in program.body.inputs]
    leaves = [_leaf(domain, aval) for aval in avals[:number_of_leaves]]
    others = [_fixed(domain, aval, "it is the inputs'") for aval in avals[number_of_leaves:]]
    follower = Follower(program, domain)
    for axis in itertools.chain(*follower.follow(program.body, [*leaves, *others])):
        domain.fix(axis, "it is the output's")
    return Coupled(program, domain.terms, leaves, follower.passages)


def _leaf(domain: Coupling, aval) -> Axes:
    if jax.numpy.issubdtype(aval.dtype, jax.numpy.floating):
        return tuple(map(domain.terms.fresh, aval.shape))
    return _fixed(domain, aval, "it isn't floating-point")


def _fixed(domain: Coupling, aval: Any, reason: str) -> Axes:
    return tuple(domain.fixed(size, reason) for size in aval.shape)
