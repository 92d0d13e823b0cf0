"""Which groups leave a network under a mask, and with what parameters.

A group can leave if the mask prunes all that it has of some axis of a leaf. It does leave if
nothing of it reaches what stays (`silence`), or nothing but constants that a bias takes up
(`folding`). All others are pruned only in part: that is refused, or completed, or they are kept.
"""

from collections.abc import Container, Iterable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.networks import channels, folding, silence
from jaxprune.networks.channels import Analysis, Members
from jaxprune.networks.folding import Folding
from jaxprune.networks.rules import Axes
from jaxprune.networks.silence import Sum
from jaxprune.trees import masks

PARTIAL = ("refuse", "complete", "keep")


class Leaving(NamedTuple):
    """The groups that leave a network under a mask.

    `leaves` are those of the masked parameters, `numbers` what these are filled with, `added` what
    some of them take up.
    """

    groups: list[int]
    mask: chex.ArrayTree
    leaves: list[Any]
    numbers: list[Axes]
    added: dict[int, jax.Array]

    def folded(self) -> list[Any]:
        """The leaves with what they take up."""
        return [folding.with_added(leaf, self.added.get(i)) for i, leaf in enumerate(self.leaves)]


class _Judged(NamedTuple):
    """A masked network, and what is folded of it."""

    leaves: list[Any]
    numbers: list[Axes]
    folding: Folding


def leaving(
    analysis: Analysis, params: chex.ArrayTree, mask: chex.ArrayTree, partial: str
) -> Leaving:
    """Finds the groups that leave; raises a ValueError for those that are pruned in part."""
    pruned = _pruned_places(params, mask, analysis.members)
    judged = _judged(analysis, params, mask, pruned)
    partly = _partly_pruned(analysis, pruned, judged)
    if partly and partial == "refuse":
        raise ValueError(_refusal(analysis, pruned, judged, partly))
    if partly and partial == "complete":
        mask = _completed(params, mask, analysis.members, partly)
        judged = _judged(analysis, params, mask, pruned)
    groups = [variable for variable in pruned if variable not in judged.folding.obstacles]
    _check_something_stays(analysis, groups)
    return Leaving(groups, mask, judged.leaves, judged.numbers, judged.folding.added)


def keeps_of(params: chex.ArrayTree, mask: chex.ArrayTree) -> list[Any]:
    """What the mask has in the place of each leaf."""
    return jax.tree.structure(params).flatten_up_to(mask)


def _pruned_places(params, mask, of: Members) -> dict[int, list[tuple[int, int]]]:
    """The (leaf, axis) where the mask prunes all that a group has, of groups with any."""
    numbers = [
        None if keep is None else silence.numbers_of(keep) for keep in keeps_of(params, mask)
    ]
    pruned = lambda place, indices: (
        numbers[place[0]] and (numbers[place[0]][place[1]][indices] == 0).all()
    )
    found = {v: [at for at, own in places.items() if pruned(at, own)] for v, places in of.items()}
    return {variable: places for variable, places in found.items() if places}


def _judged(analysis: Analysis, params, mask, pruned: Container[int]) -> _Judged:
    leaves = jax.tree.leaves(masks.apply_mask(params, mask))
    numbers = [silence.numbers_of(leaf) for leaf in leaves]
    everything = silence.heard(analysis.found, silence.sums(analysis.found, numbers))
    heard: dict[int, list[Sum]] = {}
    for variable in (variable for variable in everything if variable in pruned):
        tolerated = {id(one.step) for one in analysis.statistics.get(variable, ())}
        if sums := [one for one in everything[variable] if id(one.step) not in tolerated]:
            heard[variable] = sums
    keeps = keeps_of(params, mask)
    return _Judged(leaves, numbers, folding.folding(analysis.found, heard, leaves, keeps))


def _partly_pruned(analysis: Analysis, pruned, judged: _Judged) -> list[int]:
    """The groups that are heard though the mask prunes them somewhere.

    Not those of which there is nothing left to prune, since other groups take it along.
    """
    found, of, obstacles = analysis.found, analysis.members, judged.folding.obstacles
    gone = found.terms.leaving(variable for variable in pruned if variable not in obstacles)
    taken = lambda at, indices: gone[found.leaves[at[0]][at[1]][indices]].all()
    return [
        variable
        for variable, places in pruned.items()
        if variable in obstacles and not all(taken(at, of[variable][at]) for at in places)
    ]


def _completed(params, mask, of: Members, variables: Iterable[int]) -> chex.ArrayTree:
    """The mask with all parameters of some groups pruned as well."""
    leaves, structure = jax.tree.flatten(params)
    keeps = keeps_of(params, mask)
    stays: dict[tuple[int, int], np.ndarray] = {}
    for variable in variables:
        for place, indices in of[variable].items():
            size = leaves[place[0]].shape[place[1]]
            stays.setdefault(place, np.ones(size, bool))[indices] = False
    for (leaf, axis), stay in stays.items():
        others = [i for i in range(leaves[leaf].ndim) if i != axis]
        stay = jnp.expand_dims(jnp.asarray(stay), others)
        before = keeps[leaf]
        keeps[leaf] = jnp.broadcast_to(
            stay if before is None else before & stay, leaves[leaf].shape
        )
    return structure.unflatten(keeps)


def _refusal(analysis: Analysis, pruned, judged: _Judged, partly: list[int]) -> str:
    """Of the first of such groups: what is pruned, what isn't, and where it is heard."""
    names, found, first = analysis.names, analysis.found, partly[0]
    places: dict[bool, list[str]] = {True: [], False: []}
    for (leaf, axis), indices in analysis.members[first].items():
        name = channels.axis_name(names[leaf], axis, len(found.leaves[leaf]))
        places[(leaf, axis) in pruned[first]].append(f"{name} with i = {_few(indices)}")
    return (
        f"the mask prunes a part of {len(partly)} groups of channels. One of them has lost "
        f"{'; '.join(places[True])}; but not {'; '.join(places[False]) or 'anything else'}, "
        f"and what it sends on is used in {judged.folding.obstacles[first]}. Prune all of it "
        '(`channel_mask`), or pass `partial="complete"` to have that done, or `partial="keep"` to '
        "leave such groups in"
    )


def _few(numbers: Sequence[int], most: int = 5) -> str:
    shown = ", ".join(map(str, numbers[:most]))
    return shown + (f", ... ({len(numbers)} in all)" if len(numbers) > most else "")


def _check_something_stays(analysis: Analysis, groups: list[int]) -> None:
    names, found = analysis.names, analysis.found
    gone = found.terms.leaving(groups)
    for leaf, axes in enumerate(found.leaves):
        for axis, terms in enumerate(axes):
            if len(terms) and gone[terms].all():
                name = channels.axis_name(names[leaf], axis, len(axes))
                raise ValueError(
                    f"nothing of {name} would stay: the mask prunes all of its {len(terms)} "
                    "indices. Keep at least one, as `budget_mask` does with `least=1`"
                )
