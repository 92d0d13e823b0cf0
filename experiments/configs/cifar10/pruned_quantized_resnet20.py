"""Pruning, then quantization on CIFAR-10: ResNet-20 pruned gradually, then at one width.

    python -m experiments.run experiments/configs/cifar10/pruned_quantized_resnet20.py

A rival of joint_resnet20.py, at the same budgets of values.
"""

from dataclasses import replace

from experiments.configs.cifar10.joint_resnet20 import experiment as joint
from experiments.configs.cifar10.joint_resnet20 import gently
from experiments.configs.cifar10.pruned_resnet20 import gradual
from experiments.phases import TrainQuantized

weights = 270_896
dense, _, _ = joint.phases
experiment = replace(joint, phases=(dense, gradual, TrainQuantized(epochs=20, **gently)))
grid = [
    {"sparsity": round(1 - 8 * budget / bits / weights, 6), "quantized.bits": bits}
    for budget in (8_000, 16_000, 32_000)
    for bits in (1, 2, 4)
]
