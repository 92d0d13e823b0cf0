"""An NNX module with smaller values, whose own sizes are true again.

A layer of Flax keeps the sizes that it was made with (`in_features`, `num_heads`). Most can be read
from the shapes of its parameters. How many groups a convolution or a GroupNorm has can't; that is
seen from which indices of the old parameters are left.
"""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from jaxprune.networks.removal import Kept, Shrunk
from jaxprune.trees import masks

# What is kept of a parameter of the layer, by its name; None if it isn't among the parameters.
Lookup = Callable[[str], Kept | None]


def with_values(module: nnx.Module, small: Shrunk) -> nnx.Module:
    """A copy of the module with the smaller values and sizes."""
    new = nnx.clone(module)
    nnx.update(new, small.params)
    kept = {_name(path): one for path, one in jax.tree_util.tree_leaves_with_path(small.indices)}
    for path, layer in list(nnx.iter_graph(new)):
        of_layer = lambda name, path=path: kept.get("/".join(map(str, (*path, name))))
        for name, size in _sizes(layer, of_layer).items():
            if hasattr(layer, name):  # not all versions of Flax have all of them
                setattr(layer, name, size)
    return new


def _name(path) -> str:
    """Such as `convs/0/kernel`."""
    return masks.path_name(path).removesuffix("/value")


def _sizes(layer: Any, kept: Lookup) -> dict[str, Any]:
    """The sizes of a layer of a known class; of anything else there are none."""
    for kind, rule in _RULES.items():
        if isinstance(layer, kind):
            return rule(layer, kept)
    return {}


def _linear(layer, kept: Lookup):
    *_, inputs, outputs = layer.kernel.shape
    return {"in_features": inputs, "out_features": outputs}


def _linear_general(layer, kept: Lookup):
    shape = layer.kernel.shape
    outputs = len(shape) - len(layer.out_features)
    inputs = outputs - len(layer.in_features)
    batch = shape[inputs - len(layer.batch_axis) : inputs]
    return {
        "in_features": shape[inputs:outputs],
        "out_features": shape[outputs:],
        "batch_axis": type(layer.batch_axis)(zip(layer.batch_axis, batch, strict=True)),
    }


def _einsum(layer, kept: Lookup):
    bias = layer.bias_shape and _last(layer.bias, len(layer.bias_shape))
    return {"kernel_shape": _last(layer.kernel, len(layer.kernel_shape)), "bias_shape": bias}


def _conv(layer, kept: Lookup):
    *_, inputs, outputs = layer.kernel.shape
    groups = _groups(kept("kernel"), layer.feature_group_count)
    return {
        "in_features": inputs * groups,
        "out_features": outputs,
        "feature_group_count": groups,
        "kernel_shape": _last(layer.kernel, len(layer.kernel_shape)),
    }


def _conv_transpose(layer, kept: Lookup):
    *_, inputs, outputs = layer.kernel.shape
    if layer.transpose_kernel:
        inputs, outputs = outputs, inputs
    shape = _last(layer.kernel, len(layer.kernel_shape))
    return {"in_features": inputs, "out_features": outputs, "kernel_shape": shape}


def _embed(layer, kept: Lookup):
    *_, words, features = layer.embedding.shape
    return {"num_embeddings": words, "features": features}


def _batch_norm(layer, kept: Lookup):
    return {"num_features": layer.mean.shape[-1]}


def _norm(layer, kept: Lookup):
    one = _scale_or_bias(layer)
    return {"num_features": getattr(layer, one).shape[-1]} if one else {}


def _group_norm(layer, kept: Lookup):
    one = _scale_or_bias(layer)
    if one is None:
        return {}
    groups = _groups(kept(one), layer.num_groups)
    return {"num_groups": groups, "group_size": getattr(layer, one).shape[-1] // groups}


def _attention(layer, kept: Lookup):
    *_, inputs, heads, width = layer.query.kernel.shape
    *_, kv_inputs, kv_heads, _ = layer.key.kernel.shape
    return {
        "num_heads": heads,
        "num_kv_heads": kv_heads,
        "head_dim": width,
        "in_features": inputs,
        "in_kv_features": kv_inputs,
        "qkv_features": heads * width,
        "out_features": layer.out.kernel.shape[-1],
    }


def _lora(layer, kept: Lookup):
    return {"in_features": layer.lora_a.shape[-2], "out_features": layer.lora_b.shape[-1]}


def _cell(inputs: str, hidden: str):
    """Of a recurrent cell with layers of such names."""
    size = lambda layer, name: getattr(layer, name).kernel.shape[-2]
    return lambda layer, kept: {
        "in_features": size(layer, inputs),
        "hidden_features": size(layer, hidden),
    }


def _last(value, rank: int) -> tuple[int, ...]:
    """The last axes: `nnx.vmap` puts more in front."""
    return tuple(value.shape[len(value.shape) - rank :])


def _scale_or_bias(layer) -> str | None:
    present = (name for name in ("scale", "bias") if getattr(layer, name, None) is not None)
    return next(present, None)


def _groups(kept: Kept | None, groups: int) -> int:
    """How many of the groups that a last axis consists of have anything left."""
    if kept is None:
        return groups
    return int(kept.axes[-1].reshape(groups, -1).any(1).sum())


_RULES: dict[type, Callable[[Any, Lookup], dict[str, Any]]] = {
    nnx.Linear: _linear,
    nnx.LinearGeneral: _linear_general,
    nnx.Einsum: _einsum,
    nnx.Conv: _conv,
    nnx.ConvTranspose: _conv_transpose,
    nnx.Embed: _embed,
    nnx.BatchNorm: _batch_norm,
    nnx.LayerNorm: _norm,
    nnx.RMSNorm: _norm,
    nnx.InstanceNorm: _norm,
    nnx.GroupNorm: _group_norm,
    nnx.MultiHeadAttention: _attention,
    nnx.LoRA: _lora,
    nnx.LSTMCell: _cell("ii", "hi"),
    nnx.OptimizedLSTMCell: _cell("dense_i", "dense_h"),
    nnx.SimpleCell: _cell("dense_i", "dense_h"),
    nnx.GRUCell: _cell("dense_i", "dense_h"),
}
