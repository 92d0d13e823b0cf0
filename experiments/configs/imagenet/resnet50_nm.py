"""Transposable 4:8 masks on ImageNet: ResNet-50, otherwise as resnet18_nm.py.

python -m experiments.run experiments/configs/imagenet/resnet50_nm.py --data_dir=...
"""

from dataclasses import replace

from experiments.configs.imagenet.resnet18_nm import experiment as resnet18

experiment = replace(resnet18, model="resnet50")
