"""Lightning's trainer with the entries that this framework adds to its command line."""

from lightning.pytorch import LightningDataModule, LightningModule, Trainer


class MultiTaskTrainer(Trainer):
    """Lightning's trainer, which can also ``check``."""

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
