"""Reads a directory of numbers recorded from trlX v0.6.0 (format: golden/README.md)."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from rlhf_helpers.config.trl_config import TRLConfig
from rlhf_helpers.training.trainer import PPOTrainer


class GoldenSet:
    """The recorded numbers, weights and tokenizers; `workdir` takes models and runs."""

    def __init__(self, directory: Path, workdir: Path):
        self.directory, self.workdir = Path(directory), Path(workdir)
        self.data: dict[str, Any] = json.loads((self.directory / "golden.json").read_text())
        self.weights = load_file(self.directory / "weights.safetensors")
        self._runs = 0

    def __getitem__(self, name: str) -> Any:
        return self.data[name]

    def tensors(self, prefix: str) -> dict[str, torch.Tensor]:
        """Weights under `prefix`/, by the rest of their names: base, init, final or grad1."""
        start = prefix + "/"
        return {n.removeprefix(start): t for n, t in self.weights.items() if n.startswith(start)}

    def model_dir(self, tokenizer: str = "bos") -> Path:
        """The base model with one of the two tokenizers, as a directory of transformers."""
        path = self.workdir / f"model_{tokenizer}"
        if not path.exists():
            shutil.copytree(self.directory / f"tokenizer_{tokenizer}", path)
            shutil.copy(self.directory / "config.json", path)
            save_file(self.tensors("base"), path / "model.safetensors", metadata={"format": "pt"})
        return path

    def config(self, tokenizer: str = "bos", **overrides: Any) -> TRLConfig:
        """The recorded configuration on that model, writing to a directory of its own."""
        self._runs += 1
        path = str(self.model_dir(tokenizer))
        settings = {
            "model.model_path": path,
            "model.dtype": "float32",
            "tokenizer.tokenizer_path": path,
            "train.tracker": None,
            "train.checkpoint_dir": str(self.workdir / f"run_{self._runs}"),
        }
        return TRLConfig.update(self["config"], settings | overrides)

    def trainer(
        self,
        tokenizer: str = "bos",
        reward_fn: Callable[..., Any] = lambda samples, **_: [0.0] * len(samples),
        **kwargs: Any,
    ) -> PPOTrainer:
        """A trainer whose LoRA and value head are the recorded ones before the first update."""
        overrides = kwargs.pop("overrides", {})
        trainer = PPOTrainer(self.config(tokenizer, **overrides), reward_fn, **kwargs)
        initial = self.tensors("init")
        with torch.no_grad():
            for name, parameter in trainer.trained.items():
                parameter.copy_(initial[name])
        return trainer
