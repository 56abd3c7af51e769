"""AdCo: contrastive pre-training against learnable adversaries.

Hu, Wang, Hu, Qi: AdCo: Adversarial Contrast for Efficient Learning of Unsupervised
Representations from Self-Trained Negative Adversaries, CVPR 2021, arXiv:2011.08435.

Dimension key, used in every file:
    N  images per process       R  processes          M = N R  keys of all processes
    D  embedding width          K  learnable negatives
"""

from importlib import import_module

HOMES = {
    "AdCo": "adco.model",
    "NegativeBank": "adco.negatives",
    "train_step": "adco.step",
    "view_plan": "adco.plan",
}
__all__ = list(HOMES)


def __getattr__(name: str):
    """The public names, imported when they are first used: options need no torch (PEP 562)."""
    if name in HOMES:
        return getattr(import_module(HOMES[name]), name)
    raise AttributeError(f"module 'adco' has no attribute {name!r}")
