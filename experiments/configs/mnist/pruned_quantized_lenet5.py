"""Pruning, then quantization on MNIST: LeNet-5 by gradual magnitude pruning, then at one width.

    python -m experiments.run experiments/configs/mnist/pruned_quantized_lenet5.py --data_dir=...

A rival of joint_lenet5.py, with as many epochs, at the same budgets of values.
"""

from dataclasses import replace

from experiments.configs.mnist.joint_lenet5 import adam
from experiments.configs.mnist.joint_lenet5 import experiment as joint
from experiments.configs.mnist.pruned_lenet5 import gradual
from experiments.phases import TrainQuantized

dense, _, _ = joint.phases
quantized = TrainQuantized(epochs=8, learning_rate=1e-3, **adam)
experiment = replace(joint, phases=(dense, gradual, quantized))
grid = [
    {"sparsity": round(1 - 8 * budget / bits / 430_500, 6), "quantized.bits": bits}
    for budget in (500, 1_000, 2_000, 4_000)
    for bits in (1, 2, 4)
]
