"""An Equinox module with smaller arrays, whose own sizes are true again.

An Equinox module is the tree of its arrays, and its sizes (`in_features`, `num_heads`) are static
fields, which stay as they were when arrays become smaller. As with Flax NNX (`attributes`), most
can be read from the shapes, and numbers of groups and heads from which indices are left.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
from equinox import nn

from jaxprune.networks.removal import Kept, Shrunk


def with_values(module: eqx.Module, small: Shrunk) -> eqx.Module:
    """A copy of the module with the smaller arrays and sizes."""
    try:
        return _with_sizes(eqx.combine(small.params, module), small.indices)
    except ValueError as error:
        raise ValueError(
            "the parameters aren't the module's: shrink what `eqx.partition(module, "
            f"eqx.is_inexact_array)` gives. {error}"
        ) from error


def _with_sizes(node: Any, kept: Any) -> Any:
    """The same tree with true sizes; `kept` has a `Kept` in the place of each parameter."""
    if jax.tree_util.all_leaves([node]):
        return node
    new = jax.tree.map(_with_sizes, node, kept, is_leaf=lambda child: child is not node)
    for name, size in _sizes(new, kept).items():
        object.__setattr__(new, name, size)  # a new object, which nobody else has yet
    return new


def _sizes(layer: Any, kept: Any) -> dict[str, Any]:
    """The sizes of a layer of a known class; of anything else there are none."""
    for kind, rule in _RULES.items():
        if isinstance(layer, kind):
            return rule(layer, kept)
    return {}


def _linear(layer, kept):
    *_, outputs, inputs = layer.weight.shape
    sizes = {"in_features": inputs, "out_features": outputs}
    return {name: size for name, size in sizes.items() if getattr(layer, name) != "scalar"}


def _conv(layer, kept):
    outputs, inputs = (-layer.num_spatial_dims - 2, -layer.num_spatial_dims - 1)
    groups = _groups(kept.weight, outputs, layer.groups)
    return {
        "in_channels": layer.weight.shape[inputs] * groups,
        "out_channels": layer.weight.shape[outputs],
        "groups": groups,
    }


def _embedding(layer, kept):
    *_, words, width = layer.weight.shape
    return {"num_embeddings": words, "embedding_size": width}


def _norm(layer, kept):
    one = layer.bias if layer.weight is None else layer.weight
    return {} if one is None else {"shape": one.shape[one.ndim - len(layer.shape) :]}


def _group_norm(layer, kept):
    if layer.weight is None:
        return {}
    groups = _groups(kept.weight, -1, layer.groups)
    return {"channels": layer.weight.shape[-1], "groups": groups}


def _attention(layer, kept):
    heads = _groups(kept.query_proj.weight, -2, layer.num_heads)
    query, key, value, output = (
        getattr(layer, f"{name}_proj") for name in ("query", "key", "value", "output")
    )
    return {
        "num_heads": heads,
        "query_size": query.in_features,
        "key_size": key.in_features,
        "value_size": value.in_features,
        "output_size": output.out_features,
        "qk_size": query.out_features // heads,
        "vo_size": value.out_features // heads,
    }


def _cell(layer, kept):
    return {"input_size": layer.weight_ih.shape[-1], "hidden_size": layer.weight_hh.shape[-1]}


def _mlp(layer, kept):
    """One width for all hidden layers; it stays where they have become different."""
    *hidden, last = layer.layers
    widths = {each.out_features for each in hidden}
    width = widths.pop() if len(widths) == 1 else layer.width_size
    ends = {"in_size": layer.layers[0].in_features, "out_size": last.out_features}
    return {**ends, "width_size": width}


def _groups(kept: Kept | None, axis: int, groups: int) -> int:
    """How many of the groups that an axis consists of have anything left."""
    if kept is None:
        return groups
    return int(kept.axes[axis].reshape(groups, -1).any(1).sum())


_RULES: dict[type, Callable[[Any, Any], dict[str, Any]]] = {
    nn.Linear: _linear,
    nn.Conv: _conv,
    nn.ConvTranspose: _conv,
    nn.Embedding: _embedding,
    nn.LayerNorm: _norm,
    nn.RMSNorm: _norm,
    nn.GroupNorm: _group_norm,
    nn.MultiheadAttention: _attention,
    nn.GRUCell: _cell,
    nn.LSTMCell: _cell,
    nn.MLP: _mlp,
}
