"""The vision transformers of torchvision."""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtl_lightning.encoders.base import ImageEncoder, Stage
from mtl_lightning.encoders.trunk import build_trunk
from mtl_lightning.encoders.weights import imagenet_normalisation, load_weights
from mtl_lightning.errors import ConfigError
from mtl_lightning.features import Features, FeatureSpec

ViTName = Literal["vit_b_16", "vit_b_32", "vit_l_16", "vit_l_32", "vit_h_14"]
GROUPS = 4


class Patches(nn.Module):
    """Non-overlapping patches as a map, with their positions and the class token.

    Args:
        projection: a convolution as wide as its stride.
        token: [1, 1, C].
        positions: [1, 1 + g * g, C], the class token's first, then those of a square of patches.
    """

    def __init__(self, projection: nn.Conv2d, token: nn.Parameter, positions: nn.Parameter) -> None:
        super().__init__()
        self.projection = projection
        self.token = token
        self.positions = positions

    def forward(self, image: Features) -> Features:
        """The image is filled up to whole patches at the right and the bottom."""
        patch = self.projection.kernel_size[0]
        missing = (0, -image.tensor.shape[-1] % patch, 0, -image.tensor.shape[-2] % patch)
        tensor = self.projection(F.pad(image.tensor, missing))
        valid = None if image.valid is None else F.avg_pool2d(F.pad(image.valid, missing), patch)
        tensor = tensor + self._positions(tensor, valid)
        token = (self.token + self.positions[:, :1]).squeeze(1).expand(len(tensor), -1)
        return Features(tensor if valid is None else tensor * (valid > 0), valid, token)

    def _positions(self, tensor: Tensor, valid: Tensor | None) -> Tensor:
        """[1 or B, C, h, w], stretched bicubically over each picture, padding left out."""
        size = round((self.positions.shape[1] - 1) ** 0.5)
        grid: Tensor = self.positions[:, 1:].transpose(1, 2).reshape(1, -1, size, size)
        height, width = tensor.shape[-2:]
        if valid is None:
            if (height, width) == (size, size):
                return grid
            stretched: Tensor = F.interpolate(grid, size=(height, width), mode="bicubic", align_corners=False)
            return stretched
        inside = valid.squeeze(1) > 0
        axes = []
        for side, kept in ((width, inside.any(1)), (height, inside.any(2))):
            cells = torch.arange(side, device=tensor.device, dtype=grid.dtype) + 0.5
            axes.append(2 * cells / kept.sum(1, keepdim=True).clamp_min(1) - 1)
        x, y = axes[0].unsqueeze(1).expand(-1, height, -1), axes[1].unsqueeze(2).expand(-1, -1, width)
        where = torch.stack([x, y], dim=-1)
        return F.grid_sample(
            grid.expand(len(tensor), -1, -1, -1), where, mode="bicubic", padding_mode="border", align_corners=False
        )


class BlockStage(Stage):
    """Some of a transformer's blocks over the patches and the class token; patches of padding alone are looked at by none.

    Args:
        blocks: torchvision's.
        spec: what comes out.
        patches: makes the map, for the first stage.
        norm: ends the last stage.
    """

    def __init__(
        self, blocks: Sequence[nn.Module], spec: FeatureSpec, patches: Patches | None = None, norm: nn.Module | None = None
    ) -> None:
        super().__init__(nn.ModuleList(blocks), spec)
        self.patches = patches
        self.norm = norm

    def step(self, features: Features) -> Features:
        """From map and token to map and token."""
        if self.patches is not None:
            features = self.patches(features)
        assert features.token is not None, "a stage of a vision transformer follows another"
        height, width = features.tensor.shape[-2:]
        tokens = torch.cat([features.token.unsqueeze(1), features.tensor.flatten(2).transpose(1, 2)], dim=1)
        ignored = None if features.valid is None else F.pad(features.valid.flatten(1) == 0, (1, 0), value=False)
        for block in self.body:  # type: ignore[attr-defined]
            tokens = block(tokens) if ignored is None else _attend(block, tokens, ignored)
        if self.norm is not None:
            tokens = self.norm(tokens)
        result = features.like(tokens[:, 1:].transpose(1, 2).reshape(-1, tokens.shape[2], height, width))
        return Features(result.tensor, result.valid, tokens[:, 0])


def _attend(block: nn.Module, tokens: Tensor, ignored: Tensor) -> Tensor:
    """Torchvision's block, which takes no mask, with one: bool [B, N], True for tokens that nobody looks at."""
    normed = block.ln_1(tokens)  # type: ignore[operator]
    attended, _ = block.self_attention(normed, normed, normed, key_padding_mask=ignored, need_weights=False)  # type: ignore[operator]
    tokens = tokens + block.dropout(attended)  # type: ignore[operator]
    result: Tensor = tokens + block.mlp(block.ln_2(tokens))  # type: ignore[operator]
    return result


def _modern(key: str) -> str:
    """Torchvision's own files are older than its names: ``mlp.linear_1`` for ``mlp.0``."""
    return key.replace("mlp.linear_1.", "mlp.0.").replace("mlp.linear_2.", "mlp.3.")


class ViT(ImageEncoder):
    """Vision transformer after Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021.

    Four stages of a quarter of the blocks each, all at the stride of the patches: there is no pyramid, so heads that need one
    (U-Net) do not fit. The first stage begins with the patches, the last ends with the network's layer norm. The class token
    travels along (``Features.token``, read by the head ``ClassToken``). Images may have any size: they are filled up to whole
    patches, and the position embeddings are stretched bicubically (torchvision: corners aligned; here: not). What is padding
    has no influence on the picture.

    Args:
        name: the network; the number at its end is the patches' height and width.
        in_channels: 3 for RGB, 1 for grey images (patches with one channel).
        weights: one of torchvision's weights ("IMAGENET1K_V1", "DEFAULT"), downloaded on first use, or the path of a
            state_dict file of torchvision's network or of a checkpoint of ours; null starts from random weights. RGB weights
            of the patches are summed for grey images.
        normalize: take ImageNet's mean out of the image in 0..1 and divide by its standard deviation.
        image_size: height and width whose position embeddings are kept; that of the weights (224; 384, 512 or 518 for those
            trained "E2E" at a larger size), not of your images.
        stages: how many of the stages, from the first on; null takes all.
        strict: whether missing and unexpected tensors in the weights are an error.

    Raises:
        ConfigError: unknown name, an image_size that is no multiple of the patches', more stages than there are, or weights
            that are missing, broken or another network's.
    """

    def __init__(
        self,
        name: ViTName = "vit_b_16",
        in_channels: Literal[1, 3] = 3,
        weights: str | None = None,
        normalize: bool = True,
        image_size: int = 224,
        stages: int | None = None,
        strict: bool = True,
    ) -> None:
        patch = int(name.rpartition("_")[2]) if name in get_args(ViTName) else 1
        if image_size < patch or image_size % patch:
            raise ConfigError(
                f"model.encoder.init_args.image_size is {image_size}, expected a multiple of {name}'s patches: {patch}"
            )
        trunk = build_trunk(name, get_args(ViTName), in_channels, "conv_proj", image_size=image_size)
        layers = list(trunk.encoder.layers)  # type: ignore[union-attr, arg-type]
        patches = Patches(trunk.conv_proj, trunk.class_token, trunk.encoder.pos_embedding)  # type: ignore[arg-type, union-attr]
        spec = FeatureSpec(trunk.hidden_dim, patch, token=True)  # type: ignore[arg-type]
        count = len(layers) // GROUPS
        made = [
            BlockStage(
                layers[group * count : (group + 1) * count],
                spec,
                patches if group == 0 else None,
                trunk.encoder.ln if group == GROUPS - 1 else None,  # type: ignore[union-attr, arg-type]
            )
            for group in range(GROUPS)
        ]
        mean, std = imagenet_normalisation(in_channels) if normalize else (0.0, 1.0)
        super().__init__(made, in_channels, mean, std, take=stages)
        load_weights(trunk, name, weights, "conv_proj.weight", ["heads"], strict=strict, encoder=self, rename=_modern)
