"""Models of transformers from a folder or hub id: loading, and the text encoders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from consilience.encoders.base import SlotEncoder, mean_of_slots, pad_slots
from consilience.encoders.text import longest
from consilience.errors import InputError

FIXED_LENGTH = ("siglip_text_model", "siglip2_text_model")
"""Text towers that were trained on texts padded to one length, with the padding in sight."""


class HuggingFace(SlotEncoder):
    """What hub encoders share. With ``frozen`` the model gives no gradients and stays in evaluation mode."""

    model: Any
    frozen: bool

    def train(self, mode: bool = True) -> HuggingFace:
        """Training mode, of which a frozen model takes no notice."""
        super().train(mode and not self.frozen)
        return self

    def gradients(self) -> torch.set_grad_enabled:
        """The context to call the model in."""
        return torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen)


class HuggingFaceText(HuggingFace):
    """A text model of transformers: BERT, XLM-R, the encoder of T5, the text tower of CLIP or SigLIP.

    Features are the mean of the token states, or, for two-tower models, the text embedding in the space of their
    images. Slots are the token states. The ids must come from the model's own tokenizer. Raises
    :class:`InputError` when there is no such model, or it does not read text.
    """

    def __init__(self, path_or_id: str, frozen: bool = False) -> None:
        super().__init__()
        self.frozen = frozen
        model = load_model(path_or_id, "text")
        self.projection: nn.Module | None = getattr(model, "text_projection", None)
        model = getattr(model, "text_model", model)
        if getattr(model.config, "is_encoder_decoder", False):
            model = model.get_encoder()
        if getattr(model, "main_input_name", "") != "input_ids" or hasattr(model, "vision_model"):
            raise InputError(f"{path_or_id} does not read text; choose a text model such as XLM-R or CLIP")
        kind = model.config.model_type
        self.fixed, self.last = kind in FIXED_LENGTH, kind == "clip_text_model"
        if getattr(model, "pooler", None) is not None:
            model.pooler = None  # trained to tell neighbouring sentences, and not used here
        self.model, self.name = model, path_or_id
        self.pad = getattr(model.config, "pad_token_id", None) or 0
        self.vocabulary = int(model.config.vocab_size)
        self.max_tokens = _positions(model)
        self.slot_width = int(model.config.hidden_size)
        self.width = self.slot_width
        if self.fixed:
            self.width = int(getattr(model.config, "projection_size", None) or self.slot_width)
        elif self.projection is not None:
            self.width = int(self.projection.weight.shape[0])
        self.train(self.training)

    def check(self, vocabulary: int, max_tokens: int) -> None:
        """Raise :class:`InputError` when ids up to ``vocabulary`` or texts of ``max_tokens`` exceed the model."""
        if vocabulary > self.vocabulary:
            raise InputError(
                f"the tokenizer has {vocabulary} tokens, {self.name} knows {self.vocabulary}; "
                f"use the model's own tokenizer hf:{self.name}"
            )
        if self.max_tokens is not None and max_tokens > self.max_tokens:
            raise InputError(
                f"max_tokens={max_tokens}, but {self.name} reads at most {self.max_tokens} tokens; lower max_tokens"
            )

    def _states(self, x: Int64[Tensor, "b t"]) -> tuple[Any, Bool[Tensor, "b l"]]:
        """The model's output for the longest text (or the one length it knows), and which tokens are true."""
        mask = x >= 0
        highest = int(x.max()) if x.numel() else -1
        self.check(highest + 1, x.shape[1])
        if self.fixed and self.max_tokens is not None:
            ids = x.new_full((len(x), self.max_tokens), self.pad)
            ids[:, : x.shape[1]] = torch.where(mask, x, self.pad)
            with self.gradients():
                return self.model(input_ids=ids), mask
        mask = mask[:, : longest(mask)]
        ids = torch.where(mask, x[:, : mask.shape[1]], self.pad)
        seen = mask.clone()
        seen[:, :1] = True  # softmax over nothing is undefined; an empty text looks at one padding token
        with self.gradients():
            return self.model(input_ids=ids, attention_mask=seen.long()), mask

    def slots(self, x: Int64[Tensor, "b t"]) -> tuple[Float[Tensor, "b t slot_width"], Bool[Tensor, "b t"]]:
        """Last hidden state of every token, markers included."""
        out, mask = self._states(x)
        return pad_slots(out.last_hidden_state[:, : mask.shape[1]], x >= 0)

    def forward(self, x: Int64[Tensor, "b t"]) -> Float[Tensor, "b width"]:
        """Features of a text; a text without tokens gives what the model makes of padding."""
        out, mask = self._states(x)
        hidden: Tensor = out.last_hidden_state
        with self.gradients():
            if self.fixed:
                pooled: Tensor = out.pooler_output
            elif self.last:  # CLIP's end marker; not searched by its id, which configurations state wrongly
                end = (mask.sum(1) - 1).clamp_min(0)
                pooled = hidden[torch.arange(len(hidden), device=hidden.device), end]
            else:
                pooled = mean_of_slots(hidden, mask)
            return pooled if self.projection is None else self.projection(pooled)


def _positions(model: nn.Module) -> int | None:
    """Tokens that a text may have; None where positions have no end. RoBERTa's count starts after its padding id."""
    limit = getattr(model.config, "max_position_embeddings", None)
    for name, module in model.named_modules():
        if name.endswith(("position_embeddings", "position_embedding")) and isinstance(module, nn.Embedding):
            first = 0 if module.padding_idx is None else module.padding_idx + 1
            limit = module.num_embeddings - first
    return None if limit is None else int(limit)


def _is_folder_name(name: str) -> bool:
    return name.startswith(("/", ".", "~")) or name.count("/") != 1 or Path(name).exists()


def load_model(path_or_id: str, what: str) -> Any:
    """The model with its weights; a pooler that the checkpoint did not train is taken off.

    ``what`` ("vision", "text") is for the message. Raises :class:`InputError` when there is none, or it is incomplete.
    """
    from transformers import AutoModel

    folder = Path(path_or_id).expanduser()
    if "/" in path_or_id and _is_folder_name(path_or_id) and not (folder / "config.json").is_file():
        raise InputError(
            f"no {what} model in {folder}: config.json is missing; give a folder that save_pretrained wrote"
        )
    try:
        model, report = AutoModel.from_pretrained(
            str(folder) if folder.exists() else path_or_id, output_loading_info=True
        )
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"cannot load the {what} model {path_or_id!r} ({reason}); check the name and the network, or "
            "download it once with 'hf download ID --local-dir FOLDER' and pass hf:FOLDER"
        ) from error
    missing = sorted(report["missing_keys"])
    if any(key.startswith("pooler.") for key in missing):
        model.pooler = None
    others = [key for key in missing if not key.startswith("pooler.")]
    if others:
        raise InputError(
            f"{path_or_id}: the weights lack {len(others)} tensors of the model (first: {others[0]}); "
            "use a complete checkpoint"
        )
    return model


def image_settings(path_or_id: str) -> dict[str, Any]:
    """preprocessor_config.json beside the weights, empty when there is none."""
    from transformers.utils import cached_file

    folder = Path(path_or_id).expanduser()
    try:
        found = cached_file(
            str(folder) if folder.exists() else path_or_id,
            "preprocessor_config.json",
            _raise_exceptions_for_missing_entries=False,
        )
    except OSError:
        found = None
    settings = json.loads(Path(found).read_text()) if found else {}
    return settings if isinstance(settings, dict) else {}
