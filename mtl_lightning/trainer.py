"""Lightning's trainer with the entries that this framework adds to its command line."""

from typing import Any, Literal

from lightning.pytorch import LightningDataModule, LightningModule, Trainer


class MultiTaskTrainer(Trainer):
    """Lightning's trainer, which can also ``check`` and knows where to ``predict`` from and to."""

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
