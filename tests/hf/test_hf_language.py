"""Models of transformers are spoken to through their tokenizers, in folders as `reverie convert` leaves them."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import Reverie, assert_one_line, in_empty_folder, the_json
from tiny_folder import tiny_folder, tiny_tokenizer
from torch import nn

from reverie.errors import UserError
from reverie.hf import save_hybrid
from reverie.hf.blocks import inserted_parameters
from reverie.hf.convert import convert
from reverie.hf.generate import generate
from reverie.hf.language import ChatLanguage
from reverie.hf.load import load
from reverie.hf.reading import AWAKE
from reverie.memory.memory import Memory, sleep_over
from reverie.model import HybridLM
from reverie.sleep import SleepConfig
from reverie.talk.answer import ask
from reverie.talk.chat import Chat
from reverie.talk.sleeper import Sleeper, load_model

pytestmark = pytest.mark.hf

L = 8
BOOK = "It was a dark and stormy night. Rain fell in torrents, except at times.\n"
TEMPLATE = (
    "{% for message in messages %}({{ message.role }}) {{ message.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}(assistant) {% endif %}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a model whose inserted layers do something."""
    out = tmp_path_factory.mktemp("models")
    config = SleepConfig(window_size=L, num_sleep_passes=2)
    convert(str(tiny_folder(out / "llama")), out / "new", config, kind="jet", layers=2)
    model = load(out / "new")
    torch.manual_seed(3)
    for name, parameter in inserted_parameters(model).items():
        if name.endswith("out_proj.weight"):
            nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(out / "sleeper")
    tiny_tokenizer().save_pretrained(out / "sleeper")
    return out / "sleeper"


@pytest.fixture
def sleeper(folder: Path) -> Sleeper:
    return load_model(folder)


def language_with(template: str | None) -> ChatLanguage:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    return ChatLanguage(tokenizer, frozenset([2]))


def test_it_reads_and_answers_as_generate_does(folder: Path, sleeper: Sleeper) -> None:
    """Where the book ends with a window: greedily, to the most tokens of an answer."""
    assert sleeper.sleep_config == SleepConfig(window_size=L, num_sleep_passes=2)
    book, question = (BOOK * 2)[: 9 * L], "Why then"
    memory = sleep_over(sleeper, [sleeper.text(book)])
    model, tokenizer = load(folder), tiny_tokenizer()
    wanted = generate(model, tokenizer, book + question, max_tokens=20).text
    answer = ask(sleeper, memory, [question], max_tokens=20)[0]
    assert answer.text == wanted.removeprefix(" ")
    assert answer.text != ask(sleeper, Memory.empty(sleeper), [question], max_tokens=20)[0].text
    longest = ask(sleeper, memory, [question])[0].ids
    assert len(longest) == sleeper.language.max_answer_tokens or longest[-1] == tokenizer.eos_token_id


def test_questions_go_through_the_template() -> None:
    language = language_with(TEMPLATE)
    whole = language.tokenizer.decode(language.question("Why so"))
    assert whole == "<unk>user<unk> Why so</s><unk>assistant<unk> "  # it knows no brackets
    later = language.tokenizer.decode(language.question("Why so", begun=True))
    assert later == "</s><unk>user<unk> Why so</s><unk>assistant<unk> "


def test_questions_without_a_template_are_as_they_are() -> None:
    language = language_with(None)
    assert language.question("Why") == language.encode("Why")
    assert language.question("Why", begun=True) == language.encode("\nWhy")
    assert language.decode([*language.encode("Why"), 2]) == "Why"
    assert language.is_question("It rains.")


def test_instructions_come_first() -> None:
    language = language_with(TEMPLATE)
    whole = language.tokenizer.decode(language.opening("Be brief", "Why so"))
    assert whole == "<unk>system<unk> Be brief</s><unk>user<unk> Why so</s><unk>assistant<unk> "
    assert language_with(None).opening("Be brief", "Why") == language.encode("Be brief\nWhy")
    refusing = language_with("{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}")
    with pytest.raises(UserError, match="no place for instructions"):
        refusing.opening("Be brief", "Why")
    assert language.answer("Why") == language.tokenizer("Why", add_special_tokens=False).input_ids


def test_turns_of_a_chat_are_one_text(sleeper: Sleeper) -> None:
    """With a template: what was heard is what the template makes of the whole conversation."""
    language = language_with(TEMPLATE)
    language.max_answer_tokens, language.end_ids = 4, frozenset()
    spoken = Sleeper("tiny", sleeper.sleeping, SleepConfig(window_size=1000), language, sleeper.device)
    chat = Chat(spoken, Memory.empty(spoken))
    turns = list[dict[str, str]]()
    for question in ("Why so", "And then", "No"):
        turns.append({"role": "user", "content": question})
        turns.append({"role": "assistant", "content": chat.say(question)})
    whole = str(language.tokenizer.apply_chat_template(turns, tokenize=False)).removesuffix("</s>")
    assert language.decode(chat.awake) == language.decode(language.tokenizer(whole)["input_ids"])  # type: ignore[arg-type]


def test_a_hybrid_of_our_own(tmp_path: Path, tiny_model: Callable[..., HybridLM]) -> None:
    lm = tiny_model("attn", "gdn", vocab_size=61, dtype=torch.float32).eval()
    save_hybrid(lm, tmp_path / "hybrid", SleepConfig(window_size=L))
    with pytest.raises(UserError, match="cannot load the tokenizer of"):
        load_model(tmp_path / "hybrid")
    tiny_tokenizer().save_pretrained(tmp_path / "hybrid")
    sleeper = load_model(tmp_path / "hybrid")
    assert sleeper.language.end_ids == {2}
    memory = sleep_over(sleeper, [sleeper.text(BOOK)])
    assert (
        memory.fingerprint == sleep_over(lm, torch.ones(1, 3, dtype=torch.long), SleepConfig(window_size=L)).fingerprint
    )
    assert len(ask(sleeper, memory, ["Why"], max_tokens=3)) == 1


def test_a_model_that_never_sleeps(tmp_path: Path, tiny_model: Callable[..., HybridLM]) -> None:
    save_hybrid(tiny_model("attn", "gdn", vocab_size=61), tmp_path / "awake", AWAKE)
    tiny_tokenizer().save_pretrained(tmp_path / "awake")
    with pytest.raises(UserError, match="awake holds a model that never sleeps: save it with a SleepConfig"):
        load_model(tmp_path / "awake")


@pytest.fixture
def reverie(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Reverie:
    return in_empty_folder(monkeypatch, capsys, tmp_path)


def test_the_commands(reverie: Reverie, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("book.txt").write_text(BOOK * 3)
    done = reverie("read", folder, "book.txt", "--memory", "m.safetensors", "--passes", 3)
    assert (done.code, done.out) == (0, "")
    answers = the_json(reverie("ask", folder, "--memory", "m.safetensors", "Why", "--tokens", 5, "--json"))["answers"]
    assert len(answers[0]["text"]) == 5
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"Why\n/memory\n")))
    said = reverie("chat", folder, "--memory", "m.safetensors", "--tokens", 5, "--temperature", 0)
    assert said.out == f"{answers[0]['text']}\n"
    assert f"{len(BOOK) * 3} tokens in memory" in said.err
    tiny_folder(Path("plain"))
    assert_one_line(reverie("read", "plain", "book.txt", "--memory", "x"), "plain holds a model of type llama, saved")


def test_it_needs_transformers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "reverie.hf.language", None)
    with pytest.raises(UserError, match="this needs the package transformers"):
        load_model(folder)


@pytest.fixture(autouse=True)
def _no_gradients() -> Any:
    with torch.no_grad():
        yield
