"""The installed commands of what lies beside adco/ in the repository, and inside it in a wheel."""

from lincls import main as probe
from main_adco import main as pretrain
from VOC_CLF.main import main as voc

__all__ = ["pretrain", "probe", "voc"]
