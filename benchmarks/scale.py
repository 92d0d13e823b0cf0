"""What the compiler for 512 TPU chips makes of every function and link, at 10^12 weights.

    python -m benchmarks.scale                   # what has no row yet, into benchmarks/results/
    python -m benchmarks.scale top_k "step, "    # anew, cases with one of these in their names

libtpu compiles ahead of time for chips that it only has described, so this takes `jax[tpu]` and no
TPU. Each case is compiled in a process of its own. Rows are kept in `--rows` as they come, with the
commit they were compiled at; the page is written from them. An interrupted run of named cases goes
on if nothing was committed since.
"""

import concurrent.futures
import importlib.metadata
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh

from benchmarks import scale_cases, scale_trees
from experiments.costs import hlo
from experiments.usage import Parser, check_found, exit_with_one_line

TOPOLOGY, MESH = "v5p:8x8x8", (32, 16)
TENTH, SMALL = 0.1, 2**16
RESULTS = Path(__file__).parent / "results" / "scale-512-chips.md"
TIMEOUT = 1800  # seconds
COMMIT = ["git", "describe", "--always", "--dirty", "--exclude=*", "--abbrev=7"]

HEAD = """\
# 512 chips, 10^12 weights

What the TPU compiler makes of each function and link: {jax}, ahead of time for {topology}, mesh
{mesh} (data, model); by `python -m benchmarks.scale`. Variants differ from `base` (bfloat16, leaves
stacked over layers and sharded on two axes, Auto mesh axes, no output shardings) in what they are
called; `opposite` is float32 on Explicit axes, sharded on the stacked and the last axis, with
output shardings; `no axis` are leaves of 67 million weights on every chip.

- **temporary**: memory a chip beside arguments and results, as a fraction of what it holds of the
  trees that go in (of `init_pattern_logits` also of the logits); of a training step (`step, ...`)
  beyond what the same step with Adam alone takes, as a fraction of the parameters.
- **array**: the largest in memory on a chip, in entries, relative to the largest shard of a leaf.
- **collective**: the largest, in bytes on a chip.
- **commit**: the code that was compiled; up to 21f1c21 the commit that recorded the row, compiled
  on the day before it at most.

Bounds: temporary {tenth} (transposable masks: 1), array 1, collective {small} bytes.
{passed} of {rows} rows hold them.

| case | variant | temporary, MB | of the share | array | collective | compile s | holds | commit |
|---|---|---|---|---|---|---|---|---|
"""
FOOT = """
**What doesn't hold.** The first logits of learned patterns, once, at the start of training: experts
of 4,096 inputs have 1,024 groups along them, of which a 512th is too little to be taken in place,
and a group's 90 transposable patterns are more than a tenth even of a piece. Transposable masks
where the layers are sharded over all chips, or could be for all that is known on a mesh with Auto
axes (512 layers, 512 chips): pieces are then an eighth of a leaf. The norms of 65,536 channels, of
`channel_norms`, are one vector on every chip, 256 KB, and so are results of the shape of thresholds
where output shardings are given: these ask for it. `add_admm` of `compress_to`, at an update that
projects, holds one leaf more in float32: a half here, since there are two leaves.

**What held more before**, in `base`: `random_mask` 1.04 of the tree's bytes, `regrow` 1.52 and
tiles of `Blocks` 0.37 beyond a step's own (all until 21f1c21); `compress_to` 2.01, with an
all-reduce of 42 MB (until ee87382); `add_admm` of `prune_to` 3.00 (until 940b650).

**Seconds** were measured beside other work on two cores and say little.

Not in the table: `count`, `layers`, `table`, `overlaps` (they run what `sparsity` of a mask runs,
and give Python numbers); `current_mask` (arrays that are there); `best_sampled_mask`
(`bernoulli_mask`, then the user's score); `problems`, `cubic_sparsity`, `alternating_sparsity`,
`ramped_threshold`, `annealed_temperature`, `mask_count`, `smallest_n`, `multiple_choice` (no arrays
of a leaf's size); `erk_sparsities`, `inner_layers`, `channel_groups`, `leaf_flops` (look at
shapes); `channel_cost`, `budget_mask`, `init_gates`, `apply_gates` (numbers of groups, and scales
of norms); `pack_24`, `unpack_24`, `prune_layers`, `reconstruct` (one kernel at a time);
`pack_quantized`, `unpack_quantized` (files, on the host). The user's model runs in `prune_layers`,
`reconstruct`, `grasp_scores`, `channel_sensitivities`, `prune_channels`, `shrink`, `shrink_module`
and `channel_times`.
"""


def compile_case(case: str, variant: str) -> dict:
    """A row: what the compiler made of one case, in this process."""
    v = scale_trees.VARIANTS[variant]
    devices = topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGY).devices
    mesh = Mesh(np.array(devices).reshape(MESH), scale_trees.AXES, (v.axis_type,) * 2)
    setting = scale_trees.Setting(v, mesh)
    function, arguments = scale_cases.CASES[case](setting)
    is_step = case.startswith("step")
    options: dict = {"donate_argnums": (0, 1)} if is_step else {}
    logits = setting.logits("transposable" in case) if "init_pattern" in case else None
    if v.out_shardings:
        results = logits or setting.placed(jax.eval_shape(function, *arguments))
        options["out_shardings"] = jax.tree.map(lambda x: x.sharding, results)
    start = time.perf_counter()
    program = jax.jit(function, **options).lower(*arguments).compile()
    seconds = time.perf_counter() - start
    held = hlo.summary(program)
    trees = arguments[0] if is_step else (arguments, logits)
    return {
        "case": case,
        "variant": variant,
        "temporary": held.temporary,
        "share": _bytes(trees),
        "array": held.largest_array / max(map(_entries, jax.tree.leaves((arguments, logits)))),
        "moved": [*(held.moved or ("", 0))[:2]],
        "seconds": round(seconds, 1),
    }


def _entries(leaf) -> int:
    """On a chip."""
    return math.prod(leaf.sharding.shard_shape(leaf.shape))


def _bytes(tree) -> int:
    return sum(_entries(leaf) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def in_own_process(case: str, variant: str) -> dict:
    """The same row, or one with an error, from a process whose memory ends with it."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        # There is no TPU host to ask about, and no TPU that two processes could want.
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "true",
    }
    command = [sys.executable, "-m", "benchmarks.scale", "--compile", case, variant]
    row = {"case": case, "variant": variant}
    try:
        process = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=TIMEOUT
        )
    except subprocess.TimeoutExpired:
        return row | {"error": f"not compiled in {TIMEOUT} s"}
    if process.returncode == 0:
        return json.loads(process.stdout.splitlines()[-1])
    errors = [line for line in process.stderr.splitlines() if "Error" in line or "hbm" in line]
    return row | {"error": " ".join(errors[:2])[:200]}


def judged(rows: list[dict]) -> list[dict]:
    """Rows with the part of the share that is temporary, and whether the bounds hold."""
    alone = {
        row["variant"]: row["temporary"] / row["share"]
        for row in rows
        if row["case"] == "step, no link" and "error" not in row
    }
    return [row if "error" in row else row | _verdict(row, alone) for row in rows]


def _verdict(row: dict, alone: dict) -> dict:
    part = row["temporary"] / row["share"]
    if row["case"].startswith("step"):
        part = max(part - alone.get(row["variant"], 0.0), 0.0)
    masks = "transposable" in row["case"] and "pattern" not in row["case"]
    bound = 1.0 if masks else TENTH
    holds = part <= bound and row["array"] <= 1 and row["moved"][1] <= SMALL
    return {"part": part, "holds": holds}


def table(rows: list[dict]) -> str:
    """The page of results."""
    rows = judged(rows)
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("jax", "libtpu"))
    head = HEAD.format(
        jax=versions,
        topology=TOPOLOGY,
        mesh="x".join(map(str, MESH)),
        tenth=TENTH,
        small=f"{SMALL:,}",
        passed=sum(row.get("holds", False) for row in rows),
        rows=len(rows),
    )
    return head + "\n".join(map(_line, rows)) + "\n" + _absent(rows) + FOOT


def _absent(rows: list[dict]) -> str:
    pairs = [f"{case} ({variant})" for case, variant in missing(rows, [], "")]
    return f"\n**Not compiled so far:** {'; '.join(pairs)}.\n" if pairs else ""


def _line(row: dict) -> str:
    start = f"| {row['case']} | {row['variant']} |"
    if "error" in row:
        return f"{start} | | | {row['error'].replace('|', '/')} | | no | {row['commit']} |"
    name, size = row["moved"]
    moved = f"{name} {size:,}" if name else "none"
    return (
        f"{start} {row['temporary'] / 1e6:,.1f} | {row['part']:.4f} | {row['array']:.3g} "
        f"| {moved} | {row['seconds']} | {'yes' if row['holds'] else '**no**'} | {row['commit']} |"
    )


def plan(names: list[str]) -> list[tuple[str, str]]:
    """Cases in all their variants: of what others rest on every one, of the others two."""
    pairs = [
        (case, variant)
        for variant in scale_trees.VARIANTS
        for case in scale_cases.CASES
        if variant in ("base", "opposite") or case in scale_cases.MECHANISMS
    ]
    return [pair for pair in pairs if not names or any(name in pair[0] for name in names)]


def missing(rows: list[dict], names: list[str], commit: str) -> list[tuple[str, str]]:
    """What has no row; of cases that are named, none of this commit."""
    done = {_pair(row) for row in rows if not names or row["commit"] == commit}
    return [pair for pair in plan(names) if pair not in done]


def latest(rows: list[dict]) -> list[dict]:
    """The last row of each pair that is still in the plan, in its order."""
    last = {_pair(row): row for row in rows}
    return [last[pair] for pair in plan([]) if pair in last]


def _pair(row: dict) -> tuple[str, str]:
    return row["case"], row["variant"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Compiles, and writes the table of all rows."""
    parser = Parser(__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--compile", nargs=2, metavar=("CASE", "VARIANT"))
    parser.add_argument("--rows", type=Path, default=RESULTS.with_suffix(".jsonl"))
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args(arguments)
    check_found(args.names, scale_cases.CASES)
    if args.compile:
        print(json.dumps(compile_case(*args.compile)))
        return
    args.rows.touch()
    rows = list(map(json.loads, args.rows.read_text().splitlines()))
    commit = subprocess.check_output(COMMIT, text=True).strip()
    compiled = lambda pair: in_own_process(*pair) | {"commit": commit}
    wanted = missing(rows, args.names, commit)
    with concurrent.futures.ThreadPoolExecutor(args.workers) as pool, args.rows.open("a") as file:
        for row in pool.map(compiled, wanted):
            print(json.dumps(row), file=file, flush=True)
            print(_line(judged([*rows, row])[-1]), flush=True)
            rows.append(row)
    rows = latest(rows)
    args.rows.write_text("".join(json.dumps(row) + "\n" for row in rows))
    RESULTS.write_text(table(rows))


if __name__ == "__main__":
    exit_with_one_line(main)
