"""Quantization alone on MNIST: LeNet-5 with all of its weights at one width.

    python -m experiments.run experiments/configs/mnist/quantized_lenet5.py --data_dir=...

A rival of joint_lenet5.py, with as many epochs.
"""

from dataclasses import replace

from experiments.configs.mnist.joint_lenet5 import adam
from experiments.configs.mnist.joint_lenet5 import experiment as joint
from experiments.phases import TrainQuantized

dense, _, _ = joint.phases
experiment = replace(joint, phases=(dense, TrainQuantized(epochs=33, learning_rate=1e-3, **adam)))
grid = [{"quantized.bits": bits} for bits in (1, 2, 4)]
