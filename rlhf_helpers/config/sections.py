"""The sections of a configuration, with trlX v0.6.0's fields, order and defaults.

Each field carries its check, so that a section validates itself when it is made and again
whenever `validate()` is called (trlX users assign to fields after construction).
Fields that trlX lacks come last in their section and say so.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar, dataclass_transform

from . import kwargs as config_kwargs
from .checks import (
    Check,
    ConfigError,
    boolean,
    closest,
    file_path,
    integer,
    mapping,
    number,
    one_of,
    optional,
    plain_mapping,
    text,
    text_list,
    unknown,
    wrong,
)
from .other_trlx import FOREIGN_FIELDS, causal, ppo_trainer, warn_foreign

S = TypeVar("S")


def setting(check: Check, default: Any = dataclasses.MISSING, factory: Any = dataclasses.MISSING):
    """A dataclass field with its check."""
    return field(default=default, default_factory=factory, metadata={"check": check})


@dataclass_transform(field_specifiers=(setting,))
def section(cls: type[S]) -> type[S]:
    """A dataclass whose constructor turns unknown or missing arguments into a ConfigError."""
    cls = dataclass(cls)
    generated = cls.__init__

    @functools.wraps(generated)
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        foreign = [name for name in kwargs if cls.is_foreign(name)]
        warn_foreign([f"{cls.section}.{name}" for name in foreign])
        kwargs = {name: value for name, value in kwargs.items() if name not in foreign}
        cls.require_known(kwargs)
        names = [f.name for f in dataclasses.fields(cls)]
        given = {*names[: len(args)], *kwargs}
        for f in dataclasses.fields(cls):
            if _is_required(f) and f.name not in given:
                raise ConfigError(f"{cls.section}.{f.name} is missing: add it to the configuration")
        generated(self, *args, **kwargs)

    cls.__init__ = __init__
    return cls


def _is_required(f: dataclasses.Field) -> bool:
    return f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING


class Section:
    """What all sections share: construction from a dict, validation, copying out."""

    section: ClassVar[str]

    def __post_init__(self) -> None:
        self.validate()

    def validate(self) -> None:
        """Check every field and store its normal form; ConfigError names the first bad one."""
        for f in dataclasses.fields(self):  # type: ignore[arg-type]
            value = f.metadata["check"](f"{self.section}.{f.name}", getattr(self, f.name))
            setattr(self, f.name, value)

    @classmethod
    def is_foreign(cls, name: str) -> bool:
        """Whether another trlX version has this field and it has no meaning here."""
        return name in FOREIGN_FIELDS[cls.section]

    @classmethod
    def field_names(cls) -> list[str]:
        """The names of the section's fields, in order."""
        return [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]

    @classmethod
    def require_known(cls, config: dict[str, Any]) -> None:
        """ConfigError for a name that is no field of this section, naming the closest one."""
        for name in config:
            if name not in cls.field_names():
                path = f"{cls.section}.{name}"
                raise unknown(path, closest_setting(path))

    @classmethod
    def from_dict(cls: type[S], config: dict[str, Any]) -> S:
        """The section from its fields by name, as trlX has it."""
        return cls(**config)

    def to_dict(self) -> dict[str, Any]:
        """The fields by name; a copy, so that changing it changes no configuration."""
        return {name: copy.deepcopy(getattr(self, name)) for name in self.field_names()}


def _prompt_pipeline(path: str, value: Any) -> str:
    """trlX looks pipelines up in a registry; here there is one."""
    if text(path, value).lower() != "promptpipeline":
        raise wrong(path, value, "give 'PromptPipeline', the only one here")
    return value


@section
class TrainConfig(Section):
    """Length of the run, batch size, evaluation, checkpoints, tracking."""

    section: ClassVar[str] = "train"

    total_steps: int = setting(integer(1))  # optimizer steps, at most
    seq_length: int = setting(integer(2, config_kwargs.MAX_SEQ_LENGTH))  # prompt + response tokens
    epochs: int = setting(integer(1))  # passes over rollouts, at most
    batch_size: int = setting(integer(1, 65_536))  # rollouts per optimizer step
    checkpoint_interval: int = setting(integer(1))  # optimizer steps
    eval_interval: int = setting(integer(1))  # optimizer steps
    pipeline: str = setting(_prompt_pipeline)
    trainer: str = setting(ppo_trainer)
    trainer_kwargs: dict[str, Any] = setting(plain_mapping, factory=dict)
    project_name: str = setting(text, "trlx")
    entity_name: str | None = setting(optional(text), None)
    group_name: str | None = setting(optional(text), None)
    checkpoint_dir: str = setting(file_path, "ckpts")
    rollout_logging_dir: str | None = setting(optional(file_path), None)
    save_best: bool = setting(boolean, True)
    # trlX's default is "wandb"; here nothing leaves the machine unless asked for.
    tracker: str | None = setting(optional(one_of("tensorboard", "wandb", "trackio")), None)
    logging_dir: str | None = setting(optional(file_path), None)
    tags: list[str] | None = setting(optional(text_list), factory=list)
    seed: int = setting(integer(0, 2**32 - 1), 1000)
    # Not in trlX:
    # None: 60 s, or more where writing one takes over a second, so that it costs under 2 %.
    checkpoint_seconds: float | None = setting(optional(number(0.0, 1e9)), None)
    keep_checkpoints: int = setting(integer(1, 1000), 2)
    reward_timeout_seconds: float | None = setting(optional(number(above=0.0, high=1e9)), None)
    reward_retries: int = setting(integer(0, 100), 0)
    # What to do when numbers go wrong, and from where on they are wrong: see WATCHDOG_DEFAULTS.
    watchdog: dict[str, Any] = setting(config_kwargs.watchdog, factory=dict)


@section
class ModelConfig(Section):
    """The policy's model and what of it is trained."""

    section: ClassVar[str] = "model"

    model_path: str = setting(file_path)
    model_arch_type: str = setting(causal, "causal")
    num_layers_unfrozen: int = setting(integer(-1, 10_000), -1)  # top layers that LoRA modifies
    delta_kwargs: dict[str, Any] | None = setting(optional(config_kwargs.delta_kwargs), None)
    # In trlX 0.7, not in 0.6:
    peft_config: dict[str, Any] | None = setting(optional(config_kwargs.peft_config), None)
    # Not in trlX. None: float32 on a CPU, elsewhere the device's half precision.
    dtype: str | None = setting(optional(one_of("float32", "bfloat16", "float16")), None)
    # Not in trlX: the frozen matrices in four bits (nf4), through the optional bitsandbytes.
    load_in_4bit: bool = setting(boolean, False)

    def validate(self) -> None:
        super().validate()
        if self.delta_kwargs is not None and self.peft_config is not None:
            raise ConfigError("model.peft_config is set beside model.delta_kwargs: "
                              "keep one of the two and set the other to null.")


@section
class TokenizerConfig(Section):
    """The tokenizer and the sides on which it pads and cuts prompts."""

    section: ClassVar[str] = "tokenizer"

    tokenizer_path: str = setting(file_path)
    padding_side: str = setting(one_of("left", "right"), "left")
    truncation_side: str = setting(one_of("left", "right"), "right")


@section
class OptimizerConfig(Section):
    """A torch optimizer by name, e.g. name="adamw", kwargs={"lr": 1e-4}."""

    section: ClassVar[str] = "optimizer"

    name: str = setting(text)
    kwargs: dict[str, Any] = setting(mapping, factory=dict)

    def validate(self) -> None:
        super().validate()
        self.kwargs = config_kwargs.optimizer_kwargs(self.name, self.kwargs)


@section
class SchedulerConfig(Section):
    """A torch learning-rate scheduler by name, stepped at every optimizer step."""

    section: ClassVar[str] = "scheduler"

    name: str = setting(text)
    kwargs: dict[str, Any] = setting(mapping, factory=dict)

    def validate(self) -> None:
        super().validate()
        self.kwargs = config_kwargs.scheduler_kwargs(self.name, self.kwargs)


METHODS: dict[str, type[MethodConfig]] = {}


def register_method(cls: type[S]) -> type[S]:
    """Make a method's configuration class known by its name, as trlX's decorator does."""
    METHODS[cls.__name__.lower()] = cls
    return cls


def get_method(name: Any) -> type[MethodConfig]:
    """The class of a method by its name, in any case: "PPOConfig", "ppoconfig" or "PPO"."""
    if isinstance(name, str):
        for key in (name.lower(), f"{name.lower()}config"):
            if key in METHODS:
                return METHODS[key]
    listed = ", ".join(cls.__name__ for cls in METHODS.values())
    raise wrong("method.name", name, f"give one of the methods that exist here: {listed}")


class MethodConfig(Section):
    """Base of the methods' configurations. Subclass, decorate with `register_method`."""

    section: ClassVar[str] = "method"
    name: str

    def validate(self) -> None:
        super().validate()
        if get_method(self.name) is not type(self):
            raise wrong("method.name", self.name,
                        f"give {type(self).__name__!r}, the class that it configures")


def _default_gen_kwargs() -> dict[str, Any]:
    return {"max_new_tokens": 40, "top_k": 0, "top_p": 1.0, "do_sample": True}


def _scale_reward(path: str, value: Any) -> str | None:
    # trlX's own YAML writes False for "do not scale".
    if value is False:
        return None
    return optional(one_of("ignored", "running", "ref"))(path, value)


# Coefficients above these make float32 losses overflow.
_COEFFICIENT = number(0.0, 1e4)
_REWARD_SCALE = number(-1e12, 1e12)


@register_method
@section
class PPOConfig(MethodConfig):
    """PPO. trlX gives the numbers no defaults; these are those of its `default_ppo_config()`."""

    section: ClassVar[str] = "method"

    name: str = setting(text, "PPOConfig")
    ppo_epochs: int = setting(integer(1, 10_000), 4)  # optimizer steps per minibatch
    num_rollouts: int = setting(integer(1, 10_000_000), 128)  # between two updates
    chunk_size: int = setting(integer(1, 1_000_000), 128)  # prompts sampled at once
    init_kl_coef: float = setting(_COEFFICIENT, 0.001)
    target: float | None = setting(optional(number(above=0.0, high=1e6)), None)  # None: fixed coef
    horizon: int = setting(number(1.0, 1e15), 10_000)  # of the KL controller, in samples
    gamma: float = setting(number(0.0, 1.0), 1)
    lam: float = setting(number(0.0, 1.0), 0.95)
    cliprange: float = setting(number(above=0.0, high=1e6), 0.2)
    cliprange_value: float = setting(number(above=0.0, high=1e12), 0.2)
    vf_coef: float = setting(_COEFFICIENT, 1)
    scale_reward: str | None = setting(_scale_reward, "ignored")
    ref_mean: float | None = setting(optional(_REWARD_SCALE), None)
    ref_std: float | None = setting(optional(number(1e-8, 1e12)), None)
    cliprange_reward: float | None = setting(optional(number(0.0, 1e12)), 10)  # 0 or None: off
    gen_kwargs: dict[str, Any] = setting(config_kwargs.generation_kwargs,
                                         factory=_default_gen_kwargs)
    gen_experience_kwargs: dict[str, Any] | None = setting(
        optional(config_kwargs.generation_kwargs), None)
    # Not in trlX: "trlx" repeats its numbers, quirks included; "corrected" mends them.
    semantics: str = setting(one_of("trlx", "corrected"), "trlx")

    def validate(self) -> None:
        super().validate()
        if self.scale_reward == "ref" and self.ref_mean is not None and self.ref_std is None:
            raise ConfigError("method.ref_std is None: give the standard deviation that goes "
                              "with method.ref_mean, or set both to null.")
        # "ref" without numbers measures its own on the first chunk.
        measured = self.scale_reward == "running" or (
            self.scale_reward == "ref" and self.ref_mean is None)
        if measured and self.chunk_size < 2:
            raise wrong("method.chunk_size", self.chunk_size,
                        f"give at least 2, scale_reward {self.scale_reward!r} needs a "
                        "standard deviation over the chunk")


class _GroupConfig(PPOConfig):
    """A method without a value function, whose baseline is a prompt's other samples.

    PPO's fields are kept, so that a configuration changes its method by its name alone; gamma,
    lam, vf_coef and cliprange_value have no effect. Not in trlX, so that `corrected` is their only
    semantics.
    """

    samples_per_prompt: int

    def validate(self) -> None:
        super().validate()
        if self.chunk_size % self.samples_per_prompt:
            raise wrong("method.chunk_size", self.chunk_size,
                        "give a multiple of method.samples_per_prompt, which is "
                        f"{self.samples_per_prompt}")


def _corrected(path: str, value: Any) -> str:
    if one_of("trlx", "corrected")(path, value) == "trlx":
        raise wrong(path, value, "give 'corrected', trlX has neither RLOO nor GRPO to repeat")
    return value


@register_method
@section
class RLOOConfig(_GroupConfig):
    """REINFORCE with a leave-one-out baseline (arXiv:2402.14740); see critic_free.py."""

    section: ClassVar[str] = "method"

    name: str = setting(text, "RLOOConfig")
    ppo_epochs: int = setting(integer(1, 10_000), 1)  # the paper's; nothing is clipped
    semantics: str = setting(_corrected, "corrected")
    samples_per_prompt: int = setting(integer(2, 10_000), 4)


@register_method
@section
class GRPOConfig(_GroupConfig):
    """GRPO (arXiv:2402.03300); see critic_free.py. init_kl_coef weighs its KL loss."""

    section: ClassVar[str] = "method"

    name: str = setting(text, "GRPOConfig")
    semantics: str = setting(_corrected, "corrected")
    samples_per_prompt: int = setting(integer(2, 10_000), 4)


SECTIONS: dict[str, type[Section]] = {
    "method": MethodConfig,
    "model": ModelConfig,
    "optimizer": OptimizerConfig,
    "scheduler": SchedulerConfig,
    "tokenizer": TokenizerConfig,
    "train": TrainConfig,
}


def setting_names() -> list[str]:
    """All settings as dotted names, e.g. "train.seed"."""
    classes = [*METHODS.values(), *(cls for key, cls in SECTIONS.items() if key != "method")]
    names = [f"{cls.section}.{name}" for cls in classes for name in cls.field_names()]
    return list(dict.fromkeys(names))


def closest_setting(path: str) -> str:
    """The real setting closest to a wrong dotted name.

    The same field in another section comes first, then similar fields of the same section.
    """
    names = setting_names()
    same_field = [name for name in names if name.split(".")[-1] == path.split(".")[-1]]
    same_section = [name for name in names if name.split(".")[0] == path.split(".")[0]]
    return closest(path, same_field or same_section or names)
