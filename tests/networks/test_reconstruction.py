"""AdaPrune against least squares by NumPy in float64, and on whole models."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxprune as jp


def normal(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


def correlated(rows, columns, seed=0):
    return normal(rows, columns, seed=seed) @ normal(columns, columns, seed=seed + 1) + 1.0


def linear(params, x):
    return x @ params["kernel"] + params["bias"][None]


def layer(inputs=12, outputs=5):
    return {"kernel": normal(inputs, outputs), "bias": normal(outputs, seed=1)}


def mask_of(params, n=1, m=4):
    return {"kernel": jp.nm_mask(abs(params["kernel"]), n, m), "bias": None}


def least_squares(x_sparse, x_dense, kernel, keep, damping):
    """Kernel and shift of the bias in float64, output by output."""
    x, d, kernel = (np.asarray(each, np.float64) for each in (x_sparse, x_dense, kernel))
    target = d @ kernel
    x_centred, target_centred = x - x.mean(0), target - target.mean(0)
    gram = x_centred.T @ x_centred
    ridge = damping * np.mean(np.diagonal(gram))
    new = np.zeros_like(kernel)
    for j, rows in enumerate(np.asarray(keep).T):
        # Rows for the damping towards the dense weights stand below the data.
        equations = np.vstack([x_centred, np.sqrt(ridge) * np.eye(len(kernel))])
        right = np.concatenate([target_centred[:, j], np.sqrt(ridge) * kernel[:, j]])
        new[rows, j] = np.linalg.lstsq(equations[:, rows], right, rcond=None)[0]
    return new, target.mean(0) - (x @ new).mean(0)


@pytest.mark.parametrize("damping", [1e-3, 0.1])
@pytest.mark.parametrize("pattern", ["n:m", "unstructured"])
def test_closed_form_is_the_least_squares_solution(pattern, damping):
    params, x = layer(), correlated(200, 12)
    mask = mask_of(params)
    if pattern == "unstructured":  # columns with different numbers, one of them with none
        mask["kernel"] = (normal(12, 5, seed=3) > 0.3).at[:, 2].set(False)
    new = jp.reconstruct(linear, params, mask, [x[:150], x[150:]], damping=damping)
    kernel, shift = least_squares(x, x, params["kernel"], mask["kernel"], damping)
    np.testing.assert_allclose(new["kernel"], kernel, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(new["bias"], params["bias"] + shift, rtol=1e-3, atol=2e-3)
    np.testing.assert_array_equal(new["kernel"] != 0, mask["kernel"])


def test_normal_equations_hold():
    params, x = layer(64, 16), correlated(500, 64)
    mask = mask_of(params, 2)
    new = jp.reconstruct(linear, params, mask, [x])
    x = np.asarray(x, np.float64)
    x -= x.mean(0)
    gram = x.T @ x
    gram += 0.01 * np.mean(np.diagonal(gram)) * np.eye(64)
    error = gram @ (np.asarray(new["kernel"], np.float64) - np.asarray(params["kernel"]))
    scale = np.abs(gram @ np.asarray(params["kernel"], np.float64)).max()
    assert np.abs(error[np.asarray(mask["kernel"])]).max() <= 1e-5 * scale


def test_gradient_steps_approach_the_closed_form(relaxed_promotion):
    params, x = layer(), 3 * normal(200, 12)
    mask = mask_of(params, 2)
    error = lambda new: float(jnp.mean((linear(new, x) - linear(params, x)) ** 2))
    before = error(jp.apply_mask(params, mask))
    closed = error(jp.reconstruct(linear, params, mask, [x], damping=0.0))
    stepped = error(jp.reconstruct(linear, params, mask, [x], method="gradient"))
    assert closed * 0.9999 <= stepped < closed + 0.05 * (before - closed)


def test_inputs_that_are_always_zero_leave_their_weights():
    params, x = layer(), correlated(200, 12).at[:, 3].set(0.0)
    mask = {"kernel": jnp.ones((12, 5), bool), "bias": None}
    new = jp.reconstruct(linear, params, mask, [x], damping=0.0)
    np.testing.assert_allclose(new["kernel"][3], params["kernel"][3], rtol=1e-6)


def two_layers(params, x):
    return linear(params["second"], jnp.tanh(linear(params["first"], x)))


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize(
    ("kernel", "outputs", "bias"),
    [("io", "o", (3,)), ("ohi", "ho", (3, 3)), ("hio", "oh", (3, 3)), ("iho", "oh", (9,))],
)
def test_a_bias_is_fitted_in_the_order_of_the_outputs(kernel, outputs, bias, left):
    x = 2 + normal(100, 6)
    shape = [6 if axis == "i" else 3 for axis in kernel]
    params = {"kernel": normal(*shape, seed=1), "bias": normal(*bias, seed=2)}

    def apply(params, x):
        if left:
            y = jnp.einsum(f"{kernel},bi->b{outputs}", params["kernel"], x)
        else:
            y = jnp.einsum(f"bi,{kernel}->b{outputs}", x, params["kernel"])
        return y + params["bias"].reshape(1, *y.shape[1:])

    mask = {"kernel": abs(params["kernel"]) > 0.5, "bias": None}
    new = jp.reconstruct(apply, params, mask, [x])
    np.testing.assert_allclose(apply(new, x).mean(0), apply(params, x).mean(0), atol=1e-4)


@pytest.mark.parametrize("sequential", [False, True])
def test_sequential_layers_see_the_pruned_network(sequential):
    params = {"first": layer(12, 8), "second": layer(8, 5)}
    mask = {name: mask_of(params[name], 2) for name in params}
    x = correlated(300, 12)
    new = jp.reconstruct(two_layers, params, mask, [x], sequential=sequential)
    hidden = lambda params: jnp.tanh(linear(params["first"], x))
    seen = hidden(new if sequential else params)
    kernel, _ = least_squares(
        seen, hidden(params), params["second"]["kernel"], mask["second"]["kernel"], 0.01
    )
    np.testing.assert_allclose(new["second"]["kernel"], kernel, rtol=2e-3, atol=1e-3)


class Net(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.conv = nnx.Conv(4, 8, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.head = nnx.Linear(8, 3, use_bias=False, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.conv(x), use_running_average=True))
        return self.head(x.mean((1, 2)))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_convolutional_network(dtype, relaxed_promotion):
    graph, params, rest = nnx.split(Net(), nnx.Param, ...)
    params = jax.tree.map(lambda p: p.astype(dtype), params)
    apply = lambda params, x: nnx.merge(graph, params, rest, copy=True)(x)
    x = (normal(40, 6, 6, 2) @ normal(2, 4)).astype(dtype)
    mask = jax.tree.map(
        lambda p: jp.transposable_nm_mask(abs(p), 2, 4) if p.ndim == 4 else None, params
    )
    new = jp.reconstruct(apply, params, mask, [x[:20], x[20:]])
    error = lambda new: float(jnp.mean((apply(new, x) - apply(params, x)) ** 2))
    assert error(new) < 0.7 * error(jp.apply_mask(params, mask))
    assert {leaf.dtype for leaf in jax.tree.leaves(new)} == {jnp.dtype(dtype)}
    np.testing.assert_array_equal(new["conv"]["kernel"][...] != 0, mask["conv"]["kernel"][...])
    np.testing.assert_array_equal(new["head"]["kernel"][...], params["head"]["kernel"][...])


def test_errors():
    params, x = layer(), normal(20, 12)
    mask = mask_of(params)
    with pytest.raises(ValueError, match="`batches` is empty"):
        jp.reconstruct(linear, params, mask, [])
    with pytest.raises(ValueError, match=r"one of \['closed_form', 'gradient'\], got 'magic'"):
        jp.reconstruct(linear, params, mask, [x], method="magic")
    with pytest.raises(ValueError, match="inputs of leaf 'kernel' aren't all finite"):
        jp.reconstruct(linear, params, mask, [x.at[3, 3].set(jnp.nan)])
    with pytest.raises(ValueError, match=r"leaf 'kernel' are singular: .* than 0\.0"):
        alike = {"kernel": jnp.ones((12, 5))}
        every = {"kernel": jnp.ones((12, 5), bool)}
        jp.reconstruct(lambda p, x: x @ p["kernel"], alike, every, [jnp.ones((4, 12))], damping=0.0)
    with pytest.raises(ValueError, match=r"is seen of leaves \['bias'\]: put None"):
        jp.reconstruct(linear, params, {**mask, "bias": jnp.ones(5, bool)}, [x])
    with pytest.raises(ValueError, match="mask of leaf 'kernel' must have the leaf's shape"):
        jp.reconstruct(linear, params, {"kernel": jnp.ones(3, bool), "bias": None}, [x])
    with pytest.raises(ValueError, match="leaf 'w' is multiplied from both sides"):
        both_sides = lambda p, x: (x @ p["w"]) @ p["w"].T
        jp.reconstruct(both_sides, {"w": normal(12, 5)}, {"w": jnp.ones((12, 5), bool)}, [x])
