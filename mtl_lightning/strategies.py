"""Which of the trainer's strategies a run can have."""

from typing import Any

from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, SingleDeviceStrategy

from mtl_lightning.errors import ConfigError


def holds_all(strategy: Any) -> bool:
    """Whether every process has all parameters under a strategy of the trainer's."""
    return isinstance(strategy, SingleDeviceStrategy | DDPStrategy) and not isinstance(strategy, DeepSpeedStrategy)


def check_strategy(strategy: Any) -> None:
    """Refuse a strategy under which processes hold parts of the parameters (FSDP, tensor parallelism, DeepSpeed).

    Who uses which parameter is known of whole ones. So is which of them get no gradient: those of frozen stages, and of tasks
    that are absent from a batch. Under a shard's own bookkeeping they would get one of 0, with which AdamW moves them, and exact
    gradients of tasks, which pass by the hooks that gather and scatter, would be those of a shard.

    Args:
        strategy: the trainer's; None without a trainer.

    Raises:
        ConfigError: it is neither of one device nor DistributedDataParallel's.
    """
    if strategy is not None and not holds_all(strategy):
        raise ConfigError(
            f"trainer.strategy is {type(strategy).__name__}, under which a process holds parts of the parameters; which of them "
            "learn from which tasks, in each step, and the gradients of each task are known of whole parameters alone; set "
            "trainer.strategy to ddp. For a network that is too large: trainer.precision bf16-mixed, smaller batches with "
            "trainer.accumulate_grad_batches, or model.freeze"
        )


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
