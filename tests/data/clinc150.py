"""A small copy of CLINC150 in its exact layout, of made-up requests."""

import json
import random
from pathlib import Path

DOMAINS = {
    "banking": ["balance", "transfer", "freeze_account"],
    "travel": ["book_flight", "car_rental", "translate"],
    "kitchen": ["recipe", "calories", "restaurant_reservation"],
}
START = ["can you tell me about", "i need", "please help me with", "what about", "let's do", "show me"]
END = ["now", "today", "for my friend", "", "as soon as you can", "if you don't mind, thanks"]
STRANGE = [
    "how far is the moon",
    "who won the match",
    "why is grass green",
    "what is seven times eight",
    "tell me of the dinosaurs",
]


def requests(intent: str, count: int, generator: random.Random) -> list[list[str]]:
    """Pairs of a text and the intent, no text twice."""
    found: dict[str, None] = {}
    while len(found) < count:
        what = generator.choice(STRANGE) if intent == "oos" else intent.replace("_", " ")
        number = generator.randrange(1000)
        found[" ".join([generator.choice(START), what, str(number), generator.choice(END)]).strip()] = None
    return [[text, intent] for text in found]


def write_clinc150(root: Path, train: int = 8, other: int = 3, seed: int = 0) -> None:
    """Write data_full.json, data_small.json and domains.json.

    Args:
        root: new folder.
        train: training requests of each intent; half of them in the small file.
        other: validation requests of each intent, and test requests.
        seed: of the texts.
    """
    generator = random.Random(seed)
    intents = [intent for listed in DOMAINS.values() for intent in listed]
    drawn = {intent: requests(intent, train + 2 * other, generator) for intent in [*intents, "oos"]}
    root.mkdir(parents=True, exist_ok=True)
    (root / "domains.json").write_text(json.dumps(DOMAINS, indent=2))
    for name, size in {"data_full.json": train, "data_small.json": train // 2}.items():
        cuts = {"train": slice(size), "val": slice(train, train + other), "test": slice(train + other, None)}
        stored = {split: [row for intent in intents for row in drawn[intent][cut]] for split, cut in cuts.items()}
        stored |= {f"oos_{split}": drawn["oos"][cut] for split, cut in cuts.items()}
        (root / name).write_text(json.dumps(stored, indent=2))


def write_texts(root: Path, count: int = 40, seed: int = 0) -> None:
    """Write texts.csv: text, split, topic (half of the cells are empty), urgent (0/1) and length (a number)."""
    import csv

    generator = random.Random(seed)
    root.mkdir(parents=True, exist_ok=True)
    with (root / "texts.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "split", "topic", "urgent", "length"])
        for number in range(count):
            topic, intents = list(DOMAINS.items())[number % 3]
            text = requests(generator.choice(intents), 1, generator)[0][0] + f" no. {number}"
            split = "train" if number < count * 0.7 else "val" if number < count * 0.85 else "test"
            shown = topic if number % 2 or split != "train" else ""
            writer.writerow([text, split, shown, int("soon" in text), len(text) if number % 5 else ""])
