"""A judge over a real socket: what it is asked, how its reply is read, and what happens when there is none."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from starlette.responses import JSONResponse, PlainTextResponse

from agentlightning.config.rewards import JudgeSettings
from agentlightning.contracts.store import RolloutState
from agentlightning.errors import ConfigError, JudgeError
from agentlightning.testing.store import ended_rollout
from agentlightning.testing.tokenizer import make_tokenizer
from agentlightning.testing.world import open_world
from agentlightning.training.rewards import judge_endpoint
from agentlightning.training.rewards.judge import Judge, rank_rewards, shuffled
from agentlightning.training.rewards.judge_cache import JudgeCache
from agentlightning.training.rewards.judge_reply import Unreadable, read_ranks, read_score
from agentlightning.training.rewards.recorded_rollout import RecordedRollout
from agentlightning.types import Call, Rollout, Sampling, Task
from judge_server import JudgeServer, completion, judge_server, score, work, works

RUBRIC = "The answer is short and right."


def rollout(answer: str, task: Any = "2 + 3?", **more: Any) -> RecordedRollout:
    """A succeeded training rollout of the group `g` with two replies."""
    state, (records,) = ended_rollout(turns=2)
    first, last = records.completions
    last = replace(last, message={"role": "assistant", "content": answer})
    fields = {"task": Task("t", task), "mode": "train", "group": "g", **more}
    state: RolloutState = replace(state, rollout=replace(state.rollout, **fields))
    return RecordedRollout(state, replace(records, completions=(first, last), rewards=()))


@asynccontextmanager
async def judge(server: JudgeServer, folder: Path, *, seed: int = 0, **settings: Any) -> AsyncIterator[Judge]:
    made = JudgeSettings(**{"base_url": server.base_url, "model": "judge-1", "rubric": RUBRIC, "retries": 2, **settings})
    opened = Judge(made, JudgeCache(folder / "judge.jsonl"), seed=seed)
    try:
        yield opened
    finally:
        await opened.close()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge_endpoint, "FIRST_PAUSE", 0.01)


def by_length(body: dict[str, Any]) -> str:
    return score(10 - len(work(body)))


async def test_a_judge_sees_rubric_task_and_answer_and_its_score_becomes_a_reward_from_0_to_1(tmp_path: Path) -> None:
    with judge_server(by_length) as server:
        async with judge(server, tmp_path) as asked:
            judgements = await asked.score([rollout("five", {"question": "2 + 3?"}), rollout("5")])
            assert [(judgement.value, judgement.reason) for judgement in judgements] == [(0.6, "because"), (0.9, "because")]
            assert asked.counts() == {"judge.asked": 2.0}
            assert asked.counts() == {}
    body = next(body for body in server.bodies if work(body) == "five")
    assert (body["model"], body["temperature"], body["response_format"]["type"], body["max_tokens"]) == ("judge-1", 0, "json_schema", 1024)
    assert RUBRIC in body["messages"][1]["content"]
    assert json.loads(works(body)["task"]) == {"question": "2 + 3?"}
    assert server.keys == [None, None]


async def test_a_judge_that_sees_messages_gets_those_of_the_whole_rollout(tmp_path: Path) -> None:
    recorded = rollout("5")
    attempt = recorded.records.attempt.id
    first, last = recorded.records.completions
    calls = (
        Call(id=first.call_id, attempt_id=attempt, index=0, status="completed", messages=[{"role": "user", "content": "2 + 3?"}]),
        Call(
            id=last.call_id, attempt_id=attempt, index=1, status="completed", after=first.call_id,
            messages=[[0, 2], {"role": "tool", "content": "the sum is 5"}],
        ),
    )  # fmt: skip
    recorded = RecordedRollout(recorded.state, replace(recorded.records, calls=calls))
    with judge_server(lambda body: score(7)) as server:
        async with judge(server, tmp_path, sees="messages") as asked:
            await asked.score([recorded])
            unrecorded = replace(recorded.records, calls=(replace(calls[0], messages=None), calls[1]))
            (judgement,) = await asked.score([RecordedRollout(recorded.state, unrecorded)])
    shown = work(server.bodies[0])
    assert shown.index("[user]\n2 + 3?") < shown.index("[tool]\nthe sum is 5") < shown.index("[assistant]\n5")
    assert judgement.value is None
    assert "not recorded" in judgement.reason


async def test_nothing_is_asked_twice_not_even_after_a_restart(tmp_path: Path) -> None:
    with judge_server(by_length) as server:
        async with judge(server, tmp_path) as asked:
            together = await asked.score([rollout("five"), rollout("five"), rollout("5")])
            assert [judgement.value for judgement in together] == [0.6, 0.6, 0.9]
            assert asked.counts() == {"judge.asked": 2.0, "judge.cached": 1.0}
        file = tmp_path / "judge.jsonl"
        file.write_bytes(file.read_bytes() + b'{"request": "cut o')
        async with judge(server, tmp_path) as again:
            assert [judgement.value for judgement in await again.score([rollout("five"), rollout("5"), rollout("fiv")])] == [0.6, 0.9, 0.7]
            assert again.counts() == {"judge.asked": 1.0, "judge.cached": 2.0}
        async with judge(server, tmp_path) as third:
            await third.score([rollout("fiv")])
            assert third.counts() == {"judge.cached": 1.0}
        assert len(server.bodies) == 3
        async with judge(server, tmp_path, rubric="Another one.") as other:
            await other.score([rollout("five")])
            assert other.counts() == {"judge.asked": 1.0}


async def test_an_unreadable_reply_is_asked_again_and_then_leaves_the_rollout_without_a_reward(tmp_path: Path) -> None:
    replies = {"five": ["about 7 or 8", score(11), score(8)], "5": ["good"] * 9}
    with judge_server(lambda body: replies[work(body)].pop(0)) as server:
        async with judge(server, tmp_path) as asked:
            right, wrong = await asked.score([rollout("five"), rollout("5")])
            assert (right.value, wrong.value) == (0.8, None)
            assert "gave no score after 3 requests: 'good' is no JSON object" in wrong.reason
            assert asked.counts() == {"judge.asked": 2.0, "judge.unscored": 1.0}
    last = [body for body in server.bodies if work(body) == "five"][-1]["messages"]
    assert [message["role"] for message in last] == ["system", "user", "assistant", "user"]
    assert "its score is 11, which is not from 0 to 10" in last[3]["content"]
    assert "five" not in (tmp_path / "judge.jsonl").read_text()


@pytest.mark.parametrize(
    "failure",
    [
        lambda: JSONResponse({"error": "busy"}, 503),
        lambda: JSONResponse({"error": "slow down"}, 429, headers={"retry-after": "0"}),
        lambda: PlainTextResponse("<html>"),
        lambda: completion(score(7), "length"),
    ],
)
async def test_a_failure_that_may_pass_is_tried_again(tmp_path: Path, failure: Callable[[], Any]) -> None:
    answers: list[Any] = [failure(), score(5)]
    with judge_server(lambda body: answers.pop(0)) as server:
        async with judge(server, tmp_path) as asked:
            assert (await asked.score([rollout("5")]))[0].value == 0.5


async def test_an_endpoint_that_stays_away_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    with judge_server(lambda body: JSONResponse({"error": "busy"}, 503)) as server:
        async with judge(server, tmp_path) as asked:
            with pytest.raises(JudgeError, match=r"does not answer after 3 requests: HTTP 503: .*busy.* resume the run"):
                await asked.score([rollout("5")])
            assert len(server.bodies) == 3
    async with judge(server, tmp_path) as asked:  # the server has stopped
        with pytest.raises(JudgeError, match=r"does not answer after 3 requests: ConnectError"):
            await asked.score([rollout("5")])


async def test_a_request_that_is_too_long_for_the_judge_costs_its_rollout_the_reward_alone(tmp_path: Path) -> None:
    def limited(body: dict[str, Any]) -> Any:
        return JSONResponse({"error": "context length exceeded"}, 400) if len(work(body)) > 20 else score(5)

    with judge_server(limited) as server:
        async with judge(server, tmp_path) as asked:
            long, short = await asked.score([rollout("x" * 30), rollout("5")])
    assert (long.value, short.value) == (None, 0.5)
    assert "refused the request with HTTP 400: " in long.reason
    assert "context length exceeded" in long.reason


async def test_a_slow_endpoint_meets_the_timeout_and_few_requests_are_in_flight(tmp_path: Path) -> None:
    pause = 0.05

    def slow(body: dict[str, Any]) -> str:
        time.sleep(pause)
        return score(5)

    with judge_server(slow) as server:
        async with judge(server, tmp_path, concurrency=2) as asked:
            await asked.score([rollout("x" * size) for size in range(6)])
        assert server.most_in_flight == 2
        pause = 1.0
        async with judge(server, tmp_path / "other", timeout=0.3, retries=0) as asked:
            with pytest.raises(JudgeError, match="ReadTimeout"):
                await asked.score([rollout("5")])


async def test_a_wrong_key_stops_at_once_and_the_key_is_never_shown_or_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "canary-key-5b1e")

    def refuse(body: dict[str, Any]) -> Any:
        return JSONResponse({"error": f"the key {server.keys[-1]} is wrong"}, 401)

    with judge_server(refuse) as server:
        async with judge(server, tmp_path, api_key_env="JUDGE_KEY") as asked:
            with pytest.raises(JudgeError, match=r"refused the request with HTTP 401: .*the key Bearer \.\.\. is wrong.*api_key_env"):
                await asked.score([rollout("5")])
        assert server.keys == ["Bearer canary-key-5b1e"]
        server.answer = by_length
        async with judge(server, tmp_path, api_key_env="JUDGE_KEY") as asked:
            await asked.score([rollout("5")])
    assert "canary" not in (tmp_path / "judge.jsonl").read_text()
    monkeypatch.delenv("JUDGE_KEY")
    with pytest.raises(ConfigError, match=r"api_key_env names 'JUDGE_KEY', which is not set"):
        async with judge(server, tmp_path, api_key_env="JUDGE_KEY"):
            pass


async def test_an_endpoint_without_response_format_is_asked_without_it_from_then_on(tmp_path: Path) -> None:
    def plain(body: dict[str, Any]) -> Any:
        if "response_format" in body:
            return JSONResponse({"error": "response_format is not supported"}, 400)
        return "It is short.\n\n**Score: 7.5**"

    with judge_server(plain) as server:
        async with judge(server, tmp_path) as asked:
            assert (await asked.score([rollout("5")]))[0].value == 0.75
            assert (await asked.score([rollout("6")]))[0].value == 0.75
    assert ["response_format" in body for body in server.bodies] == [True, False, False]


async def test_an_endpoint_with_another_name_for_the_limit_of_tokens_is_asked_with_it_from_then_on(tmp_path: Path) -> None:
    def newer(body: dict[str, Any]) -> Any:
        if "max_tokens" in body:
            return JSONResponse({"error": "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."}, 400)
        return score(7) if body["max_completion_tokens"] == 50 else score(1)

    with judge_server(newer) as server:
        async with judge(server, tmp_path, max_tokens=50) as asked:
            assert (await asked.score([rollout("5")]))[0].value == 0.7
            assert (await asked.score([rollout("6")]))[0].value == 0.7
    assert ["max_tokens" in body for body in server.bodies] == [True, False, False]
    assert all("response_format" in body for body in server.bodies)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"reason": "ok", "score": 7}', 7.0),
        ('```json\n{"score": 7.5, "reason": "ok"}\n```', 7.5),
        ('I think so.\n```json\n{"score": 3}\n```\nDone.', 3.0),
        ("<think>10?</think>\nGood.\nScore: 4", 4.0),
        ("6", 6.0),
        ("Good.\n-1.5", -1.5),
        ("Score: 8/10", None),
        ("8 out of 10", None),
        ("between 3 and 4", None),
        ('{"score": true}', None),
        ('{"score": "7"}', None),
        ('{"score": NaN}', None),
        ('{"score": 10.5}', None),
        ('{"reason": "7"}', None),
        ("", None),
        ("[7]", None),
    ],
)
def test_a_score_is_read_by_one_rule_and_never_guessed(text: str, expected: float | None) -> None:
    if expected is None:
        with pytest.raises(Unreadable):
            read_score(text, -2.0, 10.0)
    else:
        assert read_score(text, -2.0, 10.0)["score"] == expected


async def test_our_own_gateway_serves_a_judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `agl serve MODEL` does, with `api_key_env = "AGL_TOKEN"`."""
    make_tokenizer(tmp_path)
    prompts: list[str] = []

    def reply(prompt: str, sampling: Sampling) -> str:
        prompts.append(prompt)
        assert sampling.temperature == 0
        return score(7)

    async with open_world(tmp_path, reply) as world:
        served = Rollout(task=Task("judge", None), mode="production")
        attempt = await world.store.begin(served, "test", lease=60)
        monkeypatch.setenv("JUDGE_KEY", attempt.key)
        settings = JudgeSettings(base_url=world.gateway.base_url, model="scripted", rubric=RUBRIC, api_key_env="JUDGE_KEY", retries=0)
        asked = Judge(settings, JudgeCache(tmp_path / "judge.jsonl"))
        assert [judgement.value for judgement in await asked.score([rollout("5")])] == [0.7]
        await asked.close()
    assert RUBRIC in prompts[0]


# --- relative ---


def shortest(body: dict[str, Any]) -> str:
    lengths = {name.removeprefix("work "): len(text) for name, text in works(body).items() if name != "task"}
    order = sorted(set(lengths.values()))
    return json.dumps({"reason": "shorter", "ranks": {name: order.index(length) + 1 for name, length in lengths.items()}})


async def test_a_relative_judge_ranks_a_group_in_one_request_and_ties_share_their_places(tmp_path: Path) -> None:
    group = [rollout(answer) for answer in ("xxx", "x", "yy", "xx", "x")]
    with judge_server(shortest) as server:
        async with judge(server, tmp_path, relative=True) as asked:
            judgements = await asked.score(group)
            assert [judgement.value for judgement in judgements] == [0.0, 0.875, 0.375, 0.375, 0.875]
            assert asked.counts() == {"judge.asked": 1.0}
            equal = await asked.score([rollout("a"), rollout("a")])
            assert [judgement.value for judgement in equal] == [0.5, 0.5]
            (alone,) = await asked.score([rollout("a")])
            assert alone.value is None
            assert "alone in its group" in alone.reason
    (body,) = server.bodies
    assert len(works(body)) == 5, "the task, and four works that differ"


async def test_a_relative_judge_sees_a_group_in_the_order_of_the_seed_and_groups_differ(tmp_path: Path) -> None:
    answers = [f"answer {letter}" for letter in "abcdefgh"]
    with judge_server(shortest) as server:
        for seed, group in ((0, "g1"), (0, "g1"), (1, "g1"), (0, "g2")):
            async with judge(server, tmp_path / f"{len(server.bodies)}", relative=True, seed=seed) as asked:
                await asked.score([rollout(answer, group=group) for answer in answers])
    orders = [tuple(text for name, text in works(body).items() if name != "task") for body in server.bodies]
    assert orders[0] == orders[1]
    assert len(set(orders)) == 3
    assert all(sorted(order) == answers for order in orders)
    assert sum(shuffled(answers, str(seed))[0] == "answer a" for seed in range(800)) in range(60, 140), (
        "each is first an eighth of the time"
    )


async def test_a_relative_judge_scores_the_rollouts_of_an_evaluation_one_by_one(tmp_path: Path) -> None:
    with judge_server(by_length) as server:
        async with judge(server, tmp_path, relative=True) as asked:
            judgements = await asked.score([rollout("five", mode="eval"), rollout("5", mode="eval")])
    assert [judgement.value for judgement in judgements] == [0.6, 0.9]


async def test_ranks_that_do_not_name_every_work_leave_the_group_without_rewards(tmp_path: Path) -> None:
    with judge_server(lambda body: json.dumps({"ranks": {"A": 1}})) as server:
        async with judge(server, tmp_path, relative=True) as asked:
            judgements = await asked.score([rollout("a"), rollout("b")])
            assert [judgement.value for judgement in judgements] == [None, None]
            assert "A, B need one number each" in judgements[0].reason
    with pytest.raises(Unreadable):
        read_ranks('{"ranks": [1, 2]}', ["A", "B"])


def test_rewards_of_ranks_have_the_same_mean_in_every_group() -> None:
    assert rank_rewards([1, 2, 3]) == [1.0, 0.5, 0.0]
    assert rank_rewards([7, 7, 7, 7]) == [0.5, 0.5, 0.5, 0.5]
    assert rank_rewards([2, 1]) == [0.0, 1.0]
    assert sum(rank_rewards([1, 1, 5, 2, 2, 2])) == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"base_url": "ftp://x"}, r"reward\.judge\.base_url is 'ftp://x'"),
        ({"base_url": "http://key@host/v1"}, "has a login in it"),
        ({"scale": (5, 5)}, r"scale is \[5, 5\]"),
        ({"rubric": " "}, "rubric is empty"),
        ({"sees": "all"}, "sees is 'all'"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_by_name(settings: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        JudgeSettings(**{"base_url": "http://127.0.0.1:1/v1", "model": "m", "rubric": "r", **settings})


def test_a_rubric_may_be_a_file(tmp_path: Path) -> None:
    (tmp_path / "my rubric.md").write_text("Be brief.\n")
    settings = JudgeSettings(base_url="http://127.0.0.1:1/v1", model="m", rubric=str(tmp_path / "my rubric.md"))
    assert settings.rubric_text() == "Be brief."
    with pytest.raises(ConfigError, match=r"'gone\.md' cannot be read"):
        JudgeSettings(base_url="http://127.0.0.1:1/v1", model="m", rubric="gone.md").rubric_text()
