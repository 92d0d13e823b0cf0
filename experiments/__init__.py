"""Experiments with jaxprune: `python -m experiments.run`, `python -m experiments.sweep`."""

import importlib.util

_NEEDED = {"grain", "matplotlib", "sklearn", "tensorflow_datasets"}
_missing = sorted(name for name in _NEEDED if importlib.util.find_spec(name) is None)
if _missing:
    raise ImportError(f"experiments need {', '.join(_missing)}: pip install '.[experiments]'")
