"""The teacher sees a page before its eyes: it says what the untouched model says of page and question in one text."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_folder import tiny_folder
from transformers import AutoModelForCausalLM

from reverie.hf.teacher import Teacher
from reverie.tasks.reading import TokenPage, TokenQuestion

pytestmark = pytest.mark.hf


def question(*tokens: int, answer: tuple[int, ...]) -> TokenQuestion:
    return TokenQuestion(tokens, answer, "", "", None, None)


def test_it_reads_the_page_and_each_question_as_one_text(tmp_path: Path) -> None:
    """Questions of equal and of other lengths, in their order, none of which sees another."""
    folder = tiny_folder(tmp_path / "base")
    asked = (question(5, 6, 7, answer=(8, 9)), question(10, answer=(11, 12, 13)), question(7, 6, 5, answer=(9, 8)))
    page = TokenPage(tuple(range(20, 33)), asked)
    stock = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    wanted = []
    for one in asked:
        h = stock.model(torch.tensor([page.tokens + one.prompt + one.answer[:-1]])).last_hidden_state
        wanted.append(h[0, -len(one.answer) :])
    torch.testing.assert_close(Teacher(str(folder)).taught(page).float(), torch.cat(wanted), atol=2e-2, rtol=1e-2)
