"""A Linen module whose fields are smaller, found by trying.

A Linen module has its widths as integers in fields (`features=300`), its own or those of modules in
them, and makes its parameters when it is called. Which integer makes which axis nobody says. So
every integer is tried at the sizes that axes of such a length now have, and a change stays if
`init` then makes more axes of the right size. Shapes don't show everything: 2 heads of width 3 are
stored like 3 of width 2. Among what makes the right shapes, the outputs decide.
"""

import dataclasses
import functools
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from jaxprune.networks.removal import Kept
from jaxprune.trees import masks

Place = tuple[Any, ...]  # of an integer in a module: keys on the way to it
Sizes = dict[Place, int | None]
Shapes = dict[str, tuple[int, ...]]
Score = Callable[[Sizes], float]


def with_shapes(
    module: nn.Module,
    kept: dict[str, Kept],
    shapes: Callable[[nn.Module], Shapes],
    difference: Callable[[nn.Module], float],
) -> nn.Module:
    """The module with other integers, so that its parameters have the shapes that are kept.

    `shapes` are those that a module makes, `difference` says how far its outputs are off.
    """
    _check_is_of(kept, shapes(module))
    old = sizes_in(module)
    moves = _moves(old, list(kept.values()))
    pairs = _pairs(moves)
    wanted = {name: one.small_shape for name, one in kept.items()}
    axes = sum(map(len, wanted.values()))
    resized = lambda sizes: rebuilt(module, lambda place, size: sizes[place])
    fits = lambda sizes: _matches(shapes(resized(sizes)), wanted)
    sizes = _climbed(fits, old, [moves, _together(moves, old), pairs], axes)
    _check_fits(wanted, shapes(resized(sizes)), module)
    near = lambda sizes: -difference(resized(sizes)) if fits(sizes) == axes else -np.inf
    return resized(_climbed(near, sizes, [moves, pairs], 0.0))


def rebuilt(module: nn.Module, change: Callable[[Place, int | None], int | None]) -> nn.Module:
    """The module with `change(place, size)` in the place of each integer that may be a size.

    These are integers above 1 in fields, and None where an integer is allowed.
    """
    made: dict[int, Any] = {}

    def record(value, place: Place):
        if id(value) not in made:  # what is shared stays shared
            fields = [f for f in dataclasses.fields(value) if f.init and f.name not in _OF_LINEN]
            new = {f.name: inside(f, getattr(value, f.name), (*place, f.name)) for f in fields}
            made[id(value)] = _replaced(value, new)
        return made[id(value)]

    def inside(field, value, place: Place):
        optional = re.search(r"\bint\b", str(field.type)) is not None

        def leaf(path, x):
            at = (*place, *path)
            if _is_record(x):
                return record(x, at)
            return change(at, x) if _is_size(x) or (x is None and optional) else x

        is_leaf = lambda x: x is None or _is_record(x)
        return jax.tree_util.tree_map_with_path(leaf, value, is_leaf=is_leaf)

    return record(module, ())


def _replaced(record, fields: dict[str, Any]):
    """A clone with other values of fields."""
    if isinstance(record, nn.Module):
        return record.clone(**fields)
    return dataclasses.replace(record, **fields)


_OF_LINEN = ("parent", "name")
_NEAR = 4  # integers in a row that may have to change at once


def _is_record(x) -> bool:
    return dataclasses.is_dataclass(x) and not isinstance(x, type)


def _is_size(x) -> bool:
    return type(x) is int and x > 1


def sizes_in(module: nn.Module) -> Sizes:
    """The integers that may be sizes, in the order of the fields."""
    found: Sizes = {}

    def note(place: Place, size: int | None) -> int | None:
        found[place] = size
        return size

    rebuilt(module, note)
    return found


def _moves(old: Sizes, kept: list[Kept]) -> list[Sizes]:
    """Changes of one integer."""
    axes = {keep.tobytes(): keep for one in kept for keep in one.axes}
    pairs = [pair for one in kept for pair in itertools.pairwise(one.axes)]
    products = {(len(a) * len(b), int(a.sum() * b.sum())) for a, b in pairs}
    new = functools.cache(lambda size: _new_sizes(size, list(axes.values()), products))
    return [{place: number} for place, size in old.items() for number in new(size)]


def _together(moves: list[Sizes], old: Sizes) -> list[Sizes]:
    """The same change of two or more integers that follow each other among those of their size."""
    ways = {(old[place], new) for move in moves for place, new in move.items()}
    found = []
    for size, new in sorted(ways, key=str):
        places = [place for place in old if old[place] == size]
        for length, start in itertools.product(range(2, _NEAR + 1), range(len(places))):
            if start + length <= len(places):
                found.append(dict.fromkeys(places[start : start + length], new))
    return found


def _pairs(moves: list[Sizes]) -> list[Sizes]:
    """Changes of two integers that lie near each other."""
    places = list(dict.fromkeys(place for move in moves for place in move))
    number = {place: i for i, place in enumerate(places)}
    distance = lambda a, b: number[next(iter(b))] - number[next(iter(a))]
    return [a | b for a, b in itertools.combinations(moves, 2) if 0 < distance(a, b) < _NEAR]


def _new_sizes(size: int | None, axes: list[np.ndarray], products: set) -> list[int]:
    """What an integer may have become: of an axis, of two in a row, of what an axis consists of."""
    if size is None:
        found = {int(keep.sum()) for keep in axes} | {new for _, new in products}
    else:
        found = {new for old, new in products if old == size}
        found |= {new for keep in axes if not keep.all() for new in _left_of(keep, size)}
    return sorted(found - {size})


def _left_of(keep: np.ndarray, size: int) -> Iterator[int]:
    """Of an axis that runs through others, one of them of this length, what is left of that one."""
    others, rest = divmod(len(keep), size)
    for outer in range(1, others + 1):
        if rest == 0 and others % outer == 0:
            yield int(keep.reshape(outer, size, -1).any((0, 2)).sum())


def _climbed(score: Score, sizes: Sizes, levels: Sequence[Iterable[Sizes]], top: float) -> Sizes:
    """Sizes of a higher score, by the moves of the first level that still raises it."""
    score = _cautious(score)
    best, level = score(sizes), 0
    while best < top and level < len(levels):
        before = best
        for move in levels[level]:
            if best < top and (height := score(sizes | move)) > best:
                sizes, best = sizes | move, height
        level = 0 if best > before else level + 1
    return sizes


def _cautious(score: Score) -> Score:
    """The score, calculated once; the lowest where sizes don't go together."""

    @functools.cache
    def cached(items) -> float:
        try:
            return score(dict(items))
        except Exception:  # whatever a module says of sizes that it can't have
            return -np.inf

    return lambda sizes: cached(tuple(sizes.items()))


def _matches(shapes: Shapes, wanted: Shapes) -> float:
    """How many axes have the size that is wanted."""
    if shapes.keys() != wanted.keys():
        return -np.inf
    pairs = [(shapes[name], wanted[name]) for name in wanted]
    return sum(a == b for x, y in pairs if len(x) == len(y) for a, b in zip(x, y, strict=True))


def named(tree: Any) -> dict[str, Any]:
    """The leaves by their paths."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {masks.path_name(path): leaf for path, leaf in leaves}


def _check_is_of(kept: dict[str, Kept], made: Shapes) -> None:
    """Raises a ValueError unless the module makes the parameters that were shrunk."""
    old = {name: one.shape for name, one in kept.items()}
    if old == made:
        return
    name = min(name for name in old.keys() | made.keys() if old.get(name) != made.get(name))
    shape = lambda shapes: f"the shape {shapes[name]}" if name in shapes else "no such leaf"
    raise ValueError(
        f"the parameters that were shrunk aren't those of this module for these inputs: of leaf "
        f"'{name}', `module.init` makes {shape(made)}, and they had {shape(old)}. Shrink all "
        "variables that `init` makes, and pass the inputs and arguments of the call"
    )


def _check_fits(wanted: Shapes, made: Shapes, module: nn.Module) -> None:
    """Raises a ValueError that names the first leaf that no integers make as it must be."""
    for name, shape in wanted.items():
        if made[name] != shape:
            raise ValueError(
                f"no integers in the fields of {type(module).__name__} make leaf '{name}' of shape "
                f"{shape} (the nearest make {made[name]}): a width that is written in the code of "
                "a module, or follows from another one, can't change. Make it a field, or go on "
                "with `small.apply`, which computes with these parameters"
            )
