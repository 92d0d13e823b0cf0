"""Pruning alone on MNIST: LeNet-5 by gradual magnitude pruning, its kept weights in float32.

    python -m experiments.run experiments/configs/mnist/pruned_lenet5.py --data_dir=...

A rival of joint_lenet5.py, with as many epochs.
"""

from dataclasses import replace

from experiments.configs.mnist.joint_lenet5 import adam
from experiments.configs.mnist.joint_lenet5 import experiment as joint
from experiments.phases import FineTune, PruneGradually

dense, _, _ = joint.phases
gradual = PruneGradually(epochs=25, learning_rate=1e-3, dense_until=0.0, every=100, **adam)
fine_tune = FineTune(epochs=8, learning_rate=1e-3, **adam)
experiment = replace(joint, phases=(dense, gradual, fine_tune))
grid = [{"sparsity": sparsity} for sparsity in (0.98, 0.99, 0.995, 0.9975)]
