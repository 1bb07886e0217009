"""MobileNet-V1 and MobileNet-V2 with ULSAM.

Layers are numbered from 1, which is the stem: layer k is `features[k - 1]`. A ULSAM after layer k is
`features[k - 1].ulsam`, so no other name changes. A ULSAM in place of layer k is `features[k - 1]` itself.
"""

import contextlib
import math
from collections.abc import Mapping
from numbers import Integral, Real

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import modules
from .blocks import Block, ConvNormActivation, DepthwiseSeparable, InvertedResidual
from .placement import place, plan

_V1 = (  # output channels, stride
    (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1),
)  # fmt: skip
_V2 = (  # expansion, output channels, blocks, stride of the first
    (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
)  # fmt: skip


class MobileNet(nn.Module):
    """The network that `mobilenet_v1` and `mobilenet_v2` return: `features`, mean over the pixels, `classifier`.

    Args:
        layers: the numbered layers; head: a layer after them, or None.
        insert, replace, attention: as in `mobilenet_v1`.

    Attributes:
        insert, replace: {layer number: num_splits}.

    Shape:
        x [N, 3, H, W] with H, W >= 32 -> logits [N, num_classes].
    """

    def __init__(
        self,
        layers: list[ConvNormActivation | Block],
        head: nn.Module | None,
        classifier: nn.Sequential,
        insert: Mapping[int, int] | None,
        replace: Mapping[int, int] | None,
        attention: str,
    ) -> None:
        super().__init__()
        self.insert, self.replace = plan(layers, insert, replace, attention)
        self.features = nn.Sequential(*layers, *([] if head is None else [head]))
        self.classifier = classifier
        _initialise(self)
        place(self.features, self.insert, self.replace, attention)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [N, num_classes]."""
        x = self.features(x)
        x = F.adaptive_avg_pool2d(x, (1, 1)).flatten(1)
        return self.classifier(x)  # type: ignore[no-any-return]

    def attention_layers(self) -> dict[int, nn.Module]:
        """The ULSAMs, by the number of the layer that they follow or replace."""
        found = {}
        for number in sorted(self.insert | self.replace):
            layer = self.features[number - 1]
            found[number] = layer if number in self.replace else layer.get_submodule("ulsam")
        return found

    def attention_maps(self, x: Tensor) -> dict[int, Tensor]:
        """The attention maps A [N, num_splits, h, w] of every ULSAM for x [N, 3, H, W], by layer number.

        Raises:
            TypeError: a ULSAM is not a fused layer, for example after `uf.unfuse`.
        """
        maps: dict[int, Tensor] = {}
        with contextlib.ExitStack() as hooks:
            for number, layer in self.attention_layers().items():
                if not isinstance(layer, modules.ULSAM):
                    raise TypeError(f"the ULSAM at layer {number} is not fused and gives no maps: uf.fuse(model) first")

                def record(ulsam: nn.Module, inputs: tuple[Tensor], number: int = number) -> None:
                    assert isinstance(ulsam, modules.ULSAM)
                    maps[number] = ulsam.attention(inputs[0])

                hooks.enter_context(layer.register_forward_pre_hook(record))
            self.features(x)
        return maps


def mobilenet_v1(
    width: float = 1.0,
    *,
    insert: Mapping[int, int] | None = None,
    replace: Mapping[int, int] | None = None,
    num_classes: int = 1000,
    attention: str = "paper",
) -> MobileNet:
    """MobileNet-V1 with ULSAM: layer 1 is the stem, 2 to 14 are depthwise separable blocks.

    Names follow `mobilenet_v2`: `features.k.conv.0` is the depthwise convolution, `features.k.conv.1` the pointwise
    one, and `classifier.1` the linear layer. Activations are ReLU, the dropout is 0.001. Weights are initialised as
    in `mobilenet_v2`.

    Args:
        width: multiplies the channels, rounded down; the paper's are 1.0, 0.75 and 0.5.
        insert: {layer: num_splits}, a ULSAM after each of these layers, 1 to 14.
        replace: {layer: num_splits}, a ULSAM in place of each; possible for 4, 6, 8 to 12 and 14.
        num_classes: outputs of the classifier.
        attention: "paper" for `ulsam_fused.ULSAM`, "upstream" for `ulsam_fused.upstream.ULSAM`.

    Raises:
        ValueError, TypeError: a bad argument; for a layer that cannot be replaced the message lists those that can.

    Source: Howard et al. 2017, https://arxiv.org/abs/1704.04861; Saini et al., WACV 2020.
    """
    width, num_classes = _check_width(width), _check_num_classes(num_classes)
    channels = _scaled(32, width)
    layers: list[ConvNormActivation | Block] = [ConvNormActivation(3, channels, stride=2, activation=nn.ReLU)]
    for out, stride in _V1:
        layers.append(DepthwiseSeparable(channels, _scaled(out, width), stride))
        channels = _scaled(out, width)
    classifier = nn.Sequential(nn.Dropout(0.001), nn.Linear(channels, num_classes))
    return MobileNet(layers, None, classifier, insert, replace, attention)


def mobilenet_v2(
    width: float = 1.0,
    *,
    insert: Mapping[int, int] | None = None,
    replace: Mapping[int, int] | None = None,
    num_classes: int = 1000,
    attention: str = "paper",
) -> MobileNet:
    """MobileNet-V2 with ULSAM: layer 1 is the stem, 2 to 18 are inverted residual blocks; a 1x1 convolution follows.

    Names, shapes and initialisation are those of torchvision's `mobilenet_v2`. Its checkpoints load with
    `strict=False`: the ULSAMs' keys are missing then, and those of replaced blocks are unexpected. With one seed the
    backbone's weights are the same whatever is inserted, because ULSAMs draw theirs last.

    Args:
        width: multiplies the channels, rounded to multiples of 8; the paper's are 1.0, 0.75 and 0.5.
        insert: {layer: num_splits}, a ULSAM after each of these layers, 1 to 18.
        replace: {layer: num_splits}, a ULSAM in place of each; at width 1 possible for 4, 6, 7, 9 to 11, 13, 14, 16
            and 17.
        num_classes: outputs of the classifier.
        attention: "paper" for `ulsam_fused.ULSAM`, "upstream" for `ulsam_fused.upstream.ULSAM`.

    Raises:
        ValueError, TypeError: a bad argument; for a layer that cannot be replaced the message lists those that can.

    Source: Sandler et al., CVPR 2018, https://arxiv.org/abs/1801.04381; Saini et al., WACV 2020.
    """
    width, num_classes = _check_width(width), _check_num_classes(num_classes)
    channels = _divisible(32 * width)
    layers: list[ConvNormActivation | Block] = [ConvNormActivation(3, channels, stride=2, activation=nn.ReLU6)]
    for expansion, full, blocks, stride in _V2:
        out = _divisible(full * width)
        for i in range(blocks):
            layers.append(InvertedResidual(channels, out, stride if i == 0 else 1, expansion))
            channels = out
    last = _divisible(1280 * max(1.0, width))
    head = ConvNormActivation(channels, last, 1, activation=nn.ReLU6)
    classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(last, num_classes))
    return MobileNet(layers, head, classifier, insert, replace, attention)


def _initialise(model: nn.Module) -> None:
    """Draw weights as torchvision's MobileNetV2 does."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0, 0.01)
            nn.init.zeros_(module.bias)


def _scaled(channels: int, width: float) -> int:
    return max(1, int(channels * width))


def _divisible(channels: float) -> int:
    """The nearest multiple of 8, at least 8 and at least nine tenths of `channels`."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


def _check_width(width: object) -> float:
    if isinstance(width, bool | torch.Tensor) or not isinstance(width, Real):
        raise TypeError(f"width must be a number, got {width!r} of type {type(width).__name__}")
    if not 0 < float(width) < math.inf:
        raise ValueError(f"width must be above 0, got {width}")
    return float(width)


def _check_num_classes(num_classes: object) -> int:
    if isinstance(num_classes, bool) or not isinstance(num_classes, Integral):
        raise TypeError(f"num_classes must be an integer, got {num_classes!r} of type {type(num_classes).__name__}")
    if int(num_classes) < 1:
        raise ValueError(f"num_classes must be at least 1, got {num_classes}")
    return int(num_classes)
