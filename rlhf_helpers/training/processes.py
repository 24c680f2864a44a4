"""One run on several devices: each process has its share of the prompts and rollouts.

`accelerate launch` starts the processes and averages gradients (DistributedDataParallel). What
is left is here: who gets which share, numbers that all must agree on, and one writer of files.
With a single process everything here gives back what it was given.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, set_seed
from torch import Tensor

from rlhf_helpers.config.checks import ConfigError


class Processes:
    """The processes of one run. `number` of them; this is the one with `index`."""

    def __init__(self, scaled_loss: bool = False):
        """Join the processes that `accelerate launch` started, or be the only one.

        `scaled_loss` multiplies the loss before it is differentiated, so that small gradients of
        float16 are not lost (Micikevicius et al. 2018, section 3.2).
        Raises ConfigError where the launcher asks for DeepSpeed, Megatron-LM or FSDP.
        """
        for name in ("DeepSpeed", "Megatron_LM"):
            if os.environ.get(f"ACCELERATE_USE_{name.upper()}", "false").lower() == "true":
                raise ConfigError(
                    f"{name.replace('_', '-')} is not supported: launch with --multi_gpu instead; "
                    "a model too large for one GPU fits with a 4-bit base (profile alpaca-7b)."
                )
        if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
            raise ConfigError(
                "FSDP is not supported: the policy is sampled, scored and merged outside a forward "
                "pass. Launch with --multi_gpu instead; a model too large for one GPU fits with "
                "a 4-bit base (profile alpaca-7b)."
            )
        # Imported here: the real trlX's old accelerate has none, and never comes here.
        from accelerate.utils import DataLoaderConfiguration

        self.accelerator = Accelerator(
            cpu=not torch.cuda.is_available(),
            # Its fp16 would add autocast (see models/precision.py), and one process could then
            # not train a model of another type.
            mixed_precision="no",
            # Batches are split among the processes: the scheduler steps once per optimizer step.
            dataloader_config=DataLoaderConfiguration(split_batches=True),
        )
        if scaled_loss:
            self.accelerator.scaler = torch.amp.GradScaler("cuda")
        self.number = self.accelerator.num_processes
        self.index = self.accelerator.process_index
        self.is_main = self.accelerator.is_main_process

    def seed(self, seed: int) -> None:
        """Let each process draw other samples; a single one goes on as it is."""
        if self.number > 1:
            set_seed(seed + self.index)

    def share(self, total: int, name: str) -> int:
        """This process's part of `total`, the setting `name`; ConfigError where it is uneven."""
        if total % self.number:
            raise ConfigError(
                f"{name} is {total}, which {self.number} processes cannot share evenly: make it "
                f"a multiple of {self.number}."
            )
        return total // self.number

    def own(self, items: Sequence[Any]) -> list[Any]:
        """Every `number`-th item, from this process's index on."""
        return list(items[self.index :: self.number])

    def gather(self, items: list[Any]) -> list[list[Any]]:
        """The lists of all processes, in every process, their tensors on the host."""
        # They travel pickled, and a CUDA tensor comes out again on the device of the sender.
        return gather_object([_on_host(items)]) if self.number > 1 else [items]

    def together(self, items: list[Any]) -> list[Any]:
        """What `own` dealt out, in its first order again, in every process."""
        dealt = self.gather(items)
        longest = max(map(len, dealt))
        return [part[i] for i in range(longest) for part in dealt if i < len(part)]

    def mean(self, numbers: dict[str, float]) -> dict[str, float]:
        """Means over the processes; of names that end in /min and /max the extremes."""
        if self.number == 1:
            return numbers
        dealt = [part[0] for part in self.gather([numbers])]
        return {name: _joined(name, [part[name] for part in dealt]) for name in numbers}

    def sum(self, x: Tensor) -> Tensor:
        """A tensor added up over the processes, without gradients."""
        return x if self.number == 1 else self.accelerator.reduce(x.detach().clone(), "sum")

    def any(self, flag: bool) -> bool:
        """Whether it is so in any process; all have to ask."""
        return flag if self.number == 1 else any(part[0] for part in self.gather([bool(flag)]))

    def first(self, text: str | None) -> str | None:
        """What the first process that has something says, in every process; all have to ask."""
        if self.number == 1:
            return text
        return next((said for [said] in self.gather([text]) if said), None)

    def smallest(self, number: int) -> int:
        """The smallest over the processes."""
        return min(part[0] for part in self.gather([number]))

    def wait(self) -> None:
        """Until all have come here: what the main process wrote is there for all."""
        self.accelerator.wait_for_everyone()


def _on_host(x: Any) -> Any:
    """The same lists, tuples and dicts with every tensor in them on the CPU."""
    if isinstance(x, dict):
        return {name: _on_host(value) for name, value in x.items()}
    if isinstance(x, (list, tuple)):
        return type(x)(_on_host(item) for item in x)
    return x.cpu() if isinstance(x, Tensor) else x


def _joined(name: str, values: list[float]) -> float:
    if name.endswith("/min"):
        return min(values)
    if name.endswith("/max"):
        return max(values)
    return sum(values) / len(values)
