"""Every line of code on the page for newcomers runs, and what is a link makes a step."""

import re

import jax
import optax
import pytest

from tests import pages

PAGE = "docs/which-method.md"
TEXT = pages.text(PAGE)
# Prunes whole layers by their inputs, which takes long to compile; the README's test does it too.
SLOW = re.compile(r'prune_layers.*(\[images\]|"admm")\)')
LINES = re.findall(r"^\|[^|]+\|[^|]+\| `([^`|]+)` \|", TEXT, re.M)


@pytest.fixture(scope="module")
def shared():
    """The names that the lines share, and a mask."""
    names = {}
    with jax.numpy_dtype_promotion("standard"):
        exec(pages.blocks(PAGE)[0], names)
        exec(LINES[0], names)
    return names


@pytest.mark.usefixtures("relaxed_promotion")
@pytest.mark.parametrize(
    "line",
    [pytest.param(line, marks=[pytest.mark.slow] * bool(SLOW.search(line))) for line in LINES],
)
def test_a_line_of_the_table_runs(line, shared):
    names = dict(shared)
    exec(line, names)
    tx, params, grads = (names.get(name) for name in ("tx", "params", "grads"))
    if tx is not None:
        tx = optax.with_extra_args_support(tx)
        shapes = jax.eval_shape(lambda: tx.update(grads, tx.init(params), params, grad=grads)[0])
        assert jax.tree.structure(shapes) == jax.tree.structure(params)


def test_the_table_has_a_line_of_code_in_each_row():
    rows = [row for row in TEXT.splitlines() if row.count("|") == 5 and "jp." in row]
    assert len(LINES) == len(rows) > 25
