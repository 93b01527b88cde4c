"""A program that uses the public API, for type checkers: of an unknown type an `ignore` would be unnecessary."""

# pyright: strict, reportUnnecessaryTypeIgnoreComment=true, reportUnknownMemberType=false

from pathlib import Path
from typing import assert_type

import torch

from reverie import (
    Context,
    HybridConfig,
    HybridLM,
    Memory,
    MemoryStore,
    SleepConfig,
    load_model,
    new_model,
    read,
    sleep_over,
)
from reverie.talk import Answer, Sleeper, ask

config = HybridConfig.model_validate(
    {"vocab_size": 16, "width": 8, "layers": ("attn", "gdn"), "mlp_width": 16}
    | {"num_heads": 2, "fast_heads": 1, "key_size": 4, "value_size": 4}
)
model = new_model(config, seed=0)
assert_type(model, HybridLM)
sleep = SleepConfig(window_size=4, num_sleep_passes=2)
logits, context = read(model, torch.zeros(1, 9, dtype=torch.long), Context.empty(model), sleep)
assert_type(context, Context)

speaker = load_model("example")
assert_type(speaker, Sleeper)
memory = sleep_over(speaker, [speaker.text("The number of grown heron in Gull Island equals 3.")])
assert_type(memory, Memory)
memory.save("birds.safetensors")
assert_type(Memory.load(Path("birds.safetensors"), speaker), Memory)
answers = ask(speaker, memory, ["How many grown heron does Gull Island have?"])
assert_type(answers[0], Answer)
MemoryStore("memories", limit_bytes=2**30).put("birds", memory)

SleepConfig(window_size="four")  # pyright: ignore[reportArgumentType]
memory.forget()  # pyright: ignore[reportAttributeAccessIssue]
read(model, "text", context, sleep)  # pyright: ignore[reportArgumentType]
