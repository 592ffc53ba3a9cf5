"""Who may know whom, and what the house promises about its files."""

import ast
from pathlib import Path

import pytest
import torch

PACKAGE = Path(__file__).parents[1] / "mtl_lightning"
PURE = (
    "tasks",
    "heads",
    "encoders",
    "architectures",
    "weighting",
    "metrics",
    "batch.py",
    "model.py",
    "features.py",
    "penalties.py",
)
FILES = sorted(PACKAGE.rglob("*.py"))


def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def imports(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports(file: Path) -> None:
    names = imports(file)
    if file.relative_to(PACKAGE).parts[0] in PURE:
        assert not [name for name in names if name.split(".")[0] == "lightning"], "mathematics and models are pure torch"
        assert not [name for name in names if name.startswith(("mtl_lightning.data", "mtl_lightning.callbacks"))]
    assert "mtl_lightning.main" not in names or file.name == "__main__.py"
    assert "wandb" not in names or file.name == "wandb_runs.py", "optional, and else imported by Lightning's logger alone"
    assert "wandb" not in {alias.name for node in tree(file).body if isinstance(node, ast.Import) for alias in node.names}


def test_no_bare_except_and_no_user_assert() -> None:
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            assert not (isinstance(node, ast.ExceptHandler) and node.type is None), file


def test_the_pure_rooms_load_without_lightning() -> None:
    import subprocess
    import sys

    code = (
        "import sys; sys.modules['lightning'] = sys.modules['wandb'] = None\n"
        "import torch\n"
        "from mtl_lightning import model, encoders, heads, tasks, architectures, weighting\n"
        "task = tasks.Classification(classes=['a', 'b'])\n"
        "task.learn([torch.tensor(0)])\n"
        "net = model.MultiTaskModel({'x': task}, architectures.HardSharing(encoders.SmallCNN([4]), ['x']))\n"
        "assert net({'image': torch.rand(2, 3, 8, 8)})['x'].shape == (2, 2)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent, check=False)
    assert done.returncode == 0, done.stderr


def test_threads_are_one_in_tests() -> None:
    assert torch.get_num_threads() == 1
