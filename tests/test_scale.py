"""Sizes of 10^12 weights while functions are traced, and the verdicts on what is compiled."""

import re
from pathlib import Path

import jax
import pytest

import jaxprune as jp
from benchmarks import scale, scale_cases, scale_trees

CASES = [
    pytest.param(case, marks=[pytest.mark.slow] * ("gradient" in case or "scheduled" in case))
    for case in scale_cases.CASES
]


@pytest.mark.usefixtures("relaxed_promotion")  # for Adam
@pytest.mark.parametrize("case", CASES)
def test_every_function_and_link_is_traced_at_full_size(case):
    """A Python integer of a size that met an array would overflow here."""
    mesh = jax.make_mesh((4, 2), scale_trees.AXES, axis_types=(jax.sharding.AxisType.Auto,) * 2)
    setting = scale_trees.Setting(scale_trees.Variant(), mesh)
    assert sum(leaf.size for leaf in jax.tree.leaves(setting.kernels)) > 10**12
    function, arguments = scale_cases.CASES[case](setting)
    jax.eval_shape(function, *arguments)


def test_all_public_functions_are_cases_or_the_page_says_why_not():
    functions = {name for name in jp.__all__ if not isinstance(getattr(jp, name), type)}
    cases = re.findall(r"jp\.(\w+)", Path(scale_cases.__file__).read_text())
    assert functions - {*cases} - {*re.findall(r"`(\w+)`", scale.FOOT)} == set()


def test_named_cases_are_compiled_anew_and_others_once():
    rows = [
        {"case": "top_k_mask", "variant": "base", "commit": "b"},
        {"case": "top_k_mask", "variant": "opposite", "commit": "a"},
    ]
    assert ("top_k_mask", "opposite") not in scale.missing(rows, [], "b")
    anew = scale.missing(rows, ["top_k_mask"], "b")
    assert ("top_k_mask", "opposite") in anew
    assert ("top_k_mask", "base") not in anew
    assert scale.latest([*rows, rows[1] | {"commit": "b"}]) == [rows[0], rows[1] | {"commit": "b"}]


def test_rows_are_judged_against_the_bounds():
    row = {"variant": "base", "share": 100, "array": 1.0, "moved": ["all-reduce", 8]}
    cases = {
        "step, no link": (100, {}),
        "step, a": (105, {}),
        "b": (11, {}),
        "c": (0, {"array": 1.01}),
        "d": (0, {"moved": ["all-gather", 2**17]}),
        "transposable_nm_mask": (99, {}),
        "step, keep_sparse transposable 2:4": (199, {}),
        "pattern_mask, transposable": (99, {}),
    }
    rows = [row | {"case": case, "temporary": t} | more for case, (t, more) in cases.items()]
    verdicts = [row["holds"] for row in scale.judged(rows)]
    assert verdicts == [True, True, False, False, False, True, True, False]
