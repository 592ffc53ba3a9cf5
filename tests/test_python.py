"""The examples of docs/python.md, one after the other, as in a notebook."""

import re
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
BLOCKS = dict(re.findall(r"^```python\n# (\w+)\.py\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL))


def test_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert list(BLOCKS) == ["my_run", "my_model", "my_loop", "my_trainer"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    for name, block in BLOCKS.items():
        (tmp_path / f"{name}.py").write_text(block, encoding="utf-8")
    try:
        for name in ("my_run", "my_loop", "my_trainer"):
            runpy.run_path(str(tmp_path / f"{name}.py"))
    finally:
        sys.modules.pop("my_model", None)
    out = capsys.readouterr().out
    assert "(80, 120)" in out and "Category(name=" in out
    for name in ("drawn.png", "loop.png", "shape.pt2", "loop.pt"):
        assert (tmp_path / name).stat().st_size > 1000
