"""What a call is given is honoured or refused by name, first or continued, by keyword or by place, on either module."""

from __future__ import annotations

import inspect
import itertools
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from sleeping_models import HYBRIDS, OWN, TRANSFORMERS, L, asleep, sleeping
from tiny import text
from transformers import DataCollatorWithFlattening, DynamicCache, StaticCache
from transformers.utils.generic import TransformersKwargs

from reverie.errors import UserError
from reverie.hf.arguments import BY_CAUSAL_LM, BY_DECODER
from reverie.hf.cache import SleepCache, cache_of
from reverie.hf.decoder import sleeping_decoder
from reverie.memory.memory import sleep_over

pytestmark = pytest.mark.hf

each_kind = pytest.mark.parametrize("kind", ["llama", "nemotron_h", OWN])
DOCUMENT = Path(__file__).parents[2] / "docs/huggingface.md"


@pytest.fixture(autouse=True)
def _no_gradients() -> Any:
    with torch.no_grad():
        yield


def modules(kind: str) -> list[Any]:
    """A causal LM that sleeps, and its decoder, if it is called by itself too."""
    model = sleeping(kind, asleep(2)).eval()
    return [model] if kind == OWN else [model, sleeping_decoder(model)]


def table(heading: str) -> dict[str, list[str]]:
    """The rows of the first table of a section, by each name in their first column."""
    lines = DOCUMENT.read_text().split(f"## {heading}\n")[1].split("\n|", 1)[1].split("\n\n")[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {name: row[1:] for row in rows[2:] for name in re.findall(r"`(\w+)`", row[0])}


def test_the_document_lists_every_argument_of_every_forward() -> None:
    listed, known = table("Arguments of a call"), set(TransformersKwargs.__annotations__)
    for kind in [*HYBRIDS, *TRANSFORMERS]:
        model, decoder = modules(kind)
        for module in (model, decoder):
            parameters = inspect.signature(module.stock.forward).parameters.values()
            known |= {x.name for x in parameters if x.kind is not inspect.Parameter.VAR_KEYWORD} - {"self"}
    known |= set(inspect.signature(type(modules(OWN)[0]).forward).parameters) - {"self", "kwargs"}
    assert known <= set(listed)
    for name, (by_model, by_decoder) in listed.items():
        assert by_model.startswith("honoured" if name in BY_CAUSAL_LM else "refused"), name
        assert by_decoder.startswith("honoured" if name in BY_DECODER else "refused"), name
    assert set(listed) >= BY_CAUSAL_LM


@each_kind
@pytest.mark.parametrize("continued", [False, True])
def test_what_is_refused_is_named(kind: str, continued: bool) -> None:
    """Every argument that is not honoured, and any that nobody knows; what asks for nothing is taken."""
    for module, column in zip(modules(kind), (0, 1), strict=False):
        past = module(text(3), past_key_values=SleepCache()).past_key_values if continued else None
        names = [name for name, row in table("Arguments of a call").items() if row[column].startswith("refused")]
        assert len(names) > 7
        for name in [*names, "attention_masks"]:
            nothing, wanted = (False, True) if name.startswith("output_") else (None, torch.ones(2, 1).long())
            cache = SleepCache() if past is None else past
            module(text(1), past_key_values=cache, **{name: nothing})
            seen = cache.seen
            with pytest.raises(UserError, match=name.removeprefix("output_")):
                module(text(1), past_key_values=cache, **{name: wanted})
            assert cache.seen == seen


@each_kind
def test_by_place_is_by_keyword(kind: str) -> None:
    """In the order of the module's own class, which differs between types."""
    tokens, mask = text(L + 3), torch.ones(2, L + 3)
    mask[0, :4] = 0
    for module in modules(kind):
        given = {"attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).long(), "past_key_values": SleepCache()}
        stock = getattr(module, "stock", type(module))
        names = list(inspect.signature(stock.forward).parameters)
        last = max(names.index(name) for name in given)
        args = [tokens if name == "input_ids" else given.get(name) for name in names[1 : last + 1]]
        wanted = module(input_ids=tokens, **given | {"past_key_values": SleepCache()})[0]
        assert torch.equal(module(*args)[0], wanted)
        with pytest.raises(TypeError, match="input_ids"):
            module(tokens, input_ids=tokens)


@each_kind
def test_without_a_dict_there_is_a_tuple(kind: str) -> None:
    for module in modules(kind):
        first, cache = module(text(3), return_dict=False)
        assert torch.equal(first, module(text(3))[0])
        assert isinstance(cache, SleepCache)
        assert len(module(text(3), return_dict=False, use_cache=False)) == 1


@each_kind
def test_an_empty_cache_of_transformers_goes_on(kind: str) -> None:
    """It becomes ours and stays the caller's, who need not look at what is returned."""
    tokens = text(L + 5)
    for module in modules(kind):
        cache: Any = DynamicCache(config=module.config) if kind != OWN else DynamicCache()
        parts = [module(piece, past_key_values=cache)[0] for piece in tokens.split(7, dim=1)]
        torch.testing.assert_close(torch.cat(parts, dim=1), module(tokens)[0], rtol=1e-3, atol=1e-4)
        assert cache.get_seq_length() == L + 5
    others = (DynamicCache(offloading=True), StaticCache(modules(kind)[0].config, max_cache_len=9), "none", (), [1])
    for module, other in itertools.product(modules(kind), others):
        with pytest.raises(UserError, match="goes on from the cache that it returned, not from a"):
            module(tokens, past_key_values=other)


@pytest.mark.parametrize("kind", ["llama", OWN])
def test_a_memory_is_checked_however_it_is_given(kind: str) -> None:
    model, other = sleeping(kind, asleep(2)).eval(), sleeping(kind, asleep(2), seed=1).eval()
    memory, tokens = sleep_over(model, text(L)), text(3)
    assert torch.equal(
        model(tokens, None, None, cache_of(memory)).logits, model(tokens, past_key_values=cache_of(memory)).logits
    )
    calls = [
        lambda: other(tokens, None, None, cache_of(memory)),
        lambda: other(tokens, past_key_values=cache_of(memory)),
    ]
    if kind != OWN:
        decoder = sleeping_decoder(model)
        calls += [
            lambda: decoder(tokens, None, None, cache_of(memory)),
            lambda: decoder(tokens, past_key_values=cache_of(memory)),
        ]
    for call in calls:
        with pytest.raises(UserError, match=r"the memory is of another model|a memory is checked by the whole model"):
            call()


@pytest.mark.parametrize("kind", ["llama", OWN])
def test_a_call_that_is_refused_leaves_the_cache_as_it_was(kind: str) -> None:
    """It takes other rows afterwards, and a memory in it is checked all the same."""
    model, other = sleeping(kind, asleep(2)).eval(), sleeping(kind, asleep(2), seed=1).eval()
    wrong: list[dict[str, Any]] = [
        {"attention_mask": torch.ones(2, 9)},
        {"position_ids": torch.arange(5, 8)[None]},
        {"attention_mask": torch.tensor([[0, 1, 1], [1, 1, 1]]), "labels": text(3)},
        {"seq_idx": text(3)},
    ]
    memory = sleep_over(model, text(L))
    for given in wrong:
        for cache in (SleepCache(), DynamicCache(), cache_of(memory)):
            with pytest.raises(UserError):
                model(text(3), past_key_values=cache, **given)
            if getattr(cache, "origin", None) is None:
                assert torch.equal(model(text(3, 1), past_key_values=cache).logits, model(text(3, 1)).logits)
                continue
            with pytest.raises(UserError, match="the memory is of another model"):
                other(text(3), past_key_values=cache)
            assert torch.equal(
                model(text(3), past_key_values=cache).logits, model(text(3), past_key_values=cache_of(memory)).logits
            )


@each_kind
def test_packed_texts_are_refused(kind: str) -> None:
    """Whatever `DataCollatorWithFlattening` makes: by each of its arguments alone, and by positions that begin anew."""
    texts = [{"input_ids": text(size, 1)[0].tolist()} for size in (5, 4, 6)]
    packed = DataCollatorWithFlattening(return_flash_attn_kwargs=True, return_seq_idx=True)(texts)
    for module in modules(kind):
        for name, value in packed.items():
            if name not in ("input_ids", "labels"):
                with pytest.raises(UserError, match=f"{name}.*several texts|several texts.*row"):
                    module(packed["input_ids"], **{name: value})


def positions(mask: torch.Tensor) -> dict[str, torch.Tensor]:
    """Position ids [B, T] by what they count."""
    return {
        "token": (mask.cumsum(1) - 1).masked_fill(mask == 0, 1),
        "column": torch.arange(mask.shape[1])[None],
        "planes": (mask.cumsum(1) - 1).expand(3, *mask.shape),
    }


@each_kind
def test_positions_are_those_of_a_text_or_refused(kind: str) -> None:
    tokens, mask = text(L + 3), torch.ones(2, L + 3, dtype=torch.long)
    mask[1, :3] = 0
    for module in modules(kind):
        wanted = module(tokens, attention_mask=mask)[0]
        for name, right in positions(mask).items():
            assert torch.equal(module(tokens, attention_mask=mask, position_ids=right)[0], wanted), name
            for wrong in (
                right + 1,
                right * 2,
                right[..., :-1],
                right.float(),
                right.flatten(),
                right.flip(-1),
                right[None, None],
            ):
                with pytest.raises(UserError, match="position_ids must"):
                    module(tokens, attention_mask=mask, position_ids=wrong)
        # What has counted tokens does not go on by counting columns: in between, places would be left out.
        for first, then in (("token", "column"), ("column", "token")):
            cache, given = SleepCache(), positions(mask)
            module(tokens[:, :6], attention_mask=mask[:, :6], position_ids=given[first][:, :6], past_key_values=cache)
            with pytest.raises(UserError, match="position_ids must"):
                module(tokens[:, 6:], attention_mask=mask, position_ids=given[then][:, 6:], past_key_values=cache)
            module(tokens[:, 6:], attention_mask=mask, position_ids=given[first][:, 6:], past_key_values=cache)


@each_kind
def test_masks_say_what_is_text_or_are_refused(kind: str) -> None:
    tokens, mask = text(L + 3), torch.ones(2, L + 3, dtype=torch.long)
    mask[1, :3] = 0
    for module in modules(kind):
        wanted = module(tokens, attention_mask=mask)[0]
        for dtype in (torch.bool, torch.uint8, torch.int32, torch.float16, torch.float64):
            assert torch.equal(module(tokens, attention_mask=mask.to(dtype))[0], wanted)
        square = torch.ones(2, 1, L + 3, L + 3)
        additive = torch.zeros(2, L + 3).masked_fill(mask == 0, -1e9)
        nan = mask.float() * torch.nan
        for wrong in (
            mask[:, :-1],
            mask[:1],
            mask[0],
            square,
            square[0],
            additive,
            2 * mask,
            nan,
            {"full": mask},
            [[1]],
        ):
            with pytest.raises(UserError, match="attention_mask"):
                module(tokens, attention_mask=wrong)
        cache = module(tokens, attention_mask=mask, past_key_values=SleepCache()).past_key_values
        whole = torch.cat([mask, torch.ones(2, 2)], dim=1)
        for wrong in (whole[:, -2:], torch.ones_like(whole), whole.flip(1), whole[:, 1:]):
            with pytest.raises(UserError, match="attention_mask"):
                module(text(2), attention_mask=wrong, past_key_values=cache)
        module(text(2), attention_mask=whole, past_key_values=cache)


@pytest.mark.parametrize("kind", ["llama", OWN])
def test_tokens_are_whole_numbers_of_a_batch(kind: str) -> None:
    tokens = text(4)
    for module in modules(kind):
        for wrong in (tokens[0], tokens[None], tokens.double(), tokens[:, :0], tokens[:0]):
            with pytest.raises(UserError, match=r"input_ids must be|there is nothing to read"):
                module(wrong)
        for wrong in (torch.ones(4, 32), torch.ones(2, 3, 32).long()):
            with pytest.raises(UserError, match="inputs_embeds floats"):
                module(inputs_embeds=wrong)


@pytest.mark.parametrize("kind", ["llama", OWN])
def test_labels_belong_to_text(kind: str) -> None:
    [model, *_], tokens, mask = modules(kind), text(L), torch.ones(2, L, dtype=torch.long)
    mask[0, :2] = mask[1, -2:] = 0
    with pytest.raises(UserError, match="labels must be -100 on padding"):
        model(tokens, attention_mask=mask, labels=tokens)
    labels = tokens.masked_fill(mask == 0, -100)
    with pytest.raises(UserError, match="shift_labels"):
        model(tokens, attention_mask=mask, labels=labels, shift_labels=labels)
    mask[0, 4] = 0
    with pytest.raises(UserError, match="a row with labels must be one text"):
        model(tokens, attention_mask=mask, labels=tokens.masked_fill(mask == 0, -100))
    shifted = torch.nn.functional.pad(tokens[:, 1:], (0, 1), value=-100)
    loss = model(tokens, labels=tokens).loss
    assert torch.equal(model(tokens, labels=tokens, shift_labels=shifted).loss, loss)
    count = (L - 1) * 2
    torch.testing.assert_close(model(tokens, labels=tokens, num_items_in_batch=torch.tensor(7)).loss, loss * count / 7)


@pytest.mark.parametrize("kind", ["llama", "qwen3_next", OWN])
@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"assistant_early_exit": 1}, "no assistant_early_exit"),
        ({"cache_implementation": "static"}, "not from a StaticCache"),
        ({"cache_implementation": "offloaded"}, "a DynamicCache that is offloaded"),
        ({"cache_implementation": "paged"}, "no continuous batching"),
        ({"output_hidden_states": True, "return_dict_in_generate": True}, "no single hidden_states"),
        ({"is_causal": False}, "is_causal"),
        ({"seq_idx": torch.zeros(1, L + 3)}, "seq_idx"),
        ({"position_ids": torch.arange(5, L + 8)[None]}, "position_ids must count up"),
    ],
    ids=str,
)
def test_what_generate_cannot_do(kind: str, given: dict[str, Any], sentence: str) -> None:
    model = sleeping(kind, asleep(2), dtype=torch.float32).eval()
    with pytest.raises((UserError, ValueError), match=sentence):
        model.generate(text(L + 3, 1), max_new_tokens=4, pad_token_id=0, **given)


@pytest.mark.parametrize("kind", ["llama", OWN])
@pytest.mark.parametrize(
    "given",
    [
        {"guidance_scale": 1.5, "negative_prompt_ids": text(5, 2, 3)},
        {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
        {"cache_implementation": "dynamic"},
        {"position_ids": torch.arange(L + 3).expand(2, -1)},
        {"num_beams": 2, "length_penalty": 0.5},
    ],
    ids=str,
)
def test_what_generate_can_do_is_what_it_does_without_a_cache(kind: str, given: dict[str, Any]) -> None:
    model, written = sleeping(kind, asleep(2), dtype=torch.float32).eval(), []
    for cached in (True, False):
        settings: dict[str, Any] = {"max_new_tokens": L + 2, "min_new_tokens": L + 2, "pad_token_id": 0} | given
        written.append(model.generate(text(L + 3), use_cache=cached, **settings))
    assert torch.equal(*written)
