"""The policy: a causal language model with LoRA and a value head, cut into trunk and top.

The trunk is the frozen part below the first layer that may change; its hidden states serve the
policy, the reference policy and every PPO epoch. The reference policy is the same top with LoRA
switched off (trlX calls this arrangement the hydra).

Shapes: B sequences, N tokens, h hidden width, T response columns.
"""

from __future__ import annotations

import copy
import inspect
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from rlhf_helpers.algorithms.length_groups import in_length_groups
from rlhf_helpers.config.checks import ConfigWarning
from rlhf_helpers.runs.tensors import read_tensors

from .finite_logits import FiniteLogits
from .frozen_head import head_divisor, head_logprobs
from .lora import (
    load_adapter,
    lora_disabled,
    lora_parameters,
    lora_sites,
    merged_lora,
    save_adapter,
)
from .lora_state import contiguous, fitting, write_plain_model
from .packed import pack_frozen
from .precision import layers_in_float32

STATIC_WIDTH = 16  # tokens


class Scored(NamedTuple):
    """What one pass over whole sequences says about every column from `start` on."""

    logprobs: Tensor  # [B, N-1-start] log p(token j+1 | tokens <= j) of the policy, nats
    ref_logprobs: Tensor  # [B, N-1-start] the same of the reference policy
    values: Tensor  # [B, N-1-start] value head
    trunk: Tensor  # [B, N, h] hidden states that enter the first layer of the top


class Policy(nn.Module):
    """A causal model whose top layers carry LoRA, with a value head on its last hidden state."""

    own_decoding = True  # see decoding.py
    packs_weights: bool | None = None  # None: where a measurement says that it pays (packed.py)

    def __init__(
        self,
        base: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        num_layers_unfrozen: int = -1,
    ):
        """Wrap `base`, whose LoRA (if any) is already in place; the value head is drawn here."""
        super().__init__()
        self.base = base
        self.tokenizer = tokenizer
        # Not the layers' width, which may be another (OPT-350m): that of what leaves the model.
        hidden = base.get_output_embeddings().weight.shape[1]
        self._head_divisor = head_divisor(base.config.get_text_config())
        # trlX's value head: default initialisation, so its first values are small and not zero.
        self.v_head = nn.Sequential(
            nn.Linear(hidden, 2 * hidden), nn.ReLU(), nn.Linear(2 * hidden, 1)
        )
        # Log-probabilities, the reference policy's too, are those of softmax(logits / temperature).
        self.temperature = 1.0
        self._layers_name = "layers" if hasattr(self.decoder, "layers") else "h"
        depth = len(self.layers)
        top = depth if num_layers_unfrozen < 0 else min(max(num_layers_unfrozen, 1), depth)
        self.branch = depth - top  # index of the first layer of the top
        self.has_lora = bool(lora_parameters(base))
        self._reference_layers: nn.ModuleList | None = None
        if not self.has_lora:
            # The top layers themselves learn, and nothing that the reference policy shares.
            base.requires_grad_(False)
            if num_layers_unfrozen != 0:
                layers_in_float32(self.layers[self.branch :])
                self._reference_layers = copy.deepcopy(self.layers[self.branch :])
                self.layers[self.branch :].requires_grad_(True)
        accepted = inspect.signature(self.decoder.forward).parameters
        # OPT and BLOOM work positions out from the attention mask; the others want them given.
        self.takes_positions = "position_ids" in accepted
        self.wants_positions = self.takes_positions and base.config.model_type != "opt"
        dropouts = [site.dropout for site in lora_sites(base)]
        self._lora_dropouts = [dropout for dropout in dropouts if dropout is not None]
        self._is_packed = False
        self.record: Any = None  # a kept_trunk.SamplingRecord, where sampling is to fill one
        base.eval()
        self.set_dropout(active=False)

    # --- parts -----------------------------------------------------------------------------

    @property
    def decoder(self) -> nn.Module:
        """The stack of layers inside the causal model, with embeddings and final norm."""
        return self.base.get_decoder()

    @property
    def layers(self) -> nn.ModuleList:
        """All decoder layers, trunk first."""
        return getattr(self.decoder, self._layers_name)

    @property
    def base_model(self) -> nn.Module:
        """The causal model, by the name that it has in trlX."""
        return self.base

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.v_head[0].weight.device

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """What the optimizer changes, by name: LoRA matrices (or unfrozen layers), value head."""
        learning = {n: p for n, p in self.base.named_parameters() if p.requires_grad}
        adapters = lora_parameters(self.base) if self.has_lora else learning
        return adapters | {f"v_head.{n}": p for n, p in self.v_head.named_parameters()}

    def set_dropout(self, active: bool) -> None:
        """Switch LoRA's dropout; the base model's own dropout is never active (as in trlX)."""
        if self.base.training:  # somebody called train(): a walk through all modules, not each step
            self.base.eval()
        for dropout in self._lora_dropouts:
            dropout.train(active)

    # --- forward passes ----------------------------------------------------------------------

    def forward(
        self, tokens: Tensor, attention_mask: Tensor, start: int, width: int, trunk: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Log-probabilities and values of columns start .. start+width, with gradients.

        tokens, attention_mask [B, N]; trunk [B, N, h] or None to compute it.
        Returns two tensors [B, width], undefined behind a row's last attended token.
        """

        def compute(width: int, mask: Tensor, tokens: Tensor, trunk: Tensor | None):
            trunk = self.trunk(tokens, mask) if trunk is None else trunk
            hidden = self.top(trunk, tokens, mask)[:, start : start + width]
            labels = tokens[:, start + 1 : start + width + 1]
            return self.label_logprobs(hidden, labels), self.value(hidden)

        return in_length_groups(compute, start, width, attention_mask, tokens, trunk)

    @torch.no_grad()
    def score(
        self, tokens: Tensor, attention_mask: Tensor, start: int = 0, trunk: Tensor | None = None,
        hidden: Tensor | None = None, measured: Sequence[int] | None = None,
    ) -> Scored:  # fmt: skip
        """Policy, reference policy and value head on whole sequences [B, N], without gradients.

        trunk [B, N, h], hidden [B, N-1-start, h]: states that enter and leave the top, known
        already from sampling. `measured`: the rows that the reference policy is asked about
        (default: all); of the others the policy's own log-probabilities stand in its place.
        """
        if trunk is None:
            trunk, final = self.trunk_and_hidden(tokens, attention_mask)
            hidden = final[:, start:]

        def policy(width: int, mask: Tensor, tokens: Tensor, trunk: Tensor, hidden: Tensor | None):
            hidden = self.top(trunk, tokens, mask)[:, start:] if hidden is None else hidden
            labels = tokens[:, start + 1 : start + 1 + width]
            return self.label_logprobs(hidden[:, :width], labels), self.value(hidden[:, :width])

        def reference(width: int, mask: Tensor, tokens: Tensor, trunk: Tensor):
            hidden = self.reference_top(trunk, tokens, mask)[:, start : start + width]
            return (self.label_logprobs(hidden, tokens[:, start + 1 : start + 1 + width]),)

        width = tokens.shape[1] - 1 - start
        logprobs, values = in_length_groups(
            policy, start, width, attention_mask, tokens, trunk, hidden
        )
        if measured is None or len(measured) == len(tokens):
            (ref_logprobs,) = in_length_groups(
                reference, start, width, attention_mask, tokens, trunk
            )
        else:
            rows = torch.tensor(list(measured), device=tokens.device)
            ref_logprobs = logprobs.clone()
            (ref_logprobs[rows],) = in_length_groups(
                reference, start, width, attention_mask[rows], tokens[rows], trunk[rows]
            )
        return Scored(logprobs, ref_logprobs, values, trunk)

    @torch.no_grad()
    def trunk(self, tokens: Tensor, attention_mask: Tensor) -> Tensor:
        """States that enter the top, without the top's work: [B, N] -> [B, N, h]."""
        return self.trunk_and_hidden(tokens, attention_mask, stop_at_branch=True)[0]

    def trunk_and_hidden(
        self, tokens: Tensor, attention_mask: Tensor, stop_at_branch: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """States entering the top, and states after the final norm: two [B, N, h]."""
        seen: list[Tensor] = []

        def keep(_module, args, kwargs):
            seen.append(args[0] if args else kwargs["hidden_states"])
            if stop_at_branch:
                raise _AtBranch

        hook = self.layers[self.branch].register_forward_pre_hook(
            keep, with_kwargs=True, prepend=True
        )
        try:
            hidden = self._decode(tokens, attention_mask)
        except _AtBranch:
            hidden = None
        finally:
            hook.remove()
        return seen[0], hidden

    def top(self, trunk: Tensor, tokens: Tensor, attention_mask: Tensor) -> Tensor:
        """Run only the top layers and the final norm on kept trunk states: [B, N, h]."""
        return self._decode_from(trunk, self.layers[self.branch :], tokens, attention_mask)

    def reference_top(self, trunk: Tensor, tokens: Tensor, attention_mask: Tensor) -> Tensor:
        """The same with the reference policy's top: LoRA off, or the copy kept from the start."""
        if self._reference_layers is not None:
            return self._decode_from(trunk, self._reference_layers, tokens, attention_mask)
        with lora_disabled(self.base):
            return self.top(trunk, tokens, attention_mask)

    def label_logprobs(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """Hidden states [B, T, h] and the tokens that follow them [B, T] -> nats [B, T]."""
        head = self.base.get_output_embeddings()
        return head_logprobs(hidden, head, labels, self.logit_divisor)

    @property
    def logit_divisor(self) -> float:
        """What the head's output is divided by: `temperature`, and a scale of the model's own."""
        return self.temperature * self._head_divisor

    def value(self, hidden: Tensor) -> Tensor:
        """Value head on hidden states: [B, T, h] -> [B, T]."""
        return self.v_head(hidden.float()).squeeze(-1)

    def _pack(self) -> None:
        """Pack the frozen weights before the first pass, when they have arrived on their device."""
        if not self._is_packed and self.packs_weights is not False:
            reference = [] if self._reference_layers is None else [self._reference_layers]
            packed = pack_frozen(self.base, *reference, measured=self.packs_weights is None)
            self.packs_weights = packed > 0
        self._is_packed = True

    def _decode(self, tokens: Tensor, attention_mask: Tensor) -> Tensor:
        self._pack()
        positions = {}
        is_ready = False
        if self.own_decoding and self.device.type == "cuda":
            # Not above: the transformers of engine="trlx" lacks what is imported there.
            from .masks import causal_mask, takes_ready_masks

            is_ready = takes_ready_masks(self.base, self.takes_positions)
        if self.wants_positions or is_ready:
            position_ids = attention_mask.long().cumsum(-1) - 1
            positions["position_ids"] = position_ids.masked_fill(attention_mask == 0, 1)
        if is_ready:
            attention_mask = causal_mask(attention_mask)
        return self.decoder(
            input_ids=tokens, attention_mask=attention_mask, use_cache=False, **positions
        ).last_hidden_state

    def _decode_from(self, trunk: Tensor, layers, tokens: Tensor, attention_mask: Tensor) -> Tensor:
        # The decoder's own forward makes masks and positions and applies the final norm; only
        # its list of layers is shortened and the first one is handed the kept states instead.
        def replace(_module, args, kwargs):
            if args:
                return (trunk, *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": trunk}

        hook = layers[0].register_forward_pre_hook(replace, with_kwargs=True, prepend=True)
        try:
            with self._only_layers(layers):
                return self._decode(tokens, attention_mask)
        finally:
            hook.remove()

    @contextmanager
    def _only_layers(self, layers: nn.ModuleList) -> Iterator[None]:
        decoder, everything, shape = self.decoder, self.layers, self.decoder.config
        setattr(decoder, self._layers_name, layers)
        # transformers asks by a layer's place in the list which mask and positions are its own.
        kinds = getattr(shape, "layer_types", None)
        if kinds is not None:
            shape.layer_types = [*kinds[self.branch :], *kinds[: self.branch]]
        try:
            yield
        finally:
            setattr(decoder, self._layers_name, everything)
            if kinds is not None:
                shape.layer_types = kinds

    # --- sampling ----------------------------------------------------------------------------

    @torch.no_grad()
    def generate(self, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs) -> Tensor:
        """Sample continuations, [B, Q] -> [B, Q + new tokens]; arguments as of `base.generate`.

        The loop of decoding.py, and transformers' own where that loop does not know a setting.
        Raises NotFiniteError (on a CPU torch's own RuntimeError) on logits that are no numbers.
        """
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        tokenizer = self.tokenizer
        given = dict(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
        given |= kwargs
        self._pack()
        guard = FiniteLogits()
        if given.get("do_sample") and self.device.type == "cuda":
            given["logits_processor"] = [*(given.get("logits_processor") or ()), guard]
        rows = self._generate(input_ids.to(self.device), attention_mask.to(self.device), given)
        guard.check()
        return rows

    def _generate(self, ids: Tensor, mask: Tensor, given: dict[str, Any]) -> Tensor:
        if self.own_decoding:
            # Not above: the transformers of engine="trlx" lacks what is imported there.
            from .decoding import decode, settings_for

            settings = settings_for(self.base, given)
            if settings is not None:
                record = self.record
                if record is None:
                    return decode(self, ids, mask, settings).tokens
                sampled = decode(self, ids, mask, settings, True, record.keep_hidden)
                record.ids, record.states, record.hidden = sampled[1:]
                return sampled.tokens
        return self._generate_with_transformers(ids, mask, given)

    def _generate_with_transformers(self, ids: Tensor, mask: Tensor, given: dict) -> Tensor:
        """With `cache_implementation="static"` transformers compiles decoding on a GPU. A graph
        fits one width only, so prompts are then padded to a multiple of STATIC_WIDTH."""
        static = given.get("cache_implementation") == "static"
        more = -ids.shape[1] % STATIC_WIDTH if static else 0
        rows = self.base.generate(
            input_ids=F.pad(ids, (more, 0), value=given["pad_token_id"]),
            attention_mask=F.pad(mask, (more, 0)),
            **given,
        )
        return rows[:, more:] if more else rows

    def sampling_temperature(self, settings: dict[str, Any]) -> float:
        """The temperature at which `generate` draws with these settings; 1 where it never draws."""
        from .decoding import settings_in_effect  # not above: see _generate

        asked = settings_in_effect(self.base, settings)
        return (asked.get("temperature") or 1.0) if asked.get("do_sample") else 1.0

    @contextmanager
    def merged_for_sampling(self) -> Iterator[None]:
        """Add LoRA into the weights while sampling, where its dropout is inactive."""
        if not self.has_lora or self.lora_dropout_active:
            yield
            return
        with merged_lora(self.base):
            yield

    @property
    def lora_dropout_active(self) -> bool:
        """Whether LoRA's dropout would draw random numbers now."""
        return any(d.training and getattr(d, "p", 0) > 0 for d in self._lora_dropouts)

    @property
    def samples_as_it_scores(self) -> bool:
        """Whether sampling and scoring compute the same states, to the last bits of float32."""
        # In half precision they would not: LoRA is rounded as it is merged for sampling.
        rounds = self.base.dtype != torch.float32 or getattr(self.base, "is_loaded_in_4bit", False)
        return not rounds and not self.lora_dropout_active

    # --- files -------------------------------------------------------------------------------

    def save(self, directory: str | Path, base_model: str = "") -> None:
        """Write adapter (or unfrozen layers), value head and tokenizer to a directory.

        `base_model` is the base model's name, which peft's adapter_config.json records.
        """
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        if self.has_lora:
            save_adapter(self.base, directory, base_model)
        else:
            changed = {n: p for n, p in self.base.named_parameters() if p.requires_grad}
            save_file(contiguous(changed), directory / "unfrozen_layers.safetensors")
        save_file(contiguous(self.v_head.state_dict()), directory / "value_head.safetensors")
        self.tokenizer.save_pretrained(directory)

    def save_merged(self, directory: str | Path) -> None:
        """Write a plain transformers model with the policy's weights, and the tokenizer.

        `AutoModelForCausalLM.from_pretrained(directory)` has the policy's logits; it knows
        nothing of LoRA. The value head is not part of it.
        """
        write_plain_model(self.base, directory)
        self.tokenizer.save_pretrained(directory)

    def load(self, directory: str | Path, to_sample: bool = False) -> None:
        """Take adapter (or unfrozen layers) and value head from a directory that `save` wrote.

        Without a value head there, as in committed runs, the policy can sample; a warning says so
        unless that is all it is wanted for (`to_sample`).
        """
        directory = Path(directory)
        if self.has_lora:
            load_adapter(self.base, directory)
        else:
            layers = directory / "unfrozen_layers.safetensors"
            wanted = {n: p for n, p in self.base.named_parameters() if p.requires_grad}
            self.base.load_state_dict(fitting(read_tensors(layers), wanted, layers), strict=False)
        value_head = directory / "value_head.safetensors"
        if os.path.lexists(value_head):
            wanted = self.v_head.state_dict()
            self.v_head.load_state_dict(fitting(read_tensors(value_head), wanted, value_head))
        elif not to_sample:
            warnings.warn(
                f"{directory} has no value_head.safetensors: this policy can sample and be "
                "evaluated; to train it on would begin with a new value head.",
                ConfigWarning,
                stacklevel=3,
            )


class _AtBranch(Exception):
    """Raised by a hook to end a forward pass where the trunk ends."""
