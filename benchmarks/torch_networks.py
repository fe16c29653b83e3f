"""The networks in torch, with the parameter names of the sources of weights, from their definitions.

Each module returns the results of all stages: what the trunks are compared with, in activations and in time.
"""

import torch
from torch import nn
from torch.nn import functional

LITE0 = [(1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 40, 2, 2, 5), (6, 80, 3, 2, 3), (6, 112, 3, 1, 5)]
LITE0 += [(6, 192, 4, 2, 5), (6, 320, 1, 1, 3)]
LITE2 = [(1, 16, 1, 1, 3), (6, 24, 3, 2, 3), (6, 48, 3, 2, 5), (6, 88, 4, 2, 3), (6, 120, 4, 1, 5)]
LITE2 += [(6, 208, 5, 2, 5), (6, 352, 1, 1, 3)]
MOBILENET_V2 = [(1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 32, 3, 2, 3), (6, 64, 4, 2, 3), (6, 96, 3, 1, 3)]
MOBILENET_V2 += [(6, 160, 3, 2, 3), (6, 320, 1, 1, 3)]


class SameConv2d(nn.Conv2d):
    """Pads as TensorFlow's "SAME"."""

    def forward(self, x):
        around = []
        for length, size, stride in zip(x.shape[:1:-1], self.kernel_size, self.stride, strict=True):
            total = max((-(-length // stride) - 1) * stride + size - length, 0)
            around += [total // 2, total - total // 2]
        return functional.conv2d(functional.pad(x, around), self.weight, None, self.stride, 0, 1, self.groups)


def same(inputs, outputs, size, stride=1, groups=1):
    return SameConv2d(inputs, outputs, size, stride, groups=groups, bias=False)


def padded(inputs, outputs, size, stride=1, groups=1):
    return nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, groups=groups, bias=False)


class BasicBlock(nn.Module):
    expansion = 1

    def __init__(self, inputs, width, stride):
        super().__init__()
        self.conv1, self.bn1 = padded(inputs, width, 3, stride), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = padded(width, width, 3), nn.BatchNorm2d(width)
        self.downsample = None
        if stride != 1 or inputs != width:
            self.downsample = nn.Sequential(padded(inputs, width, 1, stride), nn.BatchNorm2d(width))

    def forward(self, x):
        y = self.bn1(self.conv1(x)).relu()
        y = self.bn2(self.conv2(y))
        return (y + (self.downsample(x) if self.downsample else x)).relu()


class Bottleneck(nn.Module):
    expansion = 4

    def __init__(self, inputs, width, stride):
        super().__init__()
        self.conv1, self.bn1 = padded(inputs, width, 1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = padded(width, width, 3, stride), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = padded(width, 4 * width, 1), nn.BatchNorm2d(4 * width)
        self.downsample = None
        if stride != 1 or inputs != 4 * width:
            self.downsample = nn.Sequential(padded(inputs, 4 * width, 1, stride), nn.BatchNorm2d(4 * width))

    def forward(self, x):
        y = self.bn1(self.conv1(x)).relu()
        y = self.bn2(self.conv2(y)).relu()
        y = self.bn3(self.conv3(y))
        return (y + (self.downsample(x) if self.downsample else x)).relu()


class ResNet(nn.Module):
    """With the names of torchvision."""

    def __init__(self, block, counts, width):
        super().__init__()
        self.conv1, self.bn1 = padded(3, width, 7, 2), nn.BatchNorm2d(width)
        inputs = width
        for stage, count in enumerate(counts):
            blocks = []
            for index in range(count):
                blocks.append(block(inputs, width * 2**stage, 2 if stage and not index else 1))
                inputs = width * 2**stage * block.expansion
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        self.stages = [f"layer{stage + 1}" for stage in range(len(counts))]
        self.fc = nn.Linear(inputs, 10)

    def forward(self, x):
        results = [functional.max_pool2d(self.bn1(self.conv1(x)).relu(), 3, 2, padding=1)]
        for stage in self.stages:
            results.append(getattr(self, stage)(results[-1]))
        return results


class LiteBlock(nn.Module):
    def __init__(self, inputs, features, expansion, size, stride):
        super().__init__()
        inside = inputs * expansion
        if expansion != 1:
            self._expand_conv, self._bn0 = same(inputs, inside, 1), nn.BatchNorm2d(inside, eps=1e-3)
        self._depthwise_conv = same(inside, inside, size, stride, groups=inside)
        self._bn1 = nn.BatchNorm2d(inside, eps=1e-3)
        self._project_conv, self._bn2 = same(inside, features, 1), nn.BatchNorm2d(features, eps=1e-3)
        self.expands, self.adds = expansion != 1, stride == 1 and inputs == features

    def forward(self, x):
        y = functional.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        y = functional.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self.adds else y


class Lite(nn.Module):
    """With the names of efficientnet_lite_pytorch."""

    def __init__(self, stages):
        super().__init__()
        self._conv_stem, self._bn0 = same(3, 32, 3, 2), nn.BatchNorm2d(32, eps=1e-3)
        blocks, inputs, self.counts = [], 32, []
        for expansion, features, count, stride, size in stages:
            for index in range(count):
                blocks.append(LiteBlock(inputs, features, expansion, size, 1 if index else stride))
                inputs = features
            self.counts.append(count)
        self._blocks = nn.ModuleList(blocks)
        self._conv_head, self._bn1 = same(inputs, 1280, 1), nn.BatchNorm2d(1280, eps=1e-3)
        self._fc = nn.Linear(1280, 10)

    def forward(self, x):
        x = functional.relu6(self._bn0(self._conv_stem(x)))
        results, blocks = [x], iter(self._blocks)
        for count in self.counts:
            for _ in range(count):
                x = next(blocks)(x)
            results.append(x)
        return [*results, functional.relu6(self._bn1(self._conv_head(x)))]


class TorchvisionBlock(nn.Module):
    def __init__(self, inputs, features, expansion, size, stride):
        super().__init__()
        inside = inputs * expansion
        wide = [] if expansion == 1 else [unit(inputs, inside, 1)]
        narrow = [padded(inside, features, 1), nn.BatchNorm2d(features)]
        self.conv = nn.Sequential(*wide, unit(inside, inside, size, stride, inside), *narrow)
        self.adds = stride == 1 and inputs == features

    def forward(self, x):
        return x + self.conv(x) if self.adds else self.conv(x)


def unit(inputs, outputs, size, stride=1, groups=1):
    return nn.Sequential(padded(inputs, outputs, size, stride, groups), nn.BatchNorm2d(outputs), nn.ReLU6())


class TorchvisionMobileNetV2(nn.Module):
    def __init__(self, stages):
        super().__init__()
        layers, inputs, self.ends = [unit(3, 32, 3, 2)], 32, [0]
        for expansion, features, count, stride, size in stages:
            for index in range(count):
                layers.append(TorchvisionBlock(inputs, features, expansion, size, 1 if index else stride))
                inputs = features
            self.ends.append(len(layers) - 1)
        self.features = nn.Sequential(*layers, unit(inputs, 1280, 1))
        self.ends.append(len(layers))
        self.classifier = nn.Sequential(nn.Dropout(), nn.Linear(1280, 10))

    def forward(self, x):
        results = []
        for number, layer in enumerate(self.features):
            x = layer(x)
            if number in self.ends:
                results.append(x)
        return results


class TimmBlock(nn.Module):
    def __init__(self, inputs, features, expansion, size, stride, conv, eps):
        super().__init__()
        inside, self.expands = inputs * expansion, expansion != 1
        if self.expands:
            self.conv_pw, self.bn1 = conv(inputs, inside, 1), nn.BatchNorm2d(inside, eps)
            self.conv_dw, self.bn2 = conv(inside, inside, size, stride, inside), nn.BatchNorm2d(inside, eps)
            self.conv_pwl, self.bn3 = conv(inside, features, 1), nn.BatchNorm2d(features, eps)
        else:
            self.conv_dw, self.bn1 = conv(inside, inside, size, stride, inside), nn.BatchNorm2d(inside, eps)
            self.conv_pw, self.bn2 = conv(inside, features, 1), nn.BatchNorm2d(features, eps)
        self.adds = stride == 1 and inputs == features

    def forward(self, x):
        if self.expands:
            y = functional.relu6(self.bn1(self.conv_pw(x)))
            y = functional.relu6(self.bn2(self.conv_dw(y)))
            y = self.bn3(self.conv_pwl(y))
        else:
            y = functional.relu6(self.bn1(self.conv_dw(x)))
            y = self.bn2(self.conv_pw(y))
        return x + y if self.adds else y


class Timm(nn.Module):
    """MobileNetV2 and EfficientNet-Lite as timm has them."""

    def __init__(self, stages, *, conv, eps):
        super().__init__()
        self.conv_stem, self.bn1 = conv(3, 32, 3, 2), nn.BatchNorm2d(32, eps)
        inputs, self.blocks = 32, nn.Sequential()
        for expansion, features, count, stride, size in stages:
            blocks = []
            for index in range(count):
                blocks.append(TimmBlock(inputs, features, expansion, size, 1 if index else stride, conv, eps))
                inputs = features
            self.blocks.append(nn.Sequential(*blocks))
        self.conv_head, self.bn2 = conv(inputs, 1280, 1), nn.BatchNorm2d(1280, eps)
        self.classifier = nn.Linear(1280, 10)

    def forward(self, x):
        results = [functional.relu6(self.bn1(self.conv_stem(x)))]
        for stage in self.blocks:
            results.append(stage(results[-1]))
        return [*results, functional.relu6(self.bn2(self.conv_head(results[-1])))]


class FoldedMobileNetV2(nn.Module):
    """Convolutions with a bias, numbered in order of use, from arrays in TensorFlow's layout."""

    def __init__(self, arrays, stages):
        super().__init__()
        self.arrays = {name: torch.tensor(array) for name, array in arrays.items()}
        self.layout = stages

    def convolve(self, x, number, stride=1, depthwise=False):
        name = f"{number:03d}.{'dw' if depthwise else 'conv'}"
        weight, bias = self.arrays[f"{name}.w"].permute(3, 2, 0, 1), self.arrays[f"{name}.b"]
        layer = same(x.shape[1], weight.shape[0], weight.shape[2], stride, x.shape[1] if depthwise else 1)
        layer.weight = nn.Parameter(weight)
        return layer(x) + bias[:, None, None]

    def forward(self, x):
        x = functional.relu6(self.convolve(x, 0, 2))
        results, number = [x], 1
        for expansion, features, count, stride, _ in self.layout:
            for index in range(count):
                y, step = x, 1 if index else stride
                if expansion != 1:
                    y, number = functional.relu6(self.convolve(y, number)), number + 1
                y, number = functional.relu6(self.convolve(y, number, step, depthwise=True)), number + 1
                y, number = self.convolve(y, number), number + 1
                x = x + y if step == 1 and x.shape[1] == features else y
            results.append(x)
        return [*results, functional.relu6(self.convolve(x, number))]


INCEPTION = {
    "3a": (64, (64, 64), (64, 96), 32),
    "3b": (64, (64, 96), (64, 96), 64),
    "3c": (None, (128, 160), (64, 96), None),
    "4a": (224, (64, 96), (96, 128), 128),
    "4b": (192, (96, 128), (96, 128), 128),
    "4c": (160, (128, 160), (128, 160), 128),
    "4d": (96, (128, 192), (160, 192), 128),
    "4e": (None, (128, 192), (192, 256), None),
    "5a": (352, (192, 320), (160, 224), 128),
    "5b": (352, (192, 320), (192, 224), 128),
}


class BNInception(nn.Module):
    """With the names of pretrainedmodels, and a bias in every convolution."""

    def __init__(self):
        super().__init__()
        self.add("conv1_7x7_s2", 3, 64, 7, 2)
        self.add("conv2_3x3_reduce", 64, 64, 1)
        self.add("conv2_3x3", 64, 192, 3)
        inputs = 192
        for name, (one, three, double, projection) in INCEPTION.items():
            stride, start = 1 if one else 2, f"inception_{name}"
            if one:
                self.add(f"{start}_1x1", inputs, one, 1)
            self.add(f"{start}_3x3_reduce", inputs, three[0], 1)
            self.add(f"{start}_3x3", *three, 3, stride)
            self.add(f"{start}_double_3x3_reduce", inputs, double[0], 1)
            self.add(f"{start}_double_3x3_1", *double, 3)
            self.add(f"{start}_double_3x3_2", double[1], double[1], 3, stride)
            if projection:
                self.add(f"{start}_pool_proj", inputs, projection, 1)
            inputs = three[1] + double[1] + (one + projection if one else inputs)
        self.last_linear = nn.Linear(inputs, 10)

    def add(self, name, inputs, outputs, size, stride=1):
        setattr(self, name, nn.Conv2d(inputs, outputs, size, stride, padding=size // 2))
        setattr(self, f"{name}_bn", nn.BatchNorm2d(outputs))

    def unit(self, name, x):
        return getattr(self, f"{name}_bn")(getattr(self, name)(x)).relu()

    def forward(self, x):
        halved = nn.MaxPool2d(3, 2, ceil_mode=True)
        results = [halved(self.unit("conv1_7x7_s2", x))]
        results.append(halved(self.unit("conv2_3x3", self.unit("conv2_3x3_reduce", results[-1]))))
        for name, (one, *_) in INCEPTION.items():
            x, start = results[-1], f"inception_{name}"
            double = self.unit(f"{start}_double_3x3_1", self.unit(f"{start}_double_3x3_reduce", x))
            branches = [self.unit(f"{start}_1x1", x)] if one else []
            branches += [self.unit(f"{start}_3x3", self.unit(f"{start}_3x3_reduce", x))]
            branches += [self.unit(f"{start}_double_3x3_2", double)]
            if one:
                pool = nn.MaxPool2d(3, 1, padding=1) if name == "5b" else nn.AvgPool2d(3, 1, padding=1)
                branches += [self.unit(f"{start}_pool_proj", pool(x))]
            else:
                branches += [halved(x)]
            results.append(torch.cat(branches, 1))
        return results


VGG = {"conv1": (64, 64, 128), "conv2": (128, 256, 256, 256), "conv3": (512, 512, 512)}


class QuadrupletVGG(nn.Module):
    """From arrays with the names and the layout of the quadruplet paper's TensorFlow code."""

    def __init__(self, arrays):
        super().__init__()
        self.arrays = {name.removeprefix("model_definition/"): torch.tensor(array) for name, array in arrays.items()}

    def forward(self, x):
        results = []
        for stage, features in VGG.items():
            for number in range(1, len(features) + 1):
                weight, bias = (self.arrays[f"{stage}_{number}/{leaf}"] for leaf in "wb")
                x = functional.conv2d(x, weight.permute(3, 2, 0, 1), bias, padding=1).relu()
            x = functional.max_pool2d(x, 2, ceil_mode=True)
            results.append(x)
        x = x.permute(0, 2, 3, 1).flatten(1)
        for layer in ("fc6", "fc7"):
            x = (x @ self.arrays[f"{layer}/w"] + self.arrays[f"{layer}/b"]).relu()
            results.append(x[:, :, None, None])
        return results


class LayerScale(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim))

    def forward(self, x):
        return x * self.gamma


class Attention(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads, self.qkv, self.proj = heads, nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x):
        query, key, value = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


class TransformerBlock(nn.Module):
    def __init__(self, dim, heads, layer_scale):
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(dim, eps=1e-6), Attention(dim, heads)
        self.ls1 = LayerScale(dim) if layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = nn.Sequential()
        self.mlp.fc1, self.mlp.act, self.mlp.fc2 = nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim)
        self.ls2 = LayerScale(dim) if layer_scale else nn.Identity()

    def forward(self, x):
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


def interpolated(patches, rows, columns, *, antialias, offset):
    """Resizes position embeddings [D, n, n] by torch's own interpolation, as DINO and DINOv2 call it."""
    scales = [(length + offset) / side for length, side in zip((rows, columns), patches.shape[1:], strict=True)]
    where = {"scale_factor": scales} if offset else {"size": (rows, columns)}
    return functional.interpolate(patches[None], mode="bicubic", antialias=antialias, **where)[0]


class VisionTransformer(nn.Module):
    """With the names of DINO and DINOv2."""

    def __init__(self, dim, heads, patch, grid, *, depth=12, registers=0, layer_scale=False):
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + grid * grid, dim))
        if registers:
            self.register_tokens = nn.Parameter(torch.zeros(1, registers, dim))
        self.mask_token = nn.Parameter(torch.zeros(1, dim))
        self.patch_embed = nn.Sequential()
        self.patch_embed.proj = nn.Conv2d(3, dim, patch, patch)
        self.blocks = nn.ModuleList(TransformerBlock(dim, heads, layer_scale) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Linear(dim, 10)
        self.grid, self.registers = grid, registers

    def forward(self, x):
        x = self.patch_embed(x)
        patches = self.pos_embed[0, 1:].T.unflatten(1, (self.grid, self.grid))
        if x.shape[2:] != patches.shape[1:]:
            how = {"antialias": True, "offset": 0.0} if self.registers else {"antialias": False, "offset": 0.1}
            patches = interpolated(patches, *x.shape[2:], **how)
        x = (x + patches).flatten(2).transpose(1, 2)
        first = (self.cls_token + self.pos_embed[:, :1]).expand(len(x), -1, -1)
        between = [self.register_tokens.expand(len(x), -1, -1)] if self.registers else []
        results = [torch.cat([first, *between, x], 1)]
        for block in self.blocks:
            results.append(block(results[-1]))
        return [*results, self.norm(results[-1])[:, 0, :, None, None]]
