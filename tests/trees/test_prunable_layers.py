"""What `prunable` chooses by default in the layers of Flax NNX, Linen and Equinox.

For each layer the leaves that can be pruned, and the ones of two or more dimensions that stay
dense; all other leaves have fewer dimensions. Nothing is initialised, shapes are enough.
"""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import jaxprune as jp
from jaxprune.trees import masks

KEY = jax.random.key(0)
KEYS = jax.random.split(KEY, 3)
VECTOR, SEQUENCE = jnp.ones((2, 4)), jnp.ones((1, 3, 4))
IMAGE, VIDEO = jnp.ones((1, 8, 8, 3)), jnp.ones((1, 2, 8, 8, 3))


def rngs(key=KEY):
    return nnx.Rngs(key)


def state(make):
    return nnx.state(nnx.eval_shape(make), nnx.Param)


def stacked(make):
    """The state of three layers, as `nnx.scan` takes it."""
    return state(lambda: nnx.vmap(lambda key: make(nnx.Rngs(key)))(KEYS))


def linen(module, example):
    return jax.eval_shape(module.init, KEY, example)["params"]


class Stack(nn.Module):
    """Three layers for `nn.scan`."""

    @nn.compact
    def __call__(self, x):
        layer = lambda body, x, _: (body(x), None)
        scan = nn.scan(layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
        return scan(LinenBlock(), x, None)[0]


class LinenBlock(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.MultiHeadDotProductAttention(2)(x)
        return nn.Dense(4)(nn.LayerNorm()(x))


class Experts(nnx.Module):
    """A mixture of experts: a router, and kernels stacked over experts."""

    def __init__(self, rngs):
        self.router = nnx.Linear(4, 3, rngs=rngs)
        self.wi = nnx.Param(jnp.ones((3, 4, 8)))
        self.wo = nnx.Param(jnp.ones((3, 8, 4)))
        self.wi_bias = nnx.Param(jnp.ones((3, 8)))


def equinox_stacked():
    def block(key):
        norms = [eqx.nn.LayerNorm(5), eqx.nn.RMSNorm(5, use_bias=False)]
        return eqx.nn.Sequential([eqx.nn.Linear(4, 5, key=key), *norms])

    return eqx.filter_vmap(block)(KEYS)


def attention(kernels, biases, end=""):
    names = ("key", "out", "query", "value")
    return (
        {f"{name}/kernel{end}": shape for name, shape in zip(names, kernels, strict=True)},
        {f"{name}/bias{end}": shape for name, shape in zip(names, biases, strict=True) if shape},
    )


ONE_LAYER = [(4, 2, 2), (2, 2, 4), (4, 2, 2), (4, 2, 2)], [(2, 2), None, (2, 2), (2, 2)]
THREE_LAYERS = [[(3, *shape) for shape in ONE_LAYER[0]], [(3, 2, 2), (3, 4), (3, 2, 2), (3, 2, 2)]]
GATES = {f"h{gate}/kernel": (5, 5) for gate in "fgio"}
INPUTS = {f"i{gate}/kernel": (4, 5) for gate in "fgio"}
GRU = {f"h{gate}/kernel": (5, 5) for gate in "nrz"} | {f"i{g}/kernel": (4, 5) for g in "nrz"}


def at(prefix, leaves, end=""):
    return {f"{prefix}{name}{end}": shape for name, shape in leaves.items()}


# layer: (makes it, leaves that can be pruned, leaves of two or more dimensions that stay dense)
NNX = {
    "Linear": (lambda: nnx.Linear(4, 5, rngs=rngs()), {"kernel": (4, 5)}, {}),
    "LinearGeneral": (
        lambda: nnx.LinearGeneral((4,), (2, 3), rngs=rngs()),
        {"kernel": (4, 2, 3)}, {"bias": (2, 3)},
    ),
    "Einsum": (
        lambda: nnx.Einsum("ab,bcd->acd", (4, 5, 2), (5, 2), rngs=rngs()),
        {"kernel": (4, 5, 2)}, {"bias": (5, 2)},
    ),
    "Conv 1D": (lambda: nnx.Conv(3, 4, (5,), rngs=rngs()), {"kernel": (5, 3, 4)}, {}),
    "Conv 3D": (lambda: nnx.Conv(3, 4, (2, 2, 2), rngs=rngs()), {"kernel": (2, 2, 2, 3, 4)}, {}),
    "depthwise": (
        lambda: nnx.Conv(4, 4, (3, 3), feature_group_count=4, rngs=rngs()),
        {"kernel": (3, 3, 1, 4)}, {},
    ),
    "ConvTranspose": (
        lambda: nnx.ConvTranspose(3, 4, (3, 3), rngs=rngs()), {"kernel": (3, 3, 3, 4)}, {}
    ),
    "Embed": (lambda: nnx.Embed(7, 4, rngs=rngs()), {"embedding": (7, 4)}, {}),
    "attention": (
        lambda: nnx.MultiHeadAttention(2, 4, 4, normalize_qk=True, rngs=rngs()),
        *attention(*ONE_LAYER),
    ),
    "LSTM": (lambda: nnx.LSTMCell(4, 5, rngs=rngs()),
        GATES | {"if_/kernel": (4, 5)} | {k: v for k, v in INPUTS.items() if k != "if/kernel"}, {}),
    "optimized LSTM": (
        lambda: nnx.OptimizedLSTMCell(4, 5, rngs=rngs()),
        {"dense_h/kernel": (5, 20), "dense_i/kernel": (4, 20)}, {},
    ),
    "GRU": (
        lambda: nnx.GRUCell(4, 5, rngs=rngs()),
        {"dense_h/kernel": (5, 15), "dense_i/kernel": (4, 15)}, {},
    ),
    "LoRA": (
        lambda: nnx.LoRA(4, 2, 5, base_module=nnx.Linear(4, 5, rngs=rngs()), rngs=rngs()),
        {"base_module/kernel": (4, 5), "lora_a": (4, 2), "lora_b": (2, 5)}, {},
    ),
    "mixture of experts": (
        lambda: Experts(rngs()),
        {"router/kernel": (4, 3), "wi": (3, 4, 8), "wo": (3, 8, 4)}, {"wi_bias": (3, 8)},
    ),
}  # fmt: skip
NNX_STACKED = {
    "Linear": (lambda r: nnx.Linear(4, 5, rngs=r), {"kernel": (3, 4, 5)}, {"bias": (3, 5)}),
    "LayerNorm": (lambda r: nnx.LayerNorm(5, rngs=r), {}, {"bias": (3, 5), "scale": (3, 5)}),
    "BatchNorm": (lambda r: nnx.BatchNorm(5, rngs=r), {}, {"bias": (3, 5), "scale": (3, 5)}),
    "GroupNorm": (lambda r: nnx.GroupNorm(4, 2, rngs=r), {}, {"bias": (3, 4), "scale": (3, 4)}),
    "RMSNorm": (lambda r: nnx.RMSNorm(5, rngs=r), {}, {"scale": (3, 5)}),
    "attention": (lambda r: nnx.MultiHeadAttention(2, 4, 4, rngs=r), *attention(*THREE_LAYERS)),
}
LINEN = {
    "Dense": (nn.Dense(5), VECTOR, {"kernel": (4, 5)}, {}),
    "DenseGeneral": (nn.DenseGeneral((2, 3)), VECTOR, {"kernel": (4, 2, 3)}, {"bias": (2, 3)}),
    "Einsum": (
        nn.Einsum((4, 5, 2), "ab,bcd->acd"), VECTOR, {"kernel": (4, 5, 2)}, {"bias": (5, 2)}
    ),
    "Conv": (nn.Conv(4, (3, 3)), IMAGE, {"kernel": (3, 3, 3, 4)}, {}),
    "ConvLocal": (
        nn.ConvLocal(4, (3, 3)), IMAGE, {"kernel": (8, 8, 27, 4)}, {"bias": (8, 8, 4)}
    ),
    "ConvTranspose": (nn.ConvTranspose(4, (3, 3)), IMAGE, {"kernel": (3, 3, 3, 4)}, {}),
    "Embed": (nn.Embed(7, 4), jnp.ones(2, int), {"embedding": (7, 4)}, {}),
    "attention": (nn.MultiHeadDotProductAttention(2), SEQUENCE, *attention(*ONE_LAYER)),
    "LayerNorm of two axes": (
        nn.LayerNorm(reduction_axes=(-2, -1), feature_axes=(-2, -1)),
        SEQUENCE, {}, {"bias": (3, 4), "scale": (3, 4)},
    ),
    "LSTM": (nn.RNN(nn.LSTMCell(5)), SEQUENCE, at("cell/", GATES | INPUTS), {}),
    "optimized LSTM": (nn.RNN(nn.OptimizedLSTMCell(5)), SEQUENCE, at("cell/", GATES | INPUTS), {}),
    "GRU": (nn.RNN(nn.GRUCell(5)), SEQUENCE, at("cell/", GRU), {}),
    "convolutional LSTM": (
        nn.RNN(nn.ConvLSTMCell(4, (3, 3))), VIDEO,
        {"cell/hh/kernel": (3, 3, 4, 16), "cell/ih/kernel": (3, 3, 3, 16)}, {},
    ),
    "scan": (
        Stack(), SEQUENCE,
        {"LinenBlock_0/Dense_0/kernel": (3, 4, 4)}
        | at("LinenBlock_0/MultiHeadDotProductAttention_0/", attention(*THREE_LAYERS)[0]),
        {f"LinenBlock_0/{name}": (3, 4) for name in (
            "Dense_0/bias", "LayerNorm_0/bias", "LayerNorm_0/scale")}
        | at("LinenBlock_0/MultiHeadDotProductAttention_0/", attention(*THREE_LAYERS)[1]),
    ),
}  # fmt: skip
EQUINOX = {
    "Linear": (lambda: eqx.nn.Linear(4, 5, key=KEY), {"weight": (5, 4)}, {}),
    "Conv1d": (
        lambda: eqx.nn.Conv1d(3, 4, 5, key=KEY), {"weight": (4, 3, 5)}, {"bias": (4, 1)}
    ),
    "Conv2d": (
        lambda: eqx.nn.Conv2d(3, 4, 3, key=KEY), {"weight": (4, 3, 3, 3)}, {"bias": (4, 1, 1)}
    ),
    "ConvTranspose2d": (
        lambda: eqx.nn.ConvTranspose2d(3, 4, 3, key=KEY),
        {"weight": (4, 3, 3, 3)}, {"bias": (4, 1, 1)},
    ),
    "Embedding": (lambda: eqx.nn.Embedding(7, 4, key=KEY), {"weight": (7, 4)}, {}),
    "attention": (
        lambda: eqx.nn.MultiheadAttention(2, 4, use_query_bias=True, key=KEY),
        {f"{name}_proj/weight": (4, 4) for name in ("key", "output", "query", "value")}, {},
    ),
    "LayerNorm": (lambda: eqx.nn.LayerNorm((3, 4)), {}, {"weight": (3, 4), "bias": (3, 4)}),
    "RMSNorm": (lambda: eqx.nn.RMSNorm((3, 4), use_bias=False), {}, {"weight": (3, 4)}),
    "WeightNorm": (
        lambda: eqx.nn.WeightNorm(eqx.nn.Linear(4, 5, key=KEY), "weight"),
        {"layer/weight": (5, 4)}, {"g": (5, 1)},
    ),
    "LSTM": (
        lambda: eqx.nn.LSTMCell(4, 5, key=KEY), {"weight_ih": (20, 4), "weight_hh": (20, 5)}, {}
    ),
    "GRU": (
        lambda: eqx.nn.GRUCell(4, 5, key=KEY), {"weight_ih": (15, 4), "weight_hh": (15, 5)}, {}
    ),
    "MLP": (
        lambda: eqx.nn.MLP(4, 5, 6, 1, key=KEY),
        {"layers/0/weight": (6, 4), "layers/1/weight": (5, 6)}, {},
    ),
    "stacked": (
        equinox_stacked, {"layers/0/weight": (3, 5, 4)},
        {f"layers/{name}": (3, 5) for name in ("0/bias", "1/weight", "1/bias", "2/weight")},
    ),
}  # fmt: skip
NORM = {"scale": jnp.ones((3, 4)), "bias": jnp.ones((3, 4))}
PLAIN = {
    "haiku": ({"linear": {"w": jnp.ones((3, 4, 5)), "b": jnp.ones((3, 5))}}, ["linear/w"]),
    "by hand": ({"w1": jnp.ones((4, 5)), "b1": jnp.ones((1, 5)), "b12": jnp.ones((1, 5))}, ["w1"]),
    "offsets": ({"w": jnp.ones((4, 5)), "offset": jnp.ones((3, 5)), "gamma": jnp.ones((3, 5)),
                 "beta": jnp.ones((3, 5)), "logit_scale": jnp.ones((3, 1))}, ["w"]),
    "PyTorch": ({"weight_ih_l0": jnp.ones((20, 4)), "bias_ih_l0": jnp.ones((3, 20)),
                 "in_proj_bias": jnp.ones((3, 12))}, ["weight_ih_l0"]),
    "norms by their name": (
        {name: {"weight": jnp.ones((3, 4))} for name in (
            "norm", "norm1", "input_layernorm", "LayerNorm_0", "layer_norm_12", "ln_f", "ln1",
            "bn_2", "post_ln", "BatchNormalization", "head", "plain", "normals", "norm_of_head")},
        ["head/weight", "norm_of_head/weight", "normals/weight", "plain/weight"]),
    "a list": ([jnp.ones((2, 3)), jnp.ones(3)], ["0"]),
    "names that only resemble": (
        {name: jnp.ones((2, 3)) for name in (
            "lora_b", "basis", "bilinear", "rescale_kernel", "value")},
        ["basis", "bilinear", "lora_b", "rescale_kernel", "value"]),
}  # fmt: skip


def check(params, chosen, dense, end=""):
    mask = jp.prunable(params) if chosen else None
    leaves = jax.tree_util.tree_leaves_with_path(params)
    shapes = {masks.path_name(path): x.shape for path, x in leaves if x.ndim >= 2}
    assert shapes == at("", chosen | dense, end)
    kept = {masks.path_name(p): m.shape for p, m in jax.tree_util.tree_leaves_with_path(mask)}
    assert kept == at("", chosen, end)
    if not chosen:
        with pytest.raises(ValueError, match="of two or more dimensions that is no bias or scale"):
            jp.prunable(params)


@pytest.mark.parametrize("layer", NNX)
def test_nnx(layer):
    make, chosen, dense = NNX[layer]
    check(state(make), chosen, dense, end="/value")
    check(nnx.to_pure_dict(state(make)), chosen, dense)


@pytest.mark.parametrize("layer", NNX_STACKED)
def test_nnx_stacked(layer):
    make, chosen, dense = NNX_STACKED[layer]
    check(stacked(make), chosen, dense, end="/value")


@pytest.mark.parametrize("layer", LINEN)
def test_linen(layer):
    module, example, chosen, dense = LINEN[layer]
    check(linen(module, example), chosen, dense)


@pytest.mark.parametrize("layer", EQUINOX)
def test_equinox(layer):
    make, chosen, dense = EQUINOX[layer]
    shapes = eqx.filter_eval_shape(make)
    check(eqx.filter(shapes, lambda x: isinstance(x, jax.ShapeDtypeStruct)), chosen, dense)


@pytest.mark.parametrize("case", PLAIN)
def test_plain_trees(case):
    params, chosen = PLAIN[case]
    leaves = jax.tree_util.tree_leaves_with_path(jp.prunable(params))
    assert [masks.path_name(path) for path, _ in leaves] == chosen


def test_what_is_dense_by_default_can_be_chosen():
    params = {"dense": {"bias": jnp.ones((2, 2))}, "norm": {"weight": jnp.ones((2, 2))}}
    assert jp.count(jp.prunable(params, "bias")) == 4
    assert jp.count(jp.prunable(params, lambda path, leaf: True)) == 8


def test_heads_of_attention_have_norms_without_choosing_leaves():
    weights = nnx.state(nnx.MultiHeadAttention(2, 4, 4, rngs=rngs()), nnx.Param)
    mask = jp.threshold_mask(weights, 0.0, axis="heads")
    assert jp.count(mask) == 4 * 16
