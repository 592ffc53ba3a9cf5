"""What claims to be larger than it may be, what leads out of the root, and what has odd names."""

import os
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mtl_lightning.data.files import image_size, read_depth, read_image, read_mask
from mtl_lightning.data.folder import FolderDataModule
from mtl_lightning.data.pictures import Pictures, check_pictures
from mtl_lightning.data.prepare import Preparation
from mtl_lightning.data.splits import Split
from mtl_lightning.errors import ConfigError, DataError
from mtl_lightning.main import main
from mtl_lightning.tasks.classification import Classification
from tests.data.folders import write_folders
from tests.data.manifest import write_rows
from tests.test_manifest import cells

pytestmark = pytest.mark.usefixtures("no_pictures")
ROOT = Path(__file__).parents[1]


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(width: int, height: int, extra: bytes = b"") -> bytes:
    """A PNG that claims to be so large, with the pixels of one of 4 x 4."""
    rows = b"".join(b"\0" + b"\1\2\3" * 4 for _ in range(4))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def npy(header: str, content: bytes = b"") -> bytes:
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(header) + 1) + header.encode() + b"\n" + content


BOMB = zlib.compress(bytes(50 << 20))
SHAPE = "{'descr': '<f4', 'fortran_order': False, 'shape': (%s)}"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("far.png", png(60000, 60000), "more than 178,956,970 pixels"),
        ("over.png", png(12000, 12000), "12000 x 12000 pixels, and data.init_args.max_pixels is 89,478,485"),
        ("text.png", png(4, 4, chunk(b"zTXt", b"a\0\0" + BOMB)), "cannot be read"),
        ("profile.png", png(4, 4, chunk(b"iCCP", b"a\0\0" + BOMB)), "cannot be read"),
        ("script.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n", "PostScript"),
        ("far.npy", npy(SHAPE % "60000, 60000"), "shape .60000, 60000., and data.init_args.max_pixels"),
        ("cut.npy", npy(SHAPE % "6000, 6000", b"abc"), "cut off: 3 bytes of numbers where its header says 144,000,000"),
        ("below.npy", npy(SHAPE % "-1, 4", bytes(64)), "expected an array of plain numbers"),
        ("deep.npy", npy("-" * 9000 + "1"), "cannot be read"),
        ("wide.npy", npy("{'descr': '|V999999999', 'fortran_order': False, 'shape': (1,)}"), "plain numbers"),
        ("zip.npy", b"PK\3\4" + bytes(50), "cannot be read"),
    ],
)
def test_headers_are_not_believed(name: str, content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with warnings.catch_warnings(), pytest.raises(DataError, match=f"^{name}.*{words}"):
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        read_depth(str(tmp_path), name, 1.0)


def test_the_limit_is_the_configured_one_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (20, 10)).save(tmp_path / "x.png")
    np.save(tmp_path / "m.npy", np.zeros((10, 20), dtype=np.int64))
    for limit in (199, 200):
        calls: list[Any] = [
            lambda limit=limit: read_image(str(tmp_path), "x.png", 3, limit),
            lambda limit=limit: image_size(str(tmp_path), "x.png", limit),
            lambda limit=limit: read_mask(str(tmp_path), "m.npy", limit),
            lambda limit=limit: check_pictures(Pictures(["x.png"], [str(tmp_path / "x.png")]), limit),
            lambda limit=limit: Preparation(max_pixels=limit).read(tmp_path / "x.png"),
            lambda limit=limit: Preparation(max_pixels=limit).take(Image.open(tmp_path / "x.png"), 0),
        ]
        for call in calls:
            if limit == 200:
                call()
            else:
                with pytest.raises(DataError, match="max_pixels is 199"):
                    call()
    # More than Pillow would allow by itself.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    read_image(str(tmp_path), "x.png", 3, 200)
    with pytest.raises(ConfigError, match="max_pixels is 0"):
        FolderDataModule(str(tmp_path), max_pixels=0)


def test_a_run_names_row_size_and_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_rows(tmp_path / "all.csv", [{"image": f"{n}.png", "split": "train", "breed": "ab"[n % 2]} for n in range(6)])
    for number in range(6):
        (tmp_path / f"{number}.png").write_bytes(png(4, 4) if number != 3 else png(12000, 12000))
    options = [f"--data.init_args.root={tmp_path}", "--data.init_args.columns={}", '--model.only=["breed"]']
    options += ["--runs", str(tmp_path / "runs"), "--data.init_args.split.val_fraction=0.34"]
    with pytest.raises(SystemExit):
        main(["fit", "--config", str(ROOT / "tests/conf/pets_tiny.yaml"), *options])
    error = capsys.readouterr().err
    assert "row 5: 3.png is too large: its header says 12000 x 12000 pixels" in error and "Warning" not in error


def test_links_out_of_the_root_are_refused_unless_allowed(tmp_path: Path) -> None:
    outside, root = tmp_path / "outside", tmp_path / "root"
    outside.mkdir()
    root.mkdir()
    data = cells(root, kind=["a", "b", "a", "b"])
    (root / "1.png").rename(outside / "1.png")
    (root / "1.png").symlink_to(outside / "1.png")
    (root / "inner.png").symlink_to("0.png")
    (outside / "2.png").write_bytes((root / "2.png").read_bytes())
    (root / "folder").symlink_to(outside)
    rows = [{"image": name, "split": "train", "kind": "ab"[n % 2]}
            for n, name in enumerate(["0.png", "1.png", "folder/2.png", "inner.png"])]  # fmt: skip
    write_rows(root / "cells.csv", rows)
    with pytest.raises(DataError) as caught:
        data.datasets({"kind": Classification()}, ["train"])
    lines = [line for line in str(caught.value).splitlines() if "row" in line and "leads out" in line]
    assert [line.split(":")[0].strip() for line in lines] == ["cells.csv, row 3", "cells.csv, row 4"]
    assert "data.init_args.follow_links" in lines[0] and str(outside) in lines[0]
    tasks: dict[str, Any] = {"kind": Classification()}
    examined = data.examined(tasks)["train"]
    assert ["leads out" in " ".join(examined.examine(row, tasks).problems) for row in range(4)] == [False, True, True, False]
    data.follow_links = True
    assert len(data.datasets({"kind": Classification()}, ["train"])["train"]) == 4
    # A root that is a link itself is fine.
    (tmp_path / "link").symlink_to(root)
    write_rows(root / "cells.csv", [rows[0], rows[3]])
    data.follow_links, data.root = False, str(tmp_path / "link")
    assert len(data.datasets({"kind": Classification()}, ["train"])["train"]) == 2


def test_what_is_no_file_is_never_opened(tmp_path: Path) -> None:
    data = cells(tmp_path, kind=["a", "b"])
    (tmp_path / "0.png").unlink()
    os.mkfifo(tmp_path / "0.png")  # reading it would never end
    with pytest.raises(DataError, match=r"row 2: column 'image': 0.png is no file, but a folder or a device"):
        data.datasets({"kind": Classification()}, ["train"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("C:\\pictures\\0.png", "begins with a drive"),
        ("c:/pictures/0.png", "begins with a drive"),
        ("\\\\server\\share\\0.png", "not below"),
        ("/0.png", "not below"),
        ("sub\\..\\..\\0.png", "not below"),
        ("sub\\9.png", "there is no file"),
    ],
)
def test_paths_of_windows(text: str, words: str, tmp_path: Path) -> None:
    data = cells(tmp_path, kind=["a", "b"])
    (tmp_path / "sub").mkdir()
    (tmp_path / "1.png").rename(tmp_path / "sub/1.png")
    rows = [
        {"image": image, "split": "train", "kind": kind} for image, kind in (("0.png", "a"), ("sub\\1.png", "b"), (text, "a"))
    ]
    write_rows(tmp_path / "cells.csv", rows)
    with pytest.raises(DataError) as caught:
        data.datasets({"kind": Classification()}, ["train"])
    assert "1 bad row:" in str(caught.value) and "row 4" in str(caught.value) and words in str(caught.value)


def tree(tmp_path: Path, **options: Any) -> FolderDataModule:
    return FolderDataModule(str(tmp_path / "root"), split=Split(), num_workers=0, batch_size=2, image_size=16, **options)


def test_odd_names_in_trees(tmp_path: Path) -> None:
    write_folders(tmp_path / "root", 12)
    folder = next(path for path in sorted((tmp_path / "root").iterdir()) if path.is_dir() and not path.name.startswith("."))
    (folder / "loop").symlink_to("loop")
    (folder / "circle").symlink_to(folder)
    (tmp_path / "root" / "self").symlink_to("self")
    Image.new("RGB", (8, 8)).save(folder / " a, \"b\"; 'c' ü\n.png")
    assert tree(tmp_path).datasets({"kind": Classification()}, ["train"])
    nameless = os.fsencode(folder) + b"/\xff.png"
    with open(nameless, "wb"):
        pass
    with pytest.raises(DataError, match=r"xff\.png.*no text in UTF-8; rename it"):
        tree(tmp_path).datasets({"kind": Classification()}, ["train"])
    os.unlink(nameless)
    (folder / "dangling.png").symlink_to("nothing.png")
    with pytest.raises(DataError, match=r"dangling\.png is a link to nothing"):
        tree(tmp_path).datasets({"kind": Classification()}, ["train"])


def test_a_tree_is_not_left_through_a_link(tmp_path: Path) -> None:
    write_folders(tmp_path / "root", 12)
    (tmp_path / "outside").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "outside" / "x.png")
    (tmp_path / "root" / "more").symlink_to(tmp_path / "outside")
    with pytest.raises(DataError, match="more leads out of the data module's root"):
        tree(tmp_path).datasets({"kind": Classification()}, ["train"])
    found = tree(tmp_path, follow_links=True).datasets({"kind": Classification()}, ["train"])
    assert found
