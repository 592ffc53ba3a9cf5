"""Experts that all tasks share, of which each task comes to use a few."""

from collections.abc import Sequence
from functools import partial
from typing import cast

import torch
from torch import Tensor

from mtl_lightning.architectures.experts import Mixture, check_count
from mtl_lightning.architectures.selectors import Selectors
from mtl_lightning.encoders.base import Encoder
from mtl_lightning.errors import ConfigError


class DSelectK(Mixture):
    """DSelect-k: a sparse mixture of experts for each task.

    Hazimeh et al., "DSelect-k: Differentiable Selection in the Mixture of Experts with Applications to Multi-Task Learning",
    NeurIPS 2021. As :class:`~mtl_lightning.architectures.mmoe.MMoE`, with sparse gates. A gate is a softmax-weighted sum of
    ``selected`` selectors. Each writes an expert's number in bits, ceil(log2 experts) logits that a smooth step sends to 0..1;
    an expert's weight is the product over its bits. Beyond the step's width bits are exactly 0 or 1, so that weights become
    exactly 0 while everything can be learnt by gradients. Where the experts are no power of two, some numbers belong to nobody,
    and a gate's weights add up to less than 1 until its selectors have left them.

    Penalties: ``entropy``, the coefficient times the sum of all selectors' entropies, drives them to a choice; ``unreachable``,
    where the experts are no power of two, is the sum over selectors of 1 / (their weight on experts) - 1 and has the paper's
    coefficient 1. Gates that read the input have means over the rows of the last training batch in both, whose gradient
    reaches the trunk as well.

    Shared: trunk and experts. A task's own: its gate, selected * (bits + 1) numbers, times channels + 1 where it reads the
    input. Cost: that of MMoE. All experts run, also those of weight 0, because other rows or tasks may use them.

    Where ours differs: the official code sums the penalties over the rows of a batch, ours takes the mean, and takes 1 off the
    second, so that it is 0 at its best. Weight decay on a gate pulls its bits back to the middle.

    Args:
        encoder: trunk and first expert.
        tasks: names.
        experts: how many, >= 1.
        selected: experts that a task has in the end at most, 1 to ``experts`` (k).
        shared: stages of the trunk, 0 to one less than there are.
        gamma: width of the smooth step, > 0.
        entropy: coefficient, >= 0.
        static: a task's weights are the same for every input; otherwise they depend on the trunk's last features, averaged over
            their valid cells. Must be true where nothing is shared: pooled raw pixels or token ids say nothing.

    Raises:
        ConfigError: a number out of range, gates without anything to read, or an encoder without stages.
    """

    def __init__(
        self,
        encoder: Encoder,
        tasks: Sequence[str],
        experts: int = 4,
        selected: int = 2,
        shared: int = 1,
        gamma: float = 1.0,
        entropy: float = 1e-3,
        static: bool = False,
    ) -> None:
        check_count("experts", experts)
        check_count("selected", selected, experts, f": there are {experts} experts")
        for key, value, good, expected in [
            ("gamma", gamma, 0 < gamma < float("inf"), "a number > 0"),
            ("entropy", entropy, 0 <= entropy < float("inf"), "a number >= 0"),
        ]:
            if not good:
                raise ConfigError(f"model.architecture.init_args.{key} is {value}, expected {expected}")
        if shared == 0 and not static:
            raise ConfigError(
                "model.architecture.init_args.static is false and shared is 0: there is no shared stage whose features gates "
                "could read; set static to true, or shared to 1 or more"
            )
        gate = partial(Selectors, selected=selected, gamma=gamma)
        super().__init__(encoder, tasks, experts, shared, lambda channels, count: gate(None if static else channels, count))
        self.entropy = entropy

    def penalties(self) -> dict[str, Tensor]:
        """``entropy``, and ``unreachable`` where the experts are no power of two."""
        gates = [cast(Selectors, gate) for gate in self.gates.values()]
        entropies, missing = zip(*(gate.measures() for gate in gates), strict=True)
        found = {"entropy": self.entropy * torch.stack(entropies).sum()}
        return found if gates[0].complete else found | {"unreachable": torch.stack(missing).sum()}
