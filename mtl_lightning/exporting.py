"""A trained model as one file for other programs: ``torch.export`` or ONNX, held against the model before it is kept."""

import copy
import json
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.export import Dim

from mtl_lightning import __version__
from mtl_lightning.encoders.base import Encoder
from mtl_lightning.errors import ConfigError, ExportError
from mtl_lightning.forms import Form, Size
from mtl_lightning.loading import load
from mtl_lightning.predictor import Predictor, choose
from mtl_lightning.storage import expanded, writing
from mtl_lightning.tasks.base import Task

Format = Literal["torch_export", "onnx"]
SUFFIX = {"torch_export": ".pt2", "onnx": ".onnx"}
TOLERANCE = 1e-4
"""The largest difference to the eager outputs, over the largest output where that is more than 1."""


class Export(NamedTuple):
    """What was written.

    Attributes:
        path: the exported model.
        description: the JSON file beside it.
        differences: per task the largest difference to the eager outputs.
    """

    path: Path
    description: Path
    differences: dict[str, float]


class _Graph(nn.Module):
    """What is exported: pictures or token ids in, a tensor per task out."""

    def __init__(self, predictor: Predictor, form: Form, raw: bool) -> None:
        super().__init__()
        self.form = form
        self.model = predictor.model
        self._input = predictor.model.only_input()
        # Not as a submodule: what tasks know besides tensors has no place in an exported program.
        self._tasks = cast(dict[str, Task], dict(predictor.tasks.items()))
        self._raw = raw

    def forward(self, given: Tensor) -> dict[str, Tensor]:
        predictions = self.model({self._input: given})
        return {name: predictions[name] if self._raw else task.interpret(predictions[name]) for name, task in self._tasks.items()}


def export(
    model: Predictor | str | os.PathLike[str],
    output: str | os.PathLike[str],
    tasks: Sequence[str] | None = None,
    format: Format = "torch_export",
    size: Size | None = None,
    raw: bool = False,
) -> Export:
    """Write the trained model to a file that needs no ``mtl_lightning``.

    The input is ``image``, [B, C, H, W] in 0..1 for any B, the network's normalisation is inside; or ``text``, int64 token ids
    [B, L], padded with 0, and the tokeniser's JSON is written beside it (``.tokenizer.json``). The outputs are tensors by
    task: probabilities, real units, unit vectors (what each task's ``interpret`` gives). A JSON file beside it says what
    goes in and what comes out. The file is read back and held against the model on random inputs before it is kept.

    Args:
        model: of :func:`mtl_lightning.load`, or a run's folder or checkpoint.
        output: the file to write; it must not exist.
        tasks: those to export; None takes all but auxiliary ones, which can be named.
        format: ``torch_export`` (load it with ``torch.export.load``) or ``onnx``.
        size: side, or height and width, of the pictures, or ``any``; None takes the run's image size, or ``any`` where it has
            none. Of texts the number of words, None the most that the tokeniser reads. Not every network can be exported for
            any size.
        raw: give logits and standardised numbers instead.

    Raises:
        ConfigError: an unknown task, an output that exists, a missing package, a size that cannot be.
        StorageError: no room or no permission.
        ExportError: torch cannot export the network, or the file's outputs differ from the model's.
    """
    path = expanded(output)
    description = path.with_name(path.name + ".json")
    if path.suffix != SUFFIX[format]:
        raise ConfigError(f"--output {path}: a file of format {format} ends in {SUFFIX[format]}, e.g. model{SUFFIX[format]}")
    if format == "onnx":
        _need_onnx()
    predictor = load(model) if isinstance(model, str | os.PathLike) else copy.deepcopy(model).cpu()
    available: dict[str, Task] = predictor._tasks
    main = [name for name, task in available.items() if not task.auxiliary]
    names = choose(main if tasks is None else list(tasks), available, "--tasks")
    predictor = Predictor(predictor.model, {name: available[name] for name in names}, predictor.preparation).eval()
    form = predictor.preparation.form(size)
    beside = {path.with_name(path.name + end): text for end, text in form.files.items()}
    for file in (path, description, *beside):
        if file.exists():
            raise ConfigError(f"--output {path}: {file} exists already; move it away, or give another --output")
    graph = _Graph(predictor, form, raw).eval()
    temporary = path.with_name(f"{path.stem}.partial{path.suffix}")
    try:
        with writing(path, "make room, or give another --output"):
            path.parent.mkdir(parents=True, exist_ok=True)
            run = _WRITERS[format](graph, temporary)
            differences = _compare(graph, run)
            about = _describe(predictor, form, format, raw, differences)
            for file, text in {description: json.dumps(about, indent=2) + "\n", **beside}.items():
                file.write_text(text, encoding="utf-8")
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return Export(path, description, differences)


def _trace(graph: _Graph) -> torch.export.ExportedProgram:
    shapes = {0: Dim("batch", min=1, max=4096), **graph.form.free}
    example = graph.form.example(2, other=False)
    with torch.no_grad():
        graph(example)  # what the network itself refuses is said in its own words
        try:
            return torch.export.export(graph, (example,), dynamic_shapes=(shapes,))
        # torch raises errors of many kinds from within its tracer; the first line says which.
        except Exception as error:
            reason = str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
            hint = (
                f"give a fixed --size, e.g. {graph.form.fixed}" if graph.form.free else "a part of the network cannot be traced"
            )
            raise ExportError(f"torch.export cannot export this network ({reason}); {hint}") from error


def _write_program(graph: _Graph, path: Path) -> Callable[[Tensor], Mapping[str, Tensor]]:
    torch.export.save(_trace(graph), path)
    return cast(Callable[[Tensor], Mapping[str, Tensor]], torch.export.load(path).module())


def _write_onnx(graph: _Graph, path: Path) -> Callable[[Tensor], Mapping[str, Tensor]]:
    names = list(graph._tasks)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    program = _trace(graph)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of onnxscript's and torch's own deprecations
        try:
            written = torch.onnx.export(program, input_names=[graph.form.name], output_names=names, dynamo=True, verbose=False)
        except Exception as error:  # of the converter's and its passes' many kinds
            raise ExportError(f"torch.onnx cannot convert this network ({type(error).__name__}: {str(error)[:300]})") from error
    assert written is not None
    written.save(str(path))
    session = import_module("onnxruntime").InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(given: Tensor) -> dict[str, Tensor]:
        outputs = session.run(names, {graph.form.name: given.numpy()})
        return {name: torch.from_numpy(value) for name, value in zip(names, outputs, strict=True)}

    return run


_WRITERS = {"torch_export": _write_program, "onnx": _write_onnx}


def _need_onnx() -> None:
    try:
        for package in ("onnx", "onnxscript", "onnxruntime"):
            import_module(package)
    except ImportError as error:
        raise ConfigError(
            f'--format onnx needs onnx, onnxscript and onnxruntime: pip install "mtl-lightning[onnx]" ({error})'
        ) from error


@torch.no_grad()
def _compare(graph: _Graph, run: Callable[[Tensor], Mapping[str, Tensor]]) -> dict[str, float]:
    """The largest difference per task, over batches (and sizes) that the trace has not seen."""
    generator = torch.Generator().manual_seed(0)
    differences = dict.fromkeys(graph._tasks, 0.0)
    for rows, other in ((1, False), (3, True)):
        given = graph.form.example(rows, other, generator)
        expected, found = graph(given), run(given)
        for name, value in expected.items():
            scale = max(1.0, float(value.abs().max()))
            differences[name] = max(differences[name], float((found[name] - value).abs().max()) / scale)
    wrong = {name: value for name, value in differences.items() if not value <= TOLERANCE}
    if wrong:
        listing = ", ".join(f"{value:.2g} ({name})" for name, value in wrong.items())
        raise ExportError(f"the exported outputs differ from the model's by {listing}, more than {TOLERANCE:g}; nothing was kept")
    return differences


def _describe(predictor: Predictor, form: Form, format: str, raw: bool, differences: Mapping[str, float]) -> dict[str, Any]:
    return {
        "format": format,
        "versions": {"mtl_lightning": __version__, "torch": torch.__version__},
        "input": form.describe([module for module in predictor.modules() if isinstance(module, Encoder)]),
        "outputs": {
            name: task.describe() | ({"output": "raw"} if raw else {}) | {"max_difference": differences[name]}
            for name, task in predictor._tasks.items()
        },
    }


def command(args: Sequence[str]) -> None:
    """``python -m mtl_lightning export``."""
    from jsonargparse import ArgumentError, ArgumentParser

    prog = "python -m mtl_lightning export"
    parser = ArgumentParser(prog=prog, description="Write a trained model for other programs.", exit_on_error=False)
    parser.add_argument("--run", type=str, required=True, help="A run's folder (its best checkpoint), or a checkpoint.")
    parser.add_argument(
        "--tasks", type=list[str] | None, default=None, help="Tasks to export; all but auxiliary ones if not given."
    )
    parser.add_argument("--format", type=Format, default="torch_export", help="For torch.export.load, or ONNX.")
    parser.add_argument(
        "--output", type=str | None, default=None, help="File to write; model.pt2 or model.onnx in the run's folder."
    )
    parser.add_argument(
        "--size", type=Size | None, default=None, help="Side, or [height, width], or any; of texts words; the run's if not given."
    )
    parser.add_argument("--raw", type=bool, default=False, help="Logits instead of probabilities, standardised numbers.")
    try:
        config = parser.parse_args(list(args))
    except ArgumentError as error:
        from mtl_lightning.advice import shortened

        given = re.search(r"Given value: (.*)", str(error))
        words = f"{shortened(str(error))}; given is '{given[1]}'" if given else shortened(str(error))
        print(f"error: {words}\nAll options: {prog} --help", file=sys.stderr)
        raise SystemExit(2) from None
    run = expanded(config.run)
    output = config.output or str((run if run.is_dir() else run.parent) / f"model{SUFFIX[config.format]}")
    done = export(run, output, config.tasks, config.format, config.size, config.raw)
    for name, difference in done.differences.items():
        print(f"{name}: max. difference to the model {difference:.1e}")
    print(f"{done.path} ({done.path.stat().st_size / 2**20:.1f} MiB), described in {done.description}", flush=True)
