"""The field's protocol: one linear SVM per class on frozen features of the whole picture."""

import numpy as np
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.svm import LinearSVC

from adco.data.loader import CheckViews
from adco.probe.features import extract_features
from ops.journal import Journal
from VOC_CLF.dataset import CLASSES, Voc, VocSplit
from VOC_CLF.linear import in_order
from VOC_CLF.options import VocConfig

COSTS = (0.01, 0.1, 1.0, 10.0, 100.0)  # C, of which cross-validation chooses one a class
FOLDS = 3


def svm_scores(
    config: VocConfig, model, voc: Voc, scored: VocSplit, device, journal: Journal
) -> np.ndarray:
    """[n, 20] distances from each class's plane, for the pictures of `scored`.

    Trains on train and val together, or on train alone where val is what is scored.
    """
    model.to(device)
    splits = [voc.train] if scored is voc.val else [voc.train, voc.val]
    extracted = [features(config, model, split, device) for split in splits]
    x = np.concatenate(extracted)
    labels = np.concatenate([split.labels for split in splits]) == 1
    queries = features(config, model, scored, device)
    journal.say(f"{len(x)} pictures to train on, features of width {x.shape[1]}")

    scores = np.zeros((len(queries), len(CLASSES)))
    for number, name in enumerate(CLASSES):
        svm, cost = fit_svm(x, labels[:, number], config.seed)
        if svm is None:
            journal.warn(f"{name}: no picture to train on; all its scores are 0")
            continue
        scores[:, number] = svm.decision_function(queries)
        journal.say(f"{name}: cost {cost:g}")
        journal.record("svm", number, {"class": name, "cost": cost})
    return scores


def features(config: VocConfig, model, split: VocSplit, device) -> np.ndarray:
    """[n, d] trunk features, unit length, of the view that ImageNet scores are computed on."""
    loader = in_order(config, CheckViews(split.pictures, config.picture_size()))
    return extract_features(model, loader, device).rows.cpu().numpy()


def fit_svm(x: np.ndarray, positive: np.ndarray, seed: int):
    """(SVM, cost), the cost by cross-validated average precision; (None, 0) with one label only.

    A class with one positive cannot be cross-validated and takes the middle one of the costs.
    """
    rarest = min(positive.sum(), (~positive).sum())
    if rarest == 0:
        return None, 0.0
    svm = LinearSVC(class_weight={True: 2, False: 1}, dual=False)  # the primal converges here
    if rarest == 1:
        cost = COSTS[len(COSTS) // 2]
        return svm.set_params(C=cost).fit(x, positive), cost
    folds = StratifiedKFold(min(FOLDS, int(rarest)), shuffle=True, random_state=seed)
    search = GridSearchCV(svm, {"C": COSTS}, scoring="average_precision", cv=folds)
    search.fit(x, positive)
    return search.best_estimator_, search.best_params_["C"]
