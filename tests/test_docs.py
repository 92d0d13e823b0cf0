"""The Python code of the pages in docs/ runs as it stands, but for fewer steps; and help()."""

import inspect

import jax
import optax
import pytest

import jaxprune as jp
from tests.pages import blocks


@pytest.mark.parametrize("name", jp.__all__)
def test_help_opens_with_a_signature_that_can_be_read(name):
    """Annotations that aren't evaluated: `chex.ArrayTree` alone would be six classes."""
    assert len(str(inspect.signature(getattr(jp, name)))) < 450


@pytest.mark.usefixtures("relaxed_promotion")
@pytest.mark.filterwarnings("ignore:The 'm.iter_modules:DeprecationWarning")  # Qwix calls it,
@pytest.mark.filterwarnings("ignore:'.value' access:DeprecationWarning")  # and this
def test_a_mask_with_qwix():
    qwix = pytest.importorskip("qwix")
    names = {}
    exec(blocks("docs/quantization.md")[0].replace("1_000", "2"), names)
    kernel = names["weights"]["layers"][0]["kernel"][...]
    assert jp.sparsity(names["weights"]) == 0.5
    rounded = qwix.quantize(kernel, "int4", channelwise_axes=(1,)).qvalue
    assert not rounded[kernel == 0].any()


@pytest.mark.slow
@pytest.mark.usefixtures("relaxed_promotion")
def test_one_budget_in_bytes(capsys):
    names = {}
    block = blocks("docs/quantization.md")[1]
    exec(block.replace("1e-3)), 1_000)", "1e-3)), 2)").replace("200)", "2)"), names)
    (line,) = capsys.readouterr().out.splitlines()
    assert 499 <= int(line.split()[0]) <= 501
    mask, grids = names["mask"], names["grids"]
    again = jp.unpack_quantized(names["weights"], mask, grids, names["codes"])
    for own, other in zip(jax.tree.leaves(again), jax.tree.leaves(names["weights"]), strict=True):
        assert jax.numpy.allclose(own, other, rtol=1e-5)


@pytest.mark.usefixtures("relaxed_promotion")
def test_channels_by_gates_and_by_sensitivity(capsys):
    names = {}
    network, dying, gates, sensitivities, sampled = blocks("docs/channels.md")
    exec(network, names)
    assert "weights/norm/scale/value[i]" in capsys.readouterr().out

    exec(dying, names)
    assert jax.tree.leaves(optax.tree.get(names["opt_state"], "dying")) == [0]

    exec(gates.replace("steps = 500", "steps = 3"), names)
    assert [None if own is None else own.shape for own in names["gates"]].count((32,)) == 1
    assert jax.tree.leaves(names["small"].params["weights"])

    exec(sensitivities, names)
    channels = names["channels"]
    assert jp.channel_cost(channels, names["small"].keep) <= names["half"]
    assert jp.channel_cost(channels, names["small"].keep) > 0.8 * names["half"]

    exec(sampled, names)
    assert names["epsilon"] > 0
