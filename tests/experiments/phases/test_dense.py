import pytest

from experiments.phases import Dense


@pytest.mark.parametrize("option", [{"optimizer": "lion"}, {"decay": "linear"}])
def test_options_are_checked(option):
    (name,) = option
    with pytest.raises(ValueError, match=f"{name} must be "):
        Dense(1, **option)
