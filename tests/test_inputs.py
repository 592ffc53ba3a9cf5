"""Tasks that read inputs of their own: who runs on which rows, exact gradients, and data with several pictures a row."""

import csv
import multiprocessing
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torchvision.transforms import v2

import mtl_lightning
from mtl_lightning.architectures import HardSharing, MMoE
from mtl_lightning.batch import Batch, Collate
from mtl_lightning.data import ManifestDataModule, MixUp
from mtl_lightning.data.cache import ImageCache
from mtl_lightning.data.loader import Pick
from mtl_lightning.encoders import SmallCNN
from mtl_lightning.errors import ConfigError, DataError
from mtl_lightning.exporting import export
from mtl_lightning.gradients import EngineOptions
from mtl_lightning.main import main
from mtl_lightning.model import MultiTaskModel
from mtl_lightning.tasks import Classification, Regression, SemanticSegmentation
from mtl_lightning.tasks.base import Task
from mtl_lightning.training import Surroundings, Training
from mtl_lightning.weighting import FAMO, MGDA, Equal, PCGrad, TaskInfo, Weighting
from tests.data.cameras import write_cameras

CONF = Path(__file__).parent / "conf" / "cameras.yaml"
READS = {"shade": "left", "mask": "left", "tone": "right"}


def network(norm: bool = False) -> tuple[MultiTaskModel, dict[str, Task]]:
    torch.manual_seed(0)
    tasks: dict[str, Task] = {
        "shade": Classification(classes=["a", "b"]),
        "mask": SemanticSegmentation(classes=["no", "yes"], head=None),
        "tone": Regression(names=["x"]),
    }
    learn = {"shade": torch.tensor(1), "mask": torch.ones(8, 8).long(), "tone": torch.rand(1)}
    for name, task in tasks.items():
        task.name = name
        task.learn([learn[name], learn[name] * 0])
    model = MultiTaskModel(tasks, HardSharing(SmallCNN([4, 6], norm=norm), list(tasks)), READS).double()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(module, nn.BatchNorm2d) and not norm:
            module.train = lambda mode=True, module=module: nn.Module.train(module, False)  # type: ignore[method-assign]
    return model.train(), tasks


def batch_of(tasks: dict[str, Task], seed: int, rows: int = 8, right: Sequence[int] = (1, 2, 5)) -> Batch:
    """Row 1 alone has both pictures; row 3 has a left one without any label."""
    generator = torch.Generator().manual_seed(seed)
    samples: list[dict[str, Any]] = []
    for row in range(rows):
        sample: dict[str, Any] = {"id": f"row {row}"}
        if row not in right or row == 1:
            sample["left"] = torch.rand(3, 8, 8, generator=generator)
            if row != 3:
                sample["shade"] = torch.tensor(row % 2)
            if row % 4 == 0:
                sample["mask"] = (torch.rand(8, 8, generator=generator) > 0.5).long()
        if row in right:
            sample |= {"right": torch.rand(3, 8, 8, generator=generator), "tone": torch.rand(1, generator=generator)}
        samples.append(sample)
    batch = Collate({name: task.target for name, task in tasks.items()}, ["left", "right"])(samples)
    return replace(batch, inputs={name: picture.double() for name, picture in batch.inputs.items()})


def trained(
    model: MultiTaskModel,
    tasks: dict[str, Task],
    method: Weighting,
    rank: int = 0,
    world: int = 1,
    total: Any = None,
    **options: Any,
) -> Training:
    method.prepare([TaskInfo(name, labelled=9) for name in tasks])
    reduce: Callable[[Tensor], Tensor] = total or (lambda tensor: tensor)
    around = Surroundings(reduce, world, rank, print, list, nullcontext, lambda: 0.1, lambda: 1.0, lambda number: None)  # type: ignore
    return Training(model, tasks, method.double(), [], EngineOptions(**options), around)


def step(training: Training, batch: Batch) -> dict[str, Tensor]:
    training.model.zero_grad()
    training.prepare(batch)
    training.backward(training.objective(batch), False)
    training.finish()
    return {name: p.grad.clone() for name, p in training.model.named_parameters() if p.grad is not None}


def counted(model: MultiTaskModel) -> list[int]:
    """How many rows the encoder sees, run by run."""
    seen: list[int] = []
    model.architecture.encoder.register_forward_pre_hook(lambda _, args: seen.append(len(args[0].tensor)))
    return seen


def test_collate_fills_with_zeros_and_says_which_rows_have_an_input() -> None:
    _, tasks = network()
    batch = batch_of(tasks, 0)
    assert batch.given["left"].tolist() == [True, True, False, True, True, False, True, True]
    assert batch.given["right"].nonzero().flatten().tolist() == [1, 2, 5]
    assert not batch.inputs["left"][2].any() and batch.inputs["left"][3].any() and batch.padding is None
    assert list(batch.pictures(1)) == ["left", "right"] and list(batch.pictures(2)) == ["right"]
    needed = batch.needed({"left": ["shade", "mask"], "right": ["tone"]})
    assert needed["left"].nonzero().flatten().tolist() == [0, 1, 4, 6, 7]  # row 3 has no label
    assert not batch_of(tasks, 0, right=[]).given["right"].any()
    collate = Collate({}, ["left", "right"])
    both = {"id": "x", "left": torch.rand(3, 4, 4), "right": torch.rand(3, 4, 4)}
    assert collate([both, both]).given == {}
    with pytest.raises(DataError, match=r"x: left is 4 wide and 4 high, another picture .* 5 and 4.*image_size"):
        collate([both, {"id": "b", "right": torch.rand(3, 4, 5)}])
    with pytest.raises(DataError, match="b: the sample has no left and no right"):
        collate([both, {"id": "b"}])


@pytest.mark.parametrize("method", [Equal, PCGrad])
def test_the_encoder_runs_once_per_input_on_the_needed_rows(method: Callable[[], Weighting]) -> None:
    model, tasks = network()
    batch = batch_of(tasks, 0)
    seen = counted(model)
    found = step(trained(model, tasks, method()), batch)
    assert seen == [5, 3]
    # All rows through the encoder, as if every row had both pictures, give the same.
    everywhere = trained(model, tasks, method())
    everywhere._rows = lambda batch: {}  # type: ignore[method-assign]
    whole = step(everywhere, batch)
    assert seen[2:] == [8, 8] and found.keys() == whole.keys()
    assert all(torch.allclose(found[name], whole[name], rtol=1e-12, atol=1e-14) for name in found)


def test_one_input_runs_once_for_all_tasks() -> None:
    model, _ = network()
    model.inputs = {}
    seen = counted(model)
    model({"image": torch.rand(4, 3, 8, 8).double()})
    assert seen == [4]


def test_the_second_look_runs_on_the_needed_of_the_first_rows() -> None:
    model, tasks = network()
    seen = counted(model)
    step(trained(model, tasks, FAMO(fraction=0.5)), batch_of(tasks, 0))
    # Rows 0 to 3: left of 0 and 1, right of 1 and 2; before the step, in it, after it.
    assert seen == [2, 2, 5, 3, 2, 2]


def test_validation_runs_on_given_rows_alone() -> None:
    model, tasks = network()
    batch, seen = batch_of(tasks, 0), counted(model.eval())
    predictions = model(batch.inputs, batch.padding, batch.given)
    assert seen == [6, 3]
    alone = model({"left": batch.inputs["left"][3:4]}, tasks=["mask"])
    assert list(alone) == ["mask"] and torch.allclose(alone["mask"][0], predictions["mask"][3], atol=1e-12)


def test_an_input_without_a_row_leaves_no_trace_and_a_single_row_can_be_normalised() -> None:
    model, tasks = network(norm=True)
    training, empty = trained(model, tasks, Equal()), batch_of(tasks, 0, right=[])
    before = {name: value.clone() for name, value in model.named_buffers()}
    with torch.no_grad():
        model({"right": empty.inputs["right"]}, rows={"right": empty.given["right"]}, tasks=["tone"])
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())
    assert all(not value.any() for name, value in step(training, empty).items() if name.startswith("heads.tone"))
    # Two stages make one cell of 4 x 4 pixels, of which batch norm takes no variance.
    lone = batch_of(tasks, 0, right=[2])
    small = replace(lone, inputs={name: picture[..., :4, :4] for name, picture in lone.inputs.items()})
    assert model(small.inputs, rows=small.given, tasks=["shade", "tone"])["tone"].isfinite().all()


def test_gates_are_watched_on_the_rows_of_their_input_alone() -> None:
    tasks: dict[str, Task] = {name: Regression(names=["x"]) for name in ("shade", "tone")}
    model = MultiTaskModel(tasks, MMoE(SmallCNN([4, 6]), list(tasks), experts=2), {"shade": "left", "tone": "right"}).eval()
    model.architecture.watch(True)
    pictures, rows = torch.rand(3, 3, 8, 8), torch.tensor([True, False, True])
    for right in (rows & False, rows):
        model({"left": pictures, "right": pictures}, rows={"left": rows, "right": right})
    assert {name: gate.seen.count for name, gate in model.architecture.gates.items()} == {"shade": 4, "tone": 2}


def test_features_are_refused() -> None:
    model, tasks = network()
    with pytest.raises(ConfigError, match="features, but tasks read several inputs \\(left, right\\)"):
        step(trained(model, tasks, MGDA(), gradients="features"), batch_of(tasks, 0))


def test_every_task_names_an_input_or_none_does() -> None:
    _, tasks = network()
    with pytest.raises(ConfigError, match=r"model.inputs does not name mask, tone"):
        MultiTaskModel(tasks, HardSharing(SmallCNN([4, 6]), list(tasks)), {"shade": "left"})


BATCHES = [
    [1, 2, 5],
    [1, 3, 5],  # no row of the right camera on the first process
    [],  # nor on any
    [0, 2, 4, 6],  # none on the second
]


def _train(method: Callable[[], Weighting], rank: int, world: int, total: Any) -> dict[str, Tensor]:
    model, tasks = network()
    training = trained(model, tasks, method(), rank, world, total)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for number, right in enumerate(BATCHES):
        whole = batch_of(tasks, number, right=right)

        def cut(values: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name: value[rank::world] for name, value in values.items()}

        parts = {key: cut(getattr(whole, key)) for key in ("inputs", "targets", "labelled", "given")}
        step(training, replace(whole, ids=whole.ids[rank::world], sizes=whole.sizes[rank::world], **parts))
        if world > 1 and not training.weighs_gradients:
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter.grad = total(parameter.grad) / world
        optimizer.step()
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def _total(tensor: Tensor) -> Tensor:
    found = tensor.detach().clone().contiguous()
    dist.all_reduce(found)
    return found


def _process(methods: Sequence[Callable[[], Weighting]], rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.save([_train(method, rank, 2, _total) for method in methods], f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_equal_one_where_one_lacks_an_input(tmp_path: Path) -> None:
    methods = [Equal, PCGrad, FAMO]
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=_process, args=(methods, rank, str(tmp_path))) for rank in range(2)]
    for process in processes:
        process.start()
    one = [_train(method, 0, 1, None) for method in methods]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    for rank in range(2):
        for mine, theirs in zip(one, torch.load(tmp_path / f"{rank}.pt"), strict=True):
            for name, value in mine.items():
                assert torch.allclose(value.double(), theirs[name].double(), rtol=1e-9, atol=1e-11), name


def cameras(root: Path, **options: Any) -> ManifestDataModule:
    data = ManifestDataModule(
        str(root), "cameras.csv", **{"inputs": {"left": "left_image", "right": "right_image"}, "image_size": 16, **options}
    )
    data.tasks = {
        "shade": Classification(),
        "tone": Classification(),
        "mask": SemanticSegmentation(classes=["dark", "bright"]),
    }
    data.configured, data.chosen, data.num_workers, data.batch_size = list(data.tasks), dict(READS), 0, 16
    return data


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cameras")
    write_cameras(root)
    return root


def test_each_picture_is_augmented_with_the_labels_of_its_tasks(place: Path) -> None:
    plain, flipped = cameras(place), cameras(place, train_transforms=[v2.RandomVerticalFlip()])
    for data in (plain, flipped):
        data.setup("fit")
    kept, turned = 0, 0
    for row in range(16):
        before, after = (data._augmented("train", True)[Pick(0, row)] for data in (plain, flipped))
        assert before.keys() == after.keys() and before["id"] == after["id"]
        flips = {name: not torch.equal(before[name], after[name]) for name in ("left", "right") if name in before}
        assert len(set(flips.values())) == 1, "one draw for a row"
        if "mask" in before:
            flips["mask"] = flips["left"]
        for name, flip in flips.items():
            assert torch.equal(before[name].flip(-2) if flip else before[name], after[name])
        kept, turned = kept + (not any(flips.values())), turned + any(flips.values())
    assert kept and turned


def test_a_cache_gives_the_same_batches(place: Path) -> None:
    plain, cached = cameras(place), cameras(place, cache=ImageCache())
    batches = []
    for data in (plain, cached):
        data.setup("fit")
        loader = data.train_dataloader()
        batches.append([*loader, *loader])
    kept = cached.splits["train"].kept  # type: ignore[attr-defined]
    assert kept.plan.rows == kept.stored == 24  # 16 rows, 4 of each side are missing
    for one, other in zip(*batches, strict=True):
        assert one.ids == other.ids and torch.equal(one.given["left"], other.given["left"])
        assert all(torch.equal(one.inputs[name], other.inputs[name]) for name in one.inputs)


def test_rows_are_mixed_with_rows_of_the_same_inputs(place: Path) -> None:
    data = cameras(place, mixing=MixUp(alpha=1.0))
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    partner = batch.partner["shade"]
    assert (partner != torch.arange(16)).sum() >= 12
    assert all(torch.equal(rows, rows[partner]) for rows in batch.given.values())
    assert not batch.inputs["left"][~batch.given["left"]].any()


@pytest.mark.parametrize(
    ("options", "chosen", "words"),
    [
        ({}, READS | {"tone": "middle"}, "model.inputs.tone is middle, expected one of the inputs of the data: left, right"),
        ({}, {"shade": "left", "mask": "left"}, "model.inputs.tone is not set, expected one of"),
        ({}, {}, "model.inputs.shade is not set"),
        ({}, READS | {"tint": "left"}, "model.inputs.tint: there is no such task; the tasks are shade, tone, mask"),
        ({"image_size": None}, READS, "data.init_args.image_size is not set, and there are several inputs"),
        ({"inputs": {"tone": "left_image", "right": "right_image"}}, {}, "model.inputs.shade is not set"),
        ({"inputs": {"tone": "left_image"}}, {}, "'tone' is the name of a task; rename the input, e.g. tone_image"),
        (
            {"inputs": {"left": "left_image", "right": "behind"}},
            READS,
            "data.init_args.inputs: cameras.csv has no column 'behind'",
        ),
        (
            {"inputs": None, "image": "left_image"},
            READS,
            "model.inputs.shade is left, expected one of the inputs of the data: image",
        ),
    ],
)
def test_inputs_that_do_not_fit_the_tasks(place: Path, options: dict[str, Any], chosen: dict[str, str], words: str) -> None:
    data = cameras(place, **options)
    data.chosen = dict(chosen)
    with pytest.raises(ConfigError) as error:
        data.setup("fit")
    assert words in str(error.value)


def test_image_and_inputs_contradict_each_other(place: Path) -> None:
    with pytest.raises(ConfigError, match=r"give image, .* or inputs"):
        cameras(place, image="left_image")


def test_a_label_without_its_picture_is_an_error_that_names_row_and_task(place: Path, tmp_path: Path) -> None:
    with (place / "cameras.csv").open() as file:
        rows = list(csv.DictReader(file))
    rows[3]["shade"] = "dark"  # it lacks the left picture
    with (place / "wrong.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    data = cameras(place)
    data.manifests = ["wrong.csv"]
    with pytest.raises(DataError, match=r"wrong.csv, row 5: task 'shade' has a label, but column 'left_image' is empty"):
        data.setup("fit")
    data = cameras(place, on_error="skip")
    data.manifests = ["wrong.csv"]
    data.setup("fit")
    assert len(data.splits["train"]) == 15


def test_a_run_of_two_cameras(place: Path, tmp_path: Path) -> None:
    common = ["--config", str(CONF), "--data.init_args.root", str(place), "--runs", str(tmp_path)]
    main(["fit", *common])
    table = tmp_path / "mine.csv"
    paths = [["", place / "right/15.png"], [place / "left/14.png", ""], [place / "left/13.png", place / "right/13.png"]]
    table.write_text("left_image,right_image\n" + "".join(f"{left},{right}\n" for left, right in paths))
    main(["predict", *common, "--inputs", str(table), "--folder", str(tmp_path / "found"), "--data.init_args.num_workers=1"])
    with (tmp_path / "found" / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [bool(row["shade"]) for row in rows] == [bool(row["mask"]) for row in rows] == [False, True, True]
    assert [bool(row["tone"]) for row in rows] == [True, False, True]
    assert (tmp_path / "found" / "contact_sheet.png").stat().st_size > 5000

    model = mtl_lightning.load(tmp_path / "cameras")
    given = [{name: path for name, path in zip(("left", "right"), pair, strict=True) if path} for pair in paths]
    results = model.predict(given)
    assert [sorted(result) for result in results] == [["tone"], ["mask", "shade"], ["mask", "shade", "tone"]]
    for row, result in zip(rows, results, strict=True):
        assert all(row[task] == result[task].name for task in ("shade", "tone") if task in result)
    assert results[1]["mask"].mask.shape == (20, 24)
    with pytest.raises(DataError, match="picture 0 is PosixPath; give a dict of one or several of its inputs: left, right"):
        model.predict(place / "left/14.png")
    with pytest.raises(DataError, match="picture 0 is a dict of top; give"):
        model.predict({"top": place / "left/14.png"})
    with pytest.raises(ConfigError, match="mask reads left, tone reads right"):
        export(model, tmp_path / "all.pt2")
    data = cameras(place)
    with pytest.raises(DataError, match="give a CSV with the columns left_image, right_image"):
        data.find_pictures(place / "left", None)
    with pytest.raises(ConfigError, match=r"--column left: .* several pictures a row"):
        data.find_pictures(table, "left")
