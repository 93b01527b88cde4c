"""Models of transformers behind the server: chats through their template, in batches, over several windows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from answers import Asked, engine_of, new, weights
from server import served
from tiny_folder import tiny_folder, tiny_tokenizer
from torch import nn

from reverie.hf.blocks import inserted_parameters
from reverie.hf.convert import convert
from reverie.hf.language import ChatLanguage
from reverie.hf.load import load
from reverie.sleep import SleepConfig
from reverie.talk.sleeper import Sleeper, load_model

pytestmark = pytest.mark.hf

TEMPLATE = (
    "{% for message in messages %}{{ message.role }}. {{ message.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}assistant. {% endif %}"
)


@pytest.fixture(scope="module")
def sleeper(tmp_path_factory: pytest.TempPathFactory) -> Sleeper:
    """Windows of 24 letters; the inserted layers do something, and answers don't end by themselves."""
    out = tmp_path_factory.mktemp("models")
    convert(
        str(tiny_folder(out / "llama")),
        out / "new",
        SleepConfig(window_size=24, num_sleep_passes=2),
        kind="jet",
        layers=2,
    )
    model = load(out / "new")
    torch.manual_seed(3)
    for name, parameter in inserted_parameters(model).items():
        if name.endswith("out_proj.weight"):
            nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(out / "sleeper")
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(out / "sleeper")
    sleeper = load_model(out / "sleeper")
    assert isinstance(sleeper.language, ChatLanguage)
    sleeper.language.end_ids = frozenset()
    return sleeper


def test_a_chat_with_instructions(sleeper: Sleeper, tmp_path: Path) -> None:
    messages: list[Any] = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why so"}]
    with served(sleeper, tmp_path) as server:
        client, before, known = server.client(), 0, 0
        for _ in range(3):
            done = client.chat.completions.create(model="sleeper", messages=messages, max_tokens=7, seed=1)
            usage = done.usage
            assert usage is not None
            assert usage.prompt_tokens_details is not None
            # Not all tokens that a random model writes are to be seen in its text.
            assert before <= (usage.prompt_tokens_details.cached_tokens or 0) <= known
            before, known = usage.prompt_tokens, usage.total_tokens
            messages += [
                {"role": "assistant", "content": done.choices[0].message.content},
                {"role": "user", "content": "And then"},
            ]
        streamed = client.chat.completions.create(
            model="sleeper", messages=messages[:-2], max_tokens=7, seed=1, stream=True
        )
        assert "".join(part.choices[0].delta.content or "" for part in streamed) == messages[-2]["content"]
        first = client.responses.create(model="sleeper", input="Why so", instructions="Be brief.")
        with pytest.raises(Exception, match="instructions can only come first"):
            client.responses.create(
                model="sleeper", input="Why so", instructions="Be brief.", previous_response_id=first.id
            )


def test_in_a_batch_or_alone(sleeper: Sleeper) -> None:
    questions = [sleeper.question(text) for text in ("Why so", "Who is", "Wherefore")]
    drawn: dict[str, Any] = {"max_tokens": 30, "temperature": 0.7, "seed": 3, "logprobs": 0}
    with engine_of(sleeper) as engine:
        alone = [Asked(engine, new(sleeper), ids, **drawn).end() for ids in questions]
        together = [Asked(engine, new(sleeper), ids, **drawn) for ids in questions]
        for asked, end in zip(together, alone, strict=True):
            found = asked.end()
            assert found.text == end.text
            torch.testing.assert_close(weights(found.heard), weights(end.heard))
        assert engine.counts.batched > 0
        assert int(alone[0].heard.memory.tokens[0]) >= 24
