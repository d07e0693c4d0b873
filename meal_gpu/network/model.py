"""DeepLabV3+ with any timm backbone; with MobileNetV2 it has the paper's parameter counts.

The head is written for what active learning does to it: a small part of the pixels carries labels. On a window it
computes what it would compute on the whole image (equal in eval mode), at the cost of the window.
"""

from collections.abc import Iterable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import ModelConfig
from ..data.pixels import normalise
from ..grid import Grid, Size
from .backbone import create_backbone
from .dropout import Dropout
from .interface import Network, Shape, Upsampling
from .windows import Windows, along, bilinear_matrix, taps

RATES = (6, 12, 18)
"""Dilations of the ASPP's 3 × 3 convolutions."""
_SHAPES: dict[tuple[str, int, int, int], tuple[Shape, Shape]] = {}
"""What `DeepLabV3Plus.map_shapes` found: by backbone, output stride, height and width."""


class ConvNormAct(nn.Sequential):
    def __init__(self, c_in: int, c_out: int, kernel: int = 1, dilation: int = 1) -> None:
        super().__init__(
            nn.Conv2d(c_in, c_out, kernel, padding=dilation * (kernel // 2), dilation=dilation, bias=False),
            nn.BatchNorm2d(c_out),
            nn.ReLU(inplace=True),
        )

    @property
    def conv(self) -> nn.Conv2d:
        return cast(nn.Conv2d, self[0])

    def finish(self, x: Tensor) -> Tensor:
        """Batch-norm and ReLU, for a convolution that was computed another way. Its bias, if it was folded, is in x."""
        return cast(Tensor, self[2](self[1](x)))


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: 1 × 1, 3 × 3 at three rates, and the image's mean → 256 channels."""

    def __init__(self, c_in: int, channels: int = 256) -> None:
        super().__init__()
        self.point = ConvNormAct(c_in, channels)
        self.atrous = nn.ModuleList(ConvNormAct(c_in, channels, 3, rate) for rate in RATES)
        self.pool = ConvNormAct(c_in, channels)
        self.project = ConvNormAct(channels * (len(RATES) + 2), channels)
        self.dropout = Dropout(0.5)

    def forward(self, high: Tensor) -> Tensor:
        """[B, C, h, w] → [B, 256, h, w]."""
        return self._merge([self.point(high), *(branch(high) for branch in self.atrous)], high)

    def windows(self, high: Tensor, at: Windows) -> Tensor:
        """The stride-16 cells under one window of each image: [B, C, h, w] → [B, 256, k, n].

        The pooled branch sees the whole image, the others the cells that their taps reach. Batch-norm in training
        mode sees the windows only.
        """
        maps = _nhwc(high)
        branches = [self.point(_nchw(along(at.rows.high, at.cols.high, maps)))]
        batch, (k, n) = len(maps), branches[0].shape[2:]
        for i, branch in enumerate(cast("Iterable[ConvNormAct]", self.atrous)):
            # Gather the nine taps, then one product: a convolution would have to compute the whole map.
            read = along(at.rows.atrous[:, i], at.cols.atrous[:, i], maps).view(batch, 3, k, 3, n, -1)
            read = read.permute(0, 2, 4, 1, 3, 5).reshape(batch, k, n, -1)
            weight = branch.conv.weight.permute(0, 2, 3, 1).reshape(branch.conv.out_channels, -1)
            branches.append(branch.finish(_nchw(F.linear(read, weight, branch.conv.bias))))
        return self._merge(branches, high)

    def _merge(self, branches: list[Tensor], high: Tensor) -> Tensor:
        pooled = self.pool(high.mean((2, 3), keepdim=True)).expand(-1, -1, *branches[0].shape[2:])
        return self.dropout(self.project(torch.cat([*branches, pooled], 1)))


class Decoder(nn.Module):
    """Low-level features and upsampled ASPP features → logits at stride 4.

    The 3 × 3 convolution over the concatenation [48 low-level | 256 upsampled] holds 69 % of the network's FLOPs when
    taken as written. Upsampling acts on positions and the convolution's taps on channels, so they commute: the nine
    taps' 1 × 1 products are taken at stride 16 (16 times fewer positions), and interpolated and summed afterwards.
    """

    def __init__(self, c_low: int, num_classes: int, channels: int = 256) -> None:
        super().__init__()
        self.low = ConvNormAct(c_low, 48)
        self.fuse = ConvNormAct(48 + channels, channels, 3)
        self.refine = ConvNormAct(channels, channels, 3)
        self.fuse_dropout = Dropout(0.5)
        self.refine_dropout = Dropout(0.1)
        self.classify = nn.Conv2d(channels, num_classes, 1)

    def forward(self, low: Tensor, aspp: Tensor, up: Upsampling | None = None) -> Tensor:
        """The whole map: low ``[B, C, h4, w4]``, aspp ``[B, 256, h16, w16]`` → logits ``[B, classes, h4, w4]``."""
        return cast(Tensor, self.classify(self.inputs(self.fused(low, aspp, up))))

    def fused(self, low: Tensor, aspp: Tensor, up: Upsampling | None = None) -> Tensor:
        """The whole map behind the first 3 × 3 convolution, ``[B, 256, h4, w4]``."""
        rows, cols = up or upsampling(_size(low), _size(aspp), aspp.device, aspp.dtype)
        return self._fuse(self.low(low), aspp, rows, cols, padding=1)

    def inputs(self, fused: Tensor, padding: int = 1) -> Tensor:
        """What the last 1 × 1 convolution is given: conv3x3 + batch-norm + ReLU + dropout."""
        conv = self.refine.conv
        refined = self.refine.finish(F.conv2d(fused, conv.weight, conv.bias, padding=padding))
        return cast(Tensor, self.refine_dropout(refined))

    def windows(self, low: Tensor, aspp: Tensor, at: Windows) -> Tensor:
        """One window of each image: low ``[B, C, h4, w4]``, `ASPP.windows` → logits ``[B, classes, m, n]``."""
        rows, cols = at.rows, at.cols
        low = self.low(_nchw(along(rows.low, cols.low, _nhwc(low))))
        low = _nchw(along(rows.low_place, cols.low_place, _nhwc(low)))
        fused = self._fuse(low, aspp, rows.up, cols.up, padding=0)
        return cast(Tensor, self.classify(self.inputs(_nchw(along(rows.mid_place, cols.mid_place, _nhwc(fused))), 0)))

    def _fuse(self, low: Tensor, aspp: Tensor, up_rows: Tensor, up_cols: Tensor, padding: int) -> Tensor:
        """conv3x3([low | upsample(aspp)]) + batch-norm + ReLU + dropout; windows come with their padding of 1."""
        weight = self.fuse.conv.weight
        c_low, channels = low.shape[1], aspp.shape[1]
        # [out, in, dy, dx] → one 1 × 1 product per tap, ordered (dy, dx, out).
        per_tap = weight[:, c_low:].permute(2, 3, 0, 1).reshape(-1, channels)
        products = F.linear(_nhwc(aspp), per_tap)
        batch, h16, w16, _ = products.shape
        products = products.view(batch, h16, w16, 3, 3, -1).permute(0, 3, 1, 4, 2, 5)
        up = along(up_rows, up_cols, products.reshape(batch, 3 * h16, 3 * w16, -1))
        fused = F.conv2d(low, weight[:, :c_low], self.fuse.conv.bias, padding=padding) + _nchw(up)
        return cast(Tensor, self.fuse_dropout(self.fuse.finish(fused)))


class DeepLabV3Plus(Network):
    """The segmentation network f_θ (paper, section 4.2).

    Parameters
    ----------
    num_classes
        Number of classes; logits have as many channels.
    config
        Backbone, output stride, weights, frozen or not.

    Raises
    ------
    InputError
        Unknown backbone, or weights that do not exist or do not fit it.
    """

    def __init__(self, num_classes: int, config: ModelConfig | None = None) -> None:
        super().__init__()
        config = config or ModelConfig(weights="none")
        self.backbone = create_backbone(config)  # timm adds `feature_info` to the module
        self.architecture = config.backbone, config.output_stride
        self.classes, self.freeze_backbone = num_classes, config.freeze_backbone
        c_low, c_high = cast(Any, self.backbone).feature_info.channels()
        self.aspp = ASPP(c_high)
        self.decoder = Decoder(c_low, num_classes)
        for module in [*self.aspp.modules(), *self.decoder.modules()]:
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        self.backbone.requires_grad_(not config.freeze_backbone)
        self.to(memory_format=torch.channels_last)

    def train(self, mode: bool = True) -> "DeepLabV3Plus":
        """A frozen backbone stays in eval mode: its batch-norm statistics are constants as well."""
        super().train(mode)
        if self.freeze_backbone:
            self.backbone.eval()
        return self

    def features(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised RGB ``[B, 3, H, W]`` → features at stride 4 ``[B, C, H/4, W/4]`` and at the output stride."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze_backbone):
            low, high = self.backbone(pixels)
        return low, high

    def map_shapes(self, height: int, width: int) -> tuple[Shape, Shape]:
        """(channels, height, width) of both feature maps of an image; no weight is read.

        Kept for all networks of that backbone: following an image takes half a second, and a round asks several times.
        """
        key = *self.architecture, height, width
        if key not in _SHAPES:
            _SHAPES[key] = self.follow(height, width)
        return _SHAPES[key]

    def follow(self, height: int, width: int) -> tuple[Shape, Shape]:
        """`map_shapes` of an image of the meta device, which goes through every module of the backbone."""
        state = {name: torch.empty_like(value, device="meta") for name, value in self.backbone.state_dict().items()}
        training = self.backbone.training
        with torch.no_grad():
            low, high = torch.func.functional_call(self.backbone.eval(), state,
                                                   torch.empty(1, 3, height, width, device="meta"))
        self.backbone.train(training)
        return (low.shape[1], low.shape[2], low.shape[3]), (high.shape[1], high.shape[2], high.shape[3])

    def logits(self, low: Tensor, high: Tensor, up: Upsampling | None = None) -> Tensor:
        """Features → logits at stride 4, ``[B, classes, H/4, W/4]``.

        ``up`` is the `upsampling` of these maps, for whoever calls often: without it each call sends it to the device.
        """
        return self.decoder(low, self.aspp(high), up)

    def window_logits(self, low: Tensor, high: Tensor, at: Windows) -> Tensor:
        """The same for one window of each image; see `Decoder.windows`."""
        return self.decoder.windows(low, self.aspp.windows(high, at), at)

    def logits_size(self, height: int, width: int) -> Size:
        return self.map_shapes(height, width)[0][1:]

    def windows(self, grid: Grid, device: torch.device) -> Windows:
        low, high = self.map_shapes(grid.height, grid.width)
        return Windows.of_grid(grid, low[1:], high[1:], RATES, device)

    def constant(self, name: str) -> bool:
        return self.freeze_backbone and name.startswith("backbone.")

    def begin_as(self, pretrained: Network) -> None:
        """The pretrained backbone, trained or not."""
        assert isinstance(pretrained, DeepLabV3Plus)
        self.backbone.load_state_dict(pretrained.backbone.state_dict())

    def forward(self, images: Tensor) -> Tensor:
        """uint8 RGB ``[B, H, W, 3]`` → logits float32 ``[B, classes, H, W]``."""
        logits = self.logits(*self.features(normalise(images)))
        return F.interpolate(logits.float(), images.shape[1:3], mode="bilinear", align_corners=True)


def upsampling(low: Size, high: Size, device: torch.device, dtype: torch.dtype) -> Upsampling:
    """Interpolation along each axis from maps of size ``high`` to ``low``, three taps beside each other."""
    rows, cols = (torch.from_numpy(taps(bilinear_matrix(n4, n16)).reshape(1, n4, 3 * n16)).to(device, dtype)
                  for n4, n16 in zip(low, high, strict=True))
    return rows, cols


def _size(maps: Tensor) -> Size:
    return maps.shape[2], maps.shape[3]


def _nhwc(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1)


def _nchw(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2)
