"""The field's protocol: one linear SVM per class on frozen features of the whole picture."""

import numpy as np
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.svm import LinearSVC

from adco.data.loader import CheckViews, check_loader
from adco.data.pictures import FolderPictures
from adco.probe.features import extract_features, unit_rows
from ops.journal import Journal
from VOC_CLF.dataset import CLASSES
from VOC_CLF.options import VocConfig

COSTS = (0.01, 0.1, 1.0, 10.0, 100.0)  # C; cross-validation chooses one for each class
FOLDS = 3


def svm_scores(config: VocConfig, model, voc: dict, scored: str, device, journal: Journal):
    """[n, 20] distances from each class's plane, for the pictures of `scored`.

    voc: pictures by the name of their split.
    Trains on train and val together, or on train alone where val is what is scored.
    """
    # Features once, of all pictures.
    model.to(device)
    splits = [voc[name] for name in ("train", "val") if name != scored]
    x = np.concatenate([features(config, model, each) for each in splits])
    labels = np.concatenate([each.labels for each in splits]) == 1
    queries = features(config, model, voc[scored])
    journal.say(f"{len(x)} pictures to train on, features of width {x.shape[1]}")

    # One class against all others.
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


def features(config: VocConfig, model, pictures: FolderPictures) -> np.ndarray:
    """[n, d] trunk features of unit length, of the view that ImageNet scores are computed on."""
    views = CheckViews(pictures, config.picture_size())
    loader = check_loader(views, config.batch_size, config.workers)
    found = extract_features(model, loader, len(pictures), check=True)
    return unit_rows(found.rows).cpu().numpy()


def fit_svm(x: np.ndarray, positive: np.ndarray, seed: int):
    """(SVM, cost), the cost chosen by cross-validated average precision.

    A class with one positive cannot be cross-validated; it takes the middle one of the costs.
    Without a positive, or without a negative, it is (None, 0).
    """
    rarest = min(positive.sum(), (~positive).sum())
    if rarest == 0:
        return None, 0.0
    # A positive counts twice, as is usual for this score. The primal problem converges here.
    svm = LinearSVC(class_weight={True: 2, False: 1}, dual=False)
    if rarest == 1:
        cost = COSTS[len(COSTS) // 2]
        return svm.set_params(C=cost).fit(x, positive), cost
    # Each fold has a positive and a negative.
    folds = StratifiedKFold(min(FOLDS, int(rarest)), shuffle=True, random_state=seed)
    search = GridSearchCV(svm, {"C": COSTS}, scoring="average_precision", cv=folds)
    search.fit(x, positive)
    return search.best_estimator_, search.best_params_["C"]
