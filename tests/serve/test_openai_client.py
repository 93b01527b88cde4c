"""The stock client of OpenAI against a server on loopback."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from answers import weights
from server import Served, served
from tiny_sleeper import tiny_sleeper

from reverie.memory.memory import Memory, sleep_over
from reverie.sleep.generate import log_probability
from reverie.talk.heard import Heard
from reverie.talk.shipped import load_example_text
from reverie.talk.sleeper import Sleeper, load_model
from reverie.tasks.language import TokenNames

FACT = "The number of grown heron in Gull Island equals 3."
QUESTION = "How many grown heron does Gull Island have?"


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(load_model("example"), tmp_path_factory.mktemp("store")) as server:
        yield server


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Sleeper:
    """Windows of 8 tokens; answers of five tokens that nothing ends."""
    sleeper = tiny_sleeper(tmp_path_factory.mktemp("run"), "depo")
    assert isinstance(sleeper.language, TokenNames)
    sleeper.language.max_answer_tokens, sleeper.language.end_ids = 5, frozenset()
    return sleeper


@pytest.fixture(scope="module")
def random(tiny: Sleeper, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tiny, tmp_path_factory.mktemp("store")) as server:
        yield server


def model_of(server: Served) -> str:
    return next(iter(server.client().models.list())).id


def chat(server: Served, messages: list[Any], **options: Any) -> Any:
    return server.client().chat.completions.create(model=model_of(server), messages=messages, **options)


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def test_a_chat_answers(example: Served) -> None:
    done = chat(example, [user(FACT), user(QUESTION)])
    assert done.choices[0].message.content == "3"
    assert done.choices[0].finish_reason == "stop"
    assert done.usage.prompt_tokens == 13
    told = chat(example, [user(FACT)])
    assert (told.choices[0].message.content, told.usage.completion_tokens) == ("", 0)


def test_streamed_or_not_it_is_the_same(random: Served) -> None:
    messages = [user("k=1 3"), user("k=2 4")]
    drawn = {"temperature": 1.3, "top_p": 0.9, "seed": 5, "max_tokens": 20, "logprobs": True, "top_logprobs": 3, "n": 2}
    whole = chat(random, messages, **drawn)
    chunks = list(chat(random, messages, **drawn, stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens == 40
    for i, choice in enumerate(whole.choices):
        own = [c for chunk in chunks for c in chunk.choices if c.index == i]
        assert own[0].delta.role == "assistant"
        assert "".join(c.delta.content or "" for c in own) == choice.message.content
        assert own[-1].finish_reason == choice.finish_reason == "length"
        shown = [token for c in own if c.logprobs for token in c.logprobs.content]
        assert [t.token for t in shown] == [t.token for t in choice.logprobs.content]
        assert [t.logprob for t in shown] == pytest.approx([t.logprob for t in choice.logprobs.content], abs=1e-5)
        assert all(len(t.top_logprobs) == 3 for t in shown)
    assert whole.choices[0].message.content != whole.choices[1].message.content


def test_log_probabilities_are_the_models(random: Served, tiny: Sleeper) -> None:
    """Of tokens that are given as ids, over several windows."""
    ids = [3, 4, 5, 6, 7, 8, 3, 5, 7, 4, 6]
    done = random.client().completions.create(
        model=model_of(random), prompt=ids, max_tokens=12, temperature=1, seed=3, logprobs=0
    )
    shown = done.choices[0].logprobs
    assert shown is not None
    said = [tiny.encode(token)[0] for token in shown.tokens or []]
    context, config = Memory.empty(tiny).context, tiny.sleep_config
    expected = log_probability(tiny, torch.tensor([ids]), torch.tensor([said]), context, config)[0]
    assert shown.token_logprobs == pytest.approx(expected.tolist(), abs=1e-5)
    assert done.choices[0].text == tiny.decode(said)
    text = random.client().completions.create(
        model=model_of(random), prompt=tiny.decode(ids), max_tokens=12, temperature=1, seed=3
    )
    assert text.choices[0].text == done.choices[0].text


def test_offsets_are_places_in_the_text(random: Served) -> None:
    """Streamed or not, wherever the text of a token is not what it is alone."""
    asked: dict[str, Any] = {"model": model_of(random), "prompt": "k=1 3", "max_tokens": 5, "logprobs": 1, "seed": 1}
    whole = random.client().completions.create(**asked).choices[0]
    assert whole.logprobs is not None
    tokens, offsets = whole.logprobs.tokens or [], whole.logprobs.text_offset or []
    assert [whole.text[at:].lstrip().startswith(token.strip()) for token, at in zip(tokens, offsets, strict=True)]
    assert offsets == [len(" ".join(tokens[:i])) for i in range(len(tokens))]
    streamed = list(random.client().completions.create(**asked, stream=True))
    pieces = [part.choices[0].logprobs for part in streamed if part.choices[0].logprobs is not None]
    assert [at for piece in pieces for at in piece.text_offset or []] == offsets


def test_input_tokens_are_all_that_was_said(random: Served) -> None:
    """With what a memory holds, on the first turn as on those that go on from it, cached or not."""
    name, client = model_of(random), random.client()
    first = client.responses.create(model=name, input="k=1 3 4 5 6 7 3 4")
    with random.http() as http:
        http.post("/v1/memories", json={"name": "told", "source": first.id}).raise_for_status()
    assert first.usage is not None
    before, inputs, done = first.usage.total_tokens, list[int](), first
    for _ in range(2):
        client.chat.completions.create(model=f"{name}@told", messages=[{"role": "user", "content": "k=1 3"}])
        done = client.responses.create(model=f"{name}@told", input="k=1 3 4")
        assert done.usage is not None
        inputs.append(done.usage.input_tokens)
    assert inputs == [before + 3] * 2
    again = client.responses.create(model=name, input="k=1 3", previous_response_id=done.id)
    assert again.usage is not None
    assert done.usage is not None
    assert again.usage.input_tokens == done.usage.total_tokens + 2
    assert again.model == f"{name}@told"  # which it still stands on
    same = client.responses.create(model=f"{name}@told", input="k=1 3", previous_response_id=again.id)
    assert same.usage is not None
    assert same.usage.input_tokens == again.usage.total_tokens + 2
    with pytest.raises(openai.BadRequestError, match="model must be that, or be without a memory"):
        client.responses.create(model=f"{name}@told", input="k=1 3", previous_response_id=first.id)


def test_a_history_that_comes_again_is_not_read_again(random: Served) -> None:
    messages, known = [user("k=1 3")], 0
    for turn in ("k=2 4", "k=3 1", "k=1 5", "k=2 2"):
        done = chat(random, messages)
        assert done.usage.prompt_tokens_details.cached_tokens == known
        known = done.usage.prompt_tokens + done.usage.completion_tokens
        said = {"role": "assistant", "content": done.choices[0].message.content}
        messages += [said, user(turn)]
    again = chat(random, messages)  # regenerated, edited
    assert again.usage.prompt_tokens_details.cached_tokens == known
    edited = chat(random, [*messages[:-3], user("k=3 3")])
    assert 0 < edited.usage.prompt_tokens_details.cached_tokens < known
    apart = chat(random, messages, store=False)
    assert apart.choices[0].message.content == again.choices[0].message.content


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"top_logprobs": 5}, "top_logprobs needs logprobs: true"),
        ({"stream_options": {"include_usage": True}}, "stream_options are for streams"),
        ({"max_tokens": 1, "max_completion_tokens": 9}, "are two names of one limit, and must not differ"),
    ],
)
def test_fields_that_would_be_dropped_are_refused(random: Served, fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(openai.BadRequestError, match=sentence):
        chat(random, [user("k=1 3")], **fields)
    assert chat(random, [user("k=1 3")], max_tokens=1, max_completion_tokens=1).usage.completion_tokens == 1


def test_what_is_not_stored_is_not_found(random: Served) -> None:
    for stored, cached in ((False, 0), (True, 4)):
        done = chat(random, [user("k=2 3 3")], store=stored, max_tokens=1)
        assert done.usage.prompt_tokens_details.cached_tokens == 0  # a whole prompt is no proper prefix
        answer = {"role": "assistant", "content": done.choices[0].message.content}
        more = chat(random, [user("k=2 3 3"), answer, user("3 4")], store=False)
        assert more.usage.prompt_tokens_details.cached_tokens == cached


def test_a_chain_of_twenty_is_one_text(random: Served, tiny: Sleeper, tmp_path: Path) -> None:
    """Turn for turn over many windows: what is remembered is what reading all of it at once leaves."""
    client, said, id = random.client(), list[int](), None
    for i in range(20):
        text = f"k={i % 3 + 1} {i % 7 + 2}" if i % 4 else "3 4 5 6 7 8 3 4 5"
        done = client.responses.create(model=model_of(random), input=text, previous_response_id=id or openai.omit)
        assert done.usage is not None
        assert done.usage.input_tokens_details.cached_tokens == len(said)
        said += [*tiny.encode(text), *tiny.encode(done.output_text)]
        id = done.id
    heard = Heard.of(random.memory(str(id), tiny, tmp_path / "m.safetensors"))
    full = (len(said) - 1) // 8 * 8
    assert full > 100
    assert heard.awake == tuple(said[full:])
    assert heard.turns == 20
    torch.testing.assert_close(weights(heard), weights(Heard(sleep_over(tiny, torch.tensor([said[:full]])))))


def test_responses_stream(random: Served) -> None:
    client = random.client()
    whole = client.responses.create(model=model_of(random), input="k=1 3", max_output_tokens=3)
    assert (whole.status, whole.incomplete_details and whole.incomplete_details.reason) == (
        "incomplete",
        "max_output_tokens",
    )
    events = list(client.responses.create(model=model_of(random), input="k=1 3", stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    done = events[-1]
    assert done.type == "response.completed"
    assert "".join(deltas) == done.response.output_text
    assert done.response.output_text.startswith(whole.output_text)
    assert client.responses.retrieve(done.response.id).output_text == done.response.output_text
    with client.responses.stream(model=model_of(random), input="k=1 3") as stream:
        assert stream.get_final_response().output_text == done.response.output_text


def test_an_earlier_id_goes_on_in_another_way(random: Served) -> None:
    client, name = random.client(), model_of(random)
    first = client.responses.create(model=name, input="k=1 3")
    again = [client.responses.create(model=name, input="k=2 4", previous_response_id=first.id) for _ in range(2)]
    edited = client.responses.create(model=name, input="k=3 4", previous_response_id=first.id)
    assert len({one.id for one in (first, *again, edited)}) == 4
    assert again[0].output_text == again[1].output_text
    assert client.responses.retrieve(first.id).output_text == first.output_text


def test_an_answer_that_was_not_stored_has_no_id_to_go_on_from(random: Served) -> None:
    client, name = random.client(), model_of(random)
    done = client.responses.create(model=name, input="k=1 3", store=False)
    with pytest.raises(openai.NotFoundError):
        client.responses.create(model=name, input="k=1 3", previous_response_id=done.id)


def test_conversations_point_to_the_newest(random: Served) -> None:
    client, name = random.client(), model_of(random)
    made = client.conversations.create(metadata={"topic": "moles"})
    answers = [
        client.responses.create(model=name, input=text, conversation=made.id) for text in ("k=1 3", "k=2 4", "k=3 5")
    ]
    chained = None
    for text, answer in zip(("k=1 3", "k=2 4", "k=3 5"), answers, strict=True):
        chained = client.responses.create(
            model=name, input=text, previous_response_id=chained.id if chained else openai.omit
        )
        assert chained.output_text == answer.output_text
    assert answers[-1].conversation is not None
    assert answers[-1].conversation.id == made.id
    assert client.conversations.retrieve(made.id).metadata == {"topic": "moles"}
    client.responses.delete(answers[-1].id)
    again = client.responses.create(model=name, input="k=3 5", conversation=made.id)
    assert again.output_text == answers[-1].output_text
    client.conversations.delete(made.id)
    with pytest.raises(openai.NotFoundError):
        client.conversations.retrieve(made.id)
    for answer in (*answers[:2], again):
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(answer.id)


def test_a_memory_is_one_more_model(example: Served) -> None:
    client, shown = example.client(), load_example_text()
    with example.http() as http:
        begun = http.post("/v1/memories", json={"name": "facts", "text": shown.text})
        assert begun.status_code == 202
        while (now := http.get("/v1/memories/facts").json())["status"] == "reading":
            assert 0 <= now["tokens_read"] <= now["tokens"]
        assert (now["status"], now["tokens"]) == ("ready", 96)
    assert "example@facts" in [model.id for model in client.models.list()]
    assert client.models.retrieve("example@facts").id == "example@facts"
    right = 0
    for question, answer in shown.questions:
        done = client.chat.completions.create(model="example@facts", messages=[user(question)])  # type: ignore[list-item]
        right += done.choices[0].message.content == answer
        responded = client.responses.create(model="example@facts", input=question)
        assert responded.output_text == done.choices[0].message.content
    assert right == 7


@pytest.mark.parametrize(
    ("call", "kind", "param", "message"),
    [
        ({"tools": [{"type": "function"}]}, openai.BadRequestError, "tools", "tools is not supported"),
        ({"response_format": {"type": "json_object"}}, openai.BadRequestError, "response_format", "not supported"),
        ({"extra_body": {"wisdom": 1}}, openai.BadRequestError, "wisdom", "wisdom is not supported"),
        ({"frequency_penalty": 0.5}, openai.BadRequestError, "frequency_penalty", "not supported"),
        ({"temperature": -1}, openai.BadRequestError, "temperature", "temperature: input should be greater than"),
        ({"n": 9}, openai.BadRequestError, "n", "n is at most 8"),
        ({"model": "gpt-5"}, openai.NotFoundError, "model", "there is no model gpt-5: this is example"),
        ({"model": "example@nobody"}, openai.NotFoundError, "model", "there is no memory nobody"),
        ({"model": "example@../x"}, openai.BadRequestError, "model", "a name is"),
        ({"messages": []}, openai.BadRequestError, "messages", "messages: list should have at least 1 item"),
        ({"messages": [{"role": "assistant", "content": "3"}]}, openai.BadRequestError, "messages", "of the user"),
        ({"messages": [user("hello there")]}, openai.BadRequestError, None, "not in the vocabulary"),
        ({"messages": [user(" ")]}, openai.BadRequestError, "messages[0]", "the message is empty"),
        (
            {"messages": [{"role": "system", "content": "x"}, user(QUESTION)]},
            openai.BadRequestError,
            None,
            "no instructions",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            openai.BadRequestError,
            "messages[0].content[0].image_url",
            "is not supported",
        ),
    ],
)
def test_errors_say_what_is_wrong(
    example: Served, call: dict[str, Any], kind: type[openai.APIStatusError], param: str | None, message: str
) -> None:
    with pytest.raises(kind) as raised:
        example.client().chat.completions.create(**{"model": "example", "messages": [user(QUESTION)], **call})
    assert message in raised.value.message
    assert raised.value.body["param"] == param  # type: ignore[index]
    assert raised.value.body["type"] == "invalid_request_error"  # type: ignore[index]


def test_what_asks_for_nothing_is_taken(example: Served) -> None:
    nothing: dict[str, Any] = {"frequency_penalty": 0, "tools": [], "response_format": {"type": "text"}, "user": "me"}
    done = chat(example, [{**user(QUESTION), "name": None}], **nothing, extra_body={"logit_bias": None})
    assert done.choices[0].message.content
    parts = [{"type": "text", "text": FACT}]
    assert chat(example, [{"role": "user", "content": parts}]).choices[0].message.content == ""
