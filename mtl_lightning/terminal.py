"""What the command line shows of what its parts say."""

import logging
import os
import sys
import warnings

from lightning.pytorch.utilities import rank_zero_only
from PIL import Image


class _ToStderr(logging.Handler):
    """The message alone, on the first process."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print."""
        rank_zero_only(print)(record.getMessage(), file=sys.stderr, flush=True)


def show_ours() -> None:
    """Print what the parts without Lightning log, on the first process, as Lightning prints its own lines."""
    logger = logging.getLogger("mtl_lightning")
    logger.setLevel(logging.INFO)
    if not logger.handlers:
        logger.addHandler(_ToStderr())


def _plainly(message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None) -> str:
    """A warning of ours is for people who train; where it stands in the code is for others' warnings."""
    ours = filename.startswith(os.path.dirname(__file__))
    return f"WARNING: {message}\n" if ours else _told(message, category, filename, lineno, line)


_told = warnings.formatwarning


def quiet() -> None:
    """Leave out what others say that is no news here."""
    warnings.formatwarning = _plainly
    # Every checkpoint folder of a resumed run is there and not empty; ours are meant to be.
    warnings.filterwarnings("ignore", message=".*Checkpoint directory .* exists and is not empty.*")
    # The number of workers is in our configuration, with a default for the machine.
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    # The logging interval may well be longer than a small epoch: epochs are logged by themselves.
    warnings.filterwarnings("ignore", message=".*The number of training batches .* is smaller than the logging interval.*")
    # Lightning calls jsonargparse by a name that jsonargparse 5, which we exclude, will drop.
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    # An epoch cut short by max_steps, or between validations: then there is nothing to compare.
    warnings.filterwarnings("ignore", message=".*could not find the monitored key.*")
    # A run that starts from another's checkpoint has its own best.
    warnings.filterwarnings("ignore", message=".*The dirpath has changed from.*")
    # The callbacks that save have nothing to do in test and predict.
    warnings.filterwarnings("ignore", message=".*callbacks used to create the checkpoint need to be provided.*")
    # Ours steps it, and where nothing was validated there is nothing to step for.
    warnings.filterwarnings("ignore", message=".*ReduceLROnPlateau conditioned on metric.*")
    # Ours, about data.init_args.max_pixels, are errors.
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
    # What is logged is the same on all processes already.
    warnings.filterwarnings("ignore", message=".*It is recommended to use .*sync_dist=True.*")
    # Lightning itself calls what torch deprecates.
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    # Lightning's advertisements and device listings, and what we say in our own words.
    noise = ("💡", "GPU available", "TPU available", "HPU available", "Restoring states", "Loaded model weights", "Seed set")
    for name in (
        "lightning.pytorch.utilities.rank_zero",
        "lightning.fabric.utilities.rank_zero",
        "lightning.fabric.utilities.seed",
    ):
        logging.getLogger(name).addFilter(lambda record: not record.getMessage().startswith(noise))
