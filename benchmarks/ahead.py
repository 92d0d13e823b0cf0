"""What steps of pod-sized experiments take on a chip, by the compiler for TPUs not here.

python -m benchmarks.ahead > benchmarks/results/ahead.md

`python -m experiments.run CONFIG --compile_for=...` for a few configs, as one table. Takes libtpu
(`pip install jax[tpu]`) and some minutes a row. The first phase of each config is shown.
"""

import dataclasses
import importlib.metadata
from collections.abc import Sequence

from experiments import run
from experiments.costs import ahead
from experiments.costs.ahead import Step, size
from experiments.usage import Parser, check_found, exit_with_one_line

CONFIGS = "experiments/configs"
SMALL, LARGE = "v5e:4x4", "v5p:8x8x8"
RESNET, DECODER = "imagenet/resnet50_probmask", "c4/decoder7b_{}"
ROWS = [
    (RESNET, SMALL, ""),
    (RESNET, LARGE, ""),
    *[
        (DECODER.format(name), chips, flags)
        for chips, flags in ((LARGE, ""), (LARGE, "--mesh=data:64,model:8"), (SMALL, "{}.batch=64"))
        for name in ("probmask", "transposable", "gradual")
    ],
    (DECODER.format("gradual"), "v5e:8x8", "{}.batch=64"),
]
COLUMNS = [
    *("experiment", "chips", "flags", "state", "records", "temporary", "of its memory"),
    *("Tflop", "HBM traffic", "moved", "largest"),
]
HEAD = f"""\
# Steps on chips that aren't here

By `python -m benchmarks.ahead`: jax {{jax}}, libtpu {{libtpu}}, compiled ahead of time; nothing was
run. All figures are of one step on one chip. State: weights, moments, probabilities or masks.
Temporary, as XLA's analysis has it: activations, gradients, gathered weights. Largest: the largest
array in memory but records, relative to the largest whole leaf. Moved: what collectives give, and
how many of them there are.

| {" | ".join(COLUMNS)} |
{"|---" * len(COLUMNS)}|"""


def step_of(config: str, chips: str, flags: str) -> Step:
    """The step of the first phase."""
    arguments = [f"{CONFIGS}/{config}.py", *([flags] if flags.startswith("--") else [])]
    parsed = run.parse(arguments)
    experiment = run.configured(parsed)
    first = experiment.phases[0]
    if flags and not flags.startswith("--"):
        parsed = run.parse([*arguments, f"--set={flags.format(first.name)}"])
        first = run.configured(parsed).phases[0]
    experiment = dataclasses.replace(experiment, phases=(first,))
    return ahead.steps(experiment, chips, parsed.mesh)[0]


def row(config: str, chips: str, flags: str) -> str:
    """A line of the table."""
    step = step_of(config, chips, flags)
    shown = [config, chips, flags.format(step.phase), size(step.state), size(step.batch)]
    work = f"{step.flops / 1e12:.3g}"
    if step.memory is None:
        return f"| {' | '.join([*shown, f'does not fit: {step.words}', '', work, '', '', ''])} |"
    runs = sum(count for count, _ in step.collectives.values())
    moved = sum(total for _, total in step.collectives.values())
    shown += [size(step.temporary), f"{step.memory / step.limit:.0%}", work, size(step.traffic)]
    return f"| {' | '.join([*shown, f'{size(moved)}, {runs:,}', f'{step.largest_array:.2g}'])} |"


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table, or the rows that hold a word of the command line."""
    parser = Parser(__doc__)
    parser.add_argument("words", nargs="*")
    words = parser.parse_args(arguments).words
    check_found(words, [" ".join(each) for each in ROWS])
    versions = {name: importlib.metadata.version(name) for name in ("jax", "libtpu")}
    print(HEAD.format(**versions), flush=True)
    for each in ROWS:
        if not words or any(word in " ".join(each) for word in words):
            print(row(*each), flush=True)


if __name__ == "__main__":
    exit_with_one_line(main)
