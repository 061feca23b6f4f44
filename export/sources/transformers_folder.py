"""A local Hugging Face folder: config.json and safetensors, opened by transformers' own classes."""

import importlib
import importlib.util
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import torch

from export.errors import AbsentError, SourceError
from export.tensors import InputSpec


def load(folder: Path) -> tuple[torch.nn.Module, tuple[Path, ...]]:
    """(module in eval mode, its files); never asks the network, never runs the folder's code."""
    if not (folder / "config.json").is_file():
        raise SourceError(
            f"{folder} has no config.json",
            "a folder as model is one of transformers' save_pretrained()",
        )
    if importlib.util.find_spec("transformers") is None:
        raise AbsentError("transformers is not installed", "pip install 'tidegate[transformers]'")
    files = tuple(sorted(folder.glob("*.safetensors")))
    if not files:
        raise SourceError(
            f"{folder} has no .safetensors file",
            "save it anew: model.save_pretrained(folder) writes safetensors",
        )
    import transformers

    try:
        module = _class(transformers, folder).from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=torch.float32,
        )
    except Exception as error:
        raise SourceError(
            f"transformers cannot open {folder.name}: {type(error).__name__}: {error}"
        ) from error
    return module.eval(), (folder / "config.json", *files)


def make_plain(module: torch.nn.Module) -> None:
    """Have transformers' models inside `module` compute attention as plain arithmetic, in place.

    PyTorch's fused attention exports with shapes that do not bend and answers rows that are masked
    altogether in its own way. An exported forward() has no memory of earlier calls either.
    """
    part: Any
    for part in module.modules():
        if hasattr(part, "set_attn_implementation") and hasattr(part, "config"):
            part.set_attn_implementation("eager")
            if getattr(part.config, "use_cache", False):
                part.config.use_cache = False


def _class(transformers: Any, folder: Path) -> Any:
    """The class that the folder was saved from: a public one, or a part of one (an encoder)."""
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    names = getattr(config, "architectures", None) or []
    package = type(config).__module__.rpartition(".")[0]
    modeling = importlib.import_module(f"{package}.modeling_{package.rpartition('.')[2]}")
    for name in names:
        for home in (transformers, modeling):
            if hasattr(home, name):
                return getattr(home, name)
    return transformers.AutoModel


def inputs(module: Any) -> tuple[InputSpec, ...]:
    """The inputs that transformers' models of this kind are called with; empty if unknown."""
    parameters = tuple(inspect.signature(module.forward).parameters)
    main = module.main_input_name
    two_sided = all(hasattr(module.config, f"{side}_config") for side in ("text", "vision"))
    wanted = ["input_ids", "pixel_values"] if two_sided else [main]
    found: list[InputSpec] = []
    for name in wanted:
        if name in parameters and name in _KNOWN:
            found += _KNOWN[name](module.config)
    if "input_ids" in wanted and found and "attention_mask" in parameters:
        mask = InputSpec(name="attention_mask", dtype="INT64", dims=("seq",), range=(0, 1))
        found.insert(1, mask)
    if getattr(module.config, "is_encoder_decoder", False) and "decoder_input_ids" in parameters:
        found.append(_ids("decoder_input_ids", module.config, "target"))
    return tuple(found)


def dim_sizes(module: Any) -> dict[str, tuple[int, ...]]:
    """Sizes at which dims with a least one are checked: a wave has to fill the convolutions."""
    config = module.config
    if not (kernels := getattr(config, "conv_kernel", None)):
        return {}
    least, step = 1, 1
    for kernel, stride in zip(reversed(kernels), reversed(config.conv_stride), strict=True):
        least, step = (least - 1) * stride + kernel, step * stride
    return {"samples": (least + 2 * step, least + 7 * step + 1, least + 20 * step - 1)}


def _ids(name: str, config: Any, dim: str = "seq") -> InputSpec:
    highest = getattr(config, "text_config", config).vocab_size - 1
    return InputSpec(name=name, dtype="INT64", dims=(dim,), range=(0, highest))


def _pixels(config: Any) -> list[InputSpec]:
    vision = getattr(config, "vision_config", config)
    # Convolutional networks name no size: this is what they are trained on.
    size = getattr(vision, "image_size", None) or 224
    height, width = (size, size) if isinstance(size, int) else size
    dims = (getattr(vision, "num_channels", 3), height, width)
    return [InputSpec(name="pixel_values", dtype="FP32", dims=dims)]


def _features(config: Any) -> list[InputSpec]:
    dims: tuple[int | str, ...] = ("frames", getattr(config, "feature_size", 80))
    if hasattr(config, "num_mel_bins") and hasattr(config, "max_source_positions"):
        # Whisper: a convolution of stride 2 stands before positions of a fixed number.
        dims = (config.num_mel_bins, 2 * config.max_source_positions)
    return [InputSpec(name="input_features", dtype="FP32", dims=dims)]


_KNOWN: Final[Mapping[str, Callable[[Any], list[InputSpec]]]] = {
    "input_ids": lambda config: [_ids("input_ids", config)],
    "pixel_values": _pixels,
    "input_values": lambda _: [InputSpec(name="input_values", dtype="FP32", dims=("samples",))],
    "input_features": _features,
}
