"""What the TPU compiler makes of sharded code, without a TPU: `make test-tpu`.

libtpu compiles ahead of time for a topology that it only has described, here 8 chips of v5e. Each
case is a function of a mesh that returns what to compile and its abstract, sharded arguments. It is
compiled in a process of its own (this file, run as a script), so that the TPU plug-in never meets
the CPU devices of the other tests; what comes back is a report of the compiled program.
"""

import collections
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding

import jaxprune as jp

TOPOLOGY = "v5e:2x4"
AXIS_TYPES = ["Auto", "Explicit"]
COLLECTIVES = "all-gather|all-reduce|all-to-all|collective-permute|ragged-all-to-all|reduce-scatter"
INSTRUCTION = re.compile(rf"= (?P<shapes>.*?) (?P<name>{COLLECTIVES})(-start)?\(")
SHAPE = re.compile(r"\b[a-z]+\d*\[([\d,]*)\]")


# The cases.


def top_k_mask_case(mesh):
    """A tree with convolutions, matrices, an unsharded vector and a leaf that can't be pruned."""

    def scores(shape, *spec, dtype=jnp.float32):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, jax.P(*spec)))

    tree = {
        "stem": scores((7, 7, 3, 64), None, None, None, "model"),
        "convolutions": [scores((3, 3, 256, 256), None, None, "data", "model") for _ in range(4)],
        "matrices": [scores((1024, 4096), "data", "model") for _ in range(3)],
        "rows": scores((4096, 1024), ("data", "model"), None, dtype=jnp.bfloat16),
        "vector": scores((1000,)),
        "dense": None,
    }
    return lambda scores: jp.top_k_mask(scores, 1_000_000), (tree,)


def probmask_step_case(mesh, last_link=None):
    """A training step of ProbMask: two draws, joint clip, Adam for both trees, projection.

    Each device has its part of the batch, of every matrix and of its probabilities and moments;
    products gather masked weights. `last_link` can stand in for the projection.
    """
    if last_link is None:
        last_link = jp.project_probabilities(jp.cubic_sparsity(0.9, 10, 100))

    def array(shape, *spec, dtype=jnp.float32):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, jax.P(*spec)))

    weights = {
        "convolution": array((3, 3, 64, 512), None, None, "data", "model"),
        "matrices": [
            array((512, 2048), "data", "model"),
            array((2048, 2048), "data", "model"),
            array((2048, 1024), ("data", "model"), None),
        ],
        "bias": array((1024,)),
    }
    params = {"weights": weights, "probs": weights | {"bias": None}}
    of_probs = optax.chain(optax.adam(6e-3), last_link)
    tx = optax.chain(
        optax.clip_by_global_norm(3.0),
        optax.partition(
            {"weights": optax.adam(1e-3), "probs": of_probs},
            {"weights": "weights", "probs": "probs"},
        ),
    )
    sharding_of = {leaf.shape: leaf.sharding for leaf in jax.tree.leaves(params)}
    everywhere = NamedSharding(mesh, jax.P())
    state = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=sharding_of.get(x.shape, everywhere)
        ),
        jax.eval_shape(tx.init, params),
    )
    images, labels = array((64, 16, 16, 64), "data"), array((64,), "data", dtype=jnp.int32)
    key = array((2,), dtype=jnp.uint32)

    def whole(weight):
        explicit = AxisType.Explicit in mesh.axis_types
        place = jax.sharding.reshard if explicit else jax.lax.with_sharding_constraint
        return place(weight, everywhere)

    def task(weights, images, labels):
        x = jax.lax.conv_general_dilated(
            images,
            whole(weights["convolution"]),
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        x = jnp.mean(jax.nn.relu(x), axis=(1, 2))
        for matrix in weights["matrices"]:
            x = jax.nn.relu(x) @ whole(matrix)
        logits = x + weights["bias"]
        return optax.softmax_cross_entropy(logits, jax.nn.one_hot(labels, 1024)).mean()

    def mean_loss(params, keys, temperature, images, labels):
        drawn = [jp.relaxed_bernoulli(key, params["probs"], temperature) for key in keys]
        losses = [task(jp.apply_mask(params["weights"], mask), images, labels) for mask in drawn]
        return sum(losses) / len(losses)

    def step(params, state, key, temperature, images, labels):
        keys = jax.random.split(jax.random.wrap_key_data(key), 2)
        loss, grads = jax.value_and_grad(mean_loss)(params, keys, temperature, images, labels)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    return step, (params, state, key, array(()), images, labels)


def transposable_case(mesh):
    """Kernels of a transformer, each device with its part."""

    def scores(shape, *spec):
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, jax.P(*spec)))

    tree = [scores((1024, 4096), "data", "model"), scores((4096, 1024), ("data", "model"), None)]
    return lambda scores: jp.transposable_nm_mask(scores, 4, 8), (tree,)


def unprojected_step_case(mesh):
    return probmask_step_case(mesh, optax.identity())


# The compiler's side: a process that prints a report as its last line.


def described_devices():
    return topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGY).devices


def collectives(program):
    """Each collective of the program, with the number of elements of each array that it moves."""
    for instruction in INSTRUCTION.finditer(program):
        shapes = SHAPE.findall(instruction["shapes"])
        sizes = [int(np.prod([int(n) for n in shape.split(",") if n])) for shape in shapes]
        yield instruction["name"], max(sizes, default=0)


def report(case, axis_type):
    axis_types = (AxisType[axis_type],) * 2
    mesh = Mesh(np.array(described_devices()).reshape(4, 2), ("data", "model"), axis_types)
    function, arguments = globals()[case](mesh)
    compiled = jax.jit(function).lower(*arguments).compile()
    memory = compiled.memory_analysis()
    leaves = jax.tree.leaves(arguments)
    return {
        "collectives": sorted(collectives(compiled.as_text())),
        "temporary_bytes": memory.temp_size_in_bytes,
        "argument_bytes": sum(
            int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize
            for leaf in leaves
        ),
        "output_bytes": memory.output_size_in_bytes,
    }


def in_own_process(*arguments):
    """Runs this file as a script; the result is a CompletedProcess."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(Path(__file__).parent.parent),
        # There is no TPU host to ask about.
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
    }
    command = [sys.executable, __file__, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)


def compile_for_tpu(case, axis_type):
    process = in_own_process(case.__name__, axis_type)
    assert process.returncode == 0, process.stderr[-4000:]
    return json.loads(process.stdout.splitlines()[-1])


# The tests' side.


@pytest.fixture(scope="session")
def tpu_devices():
    """How many TPU chips can be compiled for; skips the test where there are none."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed: run `make test-tpu`")
    process = in_own_process()
    if process.returncode != 0:
        pytest.skip(f"libtpu doesn't describe {TOPOLOGY}: {process.stderr.strip()[-300:]}")
    return json.loads(process.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("axis_type", AXIS_TYPES)
def test_top_k_mask_moves_nothing_but_counts(tpu_devices, axis_type):
    assert tpu_devices == 8
    compiled = compile_for_tpu(top_k_mask_case, axis_type)
    assert {name for name, _ in compiled["collectives"]} == {"all-reduce"}
    assert max(size for _, size in compiled["collectives"]) <= 64
    assert compiled["temporary_bytes"] <= compiled["argument_bytes"]


@pytest.mark.slow
@pytest.mark.parametrize("axis_type", AXIS_TYPES)
def test_transposable_masks_move_nothing_but_tiles_set_aside(tpu_devices, axis_type):
    compiled = compile_for_tpu(transposable_case, axis_type)
    assert max(size for _, size in compiled["collectives"]) <= 2**17  # of 8.4 million scores


@pytest.mark.slow
@pytest.mark.parametrize("axis_type", AXIS_TYPES)
def test_projection_adds_nothing_but_sums_to_a_step(tpu_devices, axis_type):
    """Compared with the same step without the link, and with no copy but one of its own tree."""
    projected = compile_for_tpu(probmask_step_case, axis_type)
    plain = compile_for_tpu(unprojected_step_case, axis_type)
    moved, moved_before = (
        collections.Counter(map(tuple, compiled["collectives"])) for compiled in (projected, plain)
    )
    assert any(name == "all-gather" for name, _ in moved_before)  # of weights, for the products
    added = moved - moved_before
    assert moved_before <= moved
    assert {name for name, _ in added} == {"all-reduce"}
    assert max(size for _, size in added) <= 8
    # Six trees of this size are arguments: weights, probabilities, two moments of each. The bound
    # is not smaller, because the compiler orders the two steps differently.
    probabilities = projected["argument_bytes"] / 6
    assert projected["temporary_bytes"] <= plain["temporary_bytes"] + probabilities


def test_collectives_are_found_in_a_program():
    program = """
      %all-reduce.1 = (u32[]{:T(128)}, u32[15]{0:T(128)S(1)}) all-reduce(%a, %b), channel_id=1
      %ag = (f32[8,4]{1,0}, f32[32,4]{1,0}) all-gather-start(%c), dimensions={0}
      %done = f32[32,4]{1,0} all-gather-done(%ag)
      ROOT %sum = f32[2]{0} add(%all-reduce.1, %d)
    """
    assert list(collectives(program)) == [("all-reduce", 15), ("all-gather", 128)]


if __name__ == "__main__":
    print(json.dumps(report(*sys.argv[1:]) if sys.argv[1:] else len(described_devices())))
