"""Steps of LibMTL and TorchJD, in their own environment: a line of JSON in, a line of JSON out.

Requests: {"do": "make", "name", "library", "method", "shape", "device", "autocast", "setting"} builds a network and takes a step,
{"do": "run", "name", "steps", "cpu_time"} times some, {"do": "drop", "name"} forgets it.
"""

import json
import os
import sys
import traceback
import types
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from network import Shape, data, network, now, optimizer
from torch import Tensor, nn


def libmtl() -> tuple[Any, Any, Any]:
    """Its architecture, losses and weightings; a module that torchvision no longer has, for its ResNet alone, is put back."""
    gone = types.ModuleType("torchvision.models.utils")
    gone.load_state_dict_from_url = torch.hub.load_state_dict_from_url  # type: ignore[attr-defined]
    sys.modules.setdefault(gone.__name__, gone)
    import LibMTL.architecture as architectures
    import LibMTL.loss as losses_of
    import LibMTL.weighting as weightings

    return architectures, losses_of, weightings


class Peer:
    """Args: a request to make one."""

    def __init__(self, request: dict[str, Any]) -> None:
        shape = Shape(**request["shape"])
        self.device = torch.device(request["device"])
        self.autocast = request["autocast"]
        trunk, heads = network(shape)
        self.trunk, self.heads = trunk.to(self.device), [head.to(self.device) for head in heads]
        images, classes = data(shape)
        self.images, self.classes = images.to(self.device), [target.to(self.device) for target in classes]
        self.step: Callable[[], list[float] | None] = getattr(self, request["library"])(request["method"], request["setting"])

    def context(self) -> Any:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast)

    def libmtl(self, method: str, setting: dict[str, Any]) -> Callable[[], None]:
        """What its `Trainer.train` does for a batch, metrics left out; the trainer itself runs on a GPU only."""
        architectures, losses_of, weightings = libmtl()
        weighting = getattr(weightings, method)
        trunk, names = self.trunk, [f"t{number}" for number in range(len(self.heads))]

        class Model(architectures.HPS, weighting):  # type: ignore[misc, valid-type, name-defined]
            def zero_grad_share_params(self) -> None:
                # As in the torch it was written for; since torch 2 the default is None, on which it fails.
                self.encoder.zero_grad(set_to_none=False)

        decoders = nn.ModuleDict(dict(zip(names, self.heads, strict=True)))
        model = Model(names, lambda: trunk, decoders, False, False, self.device)
        model.init_param()
        model.to(self.device)
        chosen, measured = optimizer(list(model.parameters())), {name: losses_of.CELoss() for name in names}

        def step() -> None:
            with self.context():
                predictions = model(self.images)
                losses = torch.zeros(len(names)).to(self.device)
                for number, name in enumerate(names):
                    losses[number] = measured[name]._update_loss(predictions[name], self.classes[number])
            chosen.zero_grad()
            model.backward(losses, **setting)
            chosen.step()

        return step

    def torchjd(self, method: str, setting: dict[str, Any]) -> Callable[[], None]:
        """As its documentation shows it for several tasks."""
        import torchjd.aggregation as aggregation
        from torchjd.autojac import jac_to_grad, mtl_backward

        aggregator = getattr(aggregation, method)()
        shared = list(self.trunk.parameters())
        own = [list(head.parameters()) for head in self.heads]
        given = {"shared_params": shared, "tasks_params": own} if setting["given"] else {}
        chosen = optimizer([*shared, *(parameter for head in own for parameter in head)])

        def step() -> None:
            with self.context():
                features = self.trunk(self.images)
                losses = self.losses(features)
            chosen.zero_grad()
            mtl_backward(losses, features=features, parallel_chunk_size=setting["chunk"], **given)
            more = {"optimize_gramian_computation": True} if setting["gramian"] else {}
            jac_to_grad(shared, aggregator, **more)
            chosen.step()

        return step

    def losses(self, features: Tensor) -> list[Tensor]:
        return [F.cross_entropy(head(features), target) for head, target in zip(self.heads, self.classes, strict=True)]

    def first(self) -> list[float]:
        """The losses before any step."""
        with torch.no_grad():
            return [float(loss) for loss in self.losses(self.trunk(self.images))]

    def run(self, steps: int, cpu_time: bool) -> float:
        start = now(self.device, cpu_time)
        for _ in range(steps):
            self.step()
        return (now(self.device, cpu_time) - start) / steps


def main() -> None:
    # What the libraries print goes to the other stream: this one is for answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    torch.set_num_threads(int(sys.argv[1]))
    peers: dict[str, Peer] = {}
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer: dict[str, Any] = {}
            if request["do"] == "make":
                peer = Peer(request)
                answer["losses"] = peer.first()
                peer.step()
                peers[request["name"]] = peer
            elif request["do"] == "drop":
                peers.pop(request["name"], None)
            else:
                answer["seconds"] = peers[request["name"]].run(request["steps"], request["cpu_time"])
        except Exception as error:  # whatever a library raises is its answer
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
