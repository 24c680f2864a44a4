"""The numbers of trlX v0.6.0, through the code that a run uses.

    pytest tests/training/test_trlx_parity.py [--golden-dir DIR]

checks any directory of the format that golden/README.md defines; shapes, sizes, seeds and
hyper-parameters are read from it. Tolerances are those that it gives. Only `e2e` is left out,
which holds statistics of whole runs for orientation.
"""

import inspect
import re

import pytest
import torch
from golden_set import GoldenSet
from tiny_runs import one_by_one

from rlhf_helpers.algorithms.ppo import (
    RunningMoments,
    gae,
    kl_controller,
    logprobs_of_labels,
    ppo_loss,
    whiten,
)
from rlhf_helpers.config.sections import PPOConfig
from rlhf_helpers.config.trl_config import TRLConfig, default_ppo_config
from rlhf_helpers.data.prompts import Prompt, pad_prompts, tokenize_prompts
from rlhf_helpers.models.loading import load_tokenizer
from rlhf_helpers.models.lora import layer_indices, lora_disabled
from rlhf_helpers.models.lora_targets import preset_modules
from rlhf_helpers.training.api import train
from rlhf_helpers.training.experience import ScoreScaler
from rlhf_helpers.training.semantics import TrlxSemantics, sequences_of
from rlhf_helpers.training.sequences import decode

PURE = 1e-5  # pure functions
MODEL = 1e-4  # logits, log-probabilities, values, losses and logged statistics
REWARD = 1e-5  # stored rewards
GRADIENT = 1e-5
WEIGHT = 2e-5


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    """The numbers were recorded in float32 on a CPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture(scope="module")
def golden(request, tmp_path_factory):
    """The directory that --golden-dir names."""
    return GoldenSet(request.config.getoption("--golden-dir"), tmp_path_factory.mktemp("golden"))


def close(ours, recorded, tolerance, what=""):
    """Fail unless both have one shape and differ by no more than the tolerance."""
    ours = torch.as_tensor(ours).detach().double()
    recorded = float(recorded) if isinstance(recorded, str) else recorded  # "nan", "inf"
    recorded = torch.as_tensor(recorded).double()
    torch.testing.assert_close(
        ours, recorded, atol=tolerance, rtol=tolerance, equal_nan=True,
        msg=lambda text: f"{what}: {text}",
    )  # fmt: skip


def tensors(case, *names):
    """Fields of a recorded case as tensors."""
    return [torch.tensor(case[name]) for name in names]


# --- pure functions ------------------------------------------------------------------------


def test_advantages_and_returns(golden):
    for i, case in enumerate(golden["gae"]):
        values, rewards = tensors(case, "values", "rewards")
        advantages, returns = gae(values, rewards, case["gamma"], case["lam"])
        close(advantages, case["advantages_raw"], PURE, f"gae {i}")
        close(returns, case["returns"], PURE, f"gae {i}")
        if case["advantages_whitened"] is not None:
            close(whiten(advantages), case["advantages_whitened"], PURE, f"gae {i}")


def test_whitening(golden):
    for i, case in enumerate(golden["whiten"]):
        xs = torch.tensor(case["xs"])
        close(whiten(xs), case["shift_mean_true"], PURE, f"whiten {i}")
        close(whiten(xs, shift_mean=False), case["shift_mean_false"], PURE, f"whiten {i}")


def test_losses_statistics_and_gradients(golden):
    names = ("values", "old_logprobs", "old_values", "advantages", "returns", "mask")
    for i, case in enumerate(golden["loss"]):
        logprobs = torch.tensor(case["logprobs"], requires_grad=True)
        values, *rest = tensors(case, *names)
        values.requires_grad_()
        clipping = {k: case[k] for k in ("cliprange", "cliprange_value", "vf_coef")}
        loss, stats = ppo_loss(logprobs, values, *rest, **clipping)
        loss.backward()
        close(loss, case["loss"], PURE, f"loss {i}")
        close(logprobs.grad, case["grad_logprobs"], PURE, f"loss {i}, logprobs")
        close(values.grad, case["grad_values"], PURE, f"loss {i}, values")
        assert set(case["stats"]) <= set(stats)
        for name, value in case["stats"].items():
            close(stats[name], value, PURE, f"loss {i}, {name}")


def test_kl_controllers(golden):
    for case in golden["kl_controller"]:
        controller = kl_controller(case["init_kl_coef"], case["target"], case["horizon"])
        for current, value_after in zip(case["current"], case["value_after"], strict=True):
            controller.update(current, case["n_steps"])
            close(controller.value, value_after, PURE)
    fixed = golden["kl_controller_fixed"]
    controller = kl_controller(fixed["init"], None, 10_000)
    controller.update(100.0, 32)
    assert controller.value == fixed["after"]


def test_running_moments(golden):
    for i, sequence in enumerate(golden["running_moments"]):
        moments = RunningMoments()
        for j, batch in enumerate(sequence):
            mean, std = moments.update(torch.tensor(batch["xs"]))
            close(mean, batch["returned_mean"], PURE, f"moments {i}, batch {j}")
            close(std, batch["returned_std"], PURE, f"moments {i}, batch {j}")
            for name in ("mean", "std", "var", "count"):
                close(getattr(moments, name), batch[name], PURE, f"moments {i}, batch {j}, {name}")


def test_logprobs_of_labels(golden):
    for i, case in enumerate(golden["logprobs_of_labels"]):
        ours = logprobs_of_labels(*tensors(case, "logits", "labels"))
        close(ours, case["out"], PURE, f"case {i}")


def test_reward_scaling(golden):
    for i, case in enumerate(golden["reward_scaling"]):
        scaler = ScoreScaler(PPOConfig(name="PPOConfig", **case["settings"]))
        added, scores, size = [], case["scores"], case["chunk_size"]
        for first in range(0, len(scores), size):
            scaled, stats = scaler(scores[first : first + size])
            added += scaled
        close(added, case["score_added"], PURE, f"scaling {i}")
        for name, value in case["stats"].items():
            close(stats[name], value, PURE, f"scaling {i}, {name}")


# --- what is trained -----------------------------------------------------------------------


def test_layers_with_lora(golden):
    for case in golden["lora_layer_selection"]:
        layers = layer_indices(case["num_hidden_layers"], case["num_layers_unfrozen"])
        assert layers == case["layers_with_lora"]


def test_presets_of_modified_modules(golden):
    for preset, modules in golden["opt_modified_modules"].items():
        assert preset_modules("opt", preset) == modules


def test_trainable_parameters(golden):
    recorded = {name.removeprefix("base_model."): s for name, s in golden["trainable_parameters"]}
    trainer = golden.trainer()
    assert {n: list(p.shape) for n, p in trainer.trained.items()} == recorded
    learning = {id(p) for p in trainer.policy.parameters() if p.requires_grad}
    assert learning == {id(p) for p in trainer.trained.values()}
    assert sum(p.numel() for p in trainer.trained.values()) == golden["n_trainable"]


def test_model_is_the_recorded_one(golden):
    config = golden.trainer().policy.base.config
    sizes = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "ffn_dim",
             "max_position_embeddings", "tie_word_embeddings", "activation_function")  # fmt: skip
    for name in sizes:
        assert getattr(config, name) == golden["model_config"][name], name


# --- configuration and signature -----------------------------------------------------------


def test_recorded_configuration_goes_in_and_out(golden):
    ours = TRLConfig.from_dict(golden["config"]).to_dict()
    for section, fields in golden["config"].items():
        for name, value in fields.items():
            assert plain(ours[section][name]) == value, f"{section}.{name}"


def test_default_configuration(golden):
    ours = default_ppo_config().to_dict()
    for section, fields in golden["api"]["default_ppo_config"].items():
        for name, value in fields.items():
            if (section, name) == ("train", "tracker"):
                value = None  # the one intended difference: trlX has "wandb"
            assert plain(ours[section][name]) == value, f"{section}.{name}"


def plain(value):
    """Tuples as the lists that JSON makes of them."""
    return list(value) if isinstance(value, tuple) else (
        {k: plain(v) for k, v in value.items()} if isinstance(value, dict) else value
    )  # fmt: skip


def test_signature_has_trlx_arguments_and_defaults(golden):
    parameters = inspect.signature(train).parameters
    # "name: Optional[...] = default"; a default holds no comma.
    recorded = re.findall(r"(\w+): .*? = (None|\[\])[,)]", golden["api"]["train_signature"])
    assert len(recorded) == golden["api"]["train_signature"].count(" = ")
    assert list(parameters)[: len(recorded)] == [name for name, _ in recorded]
    for name, default in recorded:
        assert parameters[name].default == {"None": None, "[]": []}[default], name


# --- text ----------------------------------------------------------------------------------


def test_prompt_pipeline(golden):
    for i, case in enumerate(golden["prompt_pipeline"]):
        config = golden.config(**{"tokenizer.truncation_side": case["truncation_side"]})
        tokenizer = load_tokenizer(config.tokenizer)
        prompts = tokenize_prompts(case["prompts"], tokenizer, case["max_prompt_length"])
        ids, mask = pad_prompts(prompts, tokenizer.pad_token_id)
        assert ids.tolist() == case["input_ids"], f"prompts {i}"
        assert mask.tolist() == case["attention_mask"], f"prompts {i}"


def retokenised(tokenizer, prompt_ids, outputs):
    """What trlX's semantics make of outputs."""
    mask = torch.ones_like(prompt_ids)  # which trlX does not look at
    return sequences_of(TrlxSemantics(), tokenizer, prompt_ids, mask, prompt_ids, outputs)


def test_decoding_and_retokenising(golden):
    for i, case in enumerate(golden["decode"]):
        tokenizer = load_tokenizer(golden.config(case["tokenizer"]).tokenizer)
        prompt_ids, sample_ids = tensors(case, "prompt_ids", "sample_ids")
        texts = decode(
            tokenizer, prompt_ids, sample_ids, case["stop_sequences"], case["append_eos_token"]
        )
        assert texts.samples == case["samples"], f"decode {i}"
        assert texts.prompts == case["prompts"], f"decode {i}"
        assert texts.outputs == case["outputs"], f"decode {i}"
        sequences = retokenised(tokenizer, prompt_ids, texts.outputs)
        width = sequences.tokens.shape[1] - prompt_ids.shape[1]
        padded = [
            ids + [tokenizer.pad_token_id] * (width - len(ids)) for ids in case["retokenized"]
        ]
        assert sequences.tokens[:, prompt_ids.shape[1] :].tolist() == padded, f"decode {i}"


# --- forward passes ------------------------------------------------------------------------


@torch.no_grad()
def test_forward_passes(golden):
    case = golden["forward"]
    ids, mask = tensors(case, "input_ids", "attention_mask")
    policy = golden.trainer().policy
    scored = policy.score(ids, mask)
    seen = mask[:, :-1].bool()
    close(scored.logprobs[seen], torch.tensor(case["policy_label_logprobs"])[seen], MODEL)
    close(scored.ref_logprobs[seen], torch.tensor(case["ref_label_logprobs"])[seen], MODEL)
    _, hidden = policy.trunk_and_hidden(ids, mask)
    seen = mask.bool()
    close(policy.value(hidden)[seen], torch.tensor(case["values"])[seen], MODEL)
    # Whole distributions, from the model that generates.
    logits = policy.base(input_ids=ids, attention_mask=mask).logits[:, -1]
    close(logits, case["policy_logits_last"], MODEL)
    with lora_disabled(policy.base):
        ref_logits = policy.base(input_ids=ids, attention_mask=mask).logits[:, -1]
    close(ref_logits, case["ref_logits_last"], MODEL)


# --- rollouts ------------------------------------------------------------------------------


class Replay:
    """Lets a trainer make rollouts of recorded samples instead of drawing its own."""

    def __init__(self, golden, name):
        self.recorded = golden[name]
        # The case with stop sequences decodes another case's samples and names only what differs.
        whole = golden["rollout_nobos"] if name == "rollout_nobos_stop" else self.recorded
        self.kl_coef = whole["kl_coef"]
        inherited = ("prompt_attention_mask", "scores")
        self.chunks = [
            {**{key: old[key] for key in inherited}, **new}
            for old, new in zip(whole["chunks"], self.recorded["chunks"], strict=True)
        ]
        self.calls: list[dict] = []  # what reward_fn was given
        self.generated: list[tuple] = []  # what generate was given
        self.trainer = golden.trainer(
            "bos" if name == "rollout_bos" else "nobos",
            self.reward_fn,
            stop_sequences=self.recorded.get("stop_sequences", []),
        )
        self.trainer.add_prompts(["not used"], ["not used"])
        self.trainer.experience.prompts = map(self.prompts_of, self.chunks)
        self.trainer.policy.generate = self.generate

    def make(self):
        """All rollouts and what is logged of them."""
        n = sum(len(chunk["elements"]) for chunk in self.chunks)
        return self.trainer.experience.make(n, self.kl_coef)

    def prompts_of(self, chunk):
        return [
            Prompt([t for t, seen in zip(ids, mask, strict=True) if seen])
            for ids, mask in zip(
                chunk["prompt_input_ids"], chunk["prompt_attention_mask"], strict=True
            )
        ]

    def generate(self, input_ids, attention_mask, **_):
        self.generated.append((input_ids.tolist(), attention_mask.tolist()))
        return torch.tensor(self.chunks[len(self.generated) - 1]["samples"])

    def reward_fn(self, samples, prompts, outputs):
        self.calls.append({"samples": samples, "prompts": prompts, "outputs": outputs})
        return self.chunks[len(self.calls) - 1]["scores"]


@pytest.fixture(scope="module", params=["rollout_bos", "rollout_nobos", "rollout_nobos_stop"])
def replayed(request, golden):
    """One of the three recorded cases, made again: (replay, rollouts, statistics)."""
    replay = Replay(golden, request.param)
    return replay, *replay.make()


def test_rollouts_sample_from_the_recorded_prompts(replayed):
    replay, _, _ = replayed
    for chunk, (ids, mask) in zip(replay.chunks, replay.generated, strict=True):
        assert ids == chunk["prompt_input_ids"]
        assert mask == chunk["prompt_attention_mask"]


def test_reward_function_gets_the_recorded_texts(replayed):
    replay, _, _ = replayed
    for chunk, call in zip(replay.chunks, replay.calls, strict=True):
        assert call == chunk["reward_fn_args"]


def test_stored_rollouts(replayed):
    replay, rollouts, _ = replayed
    recorded = [
        (element, response)
        for chunk in replay.chunks
        for element, response in zip(chunk["elements"], chunk["response_tensors"], strict=True)
    ]
    ours = one_by_one(rollouts)
    for i, (rollout, (element, response)) in enumerate(zip(ours, recorded, strict=True)):
        assert rollout.response.tolist() == response, f"rollout {i}"
        close(rollout.logprobs, element["logprobs"], MODEL, f"rollout {i}, logprobs")
        close(rollout.values, element["values"], MODEL, f"rollout {i}, values")
        close(rollout.rewards, element["rewards"], REWARD, f"rollout {i}, rewards")


def test_rollout_statistics(replayed, golden):
    replay, _, stats = replayed
    if "mean_kl" in replay.recorded:
        assert stats["mean_kl"] == pytest.approx(replay.recorded["mean_kl"], rel=1e-4)
    for name, value in replay.recorded.get("stats", {}).items():
        close(stats[name], value, MODEL, name)
    assert set(golden["api"]["logged_keys_rollout"]) <= set(stats)


def test_scoring_of_whole_sequences(replayed):
    replay, _, _ = replayed
    for i, chunk in enumerate(replay.chunks):
        if "policy_logprobs_full" not in chunk:
            continue
        sequences = retokenised(
            replay.trainer.tokenizer,
            torch.tensor(chunk["prompt_input_ids"]),
            chunk["reward_fn_args"]["outputs"],
        )
        assert sequences.attention_mask.tolist() == chunk["all_tokens_attention_mask"]
        scored = replay.trainer.policy.score(sequences.tokens, sequences.attention_mask)
        seen = sequences.attention_mask[:, :-1].bool()
        full, ref_full = tensors(chunk, "policy_logprobs_full", "ref_logprobs_full")
        close(scored.logprobs[seen], full[seen], MODEL, f"chunk {i}")
        close(scored.ref_logprobs[seen], ref_full[seen], MODEL, f"chunk {i}")


def test_divergence_of_each_chunk(golden):
    for name in ("rollout_bos", "rollout_nobos"):
        replay = Replay(golden, name)
        for i, chunk in enumerate(replay.chunks):
            n = len(chunk["elements"])
            _, stats = replay.trainer.experience.make(n, replay.kl_coef)
            assert stats["mean_kl"] == pytest.approx(chunk["chunk_mean_kl"], rel=1e-4), (name, i)


# --- the update ----------------------------------------------------------------------------


class _RecordEnds(Exception):
    """The trainer asked for rollouts beyond the recorded ones."""


@pytest.fixture(scope="module")
def update(golden):
    """The recorded optimizer steps, taken by the training loop itself."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        replay = Replay(golden, "rollout_bos")
        rollouts, stats = replay.make()
        trainer = golden.trainer(callback=lambda line: lines.append(line))
    lines, gradients, kl_updates, recorded = [], [], [], golden["update"]
    trainer.add_prompts(["a prompt"], ["a prompt"])
    batches = iter([(rollouts, stats)])

    def make(num_rollouts, kl_coef):
        for batch in batches:
            return batch
        raise _RecordEnds

    def move_coefficient(current, n_steps, move=trainer.kl_ctl.update):
        move(current, n_steps)
        kl_updates.append(
            {"after_step": trainer.step, "current": current, "n_steps": n_steps,
             "value": trainer.kl_ctl.value}
        )  # fmt: skip

    trainer.experience.make = make
    trainer.our_plan = trainer._plan
    trainer._plan = lambda: recorded["minibatch_of_step"]
    trainer.kl_ctl.update = move_coefficient
    trainer.optimizer.optimizer.register_step_pre_hook(
        lambda *_: gradients.append({n: p.grad.clone() for n, p in trainer.trained.items()})
    )
    try:
        trainer.learn()
    except _RecordEnds:
        pass
    steps = [line for line in lines if "losses/total_loss" in line]
    return trainer, steps, gradients, kl_updates


def test_minibatches_have_trlx_order_and_sizes(golden, update):
    trainer, *_ = update
    recorded = golden["update"]["minibatch_of_step"]
    ours = trainer.our_plan()
    assert [len(batch) for batch in ours][: len(recorded)] == [len(batch) for batch in recorded]
    epochs = golden["update"]["ppo_epochs"]
    for plan in (ours, recorded):  # each minibatch ppo_epochs times in a row, every rollout once
        assert all(plan[i] == plan[i - i % epochs] for i in range(len(plan)))
    assert sorted(i for batch in ours[::epochs] for i in batch) == list(range(len(trainer.store)))
    order = [i for batch in recorded[::epochs] for i in batch]
    assert order == golden["update"]["element_order"][: len(order)]


def test_first_minibatch(golden, update):
    trainer, *_ = update
    batch = trainer.minibatch(golden["update"]["minibatch_of_step"][0])
    recorded = golden["update"]["first_batch"]
    width = batch.start + 1
    assert batch.tokens[:, :width].tolist() == recorded["query_tensors"]
    assert batch.tokens[:, width:].tolist() == recorded["response_tensors"]
    close(batch.logprobs, recorded["logprobs"], MODEL)
    close(batch.values, recorded["values"], MODEL)
    close(batch.rewards, recorded["rewards"], REWARD)


def test_statistics_of_each_step(golden, update):
    _, steps, _, _ = update
    for line, recorded in zip(steps, golden["update"]["steps"], strict=True):
        for name, value in recorded.items():
            close(line[name], value, MODEL, f"step {recorded['step']}, {name}")
        assert set(golden["api"]["logged_keys_step"]) <= set(line)


def test_gradients(golden, update):
    _, _, gradients, _ = update
    first = golden.tensors("grad1")
    assert set(gradients[0]) == set(first)
    for name, gradient in gradients[0].items():
        close(gradient, first[name], GRADIENT, name)
    for ours, recorded in zip(gradients, golden["update"]["grad_norms"], strict=True):
        for name, norm in recorded.items():
            close(ours[name].norm(), norm, MODEL, name)


def test_kl_coefficient_after_each_minibatch(golden, update):
    _, _, _, kl_updates = update
    recorded = golden["update"]["kl_updates"]
    if golden["config"]["method"]["target"] is not None:
        assert len(kl_updates) == len(recorded)
    by_step = {change["after_step"]: change for change in kl_updates}
    for change in recorded:
        for name, value in change.items():
            close(by_step[change["after_step"]][name], value, PURE, name)


def test_final_weights(golden, update):
    trainer, *_ = update
    initial, final = golden.tensors("init"), golden.tensors("final")
    for name, parameter in trainer.trained.items():
        assert (parameter.detach() - final[name]).abs().max() <= WEIGHT, name
        ours, recorded = parameter.detach() - initial[name], final[name] - initial[name]
        assert (ours - recorded).norm() <= 1e-2 * recorded.norm(), name
        assert torch.cosine_similarity(ours.flatten(), recorded.flatten(), dim=0) > 0.999, name
        norm = golden["update"]["final_param_change_norm"][name]
        assert ours.norm().item() == pytest.approx(norm, rel=1e-2), name


def test_checkpoint_holds_what_trlx_checkpoint_holds(golden, update):
    trainer, *_ = update
    ours = {"optimizer.bin": "optimizer", "pytorch_model.bin": "trained",
            "scheduler.bin": "scheduler", "random_states_0.pkl": "processes"}  # fmt: skip
    directory = trainer.save()
    state = torch.load(directory / "state.pt", weights_only=True)
    for name in golden["update"]["checkpoint_files"]:
        assert state[ours[name]]
