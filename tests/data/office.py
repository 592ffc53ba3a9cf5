"""Tiny copies of Office-31 and Office-Home: one folder a domain, and split lists as LibMTL writes them."""

from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("back_pack", "bike", "mug")
DOMAINS = {"amazon": 30, "dslr": 15, "webcam": 15}


def write_office(root: Path, lists: bool = False, images: bool = True, domains: dict[str, int] | None = None) -> None:
    """``root/amazon/images/bike/frame_0001.jpg`` …; brightness says the class, and each domain has a tint of its own.

    Args:
        root: gets the domains.
        lists: ``root/amazon_train.txt`` … with lines ``path label``; of every five pictures one validates, one tests.
        images: whether a folder ``images`` lies between domain and classes, as in Office-31.
        domains: how many pictures each has.
    """
    for tint, (domain, count) in enumerate((domains or DOMAINS).items()):
        rng = np.random.default_rng(tint)
        lines: dict[str, list[str]] = {"train": [], "val": [], "test": []}
        for number in range(count):
            label = number % len(CLASSES)
            place = Path(domain, "images" if images else "", CLASSES[label], f"frame_{number // len(CLASSES) + 1:04d}.jpg")
            height, width = rng.integers(17, 40, 2)
            picture = 60 * label + 40 + rng.integers(-20, 20, (height, width, 3))
            picture[..., tint % 3] += 40
            (root / place).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(root / place)
            part = ("train", "train", "train", "val", "test")[number // len(CLASSES) % 5]
            lines[part].append(f"{place.as_posix()} {label}")
        for part, found in lines.items() if lists else ():
            (root / f"{domain}_{part}.txt").write_text("\n".join(found) + "\n")
