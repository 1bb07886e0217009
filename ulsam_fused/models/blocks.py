"""The layers of MobileNet-V1 and MobileNet-V2, with torchvision's names. `replaceable`: a ULSAM may replace it."""

from torch import Tensor, nn


class ConvNormActivation(nn.Sequential):
    """Convolution without bias, BatchNorm and activation as children 0, 1 and 2; then `ulsam`, if there is one.

    Shape:
        x [N, in_channels, H, W] -> [N, out_channels, ceil(H / stride), ceil(W / stride)].
    """

    replaceable = False

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int = 3,
        stride: int = 1,
        groups: int = 1,
        *,
        activation: type[nn.ReLU] | type[nn.ReLU6],
    ) -> None:
        super().__init__(
            nn.Conv2d(in_channels, out_channels, kernel, stride, (kernel - 1) // 2, groups=groups, bias=False),
            nn.BatchNorm2d(out_channels),
            activation(inplace=True),
        )
        self.out_channels = out_channels


class Block(nn.Module):
    """`conv`, then x added if `residual`, then `ulsam` if there is one.

    Shape:
        x [N, in_channels, H, W] -> [N, out_channels, ceil(H / stride), ceil(W / stride)].
    """

    ulsam: nn.Module | None

    def __init__(self, conv: nn.Sequential, in_channels: int, out_channels: int, stride: int, residual: bool) -> None:
        super().__init__()
        self.conv = conv
        self.register_module("ulsam", None)
        self.residual = residual
        self.out_channels = out_channels
        self.replaceable = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        if self.residual:
            y = x + y
        return y if self.ulsam is None else self.ulsam(y)


class DepthwiseSeparable(Block):
    """A block of MobileNet-V1: a depthwise 3x3 and a pointwise convolution, each with BatchNorm and ReLU.

    Source: Howard et al. 2017, https://arxiv.org/abs/1704.04861.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        conv = nn.Sequential(
            ConvNormActivation(in_channels, in_channels, 3, stride, groups=in_channels, activation=nn.ReLU),
            ConvNormActivation(in_channels, out_channels, 1, activation=nn.ReLU),
        )
        super().__init__(conv, in_channels, out_channels, stride, residual=False)


class InvertedResidual(Block):
    """A block of MobileNet-V2: expansion, depthwise 3x3 convolution, and a projection without activation.

    Source: Sandler et al., CVPR 2018, https://arxiv.org/abs/1801.04381.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int) -> None:
        hidden = in_channels * expansion
        layers: list[nn.Module] = []
        if expansion != 1:
            layers.append(ConvNormActivation(in_channels, hidden, 1, activation=nn.ReLU6))
        layers += [
            ConvNormActivation(hidden, hidden, 3, stride, groups=hidden, activation=nn.ReLU6),
            nn.Conv2d(hidden, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
        ]
        residual = stride == 1 and in_channels == out_channels
        super().__init__(nn.Sequential(*layers), in_channels, out_channels, stride, residual)
