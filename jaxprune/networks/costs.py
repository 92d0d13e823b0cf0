"""What a network costs, as a polynomial in the groups that stay.

A leaf has as many entries, and a matrix product or convolution as many multiplications, as there
are tuples of indices of its axes: the product over the axes of how many indices stay. An index
stays with all groups that it belongs to, so that a head's and a width's share of it multiply as
well. Axes of one kind are counted once, and equal products are added up: what is left of a large
network is a few arrays of integers.
"""

import collections
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxprune.networks.coupling import Coupled
from jaxprune.networks.following import Passage
from jaxprune.networks.program import all_steps
from jaxprune.networks.rules import Axis

Groups = Callable[[int], tuple[int, ...]]  # those that an index with this term belongs to


class Cost(NamedTuple):
    r"""A polynomial of the numbers k that say of all groups, in one row, whether they stay.

    .. math::
      \sum_p f_p \prod_{a \in p} n_a, \qquad n_a = \sum_r t_{ar} \prod_{g \in a, r} k_g

    The product p has the factor f and the axes a; of axis a, t indices belong to the r-th set of
    groups. Axis 0 is the number 1, and behind the last group is one that always stays.
    """

    factors: np.ndarray  # (products,)
    axes: np.ndarray  # (products, most axes of any)
    times: np.ndarray  # (axes, most sets of any)
    groups: np.ndarray  # (axes, most sets of any, most groups of any)

    def total(self, keep: Any) -> Any:
        """The sum, of the kind of `keep`: an array of NumPy's or of JAX's, of any dtype."""
        xp = np if isinstance(keep, np.ndarray) else jnp
        like = lambda integers: xp.asarray(integers, keep.dtype)
        stays = xp.append(keep, like(1))[self.groups]
        counts = xp.sum(like(self.times) * xp.prod(stays, -1), -1)
        return xp.sum(like(self.factors) * xp.prod(counts[self.axes], -1))

    def saved_by(self, keep: np.ndarray) -> int:
        """By how much this is less than what all groups cost."""
        return int(self.total(np.ones(len(keep), int)) - self.total(keep.astype(int)))


def polynomials(found: Coupled, number: dict[int, int]) -> dict[str, Cost]:
    """The parameters and the floating-point operations, with the number of each group's variable.

    An operation is a multiplication or an addition of a product, for the inputs that the function
    was traced with, as often as loops run it.
    """
    known: dict[int, tuple[int, ...]] = {}

    def groups(root: int) -> tuple[int, ...]:
        if root not in known:
            variables = found.terms.variables(root)
            known[root] = tuple(sorted(number[v] for v in variables if v in number))
        return known[root]

    roots = lambda axes: [found.terms.roots(axis) for axis in axes]
    parameters = ((1, roots(axes)) for axes in found.leaves)
    flops = ((factor, roots(axes)) for factor, axes in _products(found))
    products = {"parameters": parameters, "flops": flops}
    return {name: _cost(terms, groups, len(number)) for name, terms in products.items()}


def _products(found: Coupled):
    for step, times in all_steps(found.program.body):
        if step.name in _PRODUCTS and id(step) in found.passages:
            yield 2 * times, _PRODUCTS[step.name](step, found.passages[id(step)])


def _of_matrix_product(step, passage: Passage) -> list[Axis]:
    (contracted, _), _ = step.equation.params["dimension_numbers"]
    return [*passage.results[0], *(passage.operands[0][i] for i in contracted)]


def _of_convolution(step, passage: Passage) -> list[Axis]:
    _, (_, *summed), _ = step.equation.params["dimension_numbers"]
    return [*passage.results[0], *(passage.operands[1][i] for i in summed)]


_PRODUCTS = {"dot_general": _of_matrix_product, "conv_general_dilated": _of_convolution}


def _cost(products, groups: Groups, number_of_groups: int) -> Cost:
    """The polynomial of pairs of a factor and axes of roots."""
    numbers: dict[tuple, int] = {(((), 1),): 0}
    factors: dict[tuple[int, ...], int] = collections.Counter()
    for factor, axes in products:
        every = [_sets(axis, groups) for axis in axes]
        fixed = [sum(times for _, times in sets) for sets in every if _is_fixed(sets)]
        moving = [numbers.setdefault(x, len(numbers)) for x in every if not _is_fixed(x)]
        factors[tuple(sorted(moving))] += factor * math.prod(fixed)
    times, sets = _table(numbers, none=number_of_groups)
    axes = np.zeros((len(factors), max(map(len, factors), default=0)), np.int32)
    for row, own in zip(axes, factors, strict=True):
        row[: len(own)] = own
    return Cost(np.array([*factors.values()], np.int64), axes, times, sets)


def _table(axes: Iterable[tuple], none: int) -> tuple[np.ndarray, np.ndarray]:
    """How many indices each set of each axis has, and its groups; filled up with 0 and `none`."""
    axes = list(axes)
    shape = len(axes), max(map(len, axes))
    times = np.zeros(shape, np.int64)
    most = max(len(own) for sets in axes for own, _ in sets)
    groups = np.full((*shape, most), none, np.int32)
    for i, sets in enumerate(axes):
        for j, (own, number) in enumerate(sets):
            times[i, j], groups[i, j, : len(own)] = number, own
    return times, groups


def _sets(axis: Axis, groups: Groups) -> tuple:
    """The sets of groups that indices of the axis belong to, with the number of these indices."""
    sets: dict[tuple[int, ...], int] = collections.Counter()
    roots, times = np.unique(axis, return_counts=True)
    for root, number in zip(roots.tolist(), times.tolist(), strict=True):
        sets[groups(root)] += number
    return tuple(sorted(sets.items()))


def _is_fixed(sets) -> bool:
    return not any(own for own, _ in sets)
