"""DeepHoyer on CIFAR-10, element-wise: ResNet-56, else as resnet20_hoyer.py.

python -m experiments.run experiments/configs/cifar10/resnet56_hoyer.py --data_dir=...
"""

from dataclasses import replace

from experiments.configs.cifar10.resnet20_hoyer import experiment as resnet20

experiment = replace(resnet20, model="resnet56")
