"""What `prune_to` and `keep_sparse` choose, against NumPy: targets, scores and scopes."""

import chex
import equinox as eqx
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp

SHAPES = {"conv": (3, 3, 4, 8), "first": (16, 8), "head": (8, 12)}


def params(seed=0, dtype=np.float32):
    random = np.random.default_rng(seed)
    made = {name: {"kernel": random.normal(size=shape)} for name, shape in SHAPES.items()}
    made["head"]["bias"] = np.ones(12)
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), made)


def kernels(tree):
    return {name: np.asarray(tree[name]["kernel"]) for name in SHAPES}


def largest(scores, kept):
    """The largest of all scores, equal ones in order of position."""
    flat = np.concatenate([leaf.ravel() for leaf in scores.values()])
    keep = np.zeros(flat.size, bool)
    keep[np.argsort(-flat, kind="stable")[:kept]] = True
    parts = np.split(keep, np.cumsum([leaf.size for leaf in scores.values()])[:-1])
    return {
        name: part.reshape(leaf.shape)
        for (name, leaf), part in zip(scores.items(), parts, strict=True)
    }


def assert_masks(mask, expected):
    for name, keep in kernels(mask).items():
        np.testing.assert_array_equal(keep, expected[name], err_msg=name)
    assert mask["head"]["bias"] is None


def targets(**of_layers):
    return {
        name: {"kernel": of_layers[name]} | ({"bias": None} if name == "head" else {})
        for name in SHAPES
    }


# Targets and scopes -------------------------------------------------------------------------------


def test_a_fraction_of_the_whole_tree_or_of_each_layer():
    weights = params()
    sizes = {name: abs(leaf) for name, leaf in kernels(weights).items()}
    pruned, mask = jp.prune_to(weights, 0.9)
    total = sum(leaf.size for leaf in sizes.values())
    assert_masks(mask, largest(sizes, total - round(0.9 * total)))
    jax.tree.map(np.testing.assert_array_equal, pruned, jp.apply_mask(weights, mask))
    _, mask = jp.prune_to(weights, 0.9, scope="layer")
    assert_masks(mask, {
        name: largest({name: leaf}, leaf.size - round(0.9 * leaf.size))[name]
        for name, leaf in sizes.items()
    })  # fmt: skip


def test_a_tree_of_targets():
    weights = params()
    wanted = targets(conv=jp.Blocks(0.5, "outputs"), first="2:4", head=0.75)
    _, mask = jp.prune_to(weights, wanted)
    found = kernels(mask)
    norms = np.abs(kernels(weights)["conv"]).mean((0, 1, 2))
    channels = largest({"conv": norms}, 4)["conv"]
    np.testing.assert_array_equal(found["conv"], np.broadcast_to(channels, SHAPES["conv"]))
    np.testing.assert_array_equal(found["first"].reshape(4, 4, 8).sum(1), 2)
    assert found["head"].sum() == 24 and mask["head"]["bias"] is None
    tx = optax.chain(optax.sgd(0.0), jp.keep_sparse(wanted))
    _, state = jax.jit(tx.update)(optax.tree.zeros_like(weights), tx.init(weights), weights)
    jax.tree.map(np.testing.assert_array_equal, optax.tree.get(state, "mask"), mask)


def test_equal_patterns_in_a_tree_are_those_of_a_whole_tree():
    pattern = jp.NM(2, 4, transposable=True)
    _, alone = jp.prune_to(params(), pattern, where="kernel")
    _, mask = jp.prune_to(params(), targets(conv=pattern, first=pattern, head=pattern))
    assert_masks(mask, kernels(alone))


@hypothesis.given(
    shape=st.lists(st.integers(1, 9), min_size=2, max_size=4).map(tuple),
    block=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    sparsity=st.floats(0, 1),
    seed=st.integers(0, 9),
)
@hypothesis.settings(max_examples=10)
def test_tiles(shape, block, sparsity, seed):
    """Those of the largest mean stay, also where a side doesn't divide."""
    weights = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    mask = jp.prune_to({"w": weights}, jp.Blocks(sparsity, block), where="w")[1]["w"]
    matrices = abs(weights).reshape(-1, *shape[-2:])
    spans = [range(0, size, side) for size, side in zip(shape[-2:], block, strict=True)]
    cells = [
        (k, slice(i, i + block[0]), slice(j, j + block[1]))
        for k in range(len(matrices)) for i in spans[0] for j in spans[1]
    ]  # fmt: skip
    means = np.array([matrices[cell].mean() for cell in cells])
    kept = len(cells) - round(sparsity * len(cells))
    found = np.asarray(mask).reshape(matrices.shape)
    whole = [found[cell].all() for cell in cells]
    assert whole == [found[cell].any() for cell in cells]
    assert sum(whole) == kept
    if 0 < kept < len(cells):
        assert means[whole].min() >= means[~np.array(whole)].max() - 1e-6


def test_blocks_on_a_mesh_are_those_of_one_device():
    weights = params()
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Explicit,))
    put = lambda leaf: jax.device_put(
        leaf, jax.NamedSharding(mesh, jax.P(*[None] * (leaf.ndim - 1), "x"))
    )
    kernels_of = lambda tree: {name: tree[name]["kernel"] for name in ("conv", "first")}
    spread = jax.tree.map(put, kernels_of(weights))
    for block in ((4, 2), "outputs", "inputs"):
        _, alone = jp.prune_to(kernels_of(weights), jp.Blocks(0.5, block))
        _, mask = jax.jit(lambda tree, block=block: jp.prune_to(tree, jp.Blocks(0.5, block)))(
            spread
        )
        jax.tree.map(np.testing.assert_array_equal, mask, alone)
        assert all(leaf.sharding.spec[-1] == "x" for leaf in jax.tree.leaves(mask))


def test_two_links_with_leaves_of_their_own():
    weights = params()
    links = jp.keep_sparse("2:4", where="first"), jp.keep_sparse(0.75, where="head/kernel")
    tx = optax.chain(optax.sgd(0.1, momentum=0.9), *links)
    state, update = tx.init(weights), jax.jit(tx.update)
    for _ in range(3):
        updates, state = update(jax.tree.map(jnp.cos, weights), state, weights)
        weights = optax.apply_updates(weights, updates)
    found = {name: leaf != 0 for name, leaf in kernels(weights).items()}
    np.testing.assert_array_equal(found["first"].reshape(4, 4, 8).sum(1), 2)
    assert found["head"].sum() == 24 and found["conv"].all()
    assert jp.problems(state) == []


# Scores -------------------------------------------------------------------------------------------


def test_scores_of_gradients():
    weights, grad = params(), params(seed=1)
    sizes = {name: abs(kernels(weights)[name] * kernels(grad)[name]) for name in SHAPES}
    total = sum(leaf.size for leaf in sizes.values())
    expected = largest(sizes, total - round(0.8 * total))
    _, mask = jp.prune_to(weights, 0.8, score="saliency", grad=grad)
    assert_masks(mask, expected)
    own = lambda params, grad: jax.tree.map(lambda w, g: abs(w * g), params, grad)
    assert_masks(jp.prune_to(weights, 0.8, score=own, grad=grad)[1], expected)
    scores = jax.tree.map(lambda w, g: abs(w * g), weights, grad)
    assert_masks(jp.prune_to(weights, 0.8, score=scores)[1], expected)
    tx = optax.chain(optax.sgd(0.1), jp.keep_sparse(0.8, score="saliency"))
    _, state = jax.jit(tx.update)(grad, tx.init(weights), weights, grad=grad)
    assert_masks(optax.tree.get(state, "mask"), expected)


def test_wanda_by_a_function():
    weights = params()
    norms = {
        name: jnp.broadcast_to(jnp.arange(1.0, shape[-2] + 1)[:, None], shape)
        for name, shape in SHAPES.items()
    }
    score = lambda params, grad: {
        name: {**params[name], "kernel": abs(params[name]["kernel"]) * norms[name]}
        for name in SHAPES
    }
    sizes = {name: abs(leaf) * np.asarray(norms[name]) for name, leaf in kernels(weights).items()}
    total = sum(leaf.size for leaf in sizes.values())
    assert_masks(jp.prune_to(weights, 0.5, score=score)[1], largest(sizes, total // 2))


@pytest.mark.parametrize("around", [lambda f: f, jax.jit], ids=["concrete", "traced"])
def test_a_tree_of_patterns_whose_n_is_an_array(around):
    own = lambda n: targets(conv=jp.NM(n, 4), first=jp.NM(n, 4), head="2:4")
    found = around(lambda n: jp.prune_to(params(), own(n))[1])(jnp.int32(1))
    chex.assert_trees_all_equal(found, jp.prune_to(params(), own(1))[1])


def test_missing_gradients_name_the_argument_of_prune_to():
    with pytest.raises(ValueError, match=r"prune_to\(.*grad=jax.grad\(loss\)\(params\)"):
        jp.prune_to(params(), 0.5, score="saliency")


def test_scores_in_a_module_that_can_be_called():
    params, rest = eqx.partition(eqx.nn.MLP(4, 2, 8, 1, key=jax.random.key(0)), eqx.is_array)
    loss = lambda params: jnp.sum(eqx.combine(params, rest)(jnp.ones(4)) ** 2)
    scores = jp.grasp_scores(loss, params)
    _, mask = jp.prune_to(params, 0.5, score=scores)
    assert jp.count(mask) == 24
    pairs = jax.tree.map(
        lambda s, m: None if m is None else (s[m].min(), s[~m].max()), scores, mask
    )
    kept, pruned = np.reshape(jax.tree.leaves(pairs), (-1, 2)).T
    assert kept.min() >= pruned.max()


def test_patterns_and_blocks_by_other_scores():
    weights, grad = params(), params(seed=1)
    _, mask = jp.prune_to(weights, "2:4", score="saliency", grad=grad, where="kernel")
    of_products = jax.tree.map(lambda w, g: abs(w * g), weights, grad)
    for name in SHAPES:
        expected = jp.nm_mask(of_products[name]["kernel"], 2, 4)
        np.testing.assert_array_equal(mask[name]["kernel"], expected)


def test_random_masks_lie_in_each_other():
    few = jp.prune_to(params(), 0.9, score="random")[1]
    many = jp.prune_to(params(seed=1), 0.5, score="random")[1]
    total = sum(np.prod(shape) for shape in SHAPES.values())
    assert jp.count(few) == total - round(0.9 * total)
    for name in SHAPES:
        assert not np.any(few[name]["kernel"] & ~many[name]["kernel"])
        assert 0.3 < many[name]["kernel"].mean() < 0.7


@pytest.mark.parametrize("behind", [False, True], ids=["in a chain", "straight through"])
def test_movement_sums_over_all_updates(behind):
    """Chosen every third update by what all gradients so far have done."""
    keep = jp.keep_sparse(0.75, score="movement", every=3)
    inner = optax.sgd(0.1)
    tx = jp.straight_through(inner, keep) if behind else optax.chain(inner, keep)
    weights = {"w": params()["first"]["kernel"]}
    state, update = tx.init(weights), jax.jit(tx.update)
    dense = np.asarray(weights["w"], np.float64)
    moved, mask = np.zeros(dense.shape), np.ones(dense.shape, bool)
    for count in range(8):
        grad = jax.tree.map(lambda w, count=count: jnp.sin(3 * w + count) + 0.1, weights)
        seen = dense if behind else np.asarray(weights["w"], np.float64)
        moved -= seen * np.asarray(grad["w"], np.float64)
        if count % 3 == 0:
            mask = largest({"w": moved}, 32)["w"]
        updates, state = update(grad, state, weights, grad=grad)
        weights = optax.apply_updates(weights, updates)
        dense = dense - 0.1 * np.asarray(grad["w"])
        np.testing.assert_array_equal(optax.tree.get(state, "mask")["w"], mask)
        np.testing.assert_array_equal(weights["w"] != 0, mask)
    assert jp.problems(state) == []


def test_gradients_reach_a_link_that_sees_some_leaves():
    """`optax.masked` hides parameters from the link, but not the gradients beside them."""
    weights, grad = params(), params(seed=1)
    first = jax.tree_util.tree_map_with_path(lambda path, _: "first" in str(path), weights)
    tx = optax.chain(optax.sgd(0.1), optax.masked(jp.keep_sparse(0.5, score="saliency"), first))
    updates, _ = jax.jit(tx.update)(grad, tx.init(weights), weights, grad=grad)
    found = kernels(optax.apply_updates(weights, updates))
    sizes = {"first": abs(kernels(weights)["first"] * kernels(grad)["first"])}
    np.testing.assert_array_equal(found["first"] != 0, largest(sizes, 64)["first"])
    assert (found["head"] != 0).all()


def test_nan_scores_hold_the_mask():
    weights = params()
    score = lambda params, grad: jax.tree.map(lambda w: w * jnp.nan, params)
    tx = optax.chain(optax.sgd(0.1), jp.keep_sparse(0.5, score=score))
    _, state = jax.jit(tx.update)(optax.tree.zeros_like(weights), tx.init(weights), weights)
    assert jp.count(optax.tree.get(state, "mask")) == sum(np.prod(s) for s in SHAPES.values())
    assert any("NaN" in problem for problem in jp.problems(state))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("score", ["magnitude", "saliency", "movement", "random"])
def test_no_retrace_and_exact_counts(score, dtype):
    weights = params(dtype=dtype)
    keep = jp.keep_sparse(jp.cubic_sparsity(0.9, 0, 4), score=score, every=2)
    tx, traced = optax.chain(optax.sgd(0.1, momentum=0.9), keep), []

    @jax.jit
    def step(weights, state):
        traced.append(None)
        grad = jax.tree.map(jnp.cos, weights)
        updates, state = tx.update(grad, state, weights, grad=grad)
        return optax.apply_updates(weights, updates), state

    state = tx.init(weights)
    for _ in range(6):
        weights, state = step(weights, state)
    assert len(traced) == 1 and jp.problems(state) == []
    total = sum(np.prod(shape) for shape in SHAPES.values())
    kept = sum((np.asarray(leaf, np.float32) != 0).sum() for leaf in kernels(weights).values())
    assert kept == total - round(0.9 * total)
    assert all(leaf.dtype == dtype for leaf in jax.tree.leaves(weights))
