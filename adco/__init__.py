"""AdCo: contrastive pre-training against learnable adversaries.

Hu, Wang, Hu, Qi: AdCo: Adversarial Contrast for Efficient Learning of Unsupervised
Representations from Self-Trained Negative Adversaries, CVPR 2021, arXiv:2011.08435.

Dimension key, used in every file:
    N  images per process       R  processes          M = N R  keys of all processes
    D  embedding width          K  learnable negatives

A map of the code, in reading order. The method:
    plan        which views are queries and keys: a training mode is a list of terms
    model       both encoders: moving average, shuffled BatchNorm (encoder, trunk_names: the
                backbones, and where they lie in files)
    objective   the two losses and their gradients, derived and defined on one page
    step        one training step: keys, losses, both players move, or neither does
    fused       the losses as they run, chunk by chunk (negatives: W, v and their ascent)
What stands around it:
    data/       datasets: by name (the names: ops/options), pictures, shards, list_files; views:
                random draws; pil_render, fast_render: their pixels; loader: order, batches
    pretrain/   main_adco.py. options: flags, and what changes with the epoch (learning rate);
                recipe: options that follow from the pictures; game: what is built, and the
                numbers of each step (temperatures, rates); init: weights to begin with; run: the
                phases, what is logged, which checkpoints stay; upkeep: what happens between steps;
                saving, state, resume: checkpoints; meter, health: means, warnings; monitor: scores;
                dry_run
    probe/      lincls.py. options; run: the ways to score a trunk (linear, knn,
                logistic on features); data; state: checkpoints
    export, embed, report, pack   python3 -m adco.export, adco.embed, adco.report, adco.pack
                report/ draws runs: runs, embedded, drawing, diagnosis, pages
    commands    what pip installs of the scripts: adco-pretrain, adco-probe, adco-voc
    ../ops/     the plumbing, which knows nothing of the method: options, launch, distributed,
                checkpoint (names, reading, writing), journal (the log), schedule (curves)
    ../VOC_CLF/, ../detection/   transfer
An installed adco holds ops, VOC_CLF, main_adco.py and lincls.py itself (setup.py).
"""

from importlib import import_module

__version__ = "0.1.0"
HOMES = {
    "AdCo": "adco.model",
    "NegativeBank": "adco.negatives",
    "embed": "adco.embed",
    "startup_step": "adco.step",
    "train_step": "adco.step",
    "view_plan": "adco.plan",
}
__all__ = list(HOMES)


def __getattr__(name: str):
    """A public name, imported when it is first used: options need no torch (PEP 562)."""
    if name in HOMES:
        home = import_module(HOMES[name])
        return globals().get(name, getattr(home, name))  # adco.embed is a module, to be called
    raise AttributeError(f"module 'adco' has no attribute {name!r}")
