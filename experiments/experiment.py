"""What an experiment is, and how config files and command lines say it."""

import ast
import dataclasses
import importlib.util
import traceback
import typing
from pathlib import Path
from typing import Any

from experiments import data
from experiments.phases import OneShot
from experiments.usage import UsageError, check_pattern, check_type, fits, nearest

_LEAST = {"seed": 0, "evaluations": 1, "steps_per_call": 1, "shard_from": 0}

CONFIGS = Path(__file__).parent / "configs"


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What a config file defines as `experiment`; the command line can change it.

    `sparsity` is the fraction of the prunable weights that goes. `limit` is the number of training
    records (None: all), `holdout` how many of them are kept apart to choose masks and settings by,
    `evaluations` how many times each phase is evaluated on the test records, `dataset_options` what
    the data set lets one choose. `steps_per_call` steps run on the device before the host is asked
    for more: of use where a step takes less than a millisecond. On several devices leaves of at
    least `shard_from` entries are sharded; `model_axes` names the axis of a leaf that devices along
    `model` share, for regular expressions that are searched for in its path, such as
    {"(query|up)/kernel": -1, "(out|down)/kernel": -2}. With `export` the network is written as a
    file (`exported`), and its bytes are part of the result.

    Raises:
        UsageError: a value of the wrong type or out of range.
    """

    model: str
    dataset: str
    phases: tuple[Any, ...]
    sparsity: float = 0.9
    seed: int = 0
    limit: int | None = None
    holdout: int = 0
    evaluations: int = 20
    steps_per_call: int = 1
    dataset_options: dict = dataclasses.field(default_factory=dict)
    model_axes: dict = dataclasses.field(default_factory=dict)
    shard_from: int = 2**16
    export: bool = False

    def __post_init__(self):
        for field in dataclasses.fields(self):
            check_type(field.name, getattr(self, field.name), field.type)
        if not 0 <= self.sparsity <= 1:
            raise UsageError(
                f"sparsity must lie in [0, 1], got {self.sparsity}: give a fraction, not a "
                "percentage"
            )
        for name, least in _LEAST.items():
            if getattr(self, name) < least:
                raise UsageError(f"{name} must be at least {least}, got {getattr(self, name)}")
        for text, axis in self.model_axes.items():
            check_pattern("model_axes", text)
            check_type(f"model_axes[{text!r}]", axis, int)
        for phase in self.phases:
            if not isinstance(phase, OneShot) and phase.epochs < 1:
                raise UsageError(f"{phase.name}: epochs must be at least 1, got {phase.epochs}")


# Config files -----------------------------------------------------------------------------------


def config_name(config: str | Path) -> str:
    """The name of a config: `mnist/probmask` for those at hand, else that of the file."""
    path = Path(config).resolve()
    inside = path.is_relative_to(CONFIGS)
    return path.relative_to(CONFIGS).with_suffix("").as_posix() if inside else path.stem


def definitions(config: str) -> dict[str, Any]:
    """What a config file defines, an `experiment` among it."""
    path = Path(config)
    if not path.is_file():
        here = Path.cwd()
        at_hand = [each for each in CONFIGS.glob("*/*.py") if each.is_relative_to(here)]
        hint = nearest(config, [str(each.relative_to(here)) for each in at_hand])
        raise UsageError(f"no config file {path}{hint or '; those at hand are in ' + str(CONFIGS)}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} is not a Python file: its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UsageError(f"{_place(path, error)}: {type(error).__name__}: {error}") from error
    if not isinstance(vars(module).get("experiment"), Experiment):
        raise UsageError(f"{path} must define `experiment`, an Experiment")
    return vars(module)


def _place(path: Path, error: Exception) -> str:
    """The file and the line of it where an error came from."""
    if isinstance(error, SyntaxError):
        return f"{path}, line {error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename) == path.absolute()]
    return f"{path}, line {lines[-1]}" if lines else str(path)


# Changes by the command line --------------------------------------------------------------------


def with_epochs(experiment: Experiment, text: str) -> Experiment:
    """The experiment with other epochs for the phases that train: "4,2", or "x4" for 4 times."""
    trained = [phase for phase in experiment.phases if phase.epochs]
    factor = text.removeprefix("x")
    numbers = text.split(",")
    if text.startswith("x") and factor.isdecimal():
        numbers = [str(phase.epochs * int(factor)) for phase in trained]
    if len(numbers) != len(trained) or not all(n.isdecimal() and int(n) for n in numbers):
        names = [phase.name for phase in trained]
        raise UsageError(
            f"--epochs needs a positive number for each of {names}, or a factor for all such as "
            f"x4, got {text!r}"
        )
    remaining = map(int, numbers)
    phases = (
        dataclasses.replace(phase, epochs=next(remaining)) if phase.epochs else phase
        for phase in experiment.phases
    )
    return dataclasses.replace(experiment, phases=tuple(phases))


def with_setting(experiment: Experiment, setting: str) -> Experiment:
    """The experiment with `phase.field=value` or `dataset.option=value` changed."""
    target, _, text = setting.partition("=")
    kinds = _settings(experiment)
    if target not in kinds or not text:
        hint = nearest(target, kinds)
        raise UsageError(f"--set={setting}: needs name=value{hint}; the names are {[*kinds]}")
    name, _, field = target.partition(".")
    value = _value(target, text, kinds[target])
    if name == "dataset":
        options = {**experiment.dataset_options, field: value}
        return dataclasses.replace(experiment, dataset_options=options)
    try:
        phases = (
            dataclasses.replace(phase, **{field: value}) if phase.name == name else phase
            for phase in experiment.phases
        )
        return dataclasses.replace(experiment, phases=tuple(phases))
    except ValueError as error:
        raise UsageError(f"--set={setting}: {error}") from error


def _settings(experiment: Experiment) -> dict[str, Any]:
    """What can be set, each with its type."""
    of_phases = {
        f"{phase.name}.{field}": kind
        for phase in experiment.phases
        for field, kind in typing.get_type_hints(type(phase)).items()
        if field != "name"
    }
    options = data.options(experiment.dataset)
    return of_phases | {f"dataset.{option}": kind for option, kind in options.items()}


def _value(target: str, text: str, kind: Any) -> Any:
    try:
        literal = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        literal = text
    value = text if fits(text, kind) and not fits(literal, kind) else literal
    check_type(target, value, kind)
    return value
