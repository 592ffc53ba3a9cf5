"""Every leaf of every configuration: what is wrong ends in one message that names the key, what is right arrives."""

import contextlib
import copy
import io
import os
import random
import re
import signal
import zlib
from collections.abc import Iterator
from functools import partial, wraps
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning.pytorch import Callback

import mtl_lightning.cli
from mtl_lightning.blame import Builder
from mtl_lightning.cli import MTLCLI
from mtl_lightning.main import main
from mtl_lightning.module import MultiTaskModule
from mtl_lightning.trainer import MultiTaskTrainer
from mtl_lightning.typos import parameters
from tests.fuzz import HUGE, Leaf, dotted, fits, harmless, hostile, leaves
from tests.test_configs import CONFIGS, SMALL, pets  # noqa: F401  (a fixture)

pytestmark = pytest.mark.usefixtures("no_pictures")

SEED = 6
HOSTILE, UNKNOWN, HARMLESS = 8, 3, 4
"""How many cases of a configuration run by default; all of them in the slow tests."""
SECONDS = 300
"""After which a case has hung."""
BUILT_ONLY = ("devices", "strategy", "accelerator", "precision", "logger")
"""Of the trainer: they start processes, or need what is not here."""
ENDLESS = {"num_ops", "layers", "devices"}
"""So many processes or layers would be made one by one: no value is refused by whoever makes them before the machine gives up."""

TIED = {"channels", "only", "threshold", "where", "dilated"}
"""Entries whose other values need another entry to be changed with them: the encoder's channels, the names of the tasks, the loss
that has a threshold, the cache's folder, the encoder's stages."""
ONE_VALUE = {"num_nodes", "sync_batchnorm", "overfit_batches", "barebones"}
"""Of the trainer: other values need several machines or a GPU, or are refused whatever they are."""
ON_GPUS = {"capturable", "differentiable", "fused"}
"""Flags of torch's optimizers that it refuses in its own step only, for what they are meant for is not here."""


class Bench:
    """Runs the command line in this process on changed configurations, with one parser for all."""

    def __init__(self, patch: pytest.MonkeyPatch, folder: Path, data: Path) -> None:
        self.folder, self.data = folder, data
        self.stepped, self.built = False, list[tuple[Any, dict[str, Any]]]()
        self.only_build = False
        self.config: dict[str, Any] = {}
        self.cli: MTLCLI | None = None
        self._parser(patch)
        patch.setattr(mtl_lightning.cli, "NetworkPage", lambda *_: Callback())
        patch.setattr(mtl_lightning.cli, "WatchSharing", lambda *_: Callback())
        self._spies(patch)

    @staticmethod
    def _parser(patch: pytest.MonkeyPatch) -> None:
        made: dict[str, Any] = {}
        original = MTLCLI.setup_parser

        def setup_parser(cli: MTLCLI, *args: Any) -> None:
            if not made:
                original(cli, *args)
                made.update({name: vars(cli)[name] for name in ("parser", "_subcommand_parsers", "_subcommand_method_arguments")})
            vars(cli).update(made)

        patch.setattr(MTLCLI, "setup_parser", setup_parser)

    def _spies(self, patch: pytest.MonkeyPatch) -> None:
        step, build, made, fit = MultiTaskModule.training_step, Builder.__call__, MultiTaskTrainer.__init__, MultiTaskTrainer.fit

        def spied_step(module: Any, *args: Any) -> Any:
            self.stepped = True
            return step(module, *args)

        def spied_build(builder: Builder, what: Any, *args: Any, **kwargs: Any) -> Any:
            self.built.append((what, kwargs))
            for value in kwargs.values():
                if isinstance(value, partial):
                    self.built.append((value.args[-1], value.keywords))
            return build(builder, what, *args, **kwargs)

        @wraps(made)
        def spied_trainer(trainer: Any, **kwargs: Any) -> None:
            self.built.append((MultiTaskTrainer, kwargs))
            made(trainer, **kwargs)

        @wraps(fit)
        def spied_fit(trainer: Any, *args: Any, **kwargs: Any) -> None:
            self.config = yaml.safe_load((Path(trainer.default_root_dir) / "config.yaml").read_text())
            datamodule = kwargs["datamodule"]
            folder = Path(trainer.default_root_dir)
            self.built.append((None, {"seed_everything": datamodule.seed, "name": folder.name, "runs": str(folder.parent),
                                      "weights_only": kwargs["weights_only"]}))  # fmt: skip
            if self.only_build:
                raise SystemExit(0)
            fit(trainer, *args, **kwargs)

        patch.setattr(MultiTaskModule, "training_step", spied_step)
        patch.setattr(Builder, "__call__", spied_build)
        patch.setattr(MultiTaskTrainer, "__init__", spied_trainer)
        patch.setattr(MultiTaskTrainer, "fit", spied_fit)

    def resolved(self, stem: str) -> dict[str, Any]:
        """A configuration with all its defaults, made small."""
        small = [part.format(pets=self.data) for part in SMALL[stem]]
        file = next(path for path in CONFIGS if path.stem == stem)
        code, out, _ = self._call(["--config", str(file), *small, "--print_config"])
        assert code == 0
        config: dict[str, Any] = yaml.safe_load(out)
        config.pop("ckpt_path", None)
        config.setdefault("weights_only", None)
        arguments, encoder = config["data"]["init_args"], config["model"]["encoder"]
        arguments |= {"batch_size": 8, "num_workers": 0}
        if "train_size" in arguments:
            arguments |= {"train_size": 16, "val_size": 6, "test_size": 6, "size": 32}
        if "widths" in encoder["init_args"]:
            encoder["init_args"]["widths"] = [4] * len(encoder["init_args"]["widths"])
        # Its own tests run it; here it would start a service for each case.
        config["trainer"] |= {"fast_dev_run": True, "accelerator": "cpu", "enable_progress_bar": False, "logger": None}
        config["runs"] = str(self.folder)
        return config

    def run(self, config: dict[str, Any], only_build: bool = False) -> tuple[int, str]:
        """Args: config: what to run. only_build: not even a step of it. Returns: the exit code and what stderr was told."""
        file = self.folder / "case.yaml"
        file.write_text(yaml.safe_dump(config, sort_keys=False))
        self.stepped, self.only_build, self.config = False, only_build, {}
        self.built.clear()
        code, _, told = self._call(["--config", str(file)])
        return code, told

    @staticmethod
    def _call(args: list[str]) -> tuple[int, str, str]:
        os.environ.pop("MTL_LIGHTNING_RUN", None)
        out, told, code = io.StringIO(), io.StringIO(), 0
        signal.alarm(SECONDS)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(told):
            try:
                main(["fit", *args])
            except SystemExit as error:
                code = int(error.code or 0)
            finally:
                signal.alarm(0)
        return code, out.getvalue(), told.getvalue()

    def outcome(self, leaf: Leaf, path: tuple[str | int, ...], value: Any, config: dict[str, Any], only_build: bool) -> str:
        """What is wrong about how a changed configuration ended; empty if nothing is, and ``refused`` if rightly refused."""
        changed = copy.deepcopy(config)
        inner: Any = changed
        for part in path[:-1]:
            inner = inner[part]
        inner[path[-1]] = value
        case = f"{dotted(path)}={value!r}"
        try:
            code, told = self.run(changed, only_build or (path[0] == "trainer" and path[-1] in BUILT_ONLY))
        except Exception as error:
            return f"{case}: a traceback, {type(error).__name__}: {error}"
        if code == 0:
            return self._arrived(leaf, path, value, case)
        message = told[told.index("error: ") :] if "error: " in told else ""
        if code not in (1, 2) or told.count("error: ") != 1 or "Traceback" in told:
            return f"{case}: code {code}, {told}"
        if self.stepped and "pixels, the data gives" not in message:  # a run finds it when it draws its network
            return f"{case}: found only in a training step: {message}"
        # The key itself, or its object's and its name; a task may be called by its name, and what widths make are stages.
        place = dotted(path[:-1]).partition("[")[0].removesuffix(".init_args")
        tasks = {("model", "tasks"): path[2:3], ("data", "init_args", "columns"): path[3:4]}
        places = [place, *(f"task '{name}'" for root, names in tasks.items() if path[: len(root)] == root for name in names)]
        # Without its class, an object's arguments are those that another class does not have.
        others = {"widths": ["stages"], "class_path": ["init_args"]}.get(leaf.name, [])
        names = "|".join([re.escape(str(path[-1])), *others])
        if not (any(each in message for each in places) and re.search(rf"(?<!\w)({names})(?!\w)", message)):
            return f"{case}: does not name the key: {message}"
        return "refused"

    def _arrived(self, leaf: Leaf, path: tuple[str | int, ...], value: Any, case: str) -> str:
        if path != leaf.path:
            return f"{case}: an unknown key was ignored"
        if not fits(leaf.hint, value):
            return f"{case}: was taken, and is no {leaf.hint}"
        shown: Any = self.config
        for part in path:
            shown = shown[part]
        if case == "seed_everything=True":
            return ""  # Lightning's word for any
        if not (same(shown, value) or (value == {} and isinstance(shown, dict))):  # nothing given is all its own values
            return f"{case}: became {shown!r} in the resolved configuration"
        if value == {} or leaf.key == "runs" or (leaf.owner is not None and leaf.name not in parameters(leaf.owner)):
            return ""  # an object of its own values, a folder that has other names, a part of a mapping that arrived as a whole
        given = [arguments[leaf.name] for made, arguments in self.built if made is leaf.owner and leaf.name in arguments]
        if leaf.name != "class_path" and not any(same(each, value) for each in given):
            return f"{case}: did not reach {leaf.owner}, which was given {given}"
        return ""


def same(one: Any, other: Any) -> bool:
    """Whether both are equal, apart from what YAML does not tell: tuples and lists, paths and text."""
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return bool(one == other) or (isinstance(one, Path) and str(one) == other)


def hung(*_: Any) -> None:
    """Of the alarm."""
    raise TimeoutError(f"nothing after {SECONDS} seconds")


@pytest.fixture(scope="module")
def bench(pets: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:  # noqa: F811
    before = signal.signal(signal.SIGALRM, hung)
    with pytest.MonkeyPatch.context() as patch:
        yield Bench(patch, tmp_path_factory.mktemp("fuzz"), pets)
    signal.signal(signal.SIGALRM, before)


def sample(cases: list[Any], size: int | None, stem: str) -> list[Any]:
    """Some of the cases, the same ones every time; None is all."""
    return cases if size is None else random.Random(f"{SEED}{stem}").sample(cases, min(size, len(cases)))


def mine(bench: Bench, stem: str, size: int | None) -> list[Leaf]:
    """A configuration's leaves; where all are tried, those that no other one tries: an argument of a class is one."""
    own = list(leaves(bench.resolved(stem)))
    if size is not None:
        return own
    holders: dict[Any, list[str]] = {}
    for each in STEMS:
        for name in {_identity(leaf) for leaf in leaves(bench.resolved(each))}:
            holders.setdefault(name, []).append(each)
    chosen = {name: found[zlib.crc32(repr(name).encode()) % len(found)] for name, found in holders.items()}
    first = {_identity(leaf): leaf for leaf in reversed(own)}
    return [leaf for name, leaf in first.items() if chosen[name] == stem]


def _identity(leaf: Leaf) -> tuple[str, str]:
    return (str(leaf.owner), leaf.name) if leaf.owner and leaf.name in parameters(leaf.owner) else ("", leaf.key)


def check_hostile(bench: Bench, stem: str, size: int | None) -> None:
    config = bench.resolved(stem)
    cases = [(leaf, value) for leaf in mine(bench, stem, size) if leaf.name not in ON_GPUS for value in hostile(leaf)
             if not (value == HUGE and leaf.name in ENDLESS)]  # fmt: skip
    wrong = [bench.outcome(leaf, leaf.path, value, config, False) for leaf, value in sample(cases, size, stem)]
    told = [each for each in wrong if each not in ("", "refused")]
    assert not told, "\n".join(told)


def check_unknown(bench: Bench, stem: str, size: int | None) -> None:
    config = bench.resolved(stem)
    wrong = []
    for leaf in sample(mine(bench, stem, size), size, stem):
        # The keys of a mapping are looked at with the data.
        built = leaf.owner is None or leaf.name in parameters(leaf.owner)
        wrong.append(bench.outcome(leaf, (*leaf.path[:-1], f"{leaf.name}x"), leaf.value, config, built))
    told = [each for each in wrong if each != "refused"]
    assert not told, "\n".join(told)


def check_harmless(bench: Bench, stem: str, size: int | None) -> None:
    config = bench.resolved(stem)
    cases = [leaf for leaf in mine(bench, stem, size) if leaf.name not in {"class_path", *TIED, *ONE_VALUE} and harmless(leaf)]
    told = []
    for leaf in sample(cases, size, stem):
        ends = []
        for value in harmless(leaf):
            ends.append(bench.outcome(leaf, leaf.path, value, config, True))
            if ends[-1] != "refused":
                break
        # A text may have to be the name of something; all else has more than one value.
        named = isinstance(leaf.value, str | None) and str in leaf.kinds
        told += [f"{leaf.key}: nothing else is taken"] if ends[-1] == "refused" and not named else []
        told += [] if ends[-1] in ("", "refused") else [ends[-1]]
    assert not told, "\n".join(told)


STEMS = [path.stem for path in CONFIGS]


@pytest.mark.parametrize("stem", STEMS)
def test_a_wrong_value_is_named_or_works(bench: Bench, stem: str) -> None:
    check_hostile(bench, stem, HOSTILE)


@pytest.mark.parametrize("stem", STEMS)
def test_an_unknown_key_is_named(bench: Bench, stem: str) -> None:
    check_unknown(bench, stem, UNKNOWN)


@pytest.mark.parametrize("stem", STEMS)
def test_a_right_value_arrives(bench: Bench, stem: str) -> None:
    check_harmless(bench, stem, HARMLESS)


@pytest.mark.slow
@pytest.mark.parametrize("check", [check_hostile, check_unknown, check_harmless])
@pytest.mark.parametrize("stem", STEMS)
def test_every_leaf(bench: Bench, stem: str, check: Any) -> None:
    check(bench, stem, None)
