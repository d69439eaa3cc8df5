"""The torch engine on a tiny random model in float32, against plain forward passes."""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from msgspec import structs
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from agentlightning.contracts.model import ModelFiles
from agentlightning.errors import ConfigError, ContextOverflow, EngineError
from agentlightning.types import Policy, Sampling, ints
from agentlightning_torch.engine import TorchEngine, TorchEngineSettings
from agentlightning_torch.optim import add_lora, trained_parameters
from agentlightning_torch.prefix import shared_prefixes
from agentlightning_torch.sampler import Reply, Sampler
from agentlightning_torch.serving import check_served
from agentlightning_torch.slots import Decode, Prefill, Slots, forward
from agentlightning_torch.testing import tiny_model
from agentlightning_torch.weight_check import weight_check_of
from agentlightning_torch.weights import FairLock, Weights, get_weights

VOCABULARY = 259
FLOAT32 = TorchEngineSettings(dtype="float32")
"""What is compared with a plain forward pass, on a GPU as well."""


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> ModelFiles:
    return tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
async def engine(files):
    torch.set_num_threads(1)
    engine = await TorchEngine.create(files, FLOAT32, {})
    yield engine
    await engine.close()


def weights_of(engine: TorchEngine) -> Weights:
    return engine._weights


def prompt(length: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(3, VOCABULARY, length).tolist()


def slow_down(engine: TorchEngine) -> None:
    """A long reply stays under way while a test on a busy machine does something to it."""
    weights_of(engine).model.register_forward_pre_hook(lambda *_: time.sleep(0.004))


async def ask(engine: TorchEngine, ids: list[int], **settings):
    """(response ids, logprobs, versions, finish)"""
    settings.setdefault("max_tokens", 12)
    out, logprobs, versions, finish = [], [], [], None
    async for chunk in engine.generate(ints(ids), Sampling(**settings)):
        assert finish is None
        out += chunk.ids.tolist()
        logprobs += chunk.logprobs.tolist()
        versions += [chunk.version] * len(chunk.ids)
        finish = chunk.finish
    return out, np.array(logprobs), versions, finish


def logits_of(model, ids: list[int]) -> torch.Tensor:
    """(tokens, vocabulary) of one plain forward pass, on the CPU."""
    with torch.no_grad():
        return model(torch.tensor([ids], device=model.device)).logits[0].cpu()


def expected(model, ids: list[int], response: list[int], temperature: float = 1.0) -> np.ndarray:
    """Log-probabilities of a response."""
    logits = logits_of(model, ids + response)[len(ids) - 1 : -1]
    return (logits / temperature).log_softmax(-1).gather(1, torch.tensor(response)[:, None])[:, 0].numpy()


def set_weights(weights: Weights, version: int) -> None:
    """What a trainer does: change in place, then say so."""
    with weights.lock, torch.no_grad():
        for parameter in weights.model.parameters():
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(version))
            parameter.mul_(1.05).add_(0.01 * noise.to(parameter))
        weights.policy = Policy(version=version, base="tiny", uri=weights.policy.uri)


@pytest.mark.parametrize("temperature", [1.0, 0.7, 1.6])
async def test_logprobs_are_those_of_a_plain_forward_pass(engine, temperature):
    ids, logprobs, versions, finish = await ask(engine, prompt(30), temperature=temperature, seed=3, max_tokens=40)
    assert len(ids) == 40
    assert finish == "length"
    assert set(versions) == {0}
    np.testing.assert_allclose(logprobs, expected(weights_of(engine).model, prompt(30), ids, temperature), atol=1e-4)


async def test_temperature_zero_is_greedy_with_the_logprobs_of_temperature_one(engine):
    ids, logprobs, *_ = await ask(engine, prompt(9), temperature=0)
    model = weights_of(engine).model
    so_far = prompt(9)
    for token in ids:
        assert token == int(logits_of(model, so_far)[-1].argmax())
        so_far.append(token)
    np.testing.assert_allclose(logprobs, expected(model, prompt(9), ids), atol=1e-4)


async def test_a_batch_of_mixed_lengths_equals_one_at_a_time(engine):
    asked = [
        (prompt(n, seed=n), {"temperature": t, "seed": n, "max_tokens": 5 + n % 17}) for n in (1, 2, 7, 40, 130, 200) for t in (0, 1.0)
    ]
    alone = [await ask(engine, ids, **settings) for ids, settings in asked]
    await engine.load(engine.policy)  # drops what was computed
    together = await asyncio.gather(*(ask(engine, ids, **settings) for ids, settings in asked))
    for one, other in zip(alone, together, strict=True):
        assert one[0] == other[0]
        assert one[3] == other[3]
        np.testing.assert_allclose(one[1], other[1], atol=1e-4)


async def test_requests_join_between_decode_steps(engine):
    slow_down(engine)
    long = asyncio.create_task(ask(engine, prompt(20), max_tokens=200, seed=1))
    while engine.counts.decoded < 10:
        await asyncio.sleep(0.001)
    short = await ask(engine, prompt(20, seed=5), max_tokens=3, seed=2)
    assert not long.done()
    ids, logprobs, *_ = await long
    np.testing.assert_allclose(short[1], expected(weights_of(engine).model, prompt(20, seed=5), short[0]), atol=1e-4)
    np.testing.assert_allclose(logprobs, expected(weights_of(engine).model, prompt(20), ids), atol=1e-4)


async def test_a_group_prefills_its_prompt_once_and_other_tasks_only_what_differs(engine):
    shared = prompt(50)
    tasks = [shared + prompt(20, seed=s) for s in (1, 2, 3)]
    await asyncio.gather(*(ask(engine, ids, seed=s) for ids in tasks for s in range(8)))
    assert engine.counts.prefilled == 50 + 3 * 19  # the last token of each prompt goes through the first decode step


async def test_the_next_turn_computes_its_new_tokens_only_and_equals_a_fresh_one(engine, files):
    first, *_ = await ask(engine, prompt(60), seed=1)
    turn = prompt(60) + first + prompt(15, seed=9)
    before = engine.counts.prefilled
    ids, logprobs, *_ = await ask(engine, turn, seed=2)
    # The last sampled token was never run, and the last of the prompt is left to the decode step.
    assert engine.counts.prefilled - before == 15
    fresh = await TorchEngine.create(files, FLOAT32, {})
    other_ids, other_logprobs, *_ = await ask(fresh, turn, seed=2)
    await fresh.close()
    assert ids == other_ids
    np.testing.assert_allclose(logprobs, other_logprobs, atol=1e-4)


async def test_one_request_at_a_time_is_repeated_bit_by_bit_by_its_seed(engine):
    async def run():
        await engine.load(engine.policy)
        return [await ask(engine, prompt(33, seed=s), seed=s, max_tokens=20) for s in (1, 2, 1)]

    one = await run()
    before = engine.counts.prefilled
    two = await run()
    assert engine.counts.prefilled == 2 * before  # a load leaves nothing to copy from
    for a, b in zip(one, two, strict=True):
        assert a[0] == b[0]
        assert (a[1] == b[1]).all()
    assert one[0][0] == one[2][0]
    assert one[0][0] != one[1][0]
    assert (await ask(engine, prompt(33)))[0] != (await ask(engine, prompt(33)))[0]  # no seed: never the same


async def test_samples_follow_the_distribution(engine):
    counts = np.zeros(VOCABULARY)
    samples = await asyncio.gather(*(ask(engine, prompt(8), seed=s, max_tokens=1, temperature=0.5) for s in range(1500)))
    for ids, *_ in samples:
        counts[ids[0]] += 1
    p = (logits_of(weights_of(engine).model, prompt(8))[-1] / 0.5).softmax(-1).double().numpy()
    deviation = np.sqrt(1500 * p * (1 - p)) + 1
    assert (np.abs(counts - 1500 * p) < 5 * deviation).all()


async def test_top_k_and_top_p_leave_out_the_tail_and_report_full_logprobs(engine):
    logprobs = logits_of(weights_of(engine).model, prompt(8))[-1].log_softmax(-1)
    order = logprobs.argsort(descending=True).tolist()
    top_p = 0.3
    nucleus = order[: int((logprobs[order].exp().cumsum(0) < top_p).sum()) + 1]
    for settings, allowed in (({"top_k": 3}, order[:3]), ({"top_p": top_p}, nucleus), ({"top_p": 1e-9}, order[:1])):
        got = await asyncio.gather(*(ask(engine, prompt(8), seed=s, max_tokens=1, **settings) for s in range(200)))
        assert {ids[0] for ids, *_ in got} == set(allowed)
        for ids, values, *_ in got:
            assert values[0] == pytest.approx(float(logprobs[ids[0]]), abs=1e-4)


async def test_a_stop_token_ends_the_reply_and_is_part_of_it(engine):
    ids, *_ = await ask(engine, prompt(8), seed=4)
    stopped, _, _, finish = await ask(engine, prompt(8), seed=4, stop_ids=(ids[5],))
    assert stopped == ids[: ids.index(ids[5]) + 1]
    assert finish == "stop"


async def test_a_reply_ends_at_the_context_and_a_prompt_without_room_is_refused(engine):
    ids, _, _, finish = await ask(engine, prompt(509), max_tokens=None)
    assert (len(ids), finish) == (3, "length")
    with pytest.raises(ContextOverflow, match=r"512 tokens.*context of 'tiny' is 512"):
        await ask(engine, prompt(512))


@pytest.mark.parametrize(
    ("ids", "settings", "said"),
    [
        ([], {}, "empty"),
        ([5, VOCABULARY], {}, "Use the tokenizer of this model"),
        ([-1], {}, "Use the tokenizer of this model"),
        ([5], {"temperature": -1.0}, "temperature >= 0"),
        ([5], {"top_p": 0.0}, "top_p"),
        ([5], {"max_tokens": 0}, "at least 1"),
    ],
)
async def test_a_bad_request_is_refused_and_harms_nobody(engine, ids, settings, said):
    with pytest.raises(EngineError, match=said):
        await ask(engine, ids, **settings)
    assert len((await ask(engine, prompt(5)))[0]) == 12


async def test_closing_the_iterator_frees_the_row(engine):
    slow_down(engine)
    stream = engine.generate(ints(prompt(8)), Sampling(max_tokens=400))
    other = asyncio.create_task(ask(engine, prompt(8, seed=2), seed=1, max_tokens=100))
    await anext(stream)
    await stream.aclose()
    ids, logprobs, *_ = await other
    await engine.pause()
    await engine.resume()
    np.testing.assert_allclose(logprobs, expected(weights_of(engine).model, prompt(8, seed=2), ids), atol=1e-4)
    assert engine._sampler.live == []
    assert engine.counts.decoded < 400
    before = engine.counts.decoded
    waiting = asyncio.create_task(ask(engine, prompt(8), max_tokens=400))
    while engine.counts.decoded == before:
        await asyncio.sleep(0.001)
    waiting.cancel()
    await engine.pause()
    assert engine._sampler.live == []
    assert engine.counts.decoded < before + 100


async def test_a_request_that_is_closed_before_it_began_never_runs(engine):
    busy, proceed = threading.Event(), threading.Event()
    drop = engine._sampler.drop

    def slow(reply: Reply) -> None:
        busy.set()
        assert proceed.wait(10)
        drop(reply)

    engine._sampler.drop = slow
    slow_down(engine)
    stream = engine.generate(ints(prompt(8)), Sampling(max_tokens=400))
    await anext(stream)
    await stream.aclose()
    assert await asyncio.to_thread(busy.wait, 10)  # the engine's thread is removing the first request
    second = asyncio.create_task(ask(engine, prompt(9), max_tokens=400))
    await asyncio.sleep(0.01)
    second.cancel()
    await asyncio.sleep(0.01)
    proceed.set()
    assert len((await ask(engine, prompt(5)))[0]) == 12
    assert engine._sampler.live == engine._sampler.waiting == []


async def test_pause_finishes_what_is_under_way_and_holds_what_comes(engine):
    slow_down(engine)
    running = asyncio.create_task(ask(engine, prompt(8), max_tokens=100))
    while engine.counts.decoded == 0:
        await asyncio.sleep(0.001)
    pausing = asyncio.create_task(engine.pause())
    await asyncio.sleep(0)
    early = asyncio.create_task(ask(engine, prompt(9, seed=1)))  # comes while the other is being finished
    await pausing
    assert engine.counts.decoded == 100
    held = asyncio.create_task(ask(engine, prompt(9)))
    await engine.load(engine.policy)  # a pause of its own does not end ours
    await asyncio.sleep(0.05)
    assert engine.counts.decoded == 100
    assert not held.done()
    await engine.resume()
    assert len((await held)[0]) == len((await early)[0]) == 12
    await running


async def test_a_pause_frees_the_memory_of_keys_and_values_for_the_training_that_follows(engine):
    before = await ask(engine, prompt(30), temperature=0)
    assert engine._sampler.bytes > 0
    await engine.pause()
    assert engine._sampler.bytes == 0
    await engine.resume()
    again = await ask(engine, prompt(30), temperature=0)
    assert again[0] == before[0]


async def test_weights_changed_in_place_serve_new_logprobs_under_their_version(engine):
    old, *_ = await ask(engine, prompt(30), temperature=0)
    weights = weights_of(engine)
    set_weights(weights, version=1)
    await engine.load(weights.policy)
    ids, logprobs, versions, _ = await ask(engine, prompt(30), temperature=0)
    assert set(versions) == {1}
    assert engine.policy.version == 1
    assert ids != old
    np.testing.assert_allclose(logprobs, expected(weights.model, prompt(30), ids), atol=1e-4)


async def test_weights_changed_under_a_reply_are_stamped_and_nothing_old_is_reused(engine):
    slow_down(engine)
    weights = weights_of(engine)
    before = AutoModelForCausalLM.from_pretrained(weights.files.path)
    task = asyncio.create_task(ask(engine, prompt(30), seed=1, max_tokens=300))
    while engine.counts.decoded < 20:
        await asyncio.sleep(0.001)
    set_weights(weights, version=1)
    ids, logprobs, versions, _ = await task
    change = versions.index(1)
    assert versions == [0] * change + [1] * (300 - change)
    np.testing.assert_allclose(logprobs[:change], expected(before, prompt(30), ids)[:change], atol=1e-4)
    np.testing.assert_allclose(logprobs[change:], expected(weights.model, prompt(30), ids)[change:], atol=1e-4)


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
async def test_an_engine_with_weights_of_its_own_takes_the_trainers_between_two_tokens_of_a_reply(files, lora):
    share: dict = {}
    trained = get_weights(share, files, dtype="float32")
    if lora:
        trained.model = add_lora(trained.model, 4, 8.0, 0)
    optimizer_sees = trained_parameters(trained.model, "lora" if lora else "full")
    engine = await TorchEngine.create(files, replace(FLOAT32, copy_weights=True), share)
    try:
        slow_down(engine)
        reply = asyncio.create_task(ask(engine, prompt(20), temperature=1.3, seed=4, max_tokens=300))
        while engine.counts.decoded < 20:
            await asyncio.sleep(0.001)
        with trained.lock, torch.no_grad():  # a step of the trainer, for which nobody waits
            for number, parameter in enumerate(optimizer_sees.values()):
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)).to(parameter))
            trained.policy = structs.replace(trained.policy, version=1)
        while engine.counts.decoded < 40:
            await asyncio.sleep(0.001)
        assert engine.policy.version == 0
        await engine.load(trained.policy)
        assert engine.policy == trained.policy
        assert not reply.done()
        ids, logprobs, versions, _ = await reply
        assert versions == sorted(versions)
        assert set(versions) == {0, 1}
        before = AutoModelForCausalLM.from_pretrained(files.path, dtype=torch.float32).to(trained.device)
        first = versions.index(1)
        np.testing.assert_allclose(logprobs[:first], expected(before, prompt(20), ids, 1.3)[:first], atol=1e-4)
        np.testing.assert_allclose(logprobs[first:], expected(trained.model, prompt(20), ids, 1.3)[first:], atol=1e-4)
        assert np.abs(logprobs[first:] - expected(before, prompt(20), ids, 1.3)[first:]).max() > 0.01
    finally:
        await engine.close()


async def test_a_reload_of_the_served_version_copies_the_trainers_weights_again_and_waits_for_nobody(files):
    share: dict = {}
    trained = get_weights(share, files, dtype="float32")
    trained_parameters(trained.model, "full")
    engine = await TorchEngine.create(files, replace(FLOAT32, copy_weights=True), share)
    try:
        slow_down(engine)
        set_weights(weights_of(engine), 0)  # as after a mismatch: other weights under the same version
        reply = asyncio.create_task(ask(engine, prompt(20), seed=4, max_tokens=400))
        while engine.counts.decoded < 5:
            await asyncio.sleep(0.001)
        assert engine.policy == trained.policy
        await engine.load(trained.policy)
        assert not reply.done()
        for mine, theirs in zip(weights_of(engine).model.parameters(), trained.model.parameters(), strict=True):
            assert torch.equal(mine, theirs)
        reply.cancel()
    finally:
        await engine.close()


async def test_a_policy_on_disk_is_loaded_and_a_wrong_one_refused(engine, tmp_path):
    other = tiny_model(tmp_path / "a folder", seed=1)
    policy = Policy(version=4, base="tiny", uri=Path(other.path).as_uri())
    await engine.load(policy)
    ids, logprobs, versions, _ = await ask(engine, prompt(30), seed=1)
    assert set(versions) == {4}
    np.testing.assert_allclose(logprobs, expected(AutoModelForCausalLM.from_pretrained(other.path), prompt(30), ids), atol=1e-4)
    wrong = tiny_model(tmp_path / "wrong", hidden=32)
    for uri, said in (
        (f"file:{wrong.path}", "is not 'tiny'"),
        (f"file:{tmp_path}/none", "holds no weights"),
        ("memory:elsewhere", "in memory are"),
        ("nccl:x", "Expected `file:`"),
    ):
        with pytest.raises(EngineError, match=said):
            await engine.load(Policy(version=5, base="tiny", uri=uri))
    again = await ask(engine, prompt(30), seed=1)
    assert (again[0], again[2]) == (ids, versions)


async def test_weights_on_disk_are_compared_with_their_weight_check(engine, tmp_path):
    first, second = (tiny_model(tmp_path / str(seed), seed=seed).path for seed in (1, 2))
    checks = [weight_check_of(AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)) for path in (first, second)]
    checks[0].write(Path(first))
    measured = await engine.load(Policy(version=1, base="tiny", uri=Path(first).as_uri()))
    assert 0 <= measured["weight_check_diff"] < 1e-4
    checks[0].write(Path(second))  # the weights of the folder are other ones
    with pytest.raises(EngineError, match=r"loaded version 2 from file:.*differ from the trainer's by .* \(limit 0\.005\)"):
        await engine.load(Policy(version=2, base="tiny", uri=Path(second).as_uri()))
    checks[1].write(Path(second))
    assert (await engine.load(Policy(version=2, base="tiny", uri=Path(second).as_uri())))["weight_check_diff"] < 1e-4
    assert engine.policy.version == 2


async def test_an_adapter_is_served_and_merged_in_nothing(engine, tmp_path):
    peft = pytest.importorskip("peft")
    weights = weights_of(engine)
    plain, *_ = await ask(engine, prompt(30), temperature=0)
    model = peft.get_peft_model(weights.model, peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    with weights.lock:
        weights.model = model.eval()
        weights.policy = Policy(version=1, base="tiny", kind="lora", uri=weights.policy.uri)
    ids, logprobs, versions, _ = await ask(engine, prompt(30), temperature=0)
    assert set(versions) == {1}
    assert ids != plain
    np.testing.assert_allclose(logprobs, expected(model, prompt(30), ids), atol=1e-4)
    model.save_pretrained(str(tmp_path))
    fresh = await TorchEngine.create(weights.files, FLOAT32, {})
    await fresh.load(Policy(version=1, base="tiny", kind="lora", uri=f"file:{tmp_path}"))
    assert (await ask(fresh, prompt(30), temperature=0))[0] == ids
    await fresh.close()


def adapter(files: ModelFiles, folder: Path, **settings) -> str:
    """A folder with an adapter for a model."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": False, **settings})
    peft.get_peft_model(AutoModelForCausalLM.from_pretrained(files.path), config).save_pretrained(str(folder))
    return f"file:{folder}"


def without_a_weight(folder: Path) -> str:
    """The same adapter with one weight less."""
    file = folder / "adapter_model.safetensors"
    save_file(dict(list(load_file(file).items())[1:]), file)
    return f"file:{folder}"


async def test_an_adapter_that_does_not_fit_is_refused_and_changes_nothing(engine, files, tmp_path):
    weights = weights_of(engine)
    plain, modules = await ask(engine, prompt(30), temperature=0), dict(weights.model.named_modules())
    wide = adapter(tiny_model(tmp_path / "model", hidden=32), tmp_path / "wide")
    adapter(files, tmp_path / "cut")
    absent = adapter(files, tmp_path / "absent")
    config = tmp_path / "absent" / "adapter_config.json"
    config.write_text(config.read_text().replace('"q_proj"', '"elsewhere"').replace('"v_proj"', '"nowhere"'))
    for uri, says in (
        (wide, "cannot be loaded into 'tiny'"),
        (without_a_weight(tmp_path / "cut"), "differs"),
        (absent, "cannot be loaded"),
    ):
        with pytest.raises(EngineError, match=says):
            await engine.load(Policy(version=1, base="tiny", kind="lora", uri=uri))
        assert dict(weights.model.named_modules()) == modules
        assert all(parameter.requires_grad for parameter in weights.model.parameters())
        again = await ask(engine, prompt(30), temperature=0)
        assert (again[0], again[2]) == (plain[0], plain[2])
    await engine.load(Policy(version=1, base="tiny", kind="lora", uri=adapter(files, tmp_path / "first")))
    first = await ask(engine, prompt(30), temperature=0)
    assert first[0] != plain[0]
    for name, settings, says in (
        ("alpha", {"lora_alpha": 16}, "has lora_alpha 16, but the model's has 8"),
        ("rank", {"r": 2}, "has r 2, but the model's has 4"),
        ("layers", {"target_modules": ["q_proj", "up_proj"]}, "does not fit the model: .*proj.* differs"),
    ):
        with pytest.raises(EngineError, match=says):
            await engine.load(Policy(version=2, base="tiny", kind="lora", uri=adapter(files, tmp_path / name, **settings)))
        again = await ask(engine, prompt(30), temperature=0)
        assert (again[0], again[2]) == (first[0], first[2])
    await engine.load(Policy(version=2, base="tiny", kind="lora", uri=adapter(files, tmp_path / "second")))
    assert (await ask(engine, prompt(30), temperature=0))[0] != first[0]


async def test_little_memory_makes_replies_wait_and_changes_none(files):
    small = await TorchEngine.create(files, TorchEngineSettings(memory_gb=1.2e6 / 2**30, dtype="float32"), {})  # 128 tokens take 66 kB
    big = await TorchEngine.create(files, FLOAT32, {})
    asked = [(prompt(20 + n, seed=n), {"seed": n, "max_tokens": 150}) for n in range(12)]
    few = await asyncio.gather(*(ask(small, ids, **settings) for ids, settings in asked))
    many = await asyncio.gather(*(ask(big, ids, **settings) for ids, settings in asked))
    assert [one[0] for one in few] == [one[0] for one in many]
    assert small._sampler.bytes <= 1.2e6
    for n in range(12):
        await ask(small, prompt(300, seed=n))
        assert small._sampler.bytes <= 1.2e6
    assert small.counts.steps > big.counts.steps
    assert small.counts.prefilled > big.counts.prefilled  # replies that had to give up their row
    await small.close()
    await big.close()


async def test_a_pause_also_finishes_replies_that_lost_their_row(files):
    small = await TorchEngine.create(files, TorchEngineSettings(memory_gb=1.2e6 / 2**30, dtype="float32"), {})
    slow_down(small)
    tasks = [asyncio.create_task(ask(small, prompt(20 + n, seed=n), seed=n, max_tokens=150)) for n in range(20)]
    lost: list[Reply] = []
    while not lost:
        await asyncio.sleep(0.01)
        with weights_of(small).lock:
            lost = [reply for reply in small._sampler.waiting if reply.started]
    await small.pause()
    assert [reply.length for reply in lost] == [reply.end for reply in lost]
    await asyncio.sleep(0.05)
    held = [task for task in tasks if not task.done()]
    assert held, "replies that had not begun wait"
    await small.resume()
    assert all(len(ids) == 150 for ids, *_ in await asyncio.gather(*tasks))
    await small.close()


async def test_an_error_in_the_model_reaches_everybody_and_the_engine_goes_on(engine):
    slow_down(engine)
    tasks = [asyncio.create_task(ask(engine, prompt(8), max_tokens=400)) for _ in range(40)]  # more than one batch
    while engine.counts.decoded < 50:
        await asyncio.sleep(0.001)
    broken = weights_of(engine).model.model.layers[1].register_forward_hook(lambda *_: 1 / 0)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    broken.remove()
    assert all(isinstance(result, EngineError) and "ZeroDivisionError" in str(result) for result in results)
    assert len((await ask(engine, prompt(8)))[0]) == 12


async def test_weights_that_diverged_are_named(engine):
    with weights_of(engine).lock, torch.no_grad():
        weights_of(engine).model.lm_head.weight.fill_(torch.nan)
    with pytest.raises(EngineError, match="not finite at version 0"):
        await ask(engine, prompt(8))


async def test_it_is_called_from_any_loop_and_closes_cleanly(files):
    engine = await TorchEngine.create(files, FLOAT32, {})
    alone = await ask(engine, prompt(8), temperature=0)
    elsewhere = await asyncio.gather(*(asyncio.to_thread(lambda: asyncio.run(ask(engine, prompt(8), temperature=0))) for _ in range(4)))
    assert {tuple(ids) for ids, *_ in elsewhere} == {tuple(alone[0])}
    task = asyncio.create_task(ask(engine, prompt(8), max_tokens=400))
    await asyncio.sleep(0.01)
    await engine.close()
    with pytest.raises(EngineError, match="closed"):
        await task
    with pytest.raises(EngineError, match="closed"):
        await ask(engine, prompt(8))
    await engine.close()
    assert not [thread for thread in threading.enumerate() if thread is engine._thread]


def test_the_lock_goes_to_a_trainer_that_waits():
    lock, steps, stop = FairLock(), [], threading.Event()

    def engine() -> None:
        while not stop.is_set():
            with lock, lock:
                steps.append(1)
                time.sleep(0.002)

    thread = threading.Thread(target=engine)
    thread.start()
    waits = []
    for _ in range(30):
        before = len(steps)
        with lock:
            waits.append(len(steps) - before)
    stop.set()
    thread.join()
    assert max(waits) <= 3


def test_engine_and_trainer_share_one_copy_and_cannot_ask_for_two(files):
    share = {}
    weights = get_weights(share, files, device="cpu")
    assert get_weights(share, files, dtype="float32") is weights
    with pytest.raises(ConfigError, match=r"dtype is 'float64'.*dtype 'torch.float32'"):
        get_weights(share, files, dtype="float64")
    with pytest.raises(ConfigError, match="'cpux' cannot be used"):
        get_weights({}, files, device="cpux")
    with pytest.raises(ConfigError, match="dtype 'half' is unknown"):
        get_weights({}, files, dtype="half")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        get_weights({}, ModelFiles("none", "./none"))


@pytest.mark.parametrize("settings", [{"max_batch": 0}, {"memory_gb": 0.0}])
def test_settings_that_cannot_work_are_refused(settings):
    with pytest.raises(ConfigError, match=rf"engine\.{next(iter(settings))}"):
        TorchEngineSettings(**settings)


def sampler_of(files: ModelFiles, tokens: int) -> Sampler:
    """With memory for so many tokens."""
    weights = get_weights({}, files, dtype="float32")
    shape = check_served(weights.model, "tiny")
    return Sampler(weights, shape, max_batch=4, memory=tokens * shape.token_bytes)


def finish(sampler: Sampler, *replies: Reply) -> None:
    for reply in replies:
        sampler.add(reply)
    while sampler.live or sampler.waiting:
        sampler.step(admit=True)


def test_a_kept_sequence_is_copied_although_making_room_drops_it(files):
    sampler = sampler_of(files, 300)
    first = Reply(ints(prompt(100)), Sampling(temperature=0), 20)
    finish(sampler, first)
    turn = ints([*first.tokens.tolist(), *prompt(100, seed=1)])
    second, alone = (Reply(turn, Sampling(temperature=0), 5) for _ in range(2))
    finish(sampler, second)
    assert sampler.counts.copied == 119
    finish(sampler_of(files, 10_000), alone)
    assert second.tokens.tolist() == alone.tokens.tolist()


def test_prefixes_make_room_before_the_rows_grow(files):
    sampler = sampler_of(files, 300)
    finish(sampler, Reply(ints(prompt(100)), Sampling(temperature=0), 20))
    slots, fit, together = sampler._slots, sampler._slots.fit, []

    def watched(rows: int, length: int, *, keep: int) -> None:
        together.append(sampler._prefixes.bytes + slots.cost(rows, length))
        fit(rows, length, keep=keep)

    assert sampler._prefixes.bytes
    slots.fit = watched
    finish(sampler, Reply(ints(prompt(200, seed=1)), Sampling(temperature=0), 5))
    assert 0 < max(together) <= sampler._memory


def test_rows_give_their_memory_back_when_the_weights_change(files):
    sampler = sampler_of(files, 600)
    finish(sampler, *(Reply(ints(prompt(120, seed=n)), Sampling(temperature=0), 5) for n in range(4)))
    assert sampler._prefixes.bytes < 2 * 120 * sampler._shape.token_bytes, "four rows of 128 tokens leave no room for two prefixes"
    set_weights(sampler._weights, version=1)
    for n in range(4):
        finish(sampler, Reply(ints(prompt(120, seed=n)), Sampling(temperature=0), 5))
    assert sampler._prefixes.bytes > 3 * 120 * sampler._shape.token_bytes
    assert sampler.bytes <= sampler._memory


@pytest.mark.parametrize("where", ["fit", "write"])
def test_a_reply_that_cannot_join_is_reported_as_lost_and_may_be_dropped_afterwards(files, where):
    sampler = sampler_of(files, 1000)
    finish(sampler, Reply(ints(prompt(50)), Sampling(seed=1), 2))
    replies = [Reply(ints(prompt(200 + n)), Sampling(seed=1), 5) for n in range(2)]
    for reply in replies:
        sampler.add(reply)
    setattr(sampler._slots, where, lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        sampler.step(admit=True)
    assert sampler.fail() == replies
    for reply in replies:
        sampler.drop(reply)
    finish(sampler, Reply(ints(prompt(50)), Sampling(seed=1), 2))


def test_replies_that_had_ended_when_a_row_could_not_be_kept_are_lost_as_well(files):
    sampler = sampler_of(files, 1000)
    replies = [Reply(ints(prompt(50 + n)), Sampling(seed=1), 1) for n in range(2)]
    for reply in replies:
        sampler.add(reply)
    add, calls = sampler._prefixes.add, []

    def breaks(*arguments) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise MemoryError
        add(*arguments)

    sampler._prefixes.add = breaks
    with pytest.raises(MemoryError):
        sampler.step(admit=True)
    assert set(sampler.fail()) == set(replies)


def test_groups_share_the_prefix_that_saves_most():
    def tokens(*parts: tuple[int, int]) -> np.ndarray:
        return np.concatenate([np.full(count, token, np.int32) for token, count in parts])

    system = (1, 8)
    rows = [tokens(system, (task, 20), (9 + reply, 3)) for task in (2, 3) for reply in range(3)]
    assert shared_prefixes(rows, 8) == [([0, 1, 2], 28), ([3, 4, 5], 28)]
    assert shared_prefixes([tokens(system, (task, 5)) for task in range(2, 6)], 8) == [([0, 1, 2, 3], 8)]
    assert shared_prefixes([*rows[:1], tokens((7, 40))], 8) == []
    assert shared_prefixes(rows, 64) == []


@pytest.mark.parametrize("order", [range(6), [0, 3, 1, 5, 4, 2]])
def test_rows_that_share_a_prefix_decode_as_they_do_alone(files, order):
    model = get_weights({}, files, dtype="float32").model
    shape = check_served(model, "tiny")
    random = np.random.default_rng(0)
    prompts = [random.integers(0, 99, 30) for _ in range(2)]
    rows = [np.concatenate([prompts[i % 2], random.integers(0, 99, 2 + i)]) for i in range(5)] + [random.integers(0, 99, 12)]
    rows = [rows[i] for i in order]
    groups = shared_prefixes([row.astype(np.int32)[:-1] for row in rows], 16)
    assert sorted(length for _, length in groups) == [30, 30]

    def logits(groups) -> torch.Tensor:
        slots = Slots(shape)
        slots.fit(len(rows), max(map(len, rows)), keep=0)
        pieces = [(number, 0, len(row) - 1) for number, row in enumerate(rows)]
        ids, places = np.concatenate([row[:-1] for row in rows]), np.concatenate([np.arange(len(row) - 1) for row in rows])
        forward(model, ids, places, Prefill(slots, pieces), last_only=True)
        last = np.array([len(row) - 1 for row in rows])
        attend = Decode(slots, torch.from_numpy(last), int(last.max()) + 1, groups)
        return forward(model, np.array([row[-1] for row in rows]), last, attend, last_only=False)

    torch.testing.assert_close(logits(groups), logits([]), rtol=1e-5, atol=1e-5)


def test_a_model_with_near_uniform_replies_over_a_large_vocabulary_is_served(tmp_path):
    config = LlamaConfig(
        vocab_size=32000, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=128
    )
    torch.manual_seed(0)
    assert check_served(LlamaForCausalLM(config).eval(), "tiny").layers == 2
