# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Sleep, step by step
#
# A model reads a text, sleeps over every window of it, forgets it, and answers from its fast weights. Here each
# step is done by hand, and looked at. This page is a program: `python docs/learn/sleep_step_by_step.py` runs it
# in seconds, and Jupyter opens it as a notebook. A test runs it too, so what it asserts is so.
#
# ## A finished model
#
# The one in the package. `load_model` takes the folder of any run of `reverie train` as well, or one of `reverie
# convert`.

# %%
from importlib.resources import files
from itertools import pairwise

import matplotlib.pyplot as plt
import torch

from reverie import Context, SleepConfig, load_model, read, sleep_over
from reverie.model import State, evict, fast_weight_change

torch.set_num_threads(1)
torch.set_grad_enabled(False)
speaker = load_model("example")
model, config = speaker.sleeping, speaker.sleep_config
print(model.config.layers, f"{sum(p.numel() for p in model.parameters()):,} parameters")
print(config)

# %% [markdown]
# Four blocks. Two are attention, whose KV cache is cleared when a window of 32 tokens is full. Two are Gated
# DeltaNet, which has fast weights: a matrix for each of two heads, K × V, however much was read.
#
# ## A text in windows

# %%
text = files("reverie.example").joinpath("text.txt").read_text()
tokens = speaker.text(text)[None]  # [B, T]
windows = tokens.split(config.window_size, dim=1)
for window in windows:
    print(f"{window.shape[1]} tokens: {speaker.decode(window[0].tolist())[:90]} …")

# %% [markdown]
# ## One window: awake, then asleep
#
# Pass 1 is reading itself: an ordinary forward pass, which leaves h for each token, a KV cache, and fast weights.
# In each further pass the same blocks take in h, as the pass before left it, and the fast weights, as it left
# those. Its attention sees the window again, with a cache of its own.


# %%
def sleep_by_hand(window: torch.Tensor, state: State, num_passes: int) -> list[State]:
    """The state after each pass over the window."""
    h, after = model.embed(window), [state]
    for _ in range(num_passes):
        h, state = model.blocks(
            h, State(state.fast_weights, after[0].cache), 0, model.num_blocks, span=config.window_size
        )
        after.append(state)
    return after[1:]


empty = State.empty(model.num_blocks)
passes = sleep_by_hand(windows[0], empty, 3)
for n, state in enumerate(passes, start=1):
    print(f"after pass {n}: {state}")

# %% [markdown]
# What each pass wrote, in the last block, head 0. Pass 1 goes over empty fast weights; the others rewrite what is
# there.

# %%
memory_block = model.fast_weight_blocks[-1]
matrices = [state.fast_weights[memory_block][0, 0] for state in passes]
differences = [matrices[0], *(new - old for old, new in pairwise(matrices))]
figure, axes = plt.subplots(2, 3, figsize=(9, 5.2), sharex=True, sharey=True, layout="constrained")
limit = float(torch.stack(matrices).abs().quantile(0.98))  # a few entries are far larger
for n, (matrix, difference) in enumerate(zip(matrices, differences, strict=True)):
    for row, values in enumerate((matrix, difference)):
        axes[row, n].imshow(values, cmap="RdBu", vmin=-limit, vmax=limit)
    axes[0, n].set_title(f"after pass {n + 1}")
    axes[1, n].set_title(f"what pass {n + 1} wrote")
for axis in axes[:, 0]:
    axis.set_ylabel("key")
for axis in axes[1]:
    axis.set_xlabel("value")
plt.show()

# %% [markdown]
# The share of the fast weights that a pass changed, by norm. `reverie watch` draws this for every block and
# window of a text, and adaptive sleep (`tolerance`) stops when it is small.

# %%
for n, (before, after) in enumerate(pairwise([empty, *passes]), start=1):
    changes = fast_weight_change(before, after)
    print(f"pass {n}: " + ", ".join(f"block {block} {share.item():.0%}" for block, share in changes.items()))

# %% [markdown]
# ## The whole text
#
# After the last pass the cache and h are forgotten. Only fast weights go on to the next window.

# %%
state = empty
for window in windows:
    state = evict(sleep_by_hand(window, state, config.num_sleep_passes)[-1], "hard", config.window_size)
    print(state)

# %% [markdown]
# That is all of the algorithm. `sleep_over` does the same, and comes to the same numbers:

# %%
memory = sleep_over(speaker, [speaker.text(text)])
by_hand, by_library = state.fast_weights[memory_block], memory.context.state.fast_weights[memory_block]
torch.testing.assert_close(by_hand, by_library, rtol=1e-4, atol=1e-4)
print(memory)

# %% [markdown]
# ## Asked from memory alone
#
# The text is gone. A question is read awake, in one pass a token, and the answer is the likeliest token after it.

# %%
questions = {
    "How many grown heron does Thornfield Moor have?": "4",
    "How many grown wagtail does Thornfield Moor have?": "6",
    "How many grown curlew does Gull Island have?": "3",
}


def answers(state: State) -> list[str]:
    """The likeliest answer to each question, asked after `state`."""
    found = []
    for question in questions:
        asked = torch.tensor([speaker.question(question)])
        logits, _ = read(model, asked, Context(state, state), SleepConfig(window_size=32), newest_only=True)
        found.append(speaker.decode([int(logits[0, -1].argmax())]))
    return found


remembered, guessed = answers(state), answers(empty)
for question, right, from_memory, from_nothing in zip(questions, questions.values(), remembered, guessed, strict=True):
    print(f"{question}  right: {right}  from memory: {from_memory}  from an empty memory: {from_nothing}")
assert remembered == list(questions.values()) != guessed

# %% [markdown]
# The second answer is in no sentence: it takes two of them, 3 plus the curlew of Larch Hollow. More passes help
# where this goes deeper: see [Depo, where N decides how many hops are answered](../results.md). In this small
# model their number makes no difference on average.
