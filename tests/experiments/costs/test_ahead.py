"""What is said of a step before it is run: here, and on TPUs that aren't here."""

import dataclasses
import importlib.util
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import data, run, training
from experiments.costs import ahead
from experiments.costs.flops import flops
from experiments.devices import Devices
from experiments.phases import Dense, FineTune, Search
from experiments.room import Room, initial_network
from experiments.usage import UsageError
from tests.experiments.runs import SMALL, WEIGHTS

pytestmark = pytest.mark.usefixtures("relaxed_promotion")

BATCH, DEVICES = 64, 8


def step_of(phase, devices=None, held=True):
    """What is said of a step of `phase` for devices of this machine."""
    dataset = data.described("digits", 256)
    train = dataclasses.replace(dataset.train, held=held)
    dataset = dataset._replace(train=train)
    devices = devices or Devices.over(jax.devices(), None, shard_from=1)
    make = lambda key: initial_network("lenet300100", dataset.task, key)
    network, graph = jax.eval_shape(make, jax.random.key(0))
    room = Room(graph, dataset, 0, devices)
    return ahead.of_phase(phase, devices.described(network), SMALL, room, limit=2**30)


@pytest.fixture(scope="module")
def dense():
    with jax.numpy_dtype_promotion("standard"):
        return step_of(Dense(1, batch=BATCH))


def test_state_is_what_lies_on_a_device(dense):
    """Weights and a momentum; of 300 and 100 nothing divides by 8, so two layers are whole."""
    first = 64 * 300
    scalars = 8 + 4 + 4 + 4  # key, step, loss, the schedule's count
    assert dense.state == 2 * 4 * (first / DEVICES + WEIGHTS - first) + scalars


def test_records_are_all_of_them_or_a_batch(dense):
    record, order = 8 * 8 + 4, 4 * 256
    assert dense.batch == 256 * record + order
    assert step_of(Dense(1, batch=BATCH), held=False).batch == BATCH * record / DEVICES


def test_work_is_three_products_a_layer_but_the_first(dense):
    """Of the first layer nobody needs the gradient of the images."""
    products = 3 * WEIGHTS - 64 * 300
    assert dense.flops == 2 * products * BATCH / DEVICES


def test_a_step_that_was_compiled_is_described(dense):
    assert dense.mesh == {"data": DEVICES, "model": 1}
    assert dense.memory > dense.state + dense.batch
    said = ahead.text([dense], "eight devices")
    assert "dense: fits" in said and "data:8, model:1" in said and "all-reduce" in said


def test_draws_of_a_mask_cost_as_many_passes(dense):
    search = step_of(Search(1, batch=BATCH, draws=3))
    assert search.flops == 3 * dense.flops
    assert search.state > dense.state


def test_a_mask_from_before_is_not_needed():
    """Fine-tuning keeps to the mask of the network, of which only shapes are known here."""
    assert step_of(FineTune(1, batch=BATCH)).memory


def test_the_described_step_is_the_one_that_runs():
    """The program that is compiled takes the state and the payload of a run."""
    devices, phase = Devices.all(), Dense(1, batch=BATCH)
    dataset = data.load("digits", limit=256)
    network, graph = initial_network("lenet300100", dataset.task, jax.random.key(0))
    room = Room(graph, dataset, 0, devices)
    begun = training.begun(phase, network, SMALL, room, jax.random.key(0))
    state = devices.placed(begun.first_state(network, jax.random.key(1)))
    described = step_of(phase, devices)
    held = sum(leaf.addressable_shards[0].data.nbytes for leaf in map(_raw, jax.tree.leaves(state)))
    assert described.state == held
    payload = begun.feed.payload(0)
    assert described.batch == sum(leaf.nbytes for leaf in jax.tree.leaves(payload))
    assert described.flops == flops(begun.programs.run_until, state, payload, 1) / DEVICES


def _raw(leaf):
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(leaf) if is_key else leaf


def test_what_does_not_fit_is_said():
    step = ahead.Step("search", {"data": 16, "model": 1}, 2**31, 2**20, 2**34, 1e12)
    step = step._replace(words="the total memory required (27.35G) exceeds available HBM (15.75G)")
    assert step.memory is None
    assert "DOES NOT FIT in 16 GiB" in ahead.text([step], "v5e:4x4")
    assert "27.35G" in ahead.text([step], "v5e:4x4")
    placed = step._replace(temporary=2**34, traffic=0.0, collectives={}, largest_array=1.0)
    assert "DOES NOT FIT, 18 GiB of 16 GiB" in ahead.text([placed], "v5e:4x4")
    assert placed._replace(temporary=2**33).fits


@pytest.mark.parametrize(
    ("count", "said"), [(0, "0 B"), (1023, "1.02e+03 B"), (1536, "1.5 KiB"), (3 * 2**40, "3 TiB")]
)
def test_bytes_for_people(count, said):
    assert ahead.size(count) == said


def test_collectives_are_summed_by_kind():
    found = ahead.summed([("all-reduce", 8.0, 2), ("all-gather", 4.0, 1), ("all-reduce", 1.0, 1)])
    assert found == {"all-reduce": (3, 17.0), "all-gather": (1, 4.0)}


# Sets that are described -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["digits", "python"])
def test_a_set_is_described_as_it_is_loaded(name):
    loaded, described = data.load(name, limit=100), data.described(name, 100)
    assert described.task == loaded.task
    for split in ("train", "test"):
        records, shapes = getattr(loaded, split), getattr(described, split)
        assert len(shapes) == data.count(records)
        found = [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(shapes.batch(7))]
        assert found == [((7, *x.shape[1:]), x.dtype) for x in jax.tree.leaves(records)]


@pytest.mark.parametrize(
    ("name", "count", "entries", "held"),
    [
        ("mnist", 60_000, 28 * 28, True),
        ("cifar10", 50_000, 32 * 32 * 3, True),
        ("cifar100", 50_000, 32 * 32 * 3, True),
        ("imagenet2012", 1_281_167, 224 * 224 * 3, False),
        ("c4/en", 1_000_000, 257, False),
        ("tiny_shakespeare", 1_000_000, 257, True),
    ],
)
def test_sets_that_are_not_here_are_described(name, count, entries, held):
    train = data.described(name).train
    assert (len(train), train.held) == (count, held)
    assert math.prod(jax.tree.leaves(train.record)[0].shape) == entries
    assert len(data.described(name, 10).train) == 10


def test_holdout_of_a_described_set():
    kept, apart = data.holdout(data.described("mnist"), 5_000)
    assert (len(kept.train), len(apart)) == (55_000, 5_000)


# TPUs ------------------------------------------------------------------------------------------


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="libtpu is here")
def test_without_libtpu_it_says_what_to_install(config):
    with pytest.raises(UsageError, match=r"pip install 'jax\[tpu\]'"):
        run.main([config(SMALL), "--compile_for=v5e:2x2"])


needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs libtpu: `make test-tpu`"
)


@needs_libtpu
@pytest.mark.slow
def test_phases_are_compiled_for_chips_that_are_not_here(config, capsys):
    found = run.main([config(SMALL), "--compile_for=v5e:2x2", "--mesh=data:2,model:2"])
    search, fine_tune = found["steps"]
    assert search["mesh"] == {"data": 2, "model": 2}
    assert search["limit"] == fine_tune["limit"] == int(15.75 * 2**30)
    assert search["flops"] == 2 * fine_tune["flops"]
    assert "search: fits" in capsys.readouterr().out


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--compile_for=v5e:7x9"], "v5e:7x9.*give it as v5e:4x4"),
        (["--compile_for=v99:2x2"], "v99:2x2.*give it as v5e:4x4"),
        (["--compile_for=v5e:2x2", "--mesh=data:8"], "data:8 takes 8 devices, and there are 4"),
    ],
)
def test_wrong_chips(config, flags, words):
    with pytest.raises(UsageError, match=words):
        run.main([config(SMALL), *flags])


@needs_libtpu
@pytest.mark.slow
def test_what_does_not_fit_a_chip(config):
    chips = ahead.described("v5e:2x2")
    huge = jax.ShapeDtypeStruct(
        (2**33,), np.float32, sharding=jax.sharding.SingleDeviceSharding(chips[0])
    )
    with pytest.raises(jax.errors.JaxRuntimeError) as raised:
        jax.jit(jnp.sin).lower(huge).compile()
    assert "exceeds available HBM (15.75G)" in ahead._reason(str(raised.value))
