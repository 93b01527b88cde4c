"""The losses of an adapter against the same written out for each question, from the whole model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny import text, tiny
from torch import Tensor, nn

from reverie.hf.add import insert_fast_weights
from reverie.hf.blocks import inserted_mixer, inserted_parameters
from reverie.hf.causal_lm import PretrainedLM
from reverie.hf.decoder import sleeping_decoder
from reverie.model import select_rows
from reverie.recipe.adapt import LossConfig
from reverie.sleep import Context, SleepConfig, consolidate, wake
from reverie.tasks.reading import TokenQuestion
from reverie.train import adapt_loss as adapt_loss_module
from reverie.train.adapt_loss import PlainText, adapt_loss, has_plain_head
from reverie.train.texts import Asked, TextBatch

pytestmark = pytest.mark.hf

L, R = 8, 2  # tokens of a window, texts
OFF = {"answer": 0.0, "end": 0.0, "address": 0.0, "plain_text": 0.0}
SLEEPS = {
    "one pass": SleepConfig(window_size=L),
    "two": SleepConfig(window_size=L, num_sleep_passes=2, looped_blocks=(1, 3)),
    "layer after the loop": SleepConfig(window_size=L, num_sleep_passes=2, looped_blocks=(0, 2)),
}
each_sleep = pytest.mark.parametrize("sleep", SLEEPS.values(), ids=SLEEPS)
windows = pytest.mark.parametrize("W", [1, 3])


@pytest.fixture(scope="module")
def model() -> Any:
    return remembering()


def remembering(conv_size: int = 4) -> Any:
    lm = tiny("llama")
    insert_fast_weights(lm, [1, 2], "gdn", fast_heads=2, key_size=5, value_size=6, value_embedding=True)
    for block in (1, 2):
        mixer: Any = inserted_mixer(lm.model.layers[block])
        mixer.mixer.conv_weight = nn.Parameter(torch.ones(conv_size, sum(mixer.mixer.sizes)).double())
        mixer.mixer.conv_size = conv_size
    for parameter in inserted_parameters(lm).values():
        parameter.data.add_(0.2 * torch.randn(parameter.shape))
    return PretrainedLM(lm)


def batch_of(model: Any, W: int) -> TextBatch:
    """Texts of W windows with three questions, of which two have their answers in the text."""
    tokens = text(W * L, batch=R)
    asked = []
    for row, length, source in ((1, 3, W * L - 3), (0, 2, None), (0, 5, 1)):
        answer = (*(tokens[row, source : source + 2].tolist() if source is not None else (9, 11)), 2)
        question = TokenQuestion(tuple(text(length, 1, seed=length)[0].tolist()), answer, "", "", None, None)
        ids = torch.tensor([*question.prompt, *answer[:-1]])
        taught = 0.5 * torch.randn(3, 32, generator=torch.Generator().manual_seed(length)).double()
        asked.append(Asked(row, question, model.embed(ids[None])[0].detach(), taught, source))
    return TextBatch(tokens, model.embed(tokens).detach(), asked)


def found(model: Any, batch: TextBatch, sleep: SleepConfig, plain: PlainText | None = None, **changes: Any) -> Tensor:
    options = {"alone": False, "count": 1.0, "generator": torch.Generator().manual_seed(0)}
    options |= {key: changes.pop(key) for key in options.keys() & changes}
    config = LossConfig.model_validate({**OFF, "sampled_vocabulary": 0, **changes})
    return adapt_loss(model, 0, batch, plain, sleep, config, **options)[0]


def memories(model: Any, batch: TextBatch, sleep: SleepConfig) -> Context:
    return consolidate(model, batch.tokens, Context.empty(model), sleep)


def asked_of(model: Any, one: Asked, memory: Context, sleep: SleepConfig) -> Tensor:
    """Logits [answer tokens, vocabulary]."""
    before = select_rows(memory, torch.tensor([one.row]))
    ids = torch.tensor([[*one.question.prompt, *one.question.answer[:-1]]])
    h, _ = wake(model, ids, before, sleep)
    return model.head(h)[0, len(one.question.prompt) - 1 :]


def close(ours: Tensor, theirs: Any) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6, check_dtype=False)


@each_sleep
@windows
def test_answers_and_their_ends(model: Any, sleep: SleepConfig, W: int) -> None:
    batch = batch_of(model, W)
    memory, words, ends = memories(model, batch, sleep), [], []
    for one in batch.asked:
        losses = F.cross_entropy(
            asked_of(model, one, memory, sleep), torch.tensor(one.question.answer), reduction="none"
        )
        words.append(losses[:-1].sum())
        ends.append(losses[-1])
    close(found(model, batch, sleep, answer=1.0), sum(words))
    close(found(model, batch, sleep, answer=0.5, end=2.0, count=4.0), (0.5 * sum(words) + 2 * sum(ends)) / 4)


@each_sleep
@windows
@pytest.mark.parametrize("conv_size", [1, 4, 9])
def test_a_template_that_prompts_share_is_heard_once_a_text(
    sleep: SleepConfig, W: int, conv_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = remembering(conv_size=conv_size)
    batch, template, asked = batch_of(model, W), (5, 8), []
    for one in [*batch.asked, *batch.asked]:
        question = one.question._replace(prompt=(*template, 3, *one.question.prompt[:1], 4, 6))
        ids = torch.tensor([*question.prompt, *question.answer[:-1]])
        asked.append(one._replace(question=question, states=model.embed(ids[None])[0].detach()))
    batch, heard, real = batch._replace(asked=asked), list[int](), adapt_loss_module.wake

    def counted(after: Any, x: Tensor, *rest: Any) -> Any:
        heard.append(x.shape[0] * x.shape[1])
        return real(after, x, *rest)

    monkeypatch.setattr(adapt_loss_module, "wake", counted)
    losses: dict[str, Any] = {"answer": 1.0, "end": 0.5, "distillation": 0.3, "address": 0.7}

    def loss_and_gradients() -> list[Tensor]:
        loss = found(model, batch, sleep, **losses)
        return [loss, *torch.autograd.grad(loss, model.fast_weight_parameters())]

    monkeypatch.setattr("reverie.hf.frozen.SHARED", 100)
    apart, tokens = loss_and_gradients(), sum(heard)
    monkeypatch.setattr("reverie.hf.frozen.SHARED", 2)
    for ours, theirs in zip(loss_and_gradients(), apart, strict=True):
        close(ours, theirs)
    saved = 2 * tokens - sum(heard)
    assert saved >= 2 * len(asked) - 2 * R if conv_size <= 4 else saved == 0  # wide ones need the whole prompt


@each_sleep
@windows
@pytest.mark.parametrize("alone", [True, False])
def test_texts_without_a_question(model: Any, sleep: SleepConfig, W: int, alone: bool) -> None:
    nothing_asked = batch_of(model, W)._replace(asked=[])
    assert found(model, nothing_asked, sleep, answer=1.0, address=1.0, alone=alone) == 0


@each_sleep
def test_what_a_teacher_makes_of_the_answers(model: Any, sleep: SleepConfig) -> None:
    """KL divergence from its final states, summed over answer tokens."""
    batch, wanted = batch_of(model, 2), torch.zeros(())
    memory = memories(model, batch, sleep)
    for one in batch.asked:
        assert one.taught is not None
        log_p = model.lm.get_output_embeddings()(one.taught).log_softmax(-1)
        log_q = asked_of(model, one, memory, sleep).log_softmax(-1)
        wanted = wanted + (log_p.exp() * (log_p - log_q)).sum()
    close(found(model, batch, sleep, distillation=0.6, count=3.0), 0.6 * wanted / 3)


@each_sleep
@windows
def test_addresses_are_those_of_the_newest_pass(model: Any, sleep: SleepConfig, W: int) -> None:
    """Of each inserted layer, what it was last given of each window; a question's tokens find their place."""
    batch = batch_of(model, W)
    wanted = torch.zeros(())
    for block in (1, 2):
        mixer: Any = inserted_mixer(model.layers[block])
        given: list[Tensor] = []
        hook = mixer.mixer.register_forward_pre_hook(lambda _, inputs, given=given: given.append(inputs[0]))
        context, keys = Context.empty(model), []
        for window in batch.tokens.split(L, 1):
            context = consolidate(model, window, context, sleep)
            x = given[-1]
            projected = mixer.mixer.project(x, None, model.embed(window))
            keys.append(projected.k * projected.beta[..., None])
        key = torch.cat(keys, 1)
        for one in batch.asked:
            asked_of(model, one, context, sleep)
            if one.source is not None:
                query = mixer.mixer.project(given[-1], None, one.states[None]).q[0, len(one.question.prompt) - 1 :]
                for j in range(2):
                    scores = torch.einsum("hk,thk->t", query[j], key[one.row]) / 2  # heads
                    wanted = wanted + F.cross_entropy(20 * scores[None], torch.tensor([one.source + j])) / 2  # layers
        hook.remove()
    close(found(model, batch, sleep, address=0.7), 0.7 * wanted)


@windows
def test_addresses_alone_are_those_of_one_pass_without_a_memory(model: Any, W: int) -> None:
    """And with one pass over a single window the two are the same but for the memory that a later layer reads."""
    batch, sleep = batch_of(model, W), SLEEPS["one pass"]
    config = LossConfig.model_validate({**OFF, "address": 0.3, "sampled_vocabulary": 0})
    options: Any = {"alone": True, "count": 2.0, "generator": torch.Generator()}
    total, told = adapt_loss(model, 0, batch, None, sleep, config, **options)
    wanted = torch.zeros(())
    for block in (1, 2):
        mixer: Any = inserted_mixer(model.layers[block])
        given: list[Tensor] = []
        hook = mixer.mixer.register_forward_pre_hook(lambda _, inputs, given=given: given.append(inputs[0]))
        for window in batch.tokens.split(L, 1):
            wake(model, window, Context.empty(model), sleep)
        key = torch.cat([mixer.mixer.addresses(x)[1] for x in given], 1)
        for one in (one for one in batch.asked if one.source is not None):
            source: Any = one.source
            ids = torch.tensor([[*one.question.prompt, *one.question.answer[:-1]]])
            wake(model, ids, Context.empty(model), sleep)
            query = mixer.mixer.addresses(given[-1])[0][0, len(one.question.prompt) - 1 :]
            for j in range(2):
                scores = torch.einsum("hk,thk->t", query[j], key[one.row]) / 2
                wanted = wanted + F.cross_entropy(20 * scores[None], torch.tensor([source + j])) / 2
        hook.remove()
    close(total, wanted / 2)  # by its count, and whatever its weight
    assert told["answer"] == told["end"] == 0


@pytest.mark.parametrize("seed", range(4))
def test_plain_text_goes_on_as_it_did(model: Any, seed: int) -> None:
    """KL to the untouched model, in nats a token; after one of the texts, or after nothing."""
    batch, sleep = batch_of(model, 1), SLEEPS["two"]
    tokens = text(L, batch=3, seed=5)
    untouched = 0.5 * torch.randn(3, L, 32, dtype=torch.float64)
    plain = PlainText(tokens, model.embed(tokens).detach(), untouched)
    draws = torch.Generator().manual_seed(seed)
    rows = torch.randint(R, (3,), generator=draws)
    empty = bool(torch.randint(2, (), generator=draws))
    before = Context.empty(model) if empty else select_rows(memories(model, batch, sleep), rows)
    h, _ = wake(model, tokens, before, sleep)
    log_p = model.lm.get_output_embeddings()(untouched).log_softmax(-1)
    wanted = (log_p.exp() * (log_p - model.head(h).log_softmax(-1))).sum(-1).mean()
    generator = torch.Generator().manual_seed(seed)
    close(found(model, batch, sleep, plain, plain_text=0.4, generator=generator, count=7.0), 0.4 * wanted)


@pytest.mark.parametrize("kind", ["llama", "granite", "gemma2", "cohere"])
def test_an_untouched_model_says_what_it_said(kind: str) -> None:
    """Also where the head's products are scaled and capped; then some of them alone can't be had."""
    changes: Any = {"logits_scaling": 7.0} if kind == "granite" else {}
    lm = tiny(kind, **changes)
    insert_fast_weights(lm, [1], "gdn", fast_heads=1, key_size=4, value_size=4)
    for parameter in inserted_parameters(lm).values():
        parameter.data.add_(0.2 * torch.randn(parameter.shape))
    model: Any = PretrainedLM(lm)
    assert has_plain_head(model) is (kind == "llama")
    batch, sleep, tokens = batch_of(model, 1), SLEEPS["one pass"], text(L, batch=3, seed=5)
    h, _ = wake(model, tokens, Context.empty(model), sleep)
    final = sleeping_decoder(model.lm).sleeping.head(h).detach()
    plain = PlainText(tokens, model.embed(tokens).detach(), final)
    losses = [
        found(model, batch, sleep, plain, plain_text=1.0, generator=torch.Generator().manual_seed(seed)).item()
        for seed in range(8)
    ]
    assert min(losses) == pytest.approx(0, abs=1e-6)  # after nothing
    assert max(losses) > 2e-5  # after a text


def test_a_sampled_vocabulary_leaves_out_what_competes_less(model: Any) -> None:
    """The loss of few competitors is below that of all; with all of them sampled it is the same."""
    batch, sleep = batch_of(model, 1), SLEEPS["one pass"]
    every = found(model, batch, sleep, answer=1.0)
    close(found(model, batch, sleep, answer=1.0, sampled_vocabulary=2000), every)


def test_of_a_large_vocabulary_the_right_answers_always_compete() -> None:
    lm = tiny("llama", vocab_size=2000)
    insert_fast_weights(lm, [1], "gdn", fast_heads=1, key_size=4, value_size=4)
    large: Any = PretrainedLM(lm)
    batch = batch_of(large, 1)
    for one in batch.asked:
        assert max(one.question.answer) < 300
    far = [one._replace(question=one.question._replace(answer=(1900, 1950, 1999))) for one in batch.asked]
    batch = batch._replace(asked=far)
    every, few = (
        found(large, batch, SLEEPS["one pass"], answer=1.0, end=1.0, sampled_vocabulary=n).item() for n in (0, 5)
    )
    assert 0 < few < every


def test_gradients_reach_what_they_should(model: Any) -> None:
    """Weights of 0 leave a loss out; with all of them every inserted parameter learns."""
    batch, sleep = batch_of(model, 2), SLEEPS["two"]
    parameters = model.fast_weight_parameters()
    assert not found(model, batch, sleep)
    total = found(model, batch, sleep, answer=1.0, end=0.2, address=0.3)
    gradients = torch.autograd.grad(total, parameters, allow_unused=True)
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients)
