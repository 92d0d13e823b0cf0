"""Which leaves scale and shift what a normalisation gives, by their names.

A scale is the last part of a path, `scale` or `gamma`, or a `weight` of one dimension, which no
product has; the shift lies beside it, as `bias`, `beta` or `offset`. A trailing `value` of NNX
doesn't count.
"""

import re

import chex
import jax

from jaxprune.trees import masks

_SCALE = re.compile(r"((?P<layer>.*)/)?(\w+_)?(scale|gamma)(/value)?")
_WEIGHT = re.compile(r"((?P<layer>.*)/)?weight(/value)?")
_SHIFT = re.compile(r"((?P<layer>.*)/)?(bias|beta|offset)(/value)?")


def scales(params: chex.ArrayTree) -> set[str]:
    """The paths of the scales of norms; there may be none."""
    return {name for name, leaf in _floating(params) if _scale_of(name, leaf)}


def scales_and_shifts(params: chex.ArrayTree) -> set[str]:
    """The paths of the scales of norms and of the shifts beside them."""
    found = _floating(params)
    layers = {scale["layer"] for name, leaf in found if (scale := _scale_of(name, leaf))}
    shifts = ((name, _SHIFT.fullmatch(name)) for name, _ in found)
    return scales(params) | {name for name, shift in shifts if shift and shift["layer"] in layers}


def _floating(params: chex.ArrayTree) -> list[tuple[str, jax.Array]]:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return [(masks.path_name(path), leaf) for path, leaf in leaves if masks.is_floating(leaf)]


def _scale_of(name: str, leaf: jax.Array) -> re.Match[str] | None:
    return _SCALE.fullmatch(name) or (_WEIGHT.fullmatch(name) if leaf.ndim == 1 else None)
