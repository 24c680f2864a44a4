"""What one iteration computes, counted on the running model and by hand: no shortcut gets lost.

A model of 3 layers, the top 2 with LoRA; 8 rollouts in 2 chunks of 4, prompts of 24 tokens,
6 new tokens, minibatches of 4, 4 epochs: 8 optimizer steps.
"""

import pytest
import torch

import rlhf_helpers.models.frozen_head as frozen_head
import rlhf_helpers.models.packed as packed
from rlhf_helpers.lab.bench_case import Case
from rlhf_helpers.lab.bench_iteration import make_trainers, run_iteration, task_of
from rlhf_helpers.lab.counted_work import (
    ModelSizes,
    Task,
    Work,
    counted_ratio,
    counted_work,
    flop_ratio,
    kept_bytes,
    sizes_of,
)

CASE = Case(shape="deep", tiny=True, batch=4, rollouts=8, chunk=4, new_tokens=6, unfrozen=2)


def counts(monkeypatch, engine, semantics="corrected"):
    """Forward calls, and tokens through trunk, top and head, of one iteration."""
    trainer = make_trainers(Case(**{**vars(CASE), "semantics": semantics}))[engine]
    policy, seen = trainer.policy, {"calls": 0, "trunk": 0, "top": 0, "head": 0}

    def count(name):
        def hook(_module, args, kwargs):
            states = args[0] if args else kwargs["hidden_states"]
            seen[name] += states.shape[:-1].numel()

        return hook

    def called(_module, args, kwargs):
        seen["calls"] += 1

    def through_frozen_head(hidden, head, labels, *more):
        seen["head"] += labels.numel()
        return frozen(hidden, head, labels, *more)

    frozen = frozen_head.frozen_head_logprobs
    monkeypatch.setattr(frozen_head, "frozen_head_logprobs", through_frozen_head)
    policy.decoder.register_forward_pre_hook(called, with_kwargs=True)
    policy.layers[0].register_forward_pre_hook(count("trunk"), with_kwargs=True)
    policy.layers[policy.branch].register_forward_pre_hook(count("top"), with_kwargs=True)
    policy.base.get_output_embeddings().register_forward_pre_hook(count("head"), with_kwargs=True)
    run_iteration(trainer)
    seen["kept"] = 0 if trainer.store.trunk is None else trainer.store.trunk.nbytes
    return seen


def test_corrected_semantics_compute_the_trunk_once(monkeypatch):
    # Sampling feeds 24 + 5 tokens of each rollout (the last one drawn is not fed) in 6 calls a
    # chunk; scoring and updates see 30 tokens, in the top only, and 6 columns in the head.
    assert counts(monkeypatch, "fast") == {
        "calls": 2 * 6 + 2 + 8,  # scoring: the reference alone, for each chunk
        "trunk": 8 * 29,
        "top": 8 * 29 + 8 * 30 + 4 * 8 * 30,
        "head": 8 * 6 + 2 * 8 * 6 + 4 * 8 * 6,
        "kept": 8 * 30 * 32 * 4,  # width 32, float32
    }


def test_trlx_semantics_compute_the_trunk_twice_and_the_prompt_once(monkeypatch):
    # Tokenising again puts a special token behind the prompt: 31 tokens, and no sampled state
    # serves. mean_kl wants all 30 columns of the last chunk, of policy and reference.
    assert counts(monkeypatch, "fast", "trlx") == {
        "calls": 2 * 6 + 2 * 2 + 8,
        "trunk": 8 * 29 + 8 * 31,
        "top": 8 * 29 + 2 * 8 * 31 + 4 * 8 * 31,
        "head": 8 * 6 + 2 * (4 * 7 + 4 * 30) + 4 * 8 * 7,
        "kept": 8 * 31 * 32 * 4,
    }


def test_naive_computes_everything_everywhere(monkeypatch):
    assert counts(monkeypatch, "naive") == {
        "calls": 2 * 6 + 2 * 2 + 8,
        "trunk": 8 * 29 + 2 * 8 * 30 + 4 * 8 * 30,
        "top": 8 * 29 + 2 * 8 * 30 + 4 * 8 * 30,
        "head": 8 * 6 + 2 * 8 * 30 + 4 * 8 * 30,
        "kept": 0,
    }


def test_rows_that_have_ended_pass_through_nothing(monkeypatch):
    """With a quarter of the words ending a text, each row is fed up to its last token but one."""
    trainer = make_trainers(CASE)["fast"]
    policy, fed = trainer.policy, []
    ids = torch.randint(200, 512, (8, 24), generator=torch.Generator().manual_seed(0))
    policy.layers[0].register_forward_pre_hook(
        lambda _m, args, kwargs: fed.append(
            (args[0] if args else kwargs["hidden_states"]).shape[:2].numel()
        ),
        with_kwargs=True,
    )
    ends = range(128)
    torch.manual_seed(0)
    rows = policy.generate(ids, do_sample=True, top_k=0, max_new_tokens=6, eos_token_id=list(ends))
    drawn = [
        next((i + 1 for i, token in enumerate(row) if token in ends), 6)
        for row in rows[:, 24:].tolist()
    ]
    assert min(drawn) < max(drawn)
    assert sum(fed) == sum(24 + n - 1 for n in drawn)


def test_packed_products_serve_all_phases(monkeypatch):
    """Rows times frozen matrices, counted where they are multiplied: all but LoRA's own layers.

    A layer has 4 matrices of attention (with LoRA in the top two) and 2 of its feed-forward; the
    head is one more. Counted as in the tests above: 8 x 29 tokens sampled, 8 x 30 scored,
    4 x 8 x 30 learnt from; through the head 8 x 6, 2 x 8 x 6, 4 x 8 x 6.
    """
    monkeypatch.setenv("RLHF_PACKED", "1")
    monkeypatch.setattr(packed, "SMALLEST", 1)
    assert packed.packing_pays()  # tries the operators once, which is not to be counted
    forward, back = [], []
    for name, seen in (("product", forward), ("product_back", back)):
        plain = getattr(packed.PackedWeight, name)
        monkeypatch.setattr(
            packed.PackedWeight, name,
            lambda self, x, plain=plain, seen=seen: (
                seen.append(x.shape[:-1].numel()) or plain(self, x)
            ),
        )  # fmt: skip
    run_iteration(make_trainers(CASE)["fast"])
    trunk, top, head = 8 * 29, 8 * 29 + 8 * 30 + 4 * 8 * 30, 8 * 6 + 2 * 8 * 6 + 4 * 8 * 6
    assert sum(forward) == 6 * trunk + 2 * 2 * top + head
    # Gradients: through the feed-forward of both top layers, and through the head.
    assert sum(back) == 4 * 8 * (2 * 2 * 30 + 6)


def test_sizes_of_a_model():
    trainer = make_trainers(CASE)["fast"]
    # Width 32, feed-forward 64, 512 words; LoRA of rank 8 on q, k, v and out of two layers.
    assert sizes_of(trainer.policy) == ModelSizes(
        layers=3, top=2, layer=4 * 32 * 32 + 2 * 32 * 64, qkv=3 * 32 * 32, attention_width=32,
        cache_width=64, head=512 * 32, lora=2 * 4 * 8 * (32 + 32), value_head=32 * 64 + 64,
        hidden=32, feed_forward=64, number_bytes=4,
    )  # fmt: skip
    assert task_of(trainer, CASE) == Task(8, 4, 4, 4, prompt_tokens=24, new_tokens=6)
    assert kept_bytes(sizes_of(trainer.policy), task_of(trainer, CASE)) == 8 * 30 * 32 * 4


# --- the formulas, by hand -------------------------------------------------------------------

# Only one kind of weight at a time: 10 layers, 2 of them the top.
BARE = dict(layers=10, top=2, layer=0, qkv=0, attention_width=0, cache_width=0, head=0, lora=0,
            value_head=0, hidden=1, feed_forward=1, number_bytes=4)  # fmt: skip
TASK = Task(rollouts=1, chunk=1, batch=1, epochs=3, prompt_tokens=2, new_tokens=4)  # 6 tokens


@pytest.mark.parametrize(
    "weights, fast, naive",
    [
        # generate: 2 FLOPs x 10 layers x 5 fed tokens. score: 2 x 2 layers x the reference x 6;
        # naive 2 x 10 x 2 x 6. update: 3 epochs x 6 tokens x 2 FLOPs x (2 + 2 back); (10 + 2).
        (dict(layer=1), (100, 24, 144), (100, 240, 432)),
        # Nothing passes back through the top's first q, k, v: 2 FLOPs x 6 tokens x 3 epochs less.
        (dict(layer=1, qkv=1), (100, 24, 108), (100, 240, 396)),
        # generate: 4 columns. score: 2 x 4 columns x 2 policies; all 6. update: x 3, and back.
        (dict(head=1), (8, 16, 48), (8, 24, 72)),
        # Attention, 4 FLOPs a pair: 2 x 2 of the prompt, then 3, 4, 5: 16 pairs x 10 layers;
        # 36 pairs x 2 passes of top layers; updates 3 x 36 x 2 x (4 + 8).
        (dict(attention_width=1), (640, 288, 2592), (640, 2880, 6048)),
        # LoRA: merged while sampling, off in the reference; 2 x 6 tokens; 3 x 6 x (2 + 4).
        (dict(lora=1), (0, 0, 108), (10, 12, 108)),
        # Value head: 2 x columns; 3 x columns x (2 + 4).
        (dict(value_head=1), (0, 8, 72), (0, 12, 108)),
    ],
)
def test_flops_by_hand(weights, fast, naive):
    sizes = ModelSizes(**BARE | weights)
    for shortcuts, expected in ((True, fast), (False, naive)):
        work = counted_work(sizes, TASK, shortcuts)
        assert tuple(w.flops for w in work.values()) == expected


def test_decoding_reads_weights_and_cache_at_every_step():
    sizes = ModelSizes(**BARE | dict(layer=5, head=7, cache_width=2))
    work = counted_work(sizes, TASK, True)["generate"]
    # 4 steps; 10 layers of 5 weights, the head, and 10 x 2 numbers of about 4 tokens; 4 bytes.
    assert (work.steps, work.step_bytes) == (4, 4 * (50 + 7 + 80))
    assert work.seconds(flops_per_second=1e9, bytes_per_second=4 * 137) == pytest.approx(4.0)
    # A cache that grows by concatenation: 80 numbers are copied, read and written.
    assert counted_work(sizes, TASK, False)["generate"].step_bytes == 4 * (50 + 7 + 3 * 80)


def test_counted_ratio_takes_each_phase_at_its_own_rate():
    naive = {"generate": Work(10), "score": Work(40), "update": Work(100)}
    fast = {"generate": Work(10), "score": Work(10), "update": Work(20)}
    seconds = {"generate": 5.0, "score": 4.0, "update": 10.0, "reward": 1.0}
    # 20 s without shortcuts; 5 + 1 + 2 + 1 with them.
    assert counted_ratio(seconds, naive, fast, 1.0, 1.0) == pytest.approx(20 / 9)
    assert flop_ratio(naive, fast) == pytest.approx(150 / 40)


def test_counted_ratio_takes_bytes_where_they_decide():
    naive, fast = ({"generate": Work(10, steps=2, step_bytes=n)} for n in (30.0, 15.0))
    # At 10 FLOP/s and 10 bytes/s 6 s and 3 s of bytes; at 1 FLOP/s 10 s of FLOPs in both.
    assert counted_ratio({"generate": 8.0}, naive, fast, 10.0, 10.0) == pytest.approx(2.0)
    assert counted_ratio({"generate": 8.0}, naive, fast, 1.0, 10.0) == pytest.approx(1.0)


def test_flop_ratio_of_the_shapes():
    """Batch 8, 16 rollouts of 24 + 40 tokens, 4 epochs; weights by the models' own widths."""
    task = Task(16, 16, 8, 4, 24, 40)
    for hidden, layers, words, expected in (
        (768, 12, 50272, 2.2), (512, 24, 8192, 3.75), (2048, 24, 50272, 3.5)
    ):  # fmt: skip
        sizes = ModelSizes(
            layers=layers, top=2, layer=12 * hidden**2, qkv=3 * hidden**2, attention_width=hidden,
            cache_width=2 * hidden, head=words * hidden, lora=2 * 4 * 16 * hidden,
            value_head=2 * hidden**2, hidden=hidden, feed_forward=4 * hidden, number_bytes=4,
        )  # fmt: skip
        found = flop_ratio(counted_work(sizes, task, False), counted_work(sizes, task, True))
        assert found == pytest.approx(expected, abs=0.1)
