"""DeepHoyer over coupled channels of LeNet-5 on MNIST, to a budget of MACs; then they leave.

    python -m experiments.run experiments/configs/mnist/lenet5_channels.py --data_dir=...

The budget is the paper's: 169,900 multiplications and additions an image. What is fine-tuned is the
smaller network: 99.02% (mean of three seeds) with at most 169,858.
"""

from dataclasses import replace

from experiments.configs.mnist.lenet5_hoyer import experiment as element_wise
from experiments.phases import PruneChannels, Shrink

dense, regularize, _, fine_tune = element_wise.phases
channel_hoyer_square = replace(regularize, penalty="channel_hoyer_square", strength=1e-2)
experiment = replace(
    element_wise,
    phases=(
        dense,
        channel_hoyer_square,
        PruneChannels(budget=2 * 169_900),
        Shrink(),
        replace(fine_tune, epochs=40, learning_rate=1e-3, weight_decay=5e-4),
    ),
)
