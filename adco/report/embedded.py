"""Some pictures of a run through its encoder, on the CPU: features, embeddings, scores, a map."""

from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.manifold import TSNE
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from adco.data.datasets import sample_of
from adco.data.list_files import listed_splits
from adco.data.loader import CheckViews, TrainingViews, check_loader
from adco.data.pictures import Pictures
from adco.data.views import normalised
from adco.embed import network_of
from adco.encoder import Trunk, build_trunk, read_trunk
from adco.pretrain.game import scored_by, training_recipes
from adco.probe.knn import knn_votes
from adco.report.bank import nearest, unit
from adco.report.runs import Run
from ops import checkpoint
from ops.distributed import ALONE

TRAIN, VAL, GAMES = 4000, 1000, 512  # pictures, at most; a quarter where views are large
LARGE, SMALL = 128, 64  # pixels: from where on they are, up to where pixels are a rival
ON_MAP, THUMB, PIXELS, KNN_K = 1500, 48, 32, 20


@torch.inference_mode()
def embed_run(run: Run, data: str = "") -> SimpleNamespace:
    """What the last checkpoint of a run makes of some of its pictures: of train, then from `cut`
    on others, of val where there is one. Raises InputError.

    Arrays: features [n, d]; random [n, d] of random weights; pixels [n, p]; embeddings [n, D] of
    unit length; thumbs uint8 [n, T, T, 3]; labels [n] or None; W [K, D] of unit length or None;
    queries, keys [m, D] of two training views each of the first m.  data: where pictures lie now.
    """
    path, config = str(run.folder / checkpoint.LAST), SimpleNamespace(**run.options)
    config.data = data or config.data
    config.data = tuple(config.data) if isinstance(config.data, list) else config.data
    trunk, other = (read_trunk(path, side) for side in ("query", "key"))
    query, key = (network_of(weights, "head").eval() for weights in (trunk, other))
    torch.manual_seed(config.seed)
    random = Trunk(build_trunk(trunk.arch, trunk.stem, trunk.channels)).eval()

    # Which pictures: without val, a third of those of train stand in for it.
    splits, share = listed_splits(config, ALONE), 4 if config.image_size > LARGE else 1
    splits, _ = scored_by(config, splits)  # what the run held out
    train, val = splits.labelled or splits.train, splits.val
    chosen = sample_of(train, 0, (TRAIN + VAL * (val is None)) // share)
    cut = len(chosen) if val else len(chosen) * 2 // 3
    parts = [(train, chosen[:cut]), (val or train, chosen[cut:])]
    if val:
        parts[1] = (val, sample_of(val, 0, VAL // share))
    found = [passed(*part, config, query, random) for part in parts]
    e = SimpleNamespace(**{name: np.concatenate([f[name] for f in found]) for name in found[0]})
    e.cut, e.classes, e.labels = len(found[0]["places"]), [], None
    if splits.labelled or (val is None and train.labels is not None):
        of = zip(parts, found, strict=True)
        e.labels = np.concatenate([part[0].labels[f["places"]] for part, f in of])
        e.classes = list(train.classes)
    W = checkpoint.load(path)["Memory_Bank"]["W"] if config.negatives == "learned" else None
    e.W = None if W is None else unit(W.T.float().numpy())

    # Two training views each, query against key, as in a step.
    recipe = training_recipes(config)[0]
    views = TrainingViews(train, [recipe, recipe], config.seed, skip_broken=True)
    pairs = [(0, int(place)) for place in e.places[: min(e.cut, GAMES // share)]]
    batches = [views.__getitems__(pairs[i : i + 64])[0] for i in range(0, len(pairs), 64)]
    e.queries, e.keys = (
        torch.cat([F.normalize(f(normalised(views))) for views in of]).numpy()
        for f, of in zip((query, key), zip(*batches, strict=True), strict=True)
    )
    return e


def passed(pictures: Pictures, places: list[int], config, query, random) -> dict:
    """Arrays of those at these places that can be read, as in embed_run; places: theirs."""
    side, whole = config.image_size, not config.eval_crop
    views = CheckViews(pictures.part(np.array(places)), side, skip_broken=True, whole=whole)
    views.labels, rows = np.array(places), []
    for batch, found in check_loader(views, 64, 0, ALONE):
        x, colours = normalised(batch), batch[:, :3] if batch.shape[1] >= 3 else batch[:, :1]
        features = query[0](x).float()
        thumbs = F.interpolate(colours.float(), size=min(side, THUMB), mode="area").round().byte()
        small = F.interpolate(batch.float(), size=min(side, PIXELS), mode="area").flatten(1)
        values = dict(
            places=found, features=features, embeddings=F.normalize(query[1](features)),
            random=random(x).float(), pixels=small,
            thumbs=thumbs.expand(-1, 3, -1, -1).permute(0, 2, 3, 1),
        )  # fmt: skip
        rows.append({name: value.numpy() for name, value in values.items()})
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def scores_of(e: SimpleNamespace, rows: np.ndarray) -> tuple[float, float, np.ndarray]:
    """Percent of the pictures from `cut` on that kNN and logistic regression on the others get
    right; kNN's answers.
    """
    labels, wanted, both = e.labels[: e.cut], e.labels[e.cut :], unit(rows)
    cosine, place = nearest(both[e.cut :], both[: e.cut], KNN_K)
    votes = knn_votes(torch.tensor(cosine), torch.tensor(labels[place]), len(e.classes), 0.07)
    answers = votes.argmax(1).numpy()
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=200))
    right = model.fit(rows[: e.cut], labels).predict(rows[e.cut :]) == wanted
    return 100 * float((answers == wanted).mean()), 100 * float(right.mean()), answers


def maps(e: SimpleNamespace) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Which pictures are on the map [n], and their places [n, 2] by kind of map; beside the
    embeddings, those of up to 300 adversaries come after them.
    """
    chosen = np.sort(np.random.default_rng(0).permutation(len(e.features))[:ON_MAP])
    found = PCA(min(50, *e.features[chosen].shape)).fit_transform(unit(e.features[chosen]))
    tsne = TSNE(perplexity=min(30, (len(chosen) - 1) / 3), init="pca", random_state=0)
    embeddings = e.embeddings[chosen]
    both = embeddings if e.W is None else np.concatenate([embeddings, e.W[:300]])
    places = {"t-SNE of the features": tsne.fit_transform(found), "PCA of the features": found}
    places["PCA of the embeddings"] = PCA(2).fit(embeddings).transform(both)
    return chosen, {name: xy[:, :2] for name, xy in places.items()}
