"""A local Hugging Face folder: config.json and safetensors, opened by transformers' own classes."""

import importlib.util
import json
from pathlib import Path
from typing import Any

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
            # Its masks are plain arithmetic, which every exporter takes.
            attn_implementation="eager",
        )
    except Exception as error:
        raise SourceError(
            f"transformers cannot open {folder.name}: {type(error).__name__}: {error}"
        ) from error
    if hasattr(module.config, "use_cache"):
        module.config.use_cache = False  # an exported forward() has no memory of earlier calls
    return module.eval(), (folder / "config.json", *files)


def _class(transformers: Any, folder: Path) -> Any:
    names = json.loads((folder / "config.json").read_text("utf-8")).get("architectures") or []
    found = [getattr(transformers, name) for name in names if hasattr(transformers, name)]
    return found[0] if found else transformers.AutoModel


def inputs(module: Any) -> tuple[InputSpec, ...]:
    """The inputs that transformers' models of this kind are called with; empty if unknown."""
    config = module.config
    text = getattr(config, "text_config", config)
    found: list[InputSpec] = []
    names = _parameters(module)
    image = _image(module) if "pixel_values" in names else None
    if "input_ids" in names and module.main_input_name in ("input_ids", "pixel_values"):
        vocabulary = getattr(text, "vocab_size", None)
        if vocabulary and (module.main_input_name == "input_ids" or image is None or _both(module)):
            found.append(_ids("input_ids", vocabulary - 1))
            if "attention_mask" in names:
                found.append(
                    InputSpec(name="attention_mask", dtype="INT64", dims=("seq",), range=(1, 1))
                )
    if image and (module.main_input_name == "pixel_values" or _both(module)):
        found.append(InputSpec(name="pixel_values", dtype="FP32", dims=image))
    if module.main_input_name == "input_values":
        found.append(InputSpec(name="input_values", dtype="FP32", dims=("samples",)))
    if module.main_input_name == "input_features":
        found.append(InputSpec(name="input_features", dtype="FP32", dims=_features(config)))
    if module.main_input_name == "inputs_embeds":
        found.append(
            InputSpec(name="inputs_embeds", dtype="FP32", dims=("seq", config.hidden_size))
        )
    return tuple(found)


def _ids(name: str, highest: int) -> InputSpec:
    return InputSpec(name=name, dtype="INT64", dims=("seq",), range=(0, highest))


def _both(module: Any) -> bool:
    """Whether text and image are two sides of one model (CLIP and its kin)."""
    return hasattr(module.config, "text_config") and hasattr(module.config, "vision_config")


def _parameters(module: Any) -> list[str]:
    import inspect

    return list(inspect.signature(module.forward).parameters)


def _image(module: Any) -> tuple[int, int, int] | None:
    config = getattr(module.config, "vision_config", module.config)
    channels, size = getattr(config, "num_channels", 3), getattr(config, "image_size", None)
    if size is None:
        size = 224  # convolutional ones take any; this is what they are trained on
    height, width = (size, size) if isinstance(size, int) else tuple(size)
    return channels, height, width


def _features(config: Any) -> tuple[int | str, int | str]:
    if hasattr(config, "num_mel_bins") and hasattr(config, "max_source_positions"):
        return config.num_mel_bins, 2 * config.max_source_positions  # Whisper: a convolution halves
    return "frames", getattr(config, "feature_size", 80)
