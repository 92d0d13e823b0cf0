"""The README's Python code runs as it stands, but for fewer steps."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp
from tests import pages


@pytest.mark.usefixtures("relaxed_promotion")
def test_code_runs(capsys):
    links, family, look, nnx_loop, nnx_optimizer, linen_loss, *others = pages.blocks("README.md")
    gumbel, hoyer, nm, one_shot, smaller = others
    kernel = jax.random.normal(jax.random.key(0), (16, 16))
    layer = {"kernel": kernel, "bias": jnp.ones(16)}
    params = {"hidden": layer, "head": layer}
    names = {"mask": jp.prunable(params), "params": params, "grads": params, "jp": jp}
    for block in (links, family):
        exec(block, names)
        updates, _ = names["tx"].update(params, names["tx"].init(params), params)
        assert jax.tree.structure(updates) == jax.tree.structure(params)
    assert jp.count(names["mask"]) == 512 - round(0.9 * 512)
    assert jp.sparsity(optax.apply_updates(params, updates)["hidden"]["kernel"]) == 0.5
    params = {"kernel": jnp.ones((4, 5))}
    tx = optax.chain(optax.sgd(0.1), jp.keep_mask(jp.prunable(params)))

    state = tx.init(params)
    known = {"opt_state": state, "params": params, "average": params, "images": jnp.ones((2, 4))}
    known |= {"earlier": jp.prunable(params), "apply": lambda params, x: x @ params["kernel"]}
    exec(look, names | known)
    *_, total, compared = capsys.readouterr().out.splitlines()
    assert total.split() == ["total", "20", "20", "100.000%", "80", "83", "80", "80"]
    assert compared == "overlap 100.0%, churn 0.0%"

    exec(nnx_loop.replace("range(1_000)", "range(3)"), names)
    assert jp.count(names["mask"]) == round(0.05 * 22_200)

    exec(nnx_optimizer, names)
    assert "1,110   22,200" in capsys.readouterr().out

    exec(linen_loss, names)
    params = {"weights": names["weights"], "probs": jp.init_probabilities(names["weights"])}
    assert names["loss"](params, names["key"], 0) > 0

    exec(gumbel.replace("range(1_000)", "range(3)"), names)
    assert jp.sparsity(names["extracted"]) == pytest.approx(0.9, abs=1e-4)

    exec(hoyer.replace("1_000)", "3)").replace("200)", "3)"), names)
    assert 0 < jp.count(names["mask"]) < 22_200
    assert jp.sparsity(names["weights"]) == 1 - jp.count(names["mask"]) / 22_200

    exec(nm.replace("range(100)", "range(3)"), names)
    assert jp.sparsity(names["sparse"]) == 0.5
    np.testing.assert_array_equal(jp.unpack_24(names["forward"]), names["kernel"].T)
    np.testing.assert_array_equal(jp.unpack_24(names["backward"]), names["kernel"])

    exec(one_shot, names)
    assert jp.count(names["mask"]) == (64 * 256 + 256 * 16) // 2
    assert jp.count(names["other"]) == jp.count(names["mask"])

    exec(smaller, names)
    shapes = [leaf.shape for leaf in jax.tree.leaves(names["small"].params)]
    assert shapes == [(64,), (64, 64), (10,), (64, 10)]  # a quarter, for each neuron costs as much
    masked = names["apply"](jp.apply_mask(names["weights"], names["mask"]), names["images"])
    np.testing.assert_allclose(names["logits"], masked, rtol=1e-5, atol=1e-5)
    assert names["model"].layers[0].out_features == names["model"].layers[2].in_features == 64
