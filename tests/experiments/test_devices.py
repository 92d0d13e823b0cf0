"""Where leaves lie on a mesh, and that it doesn't matter for masks."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import jaxprune as jp
from experiments import run
from experiments.devices import Devices, along_batch, on_host
from experiments.phases import Search
from experiments.tasks.classification import Classification
from experiments.training import first_state
from tests.experiments.runs import initial

AXES = {"(up|gate)/kernel": -1, "down/kernel": -2}


def mesh(text="data:4,model:2", **rules):
    return Devices.of(text, **{"model_axes": AXES, "shard_from": 64, **rules})


@pytest.mark.parametrize(
    ("path", "shape", "spec"),
    [
        ("norm/kernel", (16, 24), P(None, "data")),  # the largest axis that divides
        ("norm/kernel", (16, 22), P("data", None)),
        ("norm/kernel", (16, 16), P(None, "data")),  # of equal ones the last
        ("norm/kernel", (7, 15), P(None, None)),
        ("norm/scale", (63,), P(None)),  # small
        ("norm/scale", (64,), P("data")),
        ("up/kernel", (16, 24), P("data", "model")),
        ("opt_state/0/mu/up/kernel", (16, 24), P("data", "model")),
        ("block/down/kernel", (3, 24, 16), P(None, "model", "data")),
        ("up/kernel", (16, 23), P("data", None)),  # `model` doesn't divide
        ("up/kernel", (2, 8), P(None, "model")),  # small, but named by the config
        ("opt_state/count/up/kernel", (), P()),
    ],
)
def test_a_leaf_lies_by_its_path_and_shape(path, shape, spec):
    assert mesh().spec(path, shape) == spec


def test_the_first_expression_that_is_found_counts():
    axes = {"kernel": 0, "up": 1}
    assert mesh(model_axes=axes).spec("up/kernel", (16, 24)) == P("model", "data")


def test_all_devices_along_data():
    assert Devices.all().sharing == mesh("data:8").sharing == 8
    assert mesh("model:8").sharing == 1


@pytest.mark.usefixtures("relaxed_promotion")
def test_moments_and_probabilities_lie_as_their_weights():
    devices, phase = mesh(model_axes={"fc1/kernel": 1}), Search(epochs=1)
    network = devices.placed(initial())
    params = phase.begin(network, sparsity=0.9)
    links = phase.links(network, 0.9, 100, room=None)
    state = devices.placed(first_state(params, network.rest, links, jax.random.key(0)))
    specs = {}
    for leaf in jax.tree.leaves((state, network.mask)):
        specs.setdefault(leaf.shape, set()).add(leaf.sharding.spec)
    assert specs.pop((64, 300)) == {P("data", "model")}
    assert specs.pop((300, 100)) == {P("data", None)}
    assert all(spec in ({P()}, {P("data", None)}) for spec in specs.values())

    held = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(state))
    whole = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    assert whole / 8 < held < whole / 4


def test_a_network_made_where_it_belongs_is_that_of_one_device():
    """The random bits are the same; vectors of other lengths round some weights apart."""
    task = Classification(10, (8, 8, 1), (0.5,), (0.5,))
    of = functools.partial(run.initial_network, "lenet300100", task)
    made, _ = mesh().made(of, jax.random.key(3))
    expected, _ = of(jax.random.key(3))
    chex.assert_trees_all_close(made, expected, rtol=1e-6, atol=0)
    assert made.weights["fc1"]["kernel"][...].sharding.spec == P(None, "data")


def test_masks_and_counts_are_those_of_one_device():
    """Scores of few values, so that many tie."""
    shapes = {"norm": (16, 24), "up": {"kernel": (16, 24)}, "down": {"kernel": (24, 16)}}
    rng = np.random.default_rng(0)
    scores = jax.tree.map(
        lambda shape: rng.integers(0, 9, shape).astype(np.float32),
        shapes,
        is_leaf=lambda each: isinstance(each, tuple),
    )
    placed = mesh().placed(scores)
    for choose in (
        lambda tree: jp.top_k_mask(tree, 500),
        lambda tree: jp.nm_mask(tree, 2, 4),
        lambda tree: jp.transposable_nm_mask(tree, 2, 4),
    ):
        chex.assert_trees_all_equal(choose(placed), choose(scores))
        assert jp.count(choose(placed)) == jp.count(choose(scores))


def test_steps_give_back_what_lies_as_it_did():
    devices = mesh()
    tree = {"up": {"kernel": jnp.ones((16, 24))}, "key": jax.random.key(0), "step": jnp.int32(0)}
    placed = devices.placed(tree)
    after = jax.jit(devices.constrained)(tree)
    assert jax.tree.map(lambda x: x.sharding, after) == devices.shardings(placed)
    chex.assert_trees_all_equal(after["up"], tree["up"])


def test_activations_stay_along_the_batch_inside_the_model_alone():
    devices, batch = mesh(), jnp.ones((8, 16))

    def model(batch):
        with devices.in_model():
            return along_batch(batch * 2)

    assert "sharding_constraint" in str(jax.make_jaxpr(model)(batch))
    assert jax.jit(model)(devices.replicated(batch)).sharding.spec == P("data")
    assert along_batch(batch) is batch


def test_records_and_hosts_have_all():
    devices, rows = mesh(), np.arange(24, dtype=np.float32).reshape(8, 3)
    (held,) = devices.held((rows,))
    assert held.is_fully_replicated and len(held.addressable_shards) == 8
    np.testing.assert_array_equal(on_host(jax.device_put(held, devices.by_record)), rows)
