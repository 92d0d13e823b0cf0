"""Command lines of benchmarks are read before anything is measured."""

import pytest

from benchmarks import (
    ahead,
    loading,
    removal,
    scale,
    selection,
    sharding,
    steps,
    steps_tpu,
    transposable,
)
from experiments.usage import UsageError

ALL = [ahead, loading, removal, scale, selection, sharding, steps, steps_tpu, transposable]


@pytest.mark.parametrize("program", ALL)
def test_help_measures_nothing(program, capsys):
    with pytest.raises(SystemExit) as stopped:
        program.main(["--help"])
    assert stopped.value.code == 0
    said = capsys.readouterr().out
    assert said.startswith("usage: ") and program.__doc__.splitlines()[0] in said


@pytest.mark.parametrize(
    ("program", "argument", "message"),
    [
        *[(program, "--quux", "unrecognized arguments: --quux") for program in ALL],
        (steps, "conv", "unrecognized arguments: conv"),
        (removal, "--tables=exactness,sped", "--tables: unknown 'sped': .*did you mean speed"),
        (loading, "--tables=memry", "--tables: unknown 'memry': .*did you mean memory"),
        (ahead, "probmsk", "'probmsk' is in none of: imagenet/resnet50_probmask"),
        (scale, "top_kk", "'top_kk' is in none of: "),
    ],
)
def test_what_is_unknown_is_said_before_anything_is_measured(program, argument, message, capsys):
    results = scale.RESULTS.read_text()
    with pytest.raises(UsageError, match=message):
        program.main([argument])
    assert not capsys.readouterr().out
    assert scale.RESULTS.read_text() == results
