"""Rows and tables of a mask."""

import jax
import jax.numpy as jnp
import optax
import pytest

import jaxprune as jp


def example_mask():
    return {
        "conv": {"kernel": jnp.arange(2_400).reshape(40, 60) % 3 == 0, "bias": None},
        "head": [jnp.zeros((2, 5), bool), jnp.ones((), bool)],
    }


def test_layers():
    rows = jp.layers(example_mask())
    assert [tuple(row) for row in rows] == [
        ("conv/kernel", (40, 60), 800, 2_400),
        ("head/0", (2, 5), 0, 10),
        ("head/1", (), 1, 1),
    ]
    assert [row.density for row in rows] == [pytest.approx(1 / 3), 0.0, 1.0]
    assert all(type(row.kept) is int for row in rows)


def test_layers_are_counted_by_one_program(caplog):
    mask = [jnp.ones((2, size), bool) for size in range(3, 8)]
    with jax.log_compiles():
        assert [row.kept for row in jp.layers(mask)] == [6, 8, 10, 12, 14]
    assert sum("Compiling" in record.message for record in caplog.records) == 1


def test_table():
    assert jp.table(example_mask()).splitlines() == [
        "layer        shape  kept  weights   density",
        "conv/kernel  40x60   800    2,400   33.333%",
        "head/0       2x5       0       10    0.000%",
        "head/1                 1        1  100.000%",
        "total                801    2,411   33.223%",
        "'head/0' keeps none of its weights",
    ]


def test_lines_are_equally_long():
    *lines, _ = jp.table(example_mask()).splitlines()
    assert len({len(line) for line in lines}) == 1


def test_empty_leaf():
    assert jp.layers([jnp.ones((0, 3), bool)])[0].density == 0.0


def test_nothing_prunable():
    assert jp.layers({"bias": None}) == []
    assert jp.table({"bias": None}).splitlines()[1].split() == ["total", "0", "0", "0.000%"]


@pytest.mark.parametrize("function", [jp.layers, jp.table])
def test_parameters_instead_of_a_mask_is_an_error_that_names_the_leaf(function):
    with pytest.raises(TypeError, match="'conv/kernel' is float32"):
        function({"conv": {"kernel": jnp.ones((2, 3))}})


def example_params():
    leaf = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.bfloat16)
    return {
        "conv": {"kernel": leaf(40, 60), "bias": jnp.ones(60)},
        "head": [leaf(2, 5), jnp.float32(1)],
    }


def test_table_with_bytes():
    table = jp.table(example_mask(), params=example_params()).splitlines()
    assert table == [
        "layer        shape  kept  weights   density  bytes  sparse bytes",
        "conv/kernel  40x60   800    2,400   33.333%  4,800         1,900",
        "head/0       2x5       0       10    0.000%     20             2",
        "head/1                 1        1  100.000%      4             5",
        "others                                         240           240",
        "total                801    2,411   33.223%  5,064         2,147",
        "'head/0' keeps none of its weights",
    ]


def test_bytes_are_those_of_packed_masks_and_kept_values():
    mask = {"w": jnp.arange(64).reshape(8, 8) % 4 == 0}
    params = {"w": jnp.ones((8, 8))}
    sparse = int(jp.table(mask, params=params).splitlines()[1].split()[-1])
    assert sparse == params["w"][mask["w"]].nbytes + jp.pack_mask(mask)["w"].nbytes


def test_table_of_a_state_has_what_all_links_keep_and_its_problems():
    params = {"a": jnp.ones((2, 4)), "b": jnp.ones((4, 2))}
    most = {name: jnp.arange(8).reshape(leaf.shape) > 2 for name, leaf in params.items()}
    keep = lambda name: jp.keep_mask({"a": None, "b": None} | {name: most[name]})
    tx = optax.chain(keep("a"), keep("b"), optax.sgd(0.1))  # in the wrong order
    state = tx.init(params)
    for _ in range(2):
        updates, state = tx.update(params, state, params)
        params = optax.apply_updates(params, updates)
    lines = jp.table(state, params=params).splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["layer", "a", "b", "total"]
    assert lines[4:] == jp.problems(state)
    assert len(lines) == 6
    assert jp.table(state) == "\n".join([jp.table(jp.current_mask(params, state)), *lines[4:]])


@pytest.mark.parametrize("name", ["params", "flops"])
def test_table_of_other_parameters_names_the_leaf(name):
    other = {"params": {"w": jnp.ones(2)}, "flops": {"w": 2}}[name]
    with pytest.raises(ValueError, match=rf"`{name}` must .* no leaf 'conv/kernel', only \['w'\]"):
        jp.table(example_mask(), **{name: other})
