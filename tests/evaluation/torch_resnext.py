"""The published classifier as a PyTorch module: its names and shapes, written from the description.

Imported only where PyTorch is.
"""

from torch import nn
from torch.nn import functional


class Bottleneck(nn.Module):
    def __init__(self, width_in, width_out, stride, cardinality, base_width, unit):
        super().__init__()
        inner = cardinality * (base_width * width_out // unit)
        self.conv_reduce = nn.Conv2d(width_in, inner, 1, bias=False)
        self.bn_reduce = nn.BatchNorm2d(inner)
        self.conv_conv = nn.Conv2d(
            inner, inner, 3, stride=stride, padding=1, groups=cardinality, bias=False
        )
        self.bn = nn.BatchNorm2d(inner)
        self.conv_expand = nn.Conv2d(inner, width_out, 1, bias=False)
        self.bn_expand = nn.BatchNorm2d(width_out)
        self.shortcut = nn.Sequential()
        if width_in != width_out:
            conv = nn.Conv2d(width_in, width_out, 1, stride=stride, bias=False)
            self.shortcut.add_module("shortcut_conv", conv)
            self.shortcut.add_module("shortcut_bn", nn.BatchNorm2d(width_out))

    def forward(self, x):
        y = functional.relu(self.bn_reduce(self.conv_reduce(x)))
        y = functional.relu(self.bn(self.conv_conv(y)))
        return functional.relu(self.shortcut(x) + self.bn_expand(self.conv_expand(y)))


class TorchResNeXt(nn.Module):
    def __init__(self, depth, cardinality, base_width, widen_factor, stem_width, num_classes):
        super().__init__()
        self.nlabels = num_classes
        self.conv_1_3x3 = nn.Conv2d(1, stem_width, 3, padding=1, bias=False)
        self.bn_1 = nn.BatchNorm2d(stem_width)
        unit, width = widen_factor * stem_width, stem_width
        for stage in (1, 2, 3):
            blocks = nn.Sequential()
            for number in range((depth - 2) // 9):
                outer = unit * 2 ** (stage - 1)
                stride = 2 if stage > 1 and not number else 1
                block = Bottleneck(width, outer, stride, cardinality, base_width, unit)
                blocks.add_module(f"stage_{stage}_bottleneck_{number}", block)
                width = outer
            setattr(self, f"stage_{stage}", blocks)
        self.classifier = nn.Linear(width, num_classes)

    def features(self, x):
        x = functional.relu(self.bn_1(self.conv_1_3x3(x)))
        return self.stage_3(self.stage_2(self.stage_1(x))).mean((2, 3))

    def forward(self, x):
        return self.classifier(self.features(x))
