"""The Python code of the pages in docs/ runs as it stands, but for fewer steps."""

import re
from pathlib import Path

import jax
import pytest

import jaxprune as jp

DOCS = Path(__file__).parent.parent / "docs"


def blocks(page):
    return re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.S)


@pytest.mark.usefixtures("relaxed_promotion")
@pytest.mark.filterwarnings("ignore:The 'm.iter_modules:DeprecationWarning")  # Qwix calls it
def test_a_mask_with_qwix():
    qwix = pytest.importorskip("qwix")
    names = {}
    exec(blocks("quantization.md")[0].replace("1_000", "2"), names)
    kernel = names["weights"]["layers"][0]["kernel"][...]
    assert jp.sparsity(names["weights"]) == 0.5
    rounded = qwix.quantize(kernel, "int4", channelwise_axes=(1,)).qvalue
    assert not rounded[kernel == 0].any()


@pytest.mark.slow
@pytest.mark.usefixtures("relaxed_promotion")
def test_one_budget_in_bytes(capsys):
    names = {}
    block = blocks("quantization.md")[1]
    exec(block.replace("1e-3)), 1_000)", "1e-3)), 2)").replace("200)", "2)"), names)
    (line,) = capsys.readouterr().out.splitlines()
    assert 499 <= int(line.split()[0]) <= 501
    mask, grids = names["mask"], names["grids"]
    again = jp.unpack_quantized(names["weights"], mask, grids, names["codes"])
    for own, other in zip(jax.tree.leaves(again), jax.tree.leaves(names["weights"]), strict=True):
        assert jax.numpy.allclose(own, other, rtol=1e-5)
