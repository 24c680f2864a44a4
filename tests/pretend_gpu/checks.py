"""What the harness itself refuses and counts, and what of the package only a GPU shows.

    python -m pretend_gpu.checks DIRECTORY      # from tests/

Prints a JSON line a check: its name and the error that ended it, or null. After them all of
runs.py and of kernel_counts.py, in the same process, as libraries take long to import.
"""

import pretend_gpu

pretend_gpu.switch_on()  # before the package, and before torch

import copy  # noqa: E402
import json  # noqa: E402
import sys  # noqa: E402
import traceback  # noqa: E402
import warnings  # noqa: E402
from pathlib import Path  # noqa: E402

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from tiny_runs import PROMPTS, letter_reward, policy_with_lora, run_config  # noqa: E402

from pretend_gpu import DeviceMismatch, counts, kernel_counts, runs  # noqa: E402
from rlhf_helpers.making.pretrain import PretrainConfig, muon_and_adam, new_model  # noqa: E402
from rlhf_helpers.making.pretrain import _step as take_step  # noqa: E402
from rlhf_helpers.models.loading import load_trained_policy  # noqa: E402
from rlhf_helpers.models.policy import Policy  # noqa: E402
from rlhf_helpers.training import processes  # noqa: E402
from rlhf_helpers.training.api import train  # noqa: E402
from rlhf_helpers.training.watchdog import WatchdogError  # noqa: E402


def raises(kind, action) -> bool:
    """Whether `action` ends in such an error."""
    try:
        action()
    except kind:
        return True
    return False


# --- the harness -----------------------------------------------------------------------------


def two_devices_are_refused_where_cuda_refuses_them(_root: Path) -> None:
    here, there = torch.ones(3), torch.ones(3, device="cuda")
    index, index_there = torch.tensor([1]), torch.tensor([1], device="cuda")
    for mixed in (
        lambda: here + there,
        lambda: there.add_(here),
        lambda: torch.cat([here, there]),
        lambda: F.embedding(index, there.unsqueeze(1)),
        lambda: here[index_there],
        lambda: torch.multinomial(there, 1, generator=torch.Generator()),
        lambda: F.scaled_dot_product_attention(*(x.view(1, 1, 3) for x in (there, there, here))),
    ):
        assert raises(DeviceMismatch, mixed)
    # What CUDA allows: a number of the CPU, an index of the CPU, copies.
    assert (there + torch.tensor(1.0)).tolist() == [2, 2, 2]
    assert there[index].tolist() == [1]
    assert here.copy_(there).tolist() == there.copy_(here).tolist() == [1, 1, 1]


def a_short_program_is_counted_as_by_hand(_root: Path) -> None:
    counts.reset()
    x = torch.arange(6.0).view(2, 3).to("cuda")  # a copy
    y = (x @ x.T + 1)[0, 1:]  # two kernels; a view is none
    y.mul_(2)  # a kernel
    assert y.tolist() == [30.0]  # a wait
    assert float(x.sum()) == 15  # a kernel and a wait
    assert x[x > 3].cpu().tolist() == [4, 5]  # two kernels, a wait for the size, a wait
    F.scaled_dot_product_attention(*[x.view(1, 1, 2, 3).requires_grad_()] * 3).sum().backward()
    # The last line: attention, sum, ones for its gradient, attention backward, two additions.
    assert counts.totals() == {"kernels": 12, "syncs": 4, "copies": 1}, vars(counts)


def the_numbers_are_those_of_a_cpu(root: Path) -> None:
    policy = policy_with_lora(root, family="llama")
    # A buffer that transformers makes on the meta device first: 10000 ** (-2 i / 8).
    frequencies = policy.base.model.rotary_emb.inv_freq
    torch.testing.assert_close(frequencies, torch.tensor([1.0, 0.1, 0.01, 0.001]))
    ids = torch.randint(10, 99, (3, 9), generator=torch.Generator().manual_seed(1))
    scored, gradients = [], []
    for device in ("cpu", "cuda"):
        own = copy.deepcopy(policy).to(device)
        tokens = ids.to(device)
        scored.append(own.score(tokens, torch.ones_like(tokens)))
        logprobs, values = own(tokens, torch.ones_like(tokens), 2, 5, None)
        (logprobs.sum() + values.sum()).backward()
        gradients.append([p.grad.cpu() for p in own.trainable_parameters().values()])
    for a, b in [*zip(*scored, strict=True), *zip(*gradients, strict=True)]:
        torch.testing.assert_close(b.cpu(), a, atol=1e-6, rtol=1e-5)


def no_numbers_break_the_device_for_good(_root: Path) -> None:
    p = torch.tensor([0.5, float("nan")], device="cuda")
    assert raises(RuntimeError, lambda: torch.multinomial(p, 1))
    assert raises(RuntimeError, lambda: p + 1)
    counts.reset()
    assert (p[:1] + 1).tolist() == [1.5]


# --- the package -----------------------------------------------------------------------------


def float16_learns_outside_autocast_with_a_scaled_loss(root: Path) -> None:
    """accelerate wraps the policy's forward for its scaler; what learns stays float32 in there."""
    seen, forward = [], Policy.forward

    def watching(policy, *args):
        seen.append(torch.is_autocast_enabled("cuda"))
        return forward(policy, *args)

    Policy.forward = watching
    config = run_config(root, model__dtype="float16", model__delta_kwargs=None)
    trainer = train(reward_fn=letter_reward, prompts=PROMPTS, config=config)
    Policy.forward = forward
    assert seen and not any(seen)
    assert trainer.accelerator.scaler is not None
    assert {p.dtype for p in trainer.trained.values()} == {torch.float32}
    assert trainer.policy.base.dtype == torch.float16
    before = load_trained_policy(trainer.directory / "policy").trainable_parameters()
    assert {p.dtype for p in before.values()} == {torch.float32}


def no_numbers_are_said_and_leave_the_device_whole(root: Path) -> None:
    """Weights turn to NaN while a chunk is scored: the next one is sampled from no numbers."""
    policies, calls, merged = [], [], Policy.merged_for_sampling

    def remembering(policy):
        policies.append(policy)
        return merged(policy)

    def reward_fn(samples, **kwargs):
        calls.append(1)
        if len(calls) == 1:
            with torch.no_grad():
                policies[0].base.get_decoder().layers[0].fc1.bias.fill_(float("nan"))
        return letter_reward(samples)

    Policy.merged_for_sampling = remembering
    try:
        train(reward_fn=reward_fn, prompts=PROMPTS, config=run_config(root))
        raise AssertionError("nothing was said")
    except WatchdogError as error:
        assert "the policy's probabilities are not finite numbers" in str(error)
    finally:
        Policy.merged_for_sampling = merged
    assert not counts.broken
    policies[0].save(root / "after")  # as it is, but the process still can


def what_processes_tell_each_other_lies_on_the_host(_root: Path) -> None:
    two = processes.Processes()
    two.number = 2  # in name: the other one hears of what is handed over here
    handed, gather_object = [], processes.gather_object
    processes.gather_object = lambda items: handed.append(items) or items * 2
    try:
        x = torch.ones(2, device="cuda")
        two.gather([{"store": [x, (x, "text")], "trunk": None, "number": 1}])
    finally:
        processes.gather_object = gather_object
    [[[state]]] = handed
    assert type(state["store"][0]) is type(state["store"][1][0]) is torch.Tensor
    assert state["store"][1][1] == "text" and state["number"] == 1


def pretraining_takes_the_same_steps_as_on_the_host(root: Path) -> None:
    config = PretrainConfig(hidden_size=16, num_heads=2, num_layers=2, context=8, warmup_steps=1)
    rows = torch.randint(4, config.vocab_size, (2, 9), generator=torch.Generator().manual_seed(0))
    losses = []
    for device in ("cpu", "cuda"):
        model = new_model(config).to(device)
        optimizers = muon_and_adam(model, 0.02, 6e-3, 0.02)
        losses.append(
            [take_step(model, optimizers, rows.to(device), step, config) for step in range(3)]
        )
    assert losses[0][2] < losses[0][0]
    assert torch.allclose(torch.tensor(losses[0]), torch.tensor(losses[1]), rtol=1e-4), losses


CHECKS = [
    two_devices_are_refused_where_cuda_refuses_them, a_short_program_is_counted_as_by_hand,
    the_numbers_are_those_of_a_cpu, no_numbers_break_the_device_for_good,
    float16_learns_outside_autocast_with_a_scaled_loss,
    no_numbers_are_said_and_leave_the_device_whole,
    what_processes_tell_each_other_lies_on_the_host,
    pretraining_takes_the_same_steps_as_on_the_host,
]  # fmt: skip


def main(root: Path) -> None:
    """Every check, every run, and the counts."""
    for check in CHECKS:
        counts.reset()
        error = None
        try:
            check(root / check.__name__)
        except BaseException as caught:
            traceback.print_exc()
            error = f"{type(caught).__name__}: {caught}"
        print(json.dumps({"check": check.__name__, "error": error}), flush=True)
    runs.main(root / "runs", [])
    kernel_counts.main(root / "counts", {})


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    main(Path(sys.argv[1]))
