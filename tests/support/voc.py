"""A small VOC2007 folder of real files."""

from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = {"boat": (20, 60, 200), "bus": (210, 40, 30), "cow": (30, 160, 60)}


def write_picture(root: Path, name: str, objects: list[tuple[str, int]], seed: int) -> None:
    """Noise in the colour of the first object. objects: (class, difficult)."""
    rng = np.random.default_rng(seed)
    colour = np.array(COLOURS.get(objects[0][0], (128, 128, 128)))
    pixels = np.clip(colour + rng.normal(0, 25, (60, 80, 3)), 0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(root / "JPEGImages" / f"{name}.jpg")
    listed = "".join(
        f"<object><name>{kind}</name><difficult>{difficult}</difficult></object>"
        for kind, difficult in objects
    )
    text = f"<annotation><filename>{name}.jpg</filename>{listed}</annotation>"
    (root / "Annotations" / f"{name}.xml").write_text(text)


def make_voc(data: Path, per_class: dict[str, int], difficult: bool = True) -> Path:
    """Write `data`/VOCdevkit/VOC2007 with per_class[split] pictures a class; returns its root.

    difficult: each split also gets one grey picture whose only objects are a difficult bus and a
    cow.
    """
    root = data / "VOCdevkit" / "VOC2007"
    for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (root / folder).mkdir(parents=True)
    number = 0
    for split, count in per_class.items():
        pictures = [[(kind, 0)] for kind in COLOURS for _ in range(count)]
        if difficult:
            pictures.append([("cow", 0), ("bus", 1)])
        names = []
        for objects in pictures:
            number += 1
            names.append(f"{number:06}")
            write_picture(root, names[-1], objects, number)
        (root / "ImageSets/Main" / f"{split}.txt").write_text("\n".join(names) + "\n")
    return root
