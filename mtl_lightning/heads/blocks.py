"""Small parts that the dense heads share."""

import torch.nn.functional as F
from torch import Tensor, nn


class BatchNorm(nn.BatchNorm2d):
    """Batch norm that takes a single value per channel (one row, a 1x1 map) with its running statistics.

    The variance of one value is 0, so in training PyTorch's batch norm refuses it: a small image that is alone in the last
    batch would end the run.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise [B, C, h, w]."""
        if self.training and input.shape[0] * input.shape[2] * input.shape[3] == 1:
            return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        return super().forward(input)


def conv3x3(in_channels: int, out_channels: int, norm: bool = True) -> nn.Sequential:
    """Convolution 3x3 that keeps height and width, batch norm (or a bias), ReLU."""
    convolution = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=not norm)
    nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
    return nn.Sequential(convolution, *([BatchNorm(out_channels)] if norm else []), nn.ReLU(inplace=True))


def resize(tensor: Tensor, size: tuple[int, int]) -> Tensor:
    """[B, C, h, w] at another height and width, bilinear; the same height and width give the same values."""
    return F.interpolate(tensor, size=size, mode="bilinear", align_corners=False)
