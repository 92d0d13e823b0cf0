"""Wrong command lines: one line on stderr, exit code 2, nothing written; bugs keep a traceback."""

import dataclasses

import pytest

from experiments import run, sweep
from experiments.phases import FineTune, PruneChannels, PruneLayers, RemoveDying, TrainPattern
from experiments.usage import UsageError, exit_with_one_line, fits, nearest
from tests.experiments.runs import SEARCH, SMALL

pytestmark = pytest.mark.usefixtures("relaxed_promotion")


@pytest.fixture
def here(config, tmp_path, monkeypatch):
    """A working folder with configs, good and bad ones, in it."""
    with_phases = lambda *phases: dataclasses.replace(SMALL, phases=phases)
    config(SMALL)
    config(with_phases(SEARCH, FineTune(1, batch=60)), "batch60")
    config(with_phases(dataclasses.replace(SEARCH, choose="best_sampled")), "sampled")
    config(with_phases(TrainPattern(1, batch=64, where="conv9")), "nowhere")
    config(with_phases(SEARCH, PruneChannels()), "channels")
    config(with_phases(SEARCH, RemoveDying()), "dying")
    config(with_phases(SEARCH, PruneLayers()), "layers")
    config(with_phases(dataclasses.replace(SEARCH, estimator="vrpge", draws=1)), "vrpge")
    config(SMALL, "grid", grid=[1])
    config(SMALL, "drawn", grid=[{"search.draws": draws} for draws in (1, 2)])
    for name, text in {
        "plain.txt": "",
        "empty.py": "",
        "other.py": "experiment = 3",
        "syntax.py": "a = 1\nb = (",
        "typo.py": "from experiments.phases import *\n\nexperiment = Dens(1)",
        "field.py": "from experiments.experiment import Experiment\nExperiment(density=0.1)",
        "lost.py": "import nowhere_to_be_found",
        "axes.py": "from experiments.experiment import Experiment\n"
        "Experiment('lenet300100', 'digits', (), model_axes={'(': 0})",
        "option.py": "from experiments.phases import *\nDense(1, optimizer='lion')",
    }.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


WRONG = [
    # the command itself
    ("run", "", "arguments are required: config"),
    ("run", "small.py --seed=one", "argument --seed: invalid int value: 'one'"),
    ("run", "small.py --spasity=0.9", "unknown argument --spasity=0.9; did you mean --sparsity?"),
    ("run", "small.py --density=0.9", "unknown argument --density=0.9"),
    ("run", "small.py --sparsit=0.9", "did you mean --sparsity?"),  # no shortened flags
    ("run", "small.py --quux", "unknown argument --quux; --help lists all"),
    ("run", "small.py extra", "unknown argument extra"),
    ("run", "small.py --seed", "argument --seed: expected one argument"),
    # the config file
    ("run", "gone.py", "no config file gone.py; those at hand are in "),
    ("run", "plain.txt", "plain.txt is not a Python file: its name must end in .py"),
    ("run", "empty.py", "empty.py must define `experiment`, an Experiment"),
    ("run", "other.py", "other.py must define `experiment`, an Experiment"),
    ("run", "syntax.py", "syntax.py, line 2: SyntaxError"),
    ("run", "typo.py", "typo.py, line 3: NameError: name 'Dens' is not defined"),
    ("run", "field.py", "field.py, line 2: TypeError: Experiment.__init__() got an unexpected"),
    ("run", "lost.py", "lost.py, line 1: ModuleNotFoundError: No module named 'nowhere_to"),
    ("run", "option.py", "option.py, line 2: ValueError: optimizer must be one of ['sgd', 'adam"),
    # values of flags
    ("run", "small.py --sparsity=90", "sparsity must lie in [0, 1], got 90.0: give a fraction"),
    ("run", "small.py --sparsity=-0.1", "sparsity must lie in [0, 1], got -0.1"),
    ("run", "small.py --sparsity=nan", "sparsity must lie in [0, 1], got nan"),
    ("run", "small.py --epochs=3", "--epochs needs a positive number for each of ['search', 'fi"),
    ("run", "small.py --epochs=3,0", "--epochs needs a positive number for each of"),
    ("run", "small.py --epochs=3,x", "--epochs needs a positive number for each of"),
    ("run", "small.py --seed=-1", "seed must be at least 0, got -1"),
    ("run", "small.py --evaluations=0", "evaluations must be at least 1, got 0"),
    ("run", "small.py --steps_per_call=0", "steps_per_call must be at least 1, got 0"),
    ("run", "small.py --shard_from=-1", "shard_from must be at least 0, got -1"),
    ("run", "axes.py", "axes.py, line 2: UsageError: model_axes: '(' is no regular expression"),
    ("run", "small.py --limit=0", "limit must be between 1 and the 1437 training records: 0"),
    ("run", "small.py --limit=2000", "limit must be between 1 and the 1437 training records"),
    ("run", "small.py --holdout=256", "holdout must be between 0 and 255, got 256"),
    ("run", "small.py --holdout=-1", "holdout must be between 0 and 255, got -1"),
    (
        "run",
        "small.py --checkpoint_seconds=nan",
        "checkpoint_seconds must be at least 0, got nan",
    ),
    (
        "run",
        "small.py --checkpoint_seconds=-1",
        "checkpoint_seconds must be at least 0, got -1.0",
    ),
    ("run", "small.py --mesh=", "--mesh needs a value, got none"),
    # data sets, models, folders
    (
        "run",
        "small.py --dataset=digit",
        "wiki40b/en, c4/en; did you mean digits?",
    ),
    ("run", "small.py --dataset=svhn", "unknown data set 'svhn': choose one of digits, mnist"),
    ("run", "small.py --model=lenet30100", "resnet50; did you mean lenet300100?"),
    ("run", "small.py --model=mlp", "unknown model 'mlp': choose one of lenet300100"),
    ("run", "small.py --model=vgg19", "VGG19 needs images of at least 32x32 pixels, got 8x8"),
    ("run", "small.py --dataset=mnist --data_dir=gone", "mnist 3.0.1 is not prepared: no ArrayRec"),
    ("run", "small.py --reuse=gone", "--reuse: there is no folder gone"),
    ("run", "small.py --out=plain.txt", "--out: "),
    ("run", "small.py --workers=-1", "workers must be at least 0, got -1"),
    # settings of phases and data sets
    ("run", "small.py --set=search", "; the names are ['search.epochs', "),
    ("run", "small.py --set=search.epoch=3", "needs name=value; did you mean search.epochs?"),
    ("run", "small.py --set=dense.epochs=3", "--set=dense.epochs=3: needs name=value"),
    ("run", "small.py --set=search.name=a", "--set=search.name=a: needs name=value"),
    ("run", "small.py --set=search.epochs=0", "search: epochs must be at least 1, got 0"),
    ("run", "small.py --set=search.epochs=1.5", "search.epochs must be of type int, got 1.5"),
    ("run", "small.py --set=search.epochs=many", "search.epochs must be of type int, got 'many'"),
    ("run", "small.py --set=search.choose=any", "choose must be one of ['top_k', 'best_sampled']"),
    ("run", "small.py --set=search.dense_until=0.9", "search: steps must satisfy 0 <= begin < end"),
    ("run", "small.py --set=search.draws=0", "search.draws=0: draws must be at least 1, got 0"),
    ("run", "channels.py --set=prune-channels.where=[", "where: '[' is no regular expression"),
    ("run", "channels.py --set=prune-channels.budget=-5", "budget must be finite and positive"),
    (
        "run",
        "channels.py --set=prune-channels.budget=1",
        "error: prune-channels: the budget is 1",
    ),
    ("run", "channels.py --sparsity=1", "error: prune-channels: the budget is 0.0, but"),
    ("run", "dying.py", "dying: no group of channels goes through the scale of a norm"),
    ("run", "layers.py --set=layers.pattern=2:x", "pattern must be such as '2:4', got '2:x'"),
    ("run", "layers.py --set=layers.transposable=True", "layers: pattern must be such as '2:4', g"),
    ("run", "layers.py --set=layers.where=[", "layers: `where`='[' is no regular expression"),
    ("run", "layers.py --set=layers.where=conv9", "layers: "),
    ("run", "layers.py --set=layers.records=0", "records must be at least 1, got 0"),
    (
        "run",
        "layers.py --set=layers.records=100",
        "layers: the batch of 250 must be at most the",
    ),
    (
        "run",
        "layers.py --limit=200",
        "layers: the batch of 250 must be at most the 200 tr",
    ),
    ("run", "vrpge.py", "search: draws must be at least 2 for vrpge, got 1"),
    ("run", "small.py --set=dataset.size=3", "--set=dataset.size=3: needs name=value"),
    ("run", "small.py --set=dataset.standardize=3", "standardize must be of type bool, got 3"),
    # what the records and devices allow
    ("run", "small.py --set=search.batch=0", "search: the batch of 0 must be positive"),
    ("run", "small.py --limit=63", "search: the batch of 64 must be positive, divide by the 8"),
    ("run", "batch60.py", "fine-tune: the batch of 60 must be positive, divide by the 8 devices"),
    (
        "run",
        "sampled.py",
        "search: choosing among sampled masks needs held-out records: set --hold",
    ),
    ("run", "nowhere.py", "train: "),
    ("run", "small.py --mesh=data:4", "--mesh=data:4 takes 4 devices, and there are 8: the sizes "),
    (
        "run",
        "small.py --mesh=data:8,model:2",
        "takes 16 devices, and there are 8: the sizes must ",
    ),
    ("run", "small.py --mesh=8", "--mesh must be such as data:8 or data:4,model:2, got '8'"),
    ("run", "small.py --mesh=rows:8", "--mesh must be such as data:8 or data:4,model:2, got 'rows"),
    ("run", "small.py --mesh=data:0", "--mesh must be such as data:8 or data:4,model:2, got 'data"),
    ("run", "small.py --mesh=data:2,data:4", "--mesh must be such as data:8 or data:4,model:2"),
    # sweeps
    ("sweep", "", "arguments are required: configs"),
    ("sweep", "small.py --densities=0.1", "unknown argument --densities=0.1; did you mean --sp"),
    ("sweep", "small.py --sed=1", "unknown argument --sed=1; did you mean --seed"),
    ("sweep", "gone.py", "no config file gone.py"),
    ("sweep", "small.py small.py", "configs must have different names, got small, small"),
    ("sweep", "small.py --seeds=a", "--seeds needs numbers such as 0,1,2, got 'a'"),
    ("sweep", "small.py --seeds=0,1,00", "--seeds has 0 more than once"),
    ("sweep", "small.py --seed=7", "seed: seeds of a sweep are given by --seeds"),
    ("sweep", "small.py --compile_for=v5e:4x4", "compile_for: steps are compiled by experiments.r"),
    ("sweep", "small.py --vary=seed=5,6", "seed: seeds of a sweep are given by --seeds"),
    ("sweep", "small.py --vary=out=a,b", "out: a sweep has one --out for all runs"),
    ("sweep", "small.py --sparsities=", "--sparsities needs numbers such as 0.5,0.9, got none"),
    (
        "sweep",
        "small.py --sparsities=0.5 --vary=sparsity=0.9",
        "what varies has sparsity more than",
    ),
    ("sweep", "small.py --vary=search.batch=64,64", "search.batch has 64 more than once"),
    (
        "sweep",
        "small.py --sparsities=0.5,0.9 --sparsity=0.8",
        "sparsity is fixed by a flag and varied by the command line: leave the flag away",
    ),
    (
        "sweep",
        "small.py --vary=search.batch=64,128 --set=search.batch=32",
        "search.batch is fixed by a flag and varied by the command line",
    ),
    (
        "sweep",
        "small.py --vary=epochs=x1,x2 --set=search.epochs=3",
        "epochs is fixed by a flag and",
    ),
    (
        "sweep",
        "drawn.py --set=search.draws=3",
        "search.draws is fixed by a flag and varied by the grid of drawn.py: leave the flag away, "
        "or say by --vary or --sparsities what varies",
    ),
    ("sweep", "small.py --sparsities=0.5,90", "sparsity must lie in [0, 1], got 90.0"),
    ("sweep", "small.py --sparsities=0.5,x", "argument --sparsity: invalid float value: 'x'"),
    (
        "sweep",
        "small.py --vary=search.epoch=1,2",
        "--set=search.epoch=1: needs name=value; did you mean search.ep",
    ),
    ("sweep", "small.py --vary=search.epochs", "--vary needs setting=value,value,..., got 'searc"),
    ("sweep", "grid.py", "`grid` of grid.py must be a list of dicts, got [1]"),
    ("sweep", "small.py --out=plain.txt", "--out: "),
]


@pytest.mark.parametrize(("command", "arguments", "message"), WRONG)
def test_wrong_command_lines_are_said_in_one_line(here, capsys, command, arguments, message):
    before = sorted(here.iterdir())
    with pytest.raises(SystemExit) as stopped:
        exit_with_one_line({"run": run, "sweep": sweep}[command].main, arguments.split())
    assert stopped.value.code == 2
    printed, said = capsys.readouterr()
    assert not printed
    assert said.startswith("error: ") and said.count("\n") == 1
    assert message in said
    assert sorted(here.iterdir()) == before


def test_bugs_keep_their_traceback(here, monkeypatch):
    def broken(*args):
        raise ValueError("a bug")

    monkeypatch.setattr(run, "run", broken)
    with pytest.raises(ValueError, match="a bug"):
        exit_with_one_line(run.main, ["small.py"])


def test_config_files_are_suggested(monkeypatch):
    monkeypatch.chdir(run.__file__.rpartition("experiments")[0])
    with pytest.raises(UsageError, match=r"did you mean experiments/configs/mnist/probmask.py\?"):
        run.main(["experiments/configs/mnist/probmsk.py"])


def test_nearest_is_silent_where_nothing_is_near():
    assert nearest("batch", ["epochs", "batches"]) == "; did you mean batches?"
    assert nearest("batch", ["epochs"]) == ""


@pytest.mark.parametrize(
    ("value", "kind", "fitting"),
    [
        (1, float, True),
        (1.0, int, False),
        (True, int, False),
        (None, int | None, True),
        ((0.1, 1), str | tuple[float, ...], True),
        ("cosine", str | tuple[float, ...], True),
        ((0.1, "x"), str | tuple[float, ...], False),
        ([0.1], tuple[float, ...], False),
    ],
)
def test_values_fit_annotations(value, kind, fitting):
    assert fits(value, kind) is fitting
