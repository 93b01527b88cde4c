"""The untouched model with a page before its eyes, from which one that remembers the page can learn (distillation)."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from reverie.hf.add import install
from reverie.hf.bases import load_base
from reverie.hf.causal_lm import PretrainedLM
from reverie.hf.decoder import sleeping_decoder
from reverie.hf.reading import AWAKE
from reverie.hf.save import weights_digest
from reverie.model import select_rows
from reverie.sleep import Context, wake
from reverie.tasks.reading import TokenPage, TokenQuestion


class Teacher:
    """A pretrained model as it was published."""

    def __init__(self, name: str, device: torch.device | str = "cpu") -> None:
        lm: Any = load_base(name, dtype=torch.float32)
        lm.to(device)
        install(lm)
        self.model = PretrainedLM(lm)
        self.digest = f"teacher {weights_digest(lm.state_dict())}"

    @torch.no_grad()
    def taught(self, page: TokenPage) -> Float[Tensor, "A D"]:
        """h in bfloat16, on the CPU, after the final norm where answers are predicted, question after question."""
        device = self.model.lm.device
        _, context = wake(self.model, torch.tensor([page.tokens], device=device), Context.empty(self.model), AWAKE)
        found: dict[TokenQuestion, Tensor] = {}
        for length in {_length(question) for question in page.questions}:
            asked = [question for question in page.questions if _length(question) == length]
            tokens = torch.tensor([q.prompt + q.answer[:-1] for q in asked], device=device)
            rows = torch.zeros(len(asked), dtype=torch.long, device=device)
            h, _ = wake(self.model, tokens, select_rows(context, rows), AWAKE)
            final = sleeping_decoder(self.model.lm).sleeping.head(h).to("cpu", torch.bfloat16)
            found |= {q: final[i, len(q.prompt) - 1 :] for i, q in enumerate(asked)}
        return torch.cat([found[question] for question in page.questions])


def _length(question: TokenQuestion) -> int:
    return len(question.prompt) + len(question.answer)
