"""Which of the trainer's strategies a run can have."""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
    Strategy,
)

from mtl_lightning.compiling import CompileOptions
from mtl_lightning.errors import ConfigError
from mtl_lightning.gradients import EngineOptions
from mtl_lightning.penalties import Penalty
from mtl_lightning.sharding import parts_of_model, parts_of_optimizer, whole
from mtl_lightning.weighting import Weighting


class FullySharded(ModelParallelStrategy):
    """Every process holds a part of each parameter, of its gradient and of its optimizer state (FSDP, torch's FSDP2).

    For networks that are too large for one GPU. Checkpoints are those of one process: whole, in one file, which goes on with any
    number of processes and any strategy.

    Args:
        process_group_backend: null takes nccl on GPUs and gloo on CPUs.
        timeout: how long a process waits for the others.
    """

    def __init__(self, process_group_backend: str | None = None, timeout: timedelta = timedelta(minutes=30)) -> None:
        super().__init__("auto", "auto", False, process_group_backend, timeout)

    @property
    def lightning_restore_optimizer(self) -> bool:
        """The trainer does, once the network is in parts."""
        return True

    @property
    def joins_batch_norms(self) -> bool:
        """Whether the trainer was told to."""
        return self._layer_sync is not None

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """The whole file on every process, so that it can be refused before anything is loaded."""
        return Strategy.load_checkpoint(self, checkpoint_path, weights_only)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Gathered."""
        state: dict[str, Any] = whole(Strategy.lightning_module_state_dict(self))
        return state

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Take this process's part."""
        assert self.lightning_module is not None
        state = parts_of_model(checkpoint["state_dict"], self.lightning_module)
        Strategy.load_model_state_dict(self, {"state_dict": state}, strict)

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """Gathered."""
        state: dict[str, Any] = whole(Strategy.optimizer_state(self, optimizer))
        return state

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Take this process's part."""
        states = zip(checkpoint["optimizer_states"], self.optimizers, strict=True)
        parts = [parts_of_optimizer(state, optimizer) for state, optimizer in states]
        Strategy.load_optimizer_state_dict(self, {"optimizer_states": parts})


def holds_all(strategy: Any) -> bool:
    """Whether every process has all parameters under a strategy of the trainer's."""
    return isinstance(strategy, SingleDeviceStrategy | DDPStrategy) and not isinstance(strategy, DeepSpeedStrategy)


def check_strategy(strategy: Any) -> None:
    """Refuse strategies by which processes hold parts of the parameters, other than :class:`FullySharded`.

    Who uses which parameter, and so which of them get no gradient in a step, is known of the parameters before they are cut up.

    Args:
        strategy: the trainer's; None without a trainer.

    Raises:
        ConfigError: it is neither of one device nor DistributedDataParallel's nor ours.
    """
    if strategy is not None and not holds_all(strategy) and not isinstance(strategy, FullySharded):
        raise ConfigError(
            f"trainer.strategy is {type(strategy).__name__}, which cuts up parameters in its own way; which of them learn from "
            "which tasks, in each step, would not be known; set trainer.strategy to ddp or, for a network that is too large for "
            "one device, to {class_path: FullySharded}, which is FSDP"
        )


def check_start(name: Any, strategy: Any = None) -> None:
    """Refuse what cannot be had before any process is started.

    Args:
        name: ``trainer.strategy`` as configured.
        strategy: what became of it.

    Raises:
        ConfigError: a name of what only a class can be, or processes that are started with everything pickled.
    """
    if isinstance(name, str) and name.lower() in ("fullysharded", "fsdp"):
        raise ConfigError(f"trainer.strategy is {name}: write {{class_path: FullySharded}}, which is FSDP as it can be had here")
    if getattr(strategy, "_start_method", None) == "spawn":
        raise ConfigError(f"trainer.strategy is {name}, which would pickle the whole run for each process; set it to ddp")


def check_sharded(
    trainer: Any,
    weighting: Weighting,
    engine: EngineOptions,
    penalties: Sequence[Penalty],
    compiled: CompileOptions | None,
    channels_last: bool,
) -> None:
    """Refuse what cannot be had with parameters in parts.

    Args:
        trainer: with :class:`FullySharded`.
        weighting: of the run.
        engine: its options.
        penalties: as configured.
        compiled: as configured.
        channels_last: as configured.

    Raises:
        ConfigError: something cannot; all of it is named.
    """
    method, wrong = type(weighting).__name__, []
    if weighting.from_gradients is not None and engine.gradients != "features":
        wrong.append(
            f"model.weighting {method}: gradients of each task over the parameters are known of whole parameters; set "
            "model.engine.gradients to features, or take a weighting from losses"
        )
    if weighting.extra_batches:
        wrong.append(f"model.weighting {method}: gradients of further batches are known of whole parameters; take another one")
    if engine.watch_every:
        wrong.append("model.engine.watch_every: gradients of each task are known of whole parameters; set it to 0")
    if penalties:
        wrong.append("model.penalties: weights are whole in the forward pass alone; use the optimizer's weight_decay")
    if compiled is not None:
        wrong.append("model.compile: set it to null")
    if channels_last:
        wrong.append("model.channels_last: parts are cut from contiguous weights; set it to false")
    if getattr(trainer.precision_plugin, "scaler", None) is not None:
        wrong.append("trainer.precision 16-mixed: its loss scaler sees a part of the gradients; take bf16-mixed")
    if trainer.strategy.joins_batch_norms:
        wrong.append("trainer.sync_batchnorm: set it to false")
    if wrong:
        raise ConfigError(f"trainer.strategy FullySharded cannot be had with {'; '.join(wrong)}; or set it to ddp")


def check_wrapped(network: Any) -> None:
    """Refuse ``static_graph`` of DistributedDataParallel, under which processes go apart without a word.

    Args:
        network: as the strategy has wrapped it.

    Raises:
        ConfigError: it is set.
    """
    if getattr(network, "static_graph", False):
        raise ConfigError(
            "trainer.strategy has static_graph: true, which takes the first step's graph for that of all steps; which tasks and "
            "stages take part changes from step to step here, and processes would go apart; leave it out"
        )
