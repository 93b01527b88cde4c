"""`reverie bench serve` on a small scale: what it finds, and that it finds what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_benchmark import PEAK
from reading_pages import needs_smollm2

from reverie.bench import serve
from reverie.bench.card import number
from reverie.errors import UserError
from reverie.talk.sleeper import load_model

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")


@pytest.mark.slow
@needs_smollm2
def test_it_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "_HISTORY_BESIDE", 500)
    found = serve.measure(PEAK, lambda *part: None, sessions=3, seconds=3, kills=1, repeats=3, beside=1)
    [load], [killed] = found.details.tables["load"], found.details.tables["SIGKILL"]
    assert (load["errors"], load["mixed_up"], killed["lost"], killed["changed"]) == (0, 0, 0, 0)
    assert number(load, "turns") >= 3
    assert found.ratio < number(found.details.tables["first token"][-1], "over_turn_1")
    first, ours, other, theirs = found.details.tables["beside transformers serve"]
    assert [row["history_tokens"] for row in (first, other)] == [0, 0]
    assert number(ours, "over_turn_1") < number(theirs, "over_turn_1")


@pytest.mark.slow
def test_a_mixed_up_session_is_found(tmp_path: Path) -> None:
    sleeper = load_model(serve.MODEL)
    with serve.Server.of_reverie(serve.MODEL, tmp_path, 18765) as server:
        one, two = serve.Session(), serve.Session()
        for i, session in enumerate((one, two)):
            serve.say(server, session, [f"The number of grown heron in Gull Island equals {i + 3}."])
        assert serve.require_remembered(server, sleeper, [one, two]) == 2
        one.id, two.id = two.id, one.id
        with pytest.raises(UserError, match="something else"):
            serve.require_remembered(server, sleeper, [one, two])
