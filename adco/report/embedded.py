"""Some pictures of a run through its encoder, on the CPU: features, embeddings, scores, a map;
and what the adversaries are among them. Nothing here holds a matrix of K times K.
"""

from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
from scipy.special import softmax
from sklearn import config_context
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.manifold import TSNE
from sklearn.metrics import accuracy_score
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler, normalize

from adco.data import identity
from adco.data.datasets import sample_of
from adco.data.list_files import listed_splits
from adco.data.loader import CheckViews, TrainingViews
from adco.data.views import normalised
from adco.encoder import Trunk, build_trunk
from adco.model import AdCo
from adco.pretrain.game import scored_by, training_recipes
from adco.report.runs import Run
from ops import checkpoint
from ops.distributed import ALONE

TRAIN, VAL, GAMES = 4000, 1000, 512  # pictures, at most; a quarter where views are large
LARGE, SMALL = 128, 64  # pixels: from where on they are, up to where pixels are a rival
ON_MAP, THUMB, PIXELS, KNN_K, KNN_T = 1500, 48, 32, 20, 0.07


@torch.inference_mode()
def embed_run(run: Run, data: str = "") -> SimpleNamespace:
    """What the last checkpoint of a run makes of some of its pictures: of train, then from `cut`
    on others, of val where there is one. Raises InputError.

    Arrays: features [n, d]; random [n, d] of random weights; pixels [n, p]; embeddings [n, D] of
    unit length; thumbs uint8 [n, 3, T, T]; labels [n] or None; W [K, D] of unit length or None;
    queries, keys [m, D] of two training views each of the first m.  unseen: what the others are;
    other: how the pictures differ from those of the run.  data: where pictures lie now.
    """
    config, path = SimpleNamespace(**run.options), run.folder / checkpoint.LAST
    config.data = data or config.data
    config.data = tuple(config.data) if isinstance(config.data, list) else config.data
    state, same = checkpoint.load(path), dict(stem=config.stem, channels=config.channels)
    model = AdCo(
        config.arch, config.moco_dim, mlp=config.mlp, mlp_width=config.mlp_width,
        mlp_bn=bool(config.mlp_bn), **same,
    ).eval()  # fmt: skip
    weights = checkpoint.without_module(state.get("state_dict", {}))
    checkpoint.load_strictly(model, weights, str(path))
    torch.manual_seed(config.seed)
    random, trunk = Trunk(build_trunk(config.arch, **same)).eval(), Trunk(model.encoder_q)

    e, views, pairs = seen(config, run.about.get("data"))
    if config.negatives == "learned":
        e.W = normalize(state["Memory_Bank"]["W"].T.float().numpy())

    def of_all(network) -> np.ndarray:
        return torch.cat([network(batch) for batch in views.split(64)]).numpy()

    e.features = of_all(lambda batch: trunk(normalised(batch)).float())
    e.random = of_all(lambda batch: random(normalised(batch)).float())
    e.embeddings = F.normalize(model.encoder_q.fc(torch.from_numpy(e.features))).numpy()
    e.pixels = of_all(lambda batch: resized(batch, min(PIXELS, config.image_size)).flatten(1))
    colours = 3 if views.shape[1] >= 3 else 1
    thumbs = of_all(lambda batch: resized(batch[:, :colours], THUMB).round().byte())
    e.thumbs = np.repeat(thumbs, 3 // colours, axis=1)
    of_query, of_key = (map(normalised, of.split(64)) for of in pairs)
    e.queries, e.keys = (torch.cat(x).numpy() for x in (model(of_query), model.embed_keys(of_key)))
    return e


def seen(config, data) -> tuple[SimpleNamespace, torch.Tensor, list[torch.Tensor]]:
    """Some pictures that can be read: cut, classes, labels, unseen and other as in embed_run; their
    test views [n, C, S, S]; and two training views each [m, C, S, S] of the first. data: what the
    run was made of.
    """
    share = 4 if config.image_size > LARGE else 1
    splits, _ = scored_by(config, listed_splits(config, ALONE))  # what the run held out
    train, val = splits.labelled or splits.train, splits.val
    # Without val, a third of those of train stand in for it.
    chosen = sample_of(train, 0, (TRAIN + VAL * (val is None)) // share)
    cut = len(chosen) if val else len(chosen) * 2 // 3
    others = sample_of(val, 0, VAL // share) if val else chosen[cut:]
    views, places, labels = [], [], []
    for pictures, some in ((train, chosen[:cut]), (val or train, others)):
        part, size = pictures.part(np.array(some)), config.image_size
        check = CheckViews(part, size, skip_broken=True, whole=not config.eval_crop)
        check.labels = np.array(some)
        of_part, found = check.__getitems__(range(len(some)))
        views.append(of_part), places.append(found.tolist())
        labels.append([] if pictures.labels is None else pictures.labels[found.numpy()])
    e = SimpleNamespace(cut=len(places[0]), classes=[], labels=None, W=None)
    e.other = identity.difference(data, splits.identity())
    e.unseen = "not trained on" if val else "trained on too: there is no val, and none was held out"
    if e.other:
        e.unseen = "whether trained on is not known"
    if splits.labelled or (val is None and train.labels is not None):
        e.labels, e.classes = np.concatenate(labels), list(train.classes)

    # Query against key, as in a step.
    pairs = TrainingViews(train, training_recipes(config)[:1] * 2, config.seed, skip_broken=True)
    first = [(0, place) for place in places[0][: GAMES // share]]
    return e, torch.cat(views), pairs.__getitems__(first)[0]


def resized(batch: torch.Tensor, side: int) -> torch.Tensor:
    """Views [n, C, S, S] of so many pixels a side, float32."""
    return F.interpolate(batch.float(), size=side, mode="area")


def scores_of(e: SimpleNamespace, rows: np.ndarray) -> tuple[float, float, np.ndarray]:
    """Percent of the pictures from `cut` on that kNN and logistic regression on the others get
    right; kNN's answers.
    """
    near = dict(metric="cosine", weights=lambda distance: np.exp(-distance / KNN_T))
    knn = KNeighborsClassifier(min(KNN_K, e.cut), **near)
    logistic = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
    answers = [
        model.fit(rows[: e.cut], e.labels[: e.cut]).predict(rows[e.cut :])
        for model in (knn, logistic)
    ]
    right = [100 * float(accuracy_score(e.labels[e.cut :], answer)) for answer in answers]
    return *right, answers[0]


def maps(e: SimpleNamespace) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Which pictures are on the map [n], and their places [n, 2] by kind of map; beside the
    embeddings, those of up to 300 adversaries come after them.
    """
    chosen = np.sort(np.random.default_rng(0).permutation(len(e.features))[:ON_MAP])
    found = PCA(min(50, *e.features[chosen].shape)).fit_transform(normalize(e.features[chosen]))
    tsne = TSNE(perplexity=min(30, (len(chosen) - 1) / 3), init="pca", random_state=0)
    embeddings = e.embeddings[chosen]
    both = embeddings if e.W is None else np.concatenate([embeddings, e.W[:300]])
    places = {"t-SNE of the features": tsne.fit_transform(found), "PCA of the features": found}
    places["PCA of the embeddings"] = PCA(2).fit(embeddings).transform(both)
    return chosen, {name: xy[:, :2].round(3) for name, xy in places.items()}


# ---- pure functions of arrays; the columns are unit rows [K, D]


def nearest(rows: np.ndarray, others: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosines [n, k] and positions [n, k] of the others [m, D] nearest to each of the rows [n, D],
    of any length, the nearest first; of fewer than k others, all of them.
    """
    neighbours = NearestNeighbors(n_neighbors=min(k, len(others)), metric="cosine").fit(others)
    with config_context(working_memory=64):  # MB
        distance, place = neighbours.kneighbors(rows)
    return 1 - distance, place


def attention(
    queries: np.ndarray, keys: np.ndarray, columns: np.ndarray, tau: float
) -> tuple[np.ndarray, np.ndarray]:
    """What columns [K, D] take of the softmax of queries [n, D] over keys [n, D] and columns.

    Their sums over the queries [K]; and of each query [n] the column that is nearest, or -1 where
    its own key is nearer: the others are fooled.
    """
    cosine = queries @ columns.T
    logits = np.hstack([cosine / tau, queries @ keys.T / tau])
    total = softmax(logits, axis=1)[:, : len(columns)].sum(axis=0)
    nearer = cosine.max(axis=1) > (queries * keys).sum(axis=1)
    return total, np.where(nearer, cosine.argmax(axis=1), -1)


def shares(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Share of each class among the labels [n]."""
    return np.bincount(labels, minlength=num_classes) / max(1, len(labels))
