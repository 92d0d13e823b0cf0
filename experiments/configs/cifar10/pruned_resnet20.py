"""Pruning alone on CIFAR-10: ResNet-20 by gradual magnitude pruning, its kept weights in float32.

    python -m experiments.run experiments/configs/cifar10/pruned_resnet20.py --data_dir=...

A rival of joint_resnet20.py.
"""

from dataclasses import replace

from experiments.configs.cifar10.joint_resnet20 import experiment as joint
from experiments.configs.cifar10.joint_resnet20 import gently
from experiments.phases import FineTune, PruneGradually

dense, _, _ = joint.phases
gradual = PruneGradually(epochs=40, dense_until=0.0, every=100, **gently)
experiment = replace(joint, phases=(dense, gradual, FineTune(epochs=20, **gently)))
grid = [{"sparsity": sparsity} for sparsity in (0.9, 0.95, 0.975)]
