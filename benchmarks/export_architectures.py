"""Row "architectures": transformers' architectures, small and with random weights, as folders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.bars import Outcome
from benchmarks.export_command import export
from benchmarks.rows import Found

PARITY = 1e-4
SMALL = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
}
WAVES = {
    "conv_dim": (32, 32, 32),
    "conv_stride": (5, 2, 2),
    "conv_kernel": (10, 3, 3),
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
PATCHES = {"image_size": 64, "patch_size": 16}


def _architectures(t: Any) -> dict[str, Callable[[], Any]]:
    text = {"vocab_size": 500, **SMALL}
    speech = {"vocab_size": 32, **WAVES, **SMALL}
    clip = {"text_config": text, "vision_config": {**PATCHES, **SMALL}, "projection_dim": 32}
    whisper = t.WhisperConfig(
        vocab_size=500,
        d_model=64,
        encoder_layers=2,
        decoder_layers=1,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=128,
        decoder_ffn_dim=128,
        max_source_positions=100,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    swin = {"embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}
    t5 = {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4}
    stages = {"hidden_sizes": [16, 32, 64, 128], "depths": [1, 1, 2, 1]}
    distil = {"dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 128}
    return {
        "bert": lambda: t.BertModel(t.BertConfig(**text)),
        "bert_classifier": lambda: t.BertForSequenceClassification(t.BertConfig(**text)),
        "roberta": lambda: t.RobertaModel(t.RobertaConfig(**text)),
        "distilbert": lambda: t.DistilBertModel(t.DistilBertConfig(vocab_size=500, **distil)),
        "vit": lambda: t.ViTModel(t.ViTConfig(**PATCHES, **SMALL)),
        "vit_classifier": lambda: t.ViTForImageClassification(t.ViTConfig(**PATCHES, **SMALL)),
        "gpt2": lambda: t.GPT2LMHeadModel(
            t.GPT2Config(vocab_size=500, n_embd=64, n_layer=2, n_head=4)
        ),
        "wav2vec2": lambda: t.Wav2Vec2Model(t.Wav2Vec2Config(**speech)),
        "wav2vec2_ctc": lambda: t.Wav2Vec2ForCTC(t.Wav2Vec2Config(**speech)),
        "t5_encoder": lambda: t.T5EncoderModel(t.T5Config(vocab_size=500, **t5)),
        "convnext": lambda: t.ConvNextModel(t.ConvNextConfig(**stages)),
        "resnet": lambda: t.ResNetModel(t.ResNetConfig(embedding_size=16, **stages)),
        "swin": lambda: t.SwinModel(t.SwinConfig(image_size=64, patch_size=4, **swin)),
        "clip": lambda: t.CLIPModel(t.CLIPConfig(**clip)),
        "whisper_encoder": lambda: t.WhisperModel(whisper).encoder,
    }


def measure(scratch: Path) -> Found:
    """Save each folder, export it with no more than its name, look at the parity."""
    import torch
    import transformers

    torch.manual_seed(0)
    found: dict[str, Any] = {}
    for name, build in _architectures(transformers).items():
        folder = scratch / "folders" / name
        build().eval().save_pretrained(folder)
        done = export(
            name,
            "--model",
            str(folder),
            "--no-profile",
            "--formats",
            "onnx-fp32",
            repository=scratch / "repository",
        )
        outputs = done.manifest["parity"]["outputs"] if done.manifest else {}
        worst = max((each["max_abs"] for each in outputs.values()), default=None)
        found[name] = {
            "published": done.code == 0,
            "max_abs": worst,
            "seconds": round(done.seconds, 1),
            "failed": done.reason if done.code else None,
        }
    right = [each for each in found.values() if each["published"] and each["max_abs"] <= PARITY]
    claim = "architectures published in float32 with |error| <= 1e-4 / all"
    return [Outcome("architectures", claim, 0.9, True, len(right) / len(found))], found
