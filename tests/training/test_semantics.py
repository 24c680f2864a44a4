"""`method.semantics`: what trlX v0.6.0 does, and beside it what `corrected` does instead.

One test for each line of the table in docs/coming_from_trlx.md.
"""

import contextlib
import json
import re
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tiny_runs import PROMPTS, letter_reward, model_dir, one_by_one, run_config

from rlhf_helpers.algorithms.ppo import kl_controller
from rlhf_helpers.config.checks import ConfigWarning
from rlhf_helpers.data.prompts import Prompt
from rlhf_helpers.models.loading import load_policy
from rlhf_helpers.models.lora import lora_disabled
from rlhf_helpers.training import semantics as semantics_page
from rlhf_helpers.training.rollout import build_rollouts
from rlhf_helpers.training.sequences import decode
from rlhf_helpers.training.trainer import PPOTrainer

EOS = 2  # of the recorded tokenizers; padding too


def trainer_with(root, semantics, tokenizer="bos", reward_fn=letter_reward, **overrides):
    """A trainer whose policy differs from its reference, with prompts."""
    config = run_config(root, "opt", tokenizer, method__semantics=semantics, **overrides)
    trainer = PPOTrainer(config, reward_fn)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in trainer.trained.items():
            if name.endswith("lora_B"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    trainer.add_prompts(PROMPTS, PROMPTS[:2])
    return trainer


@pytest.fixture
def both(tmp_path):
    """Trainers of the two semantics, equal in everything else; LoRA dropout 0.1."""
    return {s: trainer_with(tmp_path, s) for s in ("trlx", "corrected")}


def sequences_of(trainer, response, prompt=(80, 81)):
    """One prompt and one response, as this trainer's semantics keep them."""
    ids = torch.tensor([prompt])
    rows = torch.tensor([[*prompt, *response]])
    return kept_by(trainer, ids, rows)


def kept_by(trainer, ids, rows):
    """Samples [n, Q + new tokens] of prompts [n, Q], as this trainer's semantics keep them."""
    texts = decode(trainer.tokenizer, ids, rows, append_eos_token=True)
    return semantics_page.sequences_of(
        trainer.semantics, trainer.tokenizer, ids, torch.ones_like(ids), rows, texts.outputs
    )


# --- the page and the table --------------------------------------------------------------------


def test_the_page_and_the_table_have_the_same_rows_in_the_same_order():
    page = Path(semantics_page.__file__).read_text(encoding="utf-8")
    table = (Path(__file__).parents[2] / "docs" / "coming_from_trlx.md").read_text("utf-8")
    rows = re.findall(r"^\| (\d+\. [^|]+?) \|", table, re.MULTILINE)
    titles = re.findall(r"^    # (\d+\. [^:]+):", page, re.MULTILINE)
    assert len(rows) == 12
    assert titles == [*rows, *rows]  # once for trlX, once for its correction


def test_both_semantics_answer_the_same_questions():
    both = semantics_page.TrlxSemantics, semantics_page.CorrectedSemantics
    first, second = ([n for n in vars(cls) if not n.startswith("__")] for cls in both)
    assert first == second


def test_no_other_module_asks_which_semantics_is_at_work():
    package = Path(semantics_page.__file__).parents[1]
    question = re.compile(r"""semantics"?\]? *[!=]=|[!=]= *["']corrected""")
    asking = [p.name for p in package.rglob("*.py") if question.search(p.read_text("utf-8"))]
    # Where a further seed is kept depends on whether it has its profile's semantics.
    assert asking == ["committed_runs.py"]


# --- text and tokens -------------------------------------------------------------------------


def test_beginning_of_sequence_where_the_tokenizer_expects_it(both):
    first = {s: t.experience.prompts.prompts[0].input_ids for s, t in both.items()}
    assert first["trlx"][0] != EOS
    assert first["corrected"] == [EOS, *first["trlx"]]
    # A tokenizer that expects none gets none.


def test_no_beginning_where_the_tokenizer_expects_none(tmp_path):
    trainer = trainer_with(tmp_path, "corrected", tokenizer="nobos")
    assert trainer.experience.prompts.prompts[0].input_ids[0] != EOS


def test_the_ids_that_were_drawn_are_kept(both):
    # "pol" drawn as three letters, which the tokenizer would write with fewer tokens.
    tokenizer = both["trlx"].tokenizer
    letters = [tokenizer(c, add_special_tokens=False)["input_ids"][0] for c in "policy"]
    kept = {s: sequences_of(t, [*letters, EOS]).tokens[0, 2:].tolist() for s, t in both.items()}
    assert kept["corrected"] == [*letters, EOS]
    assert kept["trlx"][0] == EOS  # special tokens come back between prompt and response
    assert kept["trlx"][1:] != [*letters, EOS]


def test_a_text_ends_with_the_token_that_the_settings_name(tmp_path):
    """Padding behind an `eos_token_id` that is not the tokenizer's was drawn by nobody."""
    trainer = trainer_with(tmp_path, "corrected", method__gen_kwargs={"eos_token_id": 100})
    ids = torch.tensor([[80, 81]] * 2)
    rows = torch.tensor([[80, 81, 90, 100, EOS, EOS], [80, 81, 91, EOS, 92, 100]])
    prompts, times = [Prompt([80, 81])] * 2, {"time/exp_score": 0.0}
    _, kept = trainer.experience.read(ids, torch.ones_like(ids), rows, prompts, times)
    assert kept.tokens.tolist() == rows.tolist()
    assert kept.attention_mask.tolist() == [[1, 1, 1, 1, 0, 0], [1] * 6]
    assert kept.loss_mask.tolist() == [[0, 1, 1, 0, 0], [0, 1, 1, 1, 1]]
    assert kept.ends == [3, 5]


def test_end_of_text_and_beginning_are_seen_and_padding_is_not(both):
    response = [90, 91, EOS, EOS, EOS]  # one end of text, then padding
    masks = {s: sequences_of(t, response).attention_mask[0].tolist() for s, t in both.items()}
    tokens = {s: sequences_of(t, response).tokens[0].tolist() for s, t in both.items()}
    assert [m for m, t in zip(masks["trlx"], tokens["trlx"], strict=True) if t == EOS] != []
    assert not any(m for m, t in zip(masks["trlx"], tokens["trlx"], strict=True) if t == EOS)
    assert tokens["corrected"] == [80, 81, 90, 91, EOS]
    assert masks["corrected"] == [1, 1, 1, 1, 1]


def test_every_drawn_token_is_trained_and_nothing_else(both):
    response = [90, 91, EOS]
    trained = {}
    for name, trainer in both.items():
        sequences = sequences_of(trainer, response)
        start = sequences.query_width - 1
        columns = sequences.loss_mask[0, start : sequences.ends[0]].bool()
        trained[name] = sequences.tokens[0, start + 1 : sequences.ends[0] + 1][columns].tolist()
    assert trained["corrected"] == response
    # trlX trains the </s> that it put in itself, and not the first token that was drawn.
    retokenised = sequences_of(both["trlx"], response).tokens[0, 2:].tolist()
    assert retokenised[0] == EOS and trained["trlx"][0] == EOS
    assert retokenised[1] not in trained["trlx"]


@pytest.mark.parametrize("tokenizer", ["bos", "nobos"])
def test_the_score_lies_on_the_last_real_token(tmp_path, tokenizer):
    inside_the_loss, predicted = {}, {}
    for semantics in ("trlx", "corrected"):
        trainer = trainer_with(tmp_path, semantics, tokenizer)
        # A longer neighbour, so that there are columns behind the end of the first.
        ids = torch.tensor([[80, 81], [80, 81]])
        rows = torch.tensor([[80, 81, 90, 91, EOS, EOS, EOS, EOS],
                             [80, 81, 90, 91, 92, 93, 94, 95]])  # fmt: skip
        sequences = kept_by(trainer, ids, rows)
        store, _ = build_rollouts(trainer.policy, sequences, [7.0, 0.0], 0.0, trainer.semantics)
        rollouts = one_by_one(store)
        column = 1 + rollouts[0].rewards.argmax().item()
        assert rollouts[0].rewards.max() == 7
        inside_the_loss[semantics] = bool(sequences.loss_mask[0, column])
        predicted[semantics] = sequences.tokens[0, : column + 2].tolist()[2:]
    assert inside_the_loss["corrected"]
    assert predicted["corrected"] == [90, 91, EOS]
    if tokenizer == "nobos":  # one past end of text, reached only through GAE
        assert not inside_the_loss["trlx"]
        assert predicted["trlx"][-2:] == [EOS, EOS]


def test_the_reward_function_sees_text_and_no_special_tokens(tmp_path):
    for semantics, seen_in_rollouts in (("trlx", True), ("corrected", False)):
        texts = []

        def reward_fn(samples, texts=texts, **kwargs):
            texts.append(samples)
            return [0.0] * len(samples)

        trainer = trainer_with(tmp_path / semantics, semantics, reward_fn=reward_fn)
        trainer.directory.mkdir(parents=True)
        draw = trainer.policy.generate

        def ended(ids, mask, draw=draw, **kwargs):
            rows = draw(ids, mask, **kwargs)
            return F.pad(rows, (0, 1), value=EOS)

        trainer.policy.generate = ended
        trainer.experience.make(4, 0.05)
        assert all(text.endswith("</s>") for text in texts[-1]) == seen_in_rollouts
        trainer.evaluate()  # where trlX itself shows none
        assert not any("</s>" in text for text in texts[-1])


# --- divergence ------------------------------------------------------------------------------


def rollouts_of(trainer, n=8):
    torch.manual_seed(0)
    return trainer.experience.make(n, 0.05)


def test_divergence_is_k3_per_sequence_over_the_response(tmp_path):
    trainer = trainer_with(tmp_path, "corrected", model__delta_kwargs={"lora_dropout": 0.0})
    rollouts, stats = rollouts_of(trainer)
    per_sequence = []
    for r in one_by_one(rollouts):
        log_r = (r.ref_logprobs - r.logprobs).double()
        per_sequence.append((log_r.exp() - 1 - log_r)[r.loss_mask.bool()].sum().item())
    assert stats["mean_kl"] == pytest.approx(sum(per_sequence) / len(per_sequence), rel=1e-4)


@pytest.mark.parametrize("semantics", ["trlx", "corrected"])
@pytest.mark.parametrize("coefficient", [0.0, 0.05])
def test_without_a_penalty_corrected_compares_some_rollouts_with_the_reference(
    tmp_path, semantics, coefficient
):
    """Two chunks of 64: every second rollout; with a coefficient, and under trlx, each of them."""
    trainer = trainer_with(tmp_path, semantics, model__delta_kwargs={"lora_dropout": 0.0},
                           method__chunk_size=64, method__num_rollouts=128)  # fmt: skip
    chosen = [PROMPTS[i % len(PROMPTS)] for i in range(128)]
    trainer.add_prompts(chosen, PROMPTS[:1])
    torch.manual_seed(0)
    store, stats = trainer.experience.make(128, coefficient)
    some = semantics == "corrected" and coefficient == 0
    k1 = []
    for i, r in enumerate(one_by_one(store)):
        difference = (r.logprobs - r.ref_logprobs)[r.loss_mask.bool()]
        if some and i % 2:
            assert (difference == 0).all()
        else:
            k1.append(difference.sum().item())
    assert len(k1) == (64 if some else 128) and sum(map(bool, k1)) > 60
    if semantics == "corrected":
        assert stats["objective/kl"] == pytest.approx(sum(k1) / len(k1), rel=1e-4)
    if coefficient == 0:  # what is learned from does not depend on it
        assert store.rewards.sum(1).tolist() == pytest.approx(store.scores, abs=1e-5)


def test_how_many_rollouts_are_compared_without_a_penalty():
    """Every fourth, and 32 at least where there are so many."""
    measured = semantics_page.CorrectedSemantics().measured
    assert list(measured(4, 0.0)) == [0, 1, 2, 3] and len(measured(63, 0.0)) == 63
    assert list(measured(64, 0.0))[:3] == [0, 2, 4] and len(measured(64, 0.0)) == 32
    assert list(measured(256, 0.0))[:3] == [0, 4, 8] and len(measured(256, 0.0)) == 64
    assert len(measured(256, 1e-9)) == 256 == len(semantics_page.TrlxSemantics().measured(256, 0.0))


def test_trlx_divergence_is_per_entry_reversed_and_of_the_last_chunk(tmp_path):
    trainer = trainer_with(tmp_path, "trlx", model__delta_kwargs={"lora_dropout": 0.0})
    rollouts, stats = rollouts_of(trainer)
    last = one_by_one(rollouts)[4:]  # chunks of 4
    total, entries = 0.0, 0
    for r in last:
        seen = r.attention_mask[len(r.query) - 1 :][: len(r.logprobs)]
        d = ((r.logprobs - r.ref_logprobs) * seen).double()
        total += (d.exp() - 1 - d).sum().item()
        # The prompt's columns are inside the mean: here they diverge too.
        tokens = torch.cat([r.query, r.response])[None]
        scored = trainer.policy.score(tokens, r.attention_mask[None])
        d = ((scored.logprobs - scored.ref_logprobs) * r.attention_mask[None, :-1])[0]
        d = d[: len(r.query) - 1].double()
        total += (d.exp() - 1 - d).sum().item()
        entries += tokens.shape[1] - 1
    assert stats["mean_kl"] == pytest.approx(total / entries, rel=1e-3)


def test_the_controller_can_reach_its_target(both):
    """A policy twice as far from the reference as its target, in nats a sequence."""
    divergence = {name: rollouts_of(trainer)[1]["mean_kl"] for name, trainer in both.items()}
    controllers = {}
    for name in both:
        controller = controllers[name] = kl_controller(0.05, divergence["corrected"] / 2, 100)
        controller.update(divergence[name], 8)
    assert controllers["corrected"].value > 0.05
    # Per entry of a padded batch the same divergence looks small, and only lowers the coefficient.
    assert controllers["trlx"].value < 0.05


def test_the_controller_moves_once_an_iteration_by_all_rollouts(both):
    moves = {}
    for name, trainer in both.items():
        trainer.store, trainer.plan = range(8), [[0, 1, 2, 3]] * 4
        calls = moves[name] = []
        trainer.kl_ctl.update = lambda current, n_steps, calls=calls: calls.append(n_steps)
        for trainer.position in (1, 2, 3, 4):
            trainer._update_kl_coefficient()
    assert moves == {"trlx": [4, 4], "corrected": [8]}


@pytest.mark.parametrize("semantics", ["trlx", "corrected"])
def test_every_rollout_counts_the_same_also_those_of_a_short_chunk(tmp_path, semantics):
    """Nine prompts in chunks of eight and one; trlX takes the mean of the two chunks' means."""
    lengths = {"chunk_size": 8, "num_rollouts": 9}
    trainer = trainer_with(
        tmp_path, semantics, model__delta_kwargs={"lora_dropout": 0.0},
        **{f"method__{name}": n for name, n in lengths.items()},
    )  # fmt: skip
    trainer.add_prompts([*PROMPTS, "the value"], PROMPTS[:1])
    rollouts, stats = trainer.experience.make(9, 0.05)
    # trlX counts every column that is no padding, here as far as it was scored.
    counted = rollouts.loss_mask
    k1 = ((rollouts.logprobs - rollouts.ref_logprobs) * counted).sum(1).tolist()
    by_chunk = (sum(k1[:8]) / 8 + k1[8]) / 2
    by_rollout = sum(k1) / 9
    assert abs(by_chunk - by_rollout) > 0.01
    if semantics == "trlx":
        assert stats["objective/kl"] == pytest.approx(by_chunk, rel=1e-3)
        return
    assert stats["objective/kl"] == pytest.approx(by_rollout, rel=1e-3)
    d = (rollouts.ref_logprobs - rollouts.logprobs).double() * counted
    k3 = (d.exp() - 1 - d).sum(1)
    assert stats["mean_kl"] == pytest.approx(k3.mean().item(), rel=1e-3)


# --- the update --------------------------------------------------------------------------------


def test_padding_does_not_enter_advantages_and_statistics(tmp_path):
    """The same rollouts in a wider batch: only trlX's unmasked moments notice."""
    differences = {}
    for semantics in ("trlx", "corrected"):
        trainer = trainer_with(tmp_path, semantics, model__delta_kwargs={"lora_dropout": 0.0})
        trainer.store, _ = rollouts_of(trainer)
        with torch.no_grad():  # so that ratios are not all 1
            trainer.trained["v_head.0.bias"].add_(0.1)
            for name, parameter in trainer.trained.items():
                if name.endswith("lora_A"):
                    parameter.mul_(1.5)
        batch = trainer.minibatch(range(8))
        loss, stats = trainer.loss(batch)
        for name in ("logprobs", "values", "advantages", "returns", "loss_mask"):
            setattr(batch, name, F.pad(getattr(batch, name), (0, 5)))
        batch.tokens = F.pad(batch.tokens, (0, 5), value=EOS)
        batch.attention_mask = F.pad(batch.attention_mask, (0, 5))
        batch.trunk = None
        wider_loss, wider_stats = trainer.loss(batch)
        differences[semantics] = [
            abs(wider_loss.item() - loss.item()),
            abs(wider_stats["policy/approx_kl"].item() - stats["policy/approx_kl"].item()),
        ]
    assert all(d < 1e-5 for d in differences["corrected"])
    assert all(d > 1e-4 for d in differences["trlx"])


def test_epochs_are_reshuffled(both):
    plans = {}
    for name, trainer in both.items():
        trainer.store = range(8)
        plans[name] = trainer._plan()
    trlx, corrected = plans["trlx"], plans["corrected"]
    assert trlx[0] == trlx[1] and trlx[2] == trlx[3]  # a minibatch twice in a row
    assert corrected[0] != corrected[1]
    for epoch in (corrected[:2], corrected[2:]):  # every rollout once an epoch
        assert sorted(i for batch in epoch for i in batch) == list(range(8))
    assert corrected[:2] != corrected[2:]


# --- dropout -----------------------------------------------------------------------------------


def test_dropout_is_off_outside_training(both):
    ids = torch.tensor([[80, 81, 82, 83, 84, 85]])
    repeatable, during_updates = {}, {}
    for name, trainer in both.items():
        scores = [trainer.policy.score(ids, torch.ones_like(ids)).logprobs for _ in range(2)]
        repeatable[name] = torch.equal(*scores)
        trainer.store, _ = rollouts_of(trainer)
        active = during_updates[name] = []
        loss = trainer.loss

        def seen(batch, loss=loss, active=active, trainer=trainer):
            active.append(trainer.policy.lora_dropout_active)
            return loss(batch)

        trainer.loss = seen
        trainer.optimizer_step([0, 1, 2, 3])
        assert trainer.policy.lora_dropout_active == (name == "trlx")
    assert repeatable == {"trlx": False, "corrected": True}
    assert during_updates == {"trlx": [True], "corrected": [True]}


def test_corrected_rollouts_are_those_that_the_policy_drew(tmp_path):
    """What is stored as log-probability is that of sampling: ratio 1 before the first update."""
    differences = {}
    for semantics in ("trlx", "corrected"):
        trainer = trainer_with(
            tmp_path, semantics, model__delta_kwargs={"lora_dropout": 0.0}
        )  # fmt: skip
        drawn = {}

        def generate(ids, mask, drawn=drawn, trainer=trainer, **kwargs):
            out = trainer.policy.base.generate(
                input_ids=ids, attention_mask=mask, eos_token_id=EOS, pad_token_id=EOS,
                output_scores=True, return_dict_in_generate=True, **kwargs,
            )  # fmt: skip
            logprobs = torch.stack(out.scores, 1).log_softmax(-1)
            new = out.sequences[:, ids.shape[1] :]
            drawn["ids"], drawn["logprobs"] = new, logprobs.gather(-1, new[..., None])[..., 0]
            return out.sequences

        trainer.policy.generate = generate
        rollouts, _ = rollouts_of(trainer, n=4)
        differences[semantics] = max(
            float("inf") if len(r.logprobs) > drawn["logprobs"].shape[1]
            else (r.logprobs - drawn["logprobs"][i, : len(r.logprobs)]).abs().max().item()
            for i, r in enumerate(one_by_one(rollouts))
        )  # fmt: skip
    assert differences["corrected"] < 1e-4
    assert differences["trlx"] > 0.1


# --- temperature -------------------------------------------------------------------------------


def test_the_policy_that_acted_is_that_of_the_samples_temperature(tmp_path):
    """softmax(logits / 0.5), token by token from transformers' own logits of single sequences."""
    for semantics, temperature in (("trlx", 1.0), ("corrected", 0.5)):
        trainer = trainer_with(
            tmp_path, semantics, "nobos", model__delta_kwargs={"lora_dropout": 0.0},
            method__gen_kwargs={"temperature": 0.5},
        )  # fmt: skip
        rollouts, _ = rollouts_of(trainer, n=4)
        for i, rollout in enumerate(one_by_one(rollouts)):
            expected = plain_logprobs(trainer, rollouts, i, temperature)
            stored = rollout.logprobs, rollout.ref_logprobs
            for ours, theirs in zip(stored, expected, strict=True):
                assert len(theirs) > 1
                torch.testing.assert_close(ours[: len(theirs)], theirs, atol=1e-4, rtol=0)
            other, _ = plain_logprobs(trainer, rollouts, i, 1.5 - temperature)
            assert (other - expected[0]).abs().max() > 0.1


@torch.no_grad()
def plain_logprobs(trainer, store, i, temperature):
    """Of one rollout's response tokens, as far as they are attended to: policy's, reference's."""
    seen = store.attention_mask[i] == 1
    ids = store.tokens[i][seen].unsqueeze(0)
    first = int(seen[: store.query_width].sum()) - 1
    both = []
    for context in (contextlib.nullcontext(), lora_disabled(trainer.policy.base)):
        with context:
            logits = trainer.policy.base(input_ids=ids).logits[0, first:-1]
        logprobs = (logits / temperature).log_softmax(-1)
        both.append(logprobs.gather(-1, ids[0, first + 1 :].unsqueeze(-1)).squeeze(-1))
    return both


def test_a_step_has_the_gradient_of_the_distribution_that_acted(tmp_path):
    """Ratio 1 before the first update at temperature 0.5, and the loss sees the temperature."""
    trainer = trainer_with(
        tmp_path, "corrected", model__delta_kwargs={"lora_dropout": 0.0},
        method__gen_kwargs={"temperature": 0.5},
    )  # fmt: skip
    trainer.store, _ = rollouts_of(trainer)
    batch = trainer.minibatch(range(4))
    width = batch.logprobs.shape[1]
    arguments = (batch.tokens, batch.attention_mask, batch.start, width, batch.trunk)
    logprobs, _ = trainer.policy(*arguments)
    seen = batch.loss_mask == 1
    torch.testing.assert_close(logprobs[seen], batch.logprobs[seen], atol=1e-4, rtol=0)
    assert trainer.loss(batch)[1]["ratio"].item() == pytest.approx(1, abs=1e-4)


def test_a_greedy_sampler_has_no_temperature(tmp_path):
    trainer = trainer_with(
        tmp_path, "corrected", method__gen_kwargs={"temperature": 0.5, "do_sample": False}
    )
    assert trainer.policy.temperature == 1


def test_the_models_own_temperature_counts_where_none_is_given(tmp_path):
    policy = load_policy(run_config(tmp_path), "cpu")
    policy.base.generation_config.temperature = 0.7
    assert policy.sampling_temperature({"do_sample": True}) == 0.7
    assert policy.sampling_temperature({"do_sample": True, "temperature": 0.9}) == 0.9
    assert policy.sampling_temperature({}) == 1
    policy.base.generation_config.do_sample = True
    assert policy.sampling_temperature({}) == 0.7
    assert policy.sampling_temperature({"do_sample": False}) == 1


def test_tokens_that_samples_leave_out_are_said(tmp_path):
    truncated = {"method__gen_kwargs": {"top_k": 5, "top_p": 0.9}}
    with pytest.warns(ConfigWarning) as caught:
        trainer_with(tmp_path, "corrected", **truncated)
    said = [str(w.message) for w in caught if "leave out tokens" in str(w.message)]
    assert [x.split(":")[0] for x in said] == [
        "method.gen_kwargs.top_k is 5", "method.gen_kwargs.top_p is 0.9"]  # fmt: skip
    assert said[0].endswith("set it to 0 to sample from the whole policy.")
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConfigWarning)
        trainer_with(tmp_path, "trlx", **truncated)
        trainer_with(tmp_path, "corrected")


def test_the_models_own_top_p_is_said_where_none_is_given(tmp_path):
    path = model_dir(tmp_path, "opt", "bos") / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"do_sample": True, "top_p": 0.5}))
    given = {"max_new_tokens": 4, "do_sample": True, "top_k": 0}
    experience = "method__gen_experience_kwargs"
    with pytest.warns(ConfigWarning) as caught:
        trainer_with(tmp_path, "corrected", **{experience: given})
    said = [str(w.message) for w in caught if "leave out tokens" in str(w.message)]
    assert [x.split(":")[0] for x in said] == [
        "method.gen_experience_kwargs.top_p is 0.5 by the model's generation_config"
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConfigWarning)
        trainer_with(tmp_path, "corrected", **{experience: given | {"top_p": 1.0}})
        trainer_with(tmp_path, "corrected", **{experience: given | {"do_sample": False}})


def test_transformers_own_top_k_is_said_where_none_is_given(tmp_path):
    settings = {"max_new_tokens": 4, "do_sample": True}
    with pytest.warns(ConfigWarning, match="gen_experience_kwargs.top_k is 50: samples leave out"):
        trainer_with(tmp_path, "corrected", method__gen_experience_kwargs=settings)
