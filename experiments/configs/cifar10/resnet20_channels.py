"""DeepHoyer over coupled channels of ResNet-20 on CIFAR-10: half of the flops leave.

    python -m experiments.run experiments/configs/cifar10/resnet20_channels.py --data_dir=...

Three times 164 epochs: for an accelerator. A channel of the residual stream leaves all layers of
its stage at once. The strength is a starting point.
"""

from dataclasses import replace

from experiments.configs.cifar10.resnet20_hoyer import experiment as element_wise
from experiments.phases import PruneChannels, Shrink

dense, regularize, _, fine_tune = element_wise.phases
channel_hoyer_square = replace(regularize, penalty="channel_hoyer_square", strength=1e-3)
experiment = replace(
    element_wise,
    sparsity=0.5,
    phases=(dense, channel_hoyer_square, PruneChannels(), Shrink(), fine_tune),
)
