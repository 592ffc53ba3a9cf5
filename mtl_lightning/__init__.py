"""One network for many tasks from partly labelled data, on PyTorch Lightning."""

__version__ = "0.1.0"
