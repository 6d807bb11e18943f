"""The architectures by name, and models of the user's own by import path.

torchvision's and MONAI's nets are made for large images. Up to 64 pixels their first layer takes every pixel and pools
nothing, or little would be left of the image at the end.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable

import torch
from torch import nn

from excise.common.errors import ConfigError, did_you_mean
from excise.common.models.classifier import Classifier, ModelSpec

SMALL = 64
"""Largest side, pixels, at which a net keeps the image's resolution in its first layer."""

Builder = Callable[[ModelSpec], tuple[nn.Module, nn.Module]]


def build_model(spec: ModelSpec, seed: int = 0) -> Classifier:
    """Build a freshly initialised model; the same spec and seed give the same weights, and no global state is touched.

    Raises
    ------
    ConfigError : the name is unknown, a library is missing, or the architecture does not take such images
    """
    if ":" in spec.name:
        builder: Builder = _imported
    elif spec.name in _BUILDERS:
        builder = _BUILDERS[spec.name]
    else:
        raise ConfigError(f"unknown model '{spec.name}': {did_you_mean(spec.name, _BUILDERS)}")
    if spec.dims == 3 and spec.name in _BUILDERS and spec.name != "densenet121":
        raise ConfigError(f"model '{spec.name}' takes images, not volumes: use 'densenet121', or one of your own")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone, head = builder(spec)
        # channels_last: 1.6 times faster on the CPU (docs/adr/0002), and what tensor cores want on a GPU.
        layout = torch.channels_last if spec.dims == 2 else torch.channels_last_3d
        return Classifier(spec, backbone, head).to(memory_format=layout)


def known_models() -> tuple[str, ...]:
    """Names that `build_model` accepts, import paths aside."""
    return tuple(sorted(_BUILDERS))


def _allcnn(spec: ModelSpec) -> tuple[nn.Module, nn.Module]:
    """All-convolutional net (Springenberg et al., 2015, model All-CNN-C), with batch norm as in the unlearning papers."""

    def block(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
        convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
        return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())

    a, b = (max(4, round(c * spec.width)) for c in (96, 192))
    backbone = nn.Sequential(
        block(spec.channels, a, 3),
        block(a, a, 3),
        block(a, a, 3, stride=2),
        block(a, b, 3),
        block(b, b, 3),
        block(b, b, 3, stride=2),
        block(b, b, 3),
        block(b, b, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    return backbone, nn.Linear(b, spec.classes)


def _resnet(name: str) -> Builder:
    """ResNet (He et al., 2016)."""

    def build(spec: ModelSpec) -> tuple[nn.Module, nn.Module]:
        net = _torchvision(name, num_classes=spec.classes)
        small = spec.size <= SMALL
        net.conv1 = nn.Conv2d(spec.channels, 64, 3 if small else 7, 1 if small else 2, padding=1 if small else 3, bias=False)
        if small:
            net.maxpool = nn.Identity()
        return _split(net, "fc")

    return build


def _mobile(name: str, head: str) -> Builder:
    """MobileNetV2 (Sandler et al., 2018), MobileNetV3 (Howard et al., 2019), EfficientNet-B0 (Tan and Le, 2019)."""

    def build(spec: ModelSpec) -> tuple[nn.Module, nn.Module]:
        net = _torchvision(name, num_classes=spec.classes)
        stem = net.get_submodule("features.0")
        assert isinstance(stem, nn.Sequential)
        width = net.get_parameter("features.0.0.weight").shape[0]
        stem[0] = nn.Conv2d(spec.channels, width, 3, 1 if spec.size <= SMALL else 2, padding=1, bias=False)
        return _split(net, head)

    return build


def _vit_b_16(spec: ModelSpec) -> tuple[nn.Module, nn.Module]:
    """Vision transformer, base, patches of 16 pixels (Dosovitskiy et al., 2021). It has no batch norm."""
    if spec.size % 16:
        raise ConfigError(f"model 'vit_b_16' cuts images into patches of 16 pixels; size {spec.size} is not a multiple of it")
    net = _torchvision("vit_b_16", image_size=spec.size, num_classes=spec.classes)
    net.conv_proj = nn.Conv2d(spec.channels, 768, 16, 16)
    return _split(net, "heads.head")


def _densenet121(spec: ModelSpec) -> tuple[nn.Module, nn.Module]:
    """MONAI's DenseNet-121 (Huang et al., 2017) for images or volumes."""
    try:
        from monai.networks.nets.densenet import DenseNet121  # takes a second to import
    except ImportError:
        raise ConfigError("model 'densenet121' is MONAI's: pip install 'excise[monai]'") from None
    net = DenseNet121(spatial_dims=spec.dims, in_channels=spec.channels, out_channels=spec.classes)
    if spec.size <= SMALL:
        convolution = nn.Conv2d if spec.dims == 2 else nn.Conv3d
        net.features.conv0 = convolution(spec.channels, 64, 3, padding=1, bias=False)
        net.features.pool0 = nn.Identity()
    return _split(net, "class_layers.out")


_BUILDERS: dict[str, Builder] = {
    "allcnn": _allcnn,
    "resnet18": _resnet("resnet18"),
    "resnet50": _resnet("resnet50"),
    "mobilenet_v2": _mobile("mobilenet_v2", "classifier.1"),
    "mobilenet_v3_small": _mobile("mobilenet_v3_small", "classifier.3"),
    "mobilenet_v3_large": _mobile("mobilenet_v3_large", "classifier.3"),
    "efficientnet_b0": _mobile("efficientnet_b0", "classifier.1"),
    "vit_b_16": _vit_b_16,
    "densenet121": _densenet121,
}


def _imported(spec: ModelSpec) -> tuple[nn.Module, nn.Module]:
    """The module that the function at an import path makes when it is called with the spec, split at its head."""
    path, _, attribute = spec.name.partition(":")
    try:
        function = getattr(importlib.import_module(path), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"no model at '{spec.name}': {error}. Expected package.module:function, installed here.") from error
    net = function(spec)
    if not isinstance(net, nn.Module):
        raise ConfigError(f"'{spec.name}' made {type(net).__name__}, expected a torch.nn.Module")
    linear = [name for name, module in net.named_modules() if isinstance(module, nn.Linear)]
    name = spec.head or (linear[-1] if linear else "")
    if name not in linear:
        known = f"; its linear layers: {', '.join(linear)}" if linear else ": it holds none"
        raise ConfigError(f"'{spec.name}' has no linear layer '{name}' to be the head{known}")
    width = net.get_submodule(name).out_features
    if width != spec.classes:
        raise ConfigError(f"the head '{name}' of '{spec.name}' has {width} outputs, expected {spec.classes} classes")
    _check_head_is_last(net, name, spec)
    return _split(net, name)


def _check_head_is_last(net: nn.Module, name: str, spec: ModelSpec) -> None:
    """What follows the head in the net's own `forward` would come before it once the net is split."""
    net.eval()
    x, seen = torch.rand(2, spec.channels, *[spec.size] * spec.dims), []
    hook = net.get_submodule(name).register_forward_hook(lambda module, inputs, output: seen.append(output))
    try:
        with torch.no_grad():
            logits = net(x)
    except Exception as error:  # the user's own code: any error means that it does not take such images
        raise ConfigError(f"'{spec.name}' does not take images of shape {tuple(x.shape)}: {error}") from error
    finally:
        hook.remove()
        net.train()
    if len(seen) != 1 or not torch.equal(seen[0], logits):
        raise ConfigError(f"'{spec.name}' goes on after its head '{name}'; let it return what that layer gives: logits")


def _torchvision(name: str, **options: int) -> nn.Module:
    import torchvision.models  # takes a second to import

    net: nn.Module = getattr(torchvision.models, name)(**options)
    return net


def _split(net: nn.Module, head: str) -> tuple[nn.Module, nn.Module]:
    """Take the layer `head` out of `net`: what is left gives the features that the head sees."""
    parent, _, last = head.rpartition(".")
    layer = net.get_submodule(head)
    setattr(net.get_submodule(parent), last, nn.Identity())
    return net, layer
