"""Quantization alone on CIFAR-10: ResNet-20 with all of its weights at one width.

    python -m experiments.run experiments/configs/cifar10/quantized_resnet20.py --data_dir=...

A rival of joint_resnet20.py.
"""

from dataclasses import replace

from experiments.configs.cifar10.joint_resnet20 import experiment as joint
from experiments.configs.cifar10.joint_resnet20 import gently
from experiments.phases import TrainQuantized

dense, _, _ = joint.phases
experiment = replace(joint, phases=(dense, TrainQuantized(epochs=60, **gently)))
grid = [{"quantized.bits": bits} for bits in (1, 2, 4)]
