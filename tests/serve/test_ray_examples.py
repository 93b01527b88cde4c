"""examples/ray_read.py and examples/ray_serve.py on a local cluster of two workers, as docs/serving.md has them."""

from __future__ import annotations

import importlib.util
import json
import re
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch
from answers import weights
from server import Served, unused_port

from reverie.memory.memory import Memory, sleep_over
from reverie.memory.store import MemoryStore
from reverie.talk.heard import Heard
from reverie.talk.reading import Reading
from reverie.talk.sleeper import Sleeper, load_model

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs Ray: pip install 'reverie[ray]'"),
]

ROOT = Path(__file__).parents[2]
SECTION = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8").partition("## Ray")[2].partition("\n## ")[0]
_, SERVE, READ = re.findall(r"```sh\n(.*?)```", SECTION, flags=re.DOTALL)
FACT = "The number of grown heron in Gull Island equals {}. "


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """Ray, with a cluster that programs of this test find too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))  # or Ray would keep one in the user's folder
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "50")  # of a busy machine
        ray: Any = importlib.import_module("ray")  # which reads the environment
        importlib.import_module("ray.serve")
        cluster = started(ray)
        patch.setenv("RAY_ADDRESS", cluster.address_info["address"])
        yield ray
        ray.serve.shutdown()
        ray.shutdown()


def started(ray: Any) -> Any:
    """A cluster of two workers. Ray gives up after 30 s, in which a busy machine may not have started it."""
    for _ in range(4):
        try:
            return ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
        except Exception:
            ray.shutdown()
    return ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)


@pytest.fixture(scope="module")
def sleeper() -> Sleeper:
    return load_model("example")


def command(line: str) -> list[str]:
    """A command of the document for this interpreter."""
    words = line.split()
    assert words[0] == "python"
    return [sys.executable, str(ROOT / words[1]), *words[2:]]


def told(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, Any]]:
    """What the program says of each document."""
    return {line["name"]: line for line in map(json.loads, done.stdout.splitlines())}


def at_once(sleeper: Sleeper, text: str) -> Memory:
    reading = Reading(sleeper, sleeper.text(text), Path("book"), notes={}, save=lambda memory, path: None)
    while not reading.complete:
        reading.step()
    return reading.memory


def assert_same(a: Memory, b: Memory) -> None:
    """Bit for bit."""
    assert (a.tokens.tolist(), a.passes.tolist()) == (b.tokens.tolist(), b.passes.tolist())
    for x, y in zip(a.context.state.fast_weights, b.context.state.fast_weights, strict=True):
        assert (x is None and y is None) or (x is not None and y is not None and torch.equal(x, y))


def test_a_folder_is_read_and_gone_on_with_after_a_kill(ray: Any, sleeper: Sleeper, tmp_path: Path) -> None:
    books, read = tmp_path / "books", READ.splitlines()[0]
    (books / "more").mkdir(parents=True)
    texts = {"long": FACT.format(2) * 2500, "short": FACT.format(3) * 9, "more-short.": FACT.format(4) * 3}
    (books / "long.txt").write_text(texts["long"])
    (books / "short.txt").write_text(texts["short"])
    (books / "more" / "short.txt").write_text(texts["more-short."])
    (books / "bad.txt").write_text("Words that it does not know.")
    store = MemoryStore(tmp_path / "memories")

    def name_of(beginning: str) -> str:
        [name] = [entry.name for entry in store.list() if entry.name.startswith(beginning)]
        return name

    running = subprocess.Popen(command(read), cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while "long" not in store:
        assert running.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    running.kill()
    running.wait()
    begun = store.get("long", sleeper)
    assert begun.notes["complete"].startswith("no, ")

    done = subprocess.run(command(read), cwd=tmp_path, capture_output=True, text=True, timeout=400)
    assert done.returncode == 1  # for the bad one
    lines = told(done)
    assert "not in the vocabulary" in lines.pop("bad")["problem"]
    assert {line["problem"] for line in lines.values()} == {""}
    assert 0 < lines["long"]["new_tokens"] < lines["long"]["tokens"] == len(sleeper.text(texts["long"]))
    assert sorted(lines) == sorted(entry.name for entry in store.list() if entry.problem is None)
    for beginning, text in texts.items():
        assert_same(store.get(name_of(beginning), sleeper), at_once(sleeper, text))

    (books / "bad.txt").unlink()
    (books / "short.txt").write_text(FACT.format(5))
    files = {path: path.read_bytes() for path in (tmp_path / "memories").glob("*.safetensors")}
    done = subprocess.run(command(read), cwd=tmp_path, capture_output=True, text=True, timeout=400)
    lines = told(done)
    assert "is a memory of another text" in lines.pop("short")["problem"]
    assert [(line["new_tokens"], line["problem"]) for line in lines.values()] == [(0, "")] * 2
    assert {path: path.read_bytes() for path in (tmp_path / "memories").glob("*.safetensors")} == files


@pytest.mark.parametrize(
    ("program", "arguments", "sentence"),
    [
        ("ray_read.py", ["."], "there are no documents *.txt in ."),
        ("ray_read.py", [".", "--suffix", ".here", "--model", "none"], "there is no model at none"),
        ("ray_serve.py", ["--model", "none"], "there is no model at none"),
        ("ray_serve.py", ["--host", "0.0.0.0"], "--host 0.0.0.0 lets others in"),
        ("ray_serve.py", ["--store", "a.here"], "a.here is a file"),
    ],
)
def test_what_is_wrong_is_told_in_a_sentence(tmp_path: Path, program: str, arguments: list[str], sentence: str) -> None:
    (tmp_path / "a.here").write_text("a")
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / program), *arguments], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(f"{program}: error: {sentence}")
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["a.here"]


def test_replicas_over_one_store(ray: Any, sleeper: Sleeper, tmp_path: Path) -> None:
    """A chain of turns is one text whichever replica hears them, also after all of them were killed."""
    port, said, id = unused_port(), list[int](), None
    server, line = Served(f"http://127.0.0.1:{port}"), SERVE.splitlines()[0]
    log = (tmp_path / "log").open("w+b")
    running = subprocess.Popen([*command(line), "--port", str(port)], cwd=tmp_path, stdout=log, stderr=log)
    try:
        ready(ray, server, running)
        client = server.client()
        for i in range(12):
            if i == 6:
                killed = replicas(ray)
                for name in killed:
                    ray.kill(ray.get_actor(name, namespace="serve"), no_restart=False)
                while not killed.isdisjoint(replicas(ray)):
                    time.sleep(0.1)
                ready(ray, server, running)
            text = FACT.format(i % 4 + 2)
            done = client.responses.create(model="example", input=text, previous_response_id=id or openai.omit)
            assert done.usage is not None
            assert done.usage.input_tokens_details.cached_tokens == len(said)
            said += sleeper.question(text, begun=i > 0)  # to which nothing is answered
            id = done.id
        heard = Heard.of(server.memory(str(id), sleeper, tmp_path / "m.safetensors"))
        full = (len(said) - 1) // 32 * 32
        assert full >= 64
        assert heard.awake == tuple(said[full:])
        torch.testing.assert_close(weights(heard), weights(Heard(sleep_over(sleeper, torch.tensor([said[:full]])))))

        (tmp_path / "memories").mkdir()
        MemoryStore(tmp_path / "memories").put("book", at_once(sleeper, FACT.format(3)))
        upload = "\n".join(READ.splitlines()[1:]).replace("localhost:8000", f"localhost:{port}")
        subprocess.run(["bash", "-ec", upload], cwd=tmp_path, check=True, capture_output=True)
        question: Any = {"role": "user", "content": "How many grown heron does Gull Island have?"}
        parts = client.chat.completions.create(model="example@book", messages=[question], stream=True)
        assert "".join(part.choices[0].delta.content or "" for part in parts) == "3"
        asked = [httpx.get(f"{server.url}/metrics").text for _ in range(40)]
        begun = {re.findall(r'(?m)^reverie_requests_created{.*"/metrics".*} (.*)$', text)[0] for text in asked[20:]}
        assert len(begun) == 2  # processes
    finally:
        running.kill()
        running.wait()
        log.seek(0)
        print(log.read().decode())
        log.close()


def ready(ray: Any, server: Served, running: subprocess.Popen[bytes]) -> None:
    """Wait until all replicas answer."""
    deadline = time.monotonic() + 300
    while (told := ray.serve.status().applications.get("default")) is None or told.status != "RUNNING":
        assert running.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.2)
    # Which Ray holds while there is no replica.
    assert httpx.get(f"{server.url}/healthz", timeout=300).status_code == 200


def replicas(ray: Any) -> set[str]:
    """Names of the actors that are replicas now."""
    found = ray.util.list_named_actors(all_namespaces=True)
    return {actor["name"] for actor in found if actor["name"].startswith("SERVE_REPLICA")}
