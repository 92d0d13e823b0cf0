"""ProbMask on ImageNet: ResNet-50 at 90% sparsity, in batches for a pod.

    python -m experiments.run experiments/configs/imagenet/resnet50_probmask.py --data_dir=...

Its steps have been compiled for pods (`--compile_for=v5e:4x4`), but nobody has run it: the rate
follows from the usual 0.1 for a batch of 256, as the linear rule has it, and the warm-up from
Goyal et al. (arXiv:1706.02677).
"""

from experiments.experiment import Experiment
from experiments.phases import FineTune, Search

sgd = {"batch": 4096, "weight_decay": 1e-4}
experiment = Experiment(
    model="resnet50",
    dataset="imagenet2012",
    sparsity=0.9,
    phases=(
        Search(epochs=100, learning_rate=1.6, warmup=0.05, **sgd),
        FineTune(epochs=20, learning_rate=0.016, decay="cosine", **sgd),
    ),
)
