"""The code of docs/channels.md runs as it stands, but for fewer steps."""

import re
from pathlib import Path

import jax
import optax
import pytest

import jaxprune as jp

PAGE = Path(__file__).parent.parent / "docs" / "channels.md"


@pytest.mark.usefixtures("relaxed_promotion")
def test_code_runs(capsys):
    names = {}
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    network, dying, gates, sensitivities, sampled = blocks
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
