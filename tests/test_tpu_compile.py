"""What the TPU compiler makes of sharded code, without a TPU: `make test-tpu`.

libtpu compiles ahead of time for a topology that it only has described, here 8 chips of v5e. Each
case is a function of a mesh that returns what to compile and its abstract, sharded arguments. It is
compiled in a process of its own (this file, run as a script), so that the TPU plug-in never meets
the CPU devices of the other tests; what comes back is a report of the compiled program.
"""

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
        "collectives": sorted(set(collectives(compiled.as_text()))),
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
