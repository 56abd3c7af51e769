"""AdCo: contrastive pre-training against learnable adversaries.

Hu, Wang, Hu, Qi: AdCo: Adversarial Contrast for Efficient Learning of Unsupervised
Representations from Self-Trained Negative Adversaries, CVPR 2021, arXiv:2011.08435.

Dimension key, used in every file:
    N  images per process       R  processes          M = N R  keys of all processes
    D  embedding width          K  learnable negatives
"""

from adco.model import AdCo
from adco.negatives import NegativeBank
from adco.plan import view_plan
from adco.step import train_step

__all__ = ["AdCo", "NegativeBank", "train_step", "view_plan"]
