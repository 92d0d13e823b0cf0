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


def test_what_steps_cost_is_measured():
    """Two numbers of one row of the table, as many digits as the page has of them."""
    convolutions, mlp = pages.text("benchmarks/results/steps-2core-cpu.md").split("### ")[1:]
    ratios = lambda section: re.findall(
        r"^\| [^|]+ \| [\d.]+ \| ([\d.]+) \| ([\d.]+) \|", section, re.M
    )
    measured = [
        tuple(map(float, each))
        for rows in zip(ratios(convolutions), ratios(mlp), strict=True)
        for each in zip(*rows, strict=True)
    ]
    on_page = re.findall(r"([\d.]+) \(convolutions\) to ([\d.]+) \(MLP\)", TEXT)
    assert len(on_page) == 9
    for pair in on_page:
        digits = [len(number.partition(".")[2]) for number in pair]
        rounded = [tuple(map(round, each, digits)) for each in measured]
        assert tuple(map(float, pair)) in rounded
