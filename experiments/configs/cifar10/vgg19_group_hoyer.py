"""DeepHoyer on CIFAR-10, structural: input channels and filters of VGG-19 leave.

python -m experiments.run experiments/configs/cifar10/vgg19_group_hoyer.py --data_dir=...

Three times 164 epochs: for an accelerator. The strength is a starting point.
"""

from dataclasses import replace

from experiments.configs.cifar10.resnet20_hoyer import experiment as resnet20
from experiments.phases import Threshold

dense, regularize, _, fine_tune = resnet20.phases
group_hoyer_square = replace(regularize, penalty="group_hoyer_square", strength=1e-3)
experiment = replace(
    resnet20,
    model="vgg19",
    phases=(dense, group_hoyer_square, Threshold(0.01, groups=True), fine_tune),
)
