"""Lightning's trainer with the entries that this framework adds to its command line."""

from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import LightningDataModule, LightningModule, Trainer


class MultiTaskTrainer(Trainer):
    """Lightning's trainer, which can also ``check`` and knows where to ``predict`` from and to."""

    def __init__(
        self,
        *,
        # Types of Lightning's, with text behind keys: a saved configuration would turn keys into text.
        max_time: dict[str, int] | str | timedelta | None = None,
        val_check_interval: int | float | dict[str, int] | str | timedelta | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(max_time=max_time, val_check_interval=val_check_interval, **kwargs)

    # The docstrings of these are the help of the commands; Lightning's tell what its own calls would do.
    def fit(
        self,
        model: LightningModule,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        datamodule: LightningDataModule | None = None,
        ckpt_path: str | Path | None = None,
        weights_only: bool | None = None,
    ) -> None:
        """Train a network, then evaluate its best checkpoint.

        Args:
            model: the module of the run.
            train_dataloaders: not used by the command line.
            val_dataloaders: not used by the command line.
            datamodule: the data of the run.
            ckpt_path: last goes on with the latest run of that name, in its folder, and auto does so unless there is none, or
                none that is unfinished and saved: then it starts a new run; best (of the latest run of that name) or a path
                starts a new run from there; null starts a new run.
            weights_only: always true.
        """
        super().fit(model, train_dataloaders, val_dataloaders, datamodule, ckpt_path, weights_only)

    def validate(
        self,
        model: LightningModule | None = None,
        dataloaders: Any = None,
        ckpt_path: str | Path | None = None,
        verbose: bool = True,
        datamodule: LightningDataModule | None = None,
        weights_only: bool | None = None,
    ) -> Any:
        """Evaluate a checkpoint on the validation split.

        Args:
            model: the module of the run.
            dataloaders: not used by the command line.
            ckpt_path: last, best (of the latest run of that name), or a path; null takes best, or last where there is none.
            verbose: print Lightning's table of what was logged.
            datamodule: the data of the run.
            weights_only: always true.
        """
        return super().validate(model, dataloaders, ckpt_path, verbose, datamodule, weights_only)

    def test(
        self,
        model: LightningModule | None = None,
        dataloaders: Any = None,
        ckpt_path: str | Path | None = None,
        verbose: bool = True,
        datamodule: LightningDataModule | None = None,
        weights_only: bool | None = None,
    ) -> Any:
        """Evaluate a checkpoint on the test split.

        Args:
            model: the module of the run.
            dataloaders: not used by the command line.
            ckpt_path: last, best (of the latest run of that name), or a path; null takes best, or last where there is none.
            verbose: print Lightning's table of what was logged.
            datamodule: the data of the run.
            weights_only: always true.
        """
        return super().test(model, dataloaders, ckpt_path, verbose, datamodule, weights_only)

    def check(self, model: LightningModule, datamodule: LightningDataModule, pictures: int = 12, shown: int = 20) -> None:
        """Examine the data and a training step, and train nothing.

        Args:
            model: the module of the run.
            datamodule: the data of the run.
            pictures: training samples on the contact sheet.
            shown: faults on the screen; faults.txt lists all.
        """
        from mtl_lightning.analysis.check.run import check

        check(self, model, datamodule, pictures, shown)

    def predict(  # type: ignore[override]
        self,
        model: LightningModule | None = None,
        dataloaders: Any = None,
        datamodule: LightningDataModule | None = None,
        return_predictions: bool | None = None,
        ckpt_path: str | None = None,
        weights_only: bool | None = None,
        inputs: str | None = None,
        column: str | None = None,
        on_error: Literal["raise", "skip"] = "raise",
        folder: str | None = None,
    ) -> Any:
        """Write decoded predictions of the test split, a folder, a manifest or one picture.

        Args:
            model: with its tasks.
            dataloaders: not used by the command line.
            datamodule: gives the pictures.
            return_predictions: also return what ``predict_step`` gave.
            ckpt_path: last, best (of the latest run of that name), or a path; null takes best, or last where there is none.
            weights_only: always true.
            inputs: a folder of pictures (searched with its subfolders), a CSV or Parquet file, or one picture; null takes the
                test split. The data module prepares them as in evaluation, but none of its own data is needed.
            column: the column of the pictures' paths in a CSV, which are relative to it; null takes the data module's.
            on_error: skip leaves out and lists pictures of ``inputs`` that cannot be read.
            folder: new folder for the predictions; null takes ``predictions`` in the run's folder.
        """
        return super().predict(model, dataloaders, datamodule, return_predictions, ckpt_path, weights_only)
