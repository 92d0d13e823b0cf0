import numpy as np
import pytest

from experiments import data, run
from experiments.data.imagenet import central_square
from experiments.experiment import CONFIGS


def test_imagenet_is_cut_to_one_size(prepared):
    dataset = data.load("imagenet2012", prepared, image_size=16)
    assert dataset.train[0].shape == (4, 16, 16, 3)
    assert dataset.test[0].shape == (2, 16, 16, 3)
    assert dataset.task.classes == 1000
    assert data.load("imagenet2012", prepared, limit=1).task.image_shape == (224, 224, 3)


def test_central_square_keeps_the_middle_of_the_short_side():
    image = np.random.default_rng(0).integers(0, 256, (256, 320, 3), dtype=np.uint8)
    np.testing.assert_array_equal(central_square(image, 224), image[16:240, 48:272])


IMAGENET_CONFIGS = [
    ("resnet50_hoyer", ("dense", "regularize", "fine-tune"), 25_502_912),
    ("resnet50_nm", ("train",), 25_502_912),
    ("resnet18_nm", ("train",), 11_678_912),
]


@pytest.mark.slow
@pytest.mark.usefixtures("relaxed_promotion", "one_device")
@pytest.mark.parametrize(("name", "phases", "weights"), IMAGENET_CONFIGS)
def test_imagenet_configs_run_on_a_small_folder(name, phases, weights, prepared, tmp_path):
    flags = [
        "--evaluations=1",
        f"--out={tmp_path / 'out'}",
        f"--epochs={','.join('1' for _ in phases)}",
    ]
    flags += [f"--set={phase}.batch=2" for phase in phases]
    result = run.main([str(CONFIGS / "imagenet" / f"{name}.py"), f"--data_dir={prepared}", *flags])
    assert result["weights"] == weights
    assert 0 < result["kept"] < result["weights"]
