"""Branches that are learnt, then fixed."""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn

from mtl_lightning.architectures.base import Table
from mtl_lightning.architectures.branched import Branched, Route
from mtl_lightning.architectures.parts import blend, staged, wanted
from mtl_lightning.encoders.base import Encoder
from mtl_lightning.errors import ConfigError
from mtl_lightning.features import Features

KEY = "model.architecture.init_args"


class LTB(Branched):
    """Learning to branch: Guo et al., "Learning to Branch for Multi-Task Learning", ICML 2020.

    Each stage of the encoder has several copies, its branches. Each branch chooses one branch of the stage before as its
    parent, and each task one of the last stage's: whoever has an ancestor in common shares it. While the tree is learnt,
    a choice is a Gumbel-softmax over learnt logits, at a temperature that falls, and what is chosen is the weighted mean; a
    task's finer levels are the means over the ancestors that it would have. In evaluation mode the same is done without noise.
    After ``epochs`` every choice is the likeliest one for good: only chosen branches run, and the others and the logits learn no
    more. What the logits learn with is ``model.architecture_lr``.

    While the tree is learnt, everything belongs to all tasks but the last choices, which are each a task's own. Afterwards a
    branch belongs to the tasks that go through it. At first parameters and FLOPs are those of all branches, by default T times
    the encoder's for T tasks, and T means of the branches' features at each level; afterwards between once and T times the
    encoder's FLOPs. Parameters stay. The paper retrains the tree from new weights; here the same weights learn on.

    The noise of a step is the same on all processes, in each forward pass of the step, and in a run that was resumed. A run that
    goes on from a checkpoint with a fixed tree keeps it.

    Args:
        encoder: with stages.
        tasks: names.
        epochs: how many the tree is learnt, 1 or more.
        branches: of each stage, one number for all or one for each; null is the number of tasks. ``[1, 2, 3]`` has one root.
        temperature: at the first and in the last epoch of learning; it falls by the same factor each epoch.

    Raises:
        ConfigError: numbers below 1, not one number for each stage, or a temperature that is not above 0.
    """

    parents: Tensor
    temperature: Tensor
    clock: Tensor
    noise: Tensor

    def __init__(
        self,
        encoder: Encoder,
        tasks: Sequence[str],
        epochs: int = 10,
        branches: int | list[int] | None = None,
        temperature: tuple[float, float] = (2.0, 0.1),
    ) -> None:
        depth = len(staged("LTB", encoder))
        numbers = branches if isinstance(branches, list) else [len(tasks) if branches is None else branches] * depth
        if len(numbers) != depth or min(numbers) < 1:
            raise ConfigError(
                f"{KEY}.branches is {branches}, expected one number from 1 on, or one for each of the encoder's {depth} stages"
            )
        if epochs < 1:
            raise ConfigError(f"{KEY}.epochs is {epochs}, expected 1 or more: so long the tree is learnt")
        if not all(0 < value < float("inf") for value in temperature):
            raise ConfigError(f"{KEY}.temperature is {list(temperature)}, expected two numbers above 0: the first and the last")
        super().__init__(encoder, tasks, numbers)
        self.epochs, self.numbers, self.temperatures = epochs, numbers, temperature
        self.routes: dict[str, Route] | None = None
        # One parameter for each who chooses: the last choices belong to one task each.
        self.logits = nn.ModuleList(
            nn.ParameterList([nn.Parameter(torch.zeros(parents)) for _ in range(children)] if parents > 1 else [])
            for parents, children in self._choices()
        )
        choosing = sum(children for _, children in self._choices())
        self.register_buffer("parents", torch.full((choosing,), -1))
        self.register_buffer("temperature", torch.tensor(float(temperature[0])))
        # The noise's seed, and the steps since.
        self.register_buffer("clock", torch.stack([torch.randint(2**31, ()), torch.tensor(0)]))
        size = sum(parents * children for parents, children in self._choices())
        self.register_buffer("noise", torch.zeros(size), persistent=False)
        self.register_load_state_dict_post_hook(_after_loading)  # type: ignore[no-untyped-call]

    def _choices(self) -> list[tuple[int, int]]:
        """How many parents and how many children there are behind each stage."""
        return list(zip(self.numbers, [*self.numbers[1:], len(self.tasks)], strict=True))

    def _rows(self) -> list[list[Tensor]]:
        """The logits of each child behind each stage; none where there is one parent."""
        return [list(rows) for rows in self.logits]  # type: ignore[call-overload]

    def _chosen(self) -> Sequence[Tensor]:
        """Each child's parent behind each stage."""
        return torch.split(self.parents, [children for _, children in self._choices()])

    def set_epoch(self, epoch: int) -> str | None:
        """Take the epoch's temperature and the step's noise; in time, fix the tree.

        Returns:
            The tree, when it is fixed.
        """
        if self.routes is not None:
            return None
        if epoch >= self.epochs:
            self.parents.copy_(torch.cat([choice.argmax(1) for choice in self._chances()]))
            self.take_tree()
            return f"Epoch {epoch + 1}: the branches are fixed: {self.describe()}"
        first, last = self.temperatures
        self.temperature.fill_(first * (last / first) ** (epoch / max(1, self.epochs - 1)))
        self.clock[1] += 1
        generator = torch.Generator().manual_seed(sum(self.clock.tolist()))
        # The least positive number instead of 0, whose logarithm is none.
        uniform = torch.rand(len(self.noise), generator=generator, dtype=torch.float64).clamp_min(1e-300)
        self.noise.copy_(-torch.log(-torch.log(uniform)))
        return None

    def foresee(self, epochs: int | None) -> str | None:
        """Warn of a run that ends before the tree is fixed."""
        if self.routes is not None or epochs is None or epochs > self.epochs:
            return None
        return (
            f"{KEY}.epochs is {self.epochs}, and the run ends after trainer.max_epochs {epochs}: the branches are never fixed, "
            "and all of them stay in use; set it lower, or train longer"
        )

    def take_tree(self) -> None:
        """Go by what the buffer ``parents`` holds: a tree, or that it is not fixed."""
        self.revision += 1
        parents = [chosen.tolist() for chosen in self._chosen()]
        if min(parents[-1]) < 0:
            self.routes = None
            return
        self.routes = {}
        for place, task in enumerate(self.tasks):
            route = [place]
            for choice in reversed(parents):
                route.insert(0, choice[route[0]])
            self.routes[task] = tuple(route[:-1])

    def describe(self) -> str:
        """The fixed tree: which tasks share each stage."""
        found = []
        for depth in range(len(self.numbers)):
            groups: dict[Route, list[str]] = {}
            for task, route in (self.routes or {}).items():
                groups.setdefault(route[: depth + 1], []).append(task)
            found.append(f"stage {depth + 1} {' | '.join(', '.join(group) for group in groups.values())}")
        return "; ".join(found)

    def forward(self, source: Features, tasks: Collection[str] | None = None) -> dict[str, list[Features]]:
        """All branches while the tree is learnt, afterwards those that the tasks asked for go through."""
        names = wanted(tasks, self.tasks)
        if self.routes is not None:
            return self.along(source, {name: self.routes[name] for name in names})
        mixing, levels = self._mixing(), []
        inputs = [self.encoder.start(source)] * self.numbers[0]
        for stages, rows in zip(self.stages(), mixing, strict=True):
            levels.append([stage(features) for stage, features in zip(stages, inputs, strict=True)])
            inputs = [blend(levels[-1], row) for row in rows] if len(levels) < len(mixing) else []
        pyramids: dict[str, list[Features]] = {name: [] for name in names}
        for name in names:
            ancestors = mixing[-1][self.tasks.index(name)]
            for depth in reversed(range(len(levels))):
                pyramids[name].insert(0, blend(levels[depth], ancestors))
                if depth:
                    # Not as a matrix product, which autocast would round to half precision.
                    ancestors = (ancestors[:, None] * torch.stack(mixing[depth - 1])).sum(0)
        return pyramids

    def _mixing(self) -> list[list[Tensor]]:
        """How much each child takes of each parent, behind each stage: [parents] for each child."""
        noises = torch.split(self.noise, [parents * children for parents, children in self._choices()])
        found = []
        for rows, noise, (parents, children) in zip(self._rows(), noises, self._choices(), strict=True):
            if parents == 1:
                found.append([self.temperature.new_ones(1)] * children)
                continue
            noisy = [row + part for row, part in zip(rows, noise.view(children, parents), strict=True)] if self.training else rows
            found.append([(row / self.temperature).softmax(0) for row in noisy])
        return found

    def _chances(self) -> list[Tensor]:
        """How likely each child's choice is each parent."""
        return [
            torch.stack(rows).detach().softmax(1) if parents > 1 else self.temperature.new_ones(children, 1)
            for rows, (parents, children) in zip(self._rows(), self._choices(), strict=True)
        ]

    def owners(self) -> dict[nn.Parameter, frozenset[str]]:
        """All tasks', but for the last choices; in a fixed tree, those of the tasks that go through a branch."""
        if self.routes is not None:
            return self.owned(self.routes)
        owners: dict[nn.Parameter, frozenset[str]] = dict.fromkeys(self.parameters(), frozenset(self.tasks))
        for task, row in zip(self.tasks, self.logits[-1].parameters(), strict=False):
            owners[row] = frozenset({task})
        return owners

    def tables(self) -> dict[str, Table]:
        """By stage, how likely the choices of its branches are, and of the tasks; 0 and 1 once they are fixed."""
        found = {}
        for depth, (chances, chosen) in enumerate(zip(self._chances(), self._chosen(), strict=True), start=1):
            last = depth == len(self.numbers)
            rows = self.tasks if last else [f"stage {depth + 1} branch {row + 1}" for row in range(len(chances))]
            columns = [f"stage {depth} branch {column + 1}" for column in range(chances.shape[1])]
            values = torch.eye(chances.shape[1]).to(chances)[chosen] if self.routes is not None else chances
            found[f"stage {depth}"] = Table(rows, columns, values)
        return found


def _after_loading(module: nn.Module, keys: object) -> None:
    assert isinstance(module, LTB)
    module.take_tree()
