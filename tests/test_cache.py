"""Cached pictures are the decoded ones, bit for bit, in every process."""

import multiprocessing
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mtl_lightning.data.manifest as manifest
from mtl_lightning.batch import Batch
from mtl_lightning.data.cache import GB, ImageCache, Kept, keep
from mtl_lightning.data.files import read_image
from mtl_lightning.data.folder import FolderDataModule
from mtl_lightning.errors import ConfigError
from mtl_lightning.main import main
from mtl_lightning.tasks import Classification
from tests.data.folders import write_folders, write_picture
from tests.data.manifest import write_manifest

pytestmark = pytest.mark.usefixtures("no_pictures")

CONF = Path(__file__).parent / "conf" / "pets_tiny.yaml"


def module(root: Path, **options: Any) -> FolderDataModule:
    data = FolderDataModule(str(root), seed=0, batch_size=4, **options)
    data.tasks = {"label": Classification()}
    data.tasks["label"].name = "label"
    data.setup("fit")
    return data


def pictures(data: FolderDataModule, epochs: int = 2) -> list[Batch]:
    loader = data.train_dataloader()
    batches = []
    for epoch in range(epochs):
        loader.order.set_epoch(epoch)
        batches += list(loader)
    return batches


def same(one: list[Batch], other: list[Batch]) -> bool:
    return all(
        mine.ids == theirs.ids and torch.equal(mine.inputs["image"], theirs.inputs["image"])
        for mine, theirs in zip(one, other, strict=True)
    )


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths that are decoded from now on, in this process."""
    names: list[str] = []

    def count(root: str, text: str, *rest: int) -> Any:
        names.append(text)
        return read_image(root, text, *rest)

    monkeypatch.setattr(manifest, "read_image", count)
    return names


@pytest.mark.parametrize("where", ["ram", "disk"])
def test_same_pictures_and_each_is_decoded_once(where: Any, tmp_path: Path, decoded: list[str]) -> None:
    write_folders(tmp_path / "pictures", 40)
    plain = pictures(module(tmp_path / "pictures", num_workers=0))
    cache = ImageCache(where, 0.1, str(tmp_path / "kept") if where == "disk" else None)
    data = module(tmp_path / "pictures", num_workers=0, cache=cache)
    decoded.clear()
    assert same(plain, pictures(data))
    assert len(decoded) == len(set(decoded)) == len(data.splits["train"])
    kept = data.splits["train"].kept  # type: ignore[attr-defined]
    assert kept.stored == len(decoded) and kept.plan.nbytes < 0.1 * GB
    # What a transform does to a picture in place must not reach the cache.
    data.splits["train"][0]["image"].zero_()
    assert int(data.splits["train"][0]["image"].sum()) > 0
    again = module(tmp_path / "pictures", num_workers=0, cache=cache)
    decoded.clear()
    assert same(plain, pictures(again))
    assert len(decoded) == (0 if where == "disk" else len(again.splits["train"]))


@pytest.mark.parametrize("where", ["ram", "disk"])
def test_workers_share_it(where: Any, tmp_path: Path) -> None:
    write_folders(tmp_path / "pictures", 40)
    plain = pictures(module(tmp_path / "pictures", num_workers=0))
    cache = ImageCache(where, 0.1, str(tmp_path / "kept") if where == "disk" else None)
    data = module(tmp_path / "pictures", num_workers=2, cache=cache)
    assert same(plain, pictures(data))
    # Seen from here, though it was the workers who decoded.
    assert data.splits["train"].kept.stored == len(data.splits["train"])  # type: ignore[attr-defined]


def test_rows_beyond_the_budget_are_decoded_as_usual(
    tmp_path: Path, decoded: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    write_folders(tmp_path, 40)
    plain = pictures(module(tmp_path, num_workers=0))
    sizes = [plain[0].sizes[0].prod().item() * 3]
    with caplog.at_level("INFO"):
        data = module(tmp_path, num_workers=0, cache=ImageCache("ram", (12 * sizes[0] + 8 * 28) / GB))
        decoded.clear()
        assert same(plain, pictures(data))
    plan = data.splits["train"].kept.plan  # type: ignore[attr-defined]
    assert 3 < plan.rows < 28 and plan.nbytes <= 12 * sizes[0] + 8 * 28
    assert len(decoded) == plan.rows + 2 * (28 - plan.rows)
    assert f"cache: {plan.rows} of 28 train pictures fit (ram, 0.00 of" in caplog.text
    none = module(tmp_path, num_workers=0, cache=ImageCache("ram", 1e-9))
    assert same(plain, pictures(none)) and none.splits["train"].kept is None  # type: ignore[attr-defined]


def read_all(kept: Kept, root: Path, names: list[str]) -> list[torch.Tensor]:
    return [kept.read(row, lambda row=row: read_image(str(root), names[row], 3)) for row in range(len(names))]  # type: ignore[misc]


def test_a_changed_file_makes_a_new_cache_and_takes_the_old_one_away(tmp_path: Path) -> None:
    names = [f"{number}.png" for number in range(4)]
    for number, name in enumerate(names):
        write_picture(tmp_path / name, number)
    cache = ImageCache("disk", 1.0, str(tmp_path / "kept"))
    first = keep(cache, "train", 1, str(tmp_path), names, 3, 0)
    assert first is not None
    read_all(first, tmp_path, names)
    (old,) = (tmp_path / "kept").glob("*.cache")
    same_file = keep(cache, "train", 1, str(tmp_path), names, 3, 0)
    assert same_file is not None and same_file.stored == 4
    # The same size in bytes and pixels, another time and content.
    image = np.asarray(read_image(str(tmp_path), names[2], 3))
    content = (tmp_path / names[2]).read_bytes()
    write_picture(tmp_path / names[2], 50)
    other = keep(cache, "train", 1, str(tmp_path), names, 3, 0)
    assert other is not None and other.stored == 0 and not old.exists()
    assert not np.array_equal(np.asarray(read_all(other, tmp_path, names)[2]), image)
    (tmp_path / names[2]).write_bytes(content)
    os.utime(tmp_path / names[2], ns=(1, 1))
    third = keep(cache, "train", 1, str(tmp_path), names, 3, 0)
    assert third is not None and third.stored == 0
    assert np.array_equal(np.asarray(read_all(third, tmp_path, names)[2]), image)
    assert len(list((tmp_path / "kept").iterdir())) == 1


def test_bytes_that_were_damaged_are_decoded_again(tmp_path: Path) -> None:
    write_picture(tmp_path / "0.png", 0)
    cache = ImageCache("disk", 1.0, str(tmp_path / "kept"))
    first = keep(cache, "train", 1, str(tmp_path), ["0.png"], 3, 0)
    assert first is not None
    (picture,) = read_all(first, tmp_path, ["0.png"])
    (file,) = (tmp_path / "kept").iterdir()
    with file.open("r+b") as handle:
        handle.seek(100)
        handle.write(b"\xff" * 40)
    again = keep(cache, "train", 1, str(tmp_path), ["0.png"], 3, 0)
    assert again is not None
    for _ in range(2):
        assert torch.equal(read_all(again, tmp_path, ["0.png"])[0], picture)


def _process(root: Path, names: list[str], queue: Any) -> None:
    kept = keep(ImageCache("disk", 1.0, str(root / "kept")), "train", 2, str(root), names, 3, 0)
    assert kept is not None
    queue.put(all(torch.equal(kept.read(row, lambda row=row: read_image(str(root), names[row], 3)),  # type: ignore[misc]
                              read_image(str(root), names[row], 3)) for _ in range(3) for row in range(len(names))))  # fmt: skip


def test_two_processes_at_once(tmp_path: Path) -> None:
    names = [f"{number}.png" for number in range(12)]
    for number, name in enumerate(names):
        write_picture(tmp_path / name, number)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    processes = [context.Process(target=_process, args=(tmp_path, names, queue)) for _ in range(2)]
    for process in processes:
        process.start()
    assert [queue.get(timeout=60) for _ in processes] == [True, True]
    for process in processes:
        process.join()
    assert len(list((tmp_path / "kept").iterdir())) == 1


def test_faults(tmp_path: Path) -> None:
    write_picture(tmp_path / "0.png", 0)
    (tmp_path / "bad.png").write_bytes(b"x")
    for wrong in (ImageCache("ram", 0), ImageCache("disk"), ImageCache("ram", 1, "here")):
        with pytest.raises(ConfigError, match=r"data\.init_args\.cache"):
            wrong.check()
    kept = keep(ImageCache("ram", 1.0), "train", 1, str(tmp_path), ["bad.png", "0.png"], 3, 0)
    assert kept is not None and kept.plan.rows == 1
    with pytest.raises(ConfigError, match=r"cannot keep .* choose another folder"):
        keep(ImageCache("disk", 1.0, str(tmp_path / "0.png")), "train", 1, str(tmp_path), ["0.png"], 3, 0)
    with pytest.raises(ConfigError, match="workers that are forked"):
        kept.__getstate__()


def test_runs_with_and_without_are_the_same(tmp_path: Path) -> None:
    write_manifest(tmp_path / "pets", count=36, labelled=0.9)
    logs = []
    for name, args in {
        "plain": [],
        "kept": ["--data.init_args.cache.where=disk", f"--data.init_args.cache.folder={tmp_path / 'kept'}",
                 "--data.init_args.num_workers=1"],
    }.items():  # fmt: skip
        main(["fit", "--config", str(CONF), "--runs", str(tmp_path), f"--name={name}", "--trainer.max_epochs=1",
              f"--data.init_args.root={tmp_path / 'pets'}", *args])  # fmt: skip
        logs.append((tmp_path / name / "metrics.csv").read_text())
    assert logs[0] == logs[1]
    assert len(list((tmp_path / "kept").glob("*.cache"))) == 2
