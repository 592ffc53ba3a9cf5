"""Frozen stages: they stand still to the bit until they are thawed, on one process and on two, and across a resume."""

import copy
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mtl_lightning.architectures import HardSharing
from mtl_lightning.encoders import SmallCNN, Stage
from mtl_lightning.errors import ConfigError
from mtl_lightning.features import Features, FeatureSpec
from mtl_lightning.freeze import Freeze, Freezer, anchor
from mtl_lightning.main import main
from tests import test_distributed, test_resume
from tests.killer import Stopped
from tests.watch import Watch

pytestmark = pytest.mark.usefixtures("no_pictures")

CONF = Path(__file__).parent / "conf" / "tiny.yaml"


@pytest.mark.parametrize(
    "optimizer",
    [
        ["--model.optimizer=torch.optim.AdamW", "--model.optimizer.init_args.weight_decay=0.3"],
        ["--model.optimizer=torch.optim.SGD", "--model.optimizer.init_args={momentum: 0.9, weight_decay: 0.3}"],
    ],
    ids=["AdamW", "SGD"],
)
def test_frozen_stages_stand_still_until_they_are_thawed(tmp_path: Path, optimizer: list[str]) -> None:
    Watch.states.clear()
    Watch.learnt.clear()
    main(["fit", "--config", str(CONF), "--runs", str(tmp_path), "--trainer.max_epochs=4", *optimizer,
          "--model.optimizer.init_args.lr=0.01", "--trainer.callbacks+=tests.watch.Watch",
          "--model.freeze={stages: 1, epochs: 2}", "--trainer.gradient_clip_val=0.1",
          "--trainer.accumulate_grad_batches=2", "--trainer.limit_val_batches=0"])  # fmt: skip
    first = Watch.states[0][1]
    before = [state for epoch, state in Watch.states if epoch < 2]
    after = [state for epoch, state in Watch.states if epoch >= 2]
    assert (len(before), len(after)) == (12, 12)
    frozen = [key for key in first if key.startswith("stages.0.")]
    assert {"stages.0.body.norm.running_mean", "stages.0.body.norm.num_batches_tracked"} < set(frozen)
    for key in frozen:
        assert all(torch.equal(state[key], first[key]) for state in before), key
        assert not torch.equal(after[-1][key], first[key]), key
    # The first of two batches that are added up moves batch norm's statistics alone.
    assert not torch.equal(after[0]["stages.0.body.norm.running_mean"], first["stages.0.body.norm.running_mean"])
    assert torch.equal(after[0]["stages.0.body.conv.weight"], first["stages.0.body.conv.weight"])
    assert not torch.equal(after[1]["stages.0.body.conv.weight"], first["stages.0.body.conv.weight"])
    assert all(not torch.equal(before[-1][key], first[key]) for key in first if key.startswith("stages.1."))
    for epoch, names in Watch.learnt:
        assert any(name.startswith("stages.1.") for name in names)
        assert any(name.startswith("stages.0.") for name in names) == (epoch >= 2)


@pytest.mark.slow
def test_two_processes_thaw_as_one(tmp_path: Path) -> None:
    frozen = ["--model.freeze={stages: 1, epochs: 1}", "--trainer.max_epochs=2"]
    main(["fit", "--config", str(CONF), "--runs", str(tmp_path / "one"), *test_distributed.EXACT,
          "--data.init_args.batch_size=8", *frozen])  # fmt: skip
    two = test_distributed.run(tmp_path / "two", 4, *frozen, "--trainer.devices=2", "--trainer.strategy=ddp",
                               "--trainer.callbacks+=tests.watch.SameEverywhere")  # fmt: skip
    mine, theirs = (
        torch.load(path / "checkpoints/last.ckpt", weights_only=True)["state_dict"] for path in (tmp_path / "one/tiny", two)
    )
    for key, value in mine.items():
        if isinstance(value, Tensor) and value.is_floating_point():
            assert float((value - theirs[key]).abs().max()) < 1e-9, key


def test_resumed_across_the_thaw_equals_uninterrupted(tmp_path: Path) -> None:
    args = ["--model.freeze={stages: 1, epochs: 1}", "--trainer.max_epochs=2"]
    test_resume.fit(tmp_path / "whole", *args)
    # In mid-freeze, between the last frozen and the first thawed step, and after the thaw.
    for number, stop in enumerate((4, 6, 8)):
        resume = ["--ckpt_path=last"] if number else []
        with pytest.raises(Stopped):
            test_resume.fit(tmp_path / "cut", *args, *resume, "--trainer.callbacks+=tests.killer.StopAt",
                            f"--trainer.callbacks.init_args.step={stop}")  # fmt: skip
    test_resume.fit(tmp_path / "cut", *args, "--ckpt_path=last")
    test_resume.assert_same(tmp_path / "whole" / "tiny", tmp_path / "cut" / "tiny")


@pytest.mark.parametrize(
    ("config", "match"),
    [
        (Freeze(3), "stages is 3, expected 1 to 2, or all: .* 1 (64 channels, stride 2), 2 (128 channels, stride 4)"),
        (Freeze(0), "stages is 0"),
        (Freeze("all", 0), "epochs is 0"),
    ],
)
def test_bad_values(config: Freeze, match: str) -> None:
    with pytest.raises(ConfigError, match=r"model\.freeze\." + re.escape(match).replace(r"\.\*", ".*")):
        Freezer(config, HardSharing(SmallCNN(), ["a"]))


def test_more_stages_than_there_are_end_the_run_before_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["fit", "--config", str(CONF), "--runs", str(tmp_path), "--model.freeze.stages=3"])
    assert caught.value.code == 1
    assert "model.freeze.stages is 3, expected 1 to 2" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_frozen_stage_stays_in_evaluation_mode() -> None:
    encoder = SmallCNN([4, 4])
    freezer = Freezer(Freeze(1, epochs=1), HardSharing(encoder, ["a"]))
    assert "stage 1 of the encoder" in str(freezer.update(0))
    assert freezer.update(0) is None
    encoder.train()
    assert [stage.training for stage in encoder.stages] == [False, True]
    assert not encoder.stages[0].body.norm.training
    assert "thawed" in str(freezer.update(1))
    assert encoder.stages[0].body.norm.training
    assert freezer.parameters == []
    encoder.eval()
    freezer = Freezer(Freeze(1, epochs=1), HardSharing(encoder, ["a"]))
    freezer.update(0)
    freezer.update(1)
    assert encoder.stages[0].body.norm.training, "frozen in evaluation, thawed for training"


def test_nothing_runs_backward_through_frozen_stages() -> None:
    encoder = SmallCNN([4, 4, 4], norm=False)
    freezer = Freezer(Freeze(2), HardSharing(encoder, ["a"]))
    freezer.update(0)
    pyramid = encoder(Features(torch.rand(1, 3, 16, 16)))
    assert [features.tensor.requires_grad for features in pyramid] == [False, False, True]
    assert all(parameter.requires_grad for parameter in encoder.parameters())


def test_what_learns_before_a_frozen_stage_still_learns() -> None:
    torch.manual_seed(0)
    encoder = SmallCNN([4, 4], norm=False)
    image = torch.rand(1, 3, 16, 16, requires_grad=True)
    (expected,) = torch.autograd.grad(encoder(Features(image))[-1].tensor.sum(), image)
    Freezer(Freeze(), HardSharing(encoder, ["a"])).update(0)
    (found,) = torch.autograd.grad(encoder(Features(image))[-1].tensor.sum(), image)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


class Columns(HardSharing):
    """An encoder a task."""

    def __init__(self, encoder: SmallCNN, tasks: list[str]) -> None:
        super().__init__(encoder, tasks)
        self.others = nn.ModuleList(copy.deepcopy(encoder) for _ in tasks[1:])


def test_every_copy_of_a_stage_is_frozen() -> None:
    model = Columns(SmallCNN([4, 5, 6]), ["a", "b", "c"])
    assert [[stage.spec.channels for stage in copies] for copies in model.stages()] == [[4] * 3, [5] * 3, [6] * 3]
    freezer = Freezer(Freeze(2), model)
    freezer.update(0)
    assert sum(module.frozen for module in model.modules() if isinstance(module, Stage)) == 6
    loss = anchor(torch.tensor(1.5), freezer.parameters)
    assert loss.item() == 1.5
    loss.backward()
    assert len(freezer.parameters) == 3 * 6
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in freezer.parameters)
    frozen = set(freezer.parameters)
    assert all(parameter in frozen or parameter.grad is None for parameter in model.parameters())


def test_stages_of_an_architecture_without_encoder_are_none() -> None:
    model = HardSharing(SmallCNN([4]), ["a"])
    model.encoder = nn.Identity()  # type: ignore[assignment]
    assert model.stages() == []
    with pytest.raises(ConfigError, match="expected 1 to 0"):
        Freezer(Freeze(1), model)
    assert Stage(nn.Identity(), FeatureSpec(1)).frozen is False
