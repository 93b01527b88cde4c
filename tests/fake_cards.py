"""Cards with invented numbers that look like real ones."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

from reverie.recipe.random_passes import RandomPasses
from reverie.results.card import Chance, ComparisonCard, CurvePoint, ModelKind, RunCard
from reverie.results.comparison import compare_runs
from reverie.results.passes.card import Evaluated, PassesCard, PassesRun, Training, regimes_of
from reverie.results.provenance import Hardware

HARDWARE = Hardware(
    cpu="Some CPU", cores=16, threads=8, memory_gib=128.0, gpu="Some GPU", python="3.11.7", torch="2.13.0",
    platform="Linux x86_64",
)  # fmt: skip
GROUPS: list[tuple[ModelKind, int]] = [("transformer", 1), ("hybrid", 1), ("sleep", 2), ("sleep", 4)]


def summary(accuracies: dict[int, float], exact: float, loss: float = 0.5) -> dict[str, Any]:
    """What `Score.summary()` returns, with 512 questions at every depth."""
    mean = sum(accuracies.values()) / len(accuracies)
    return {
        "loss": loss,
        "token_accuracy": mean,
        "question_accuracy": mean,
        "exact_accuracy": exact,
        "examples": 512,
        "by_depth": {str(d): {"accuracy": a, "loss": loss, "questions": 512} for d, a in accuracies.items()},
    }


def run_card(model: ModelKind, num_sleep_passes: int, seed: int, score: dict[str, Any], **changes: Any) -> RunCard:
    """A run whose recipe holds little; chance is 0.25 at every depth."""
    recipe = {
        "name": "fake",
        "task": {"name": "depo" if len(score["by_depth"]) > 1 else "rule110"},
        "model": {"kind": model},
        "sleep": {"num_sleep_passes": num_sleep_passes},
        "train": {"learning_rate": 2.0000001e-3},
    }
    fields: dict[str, Any] = {
        "name": "fake",
        "recipe": recipe,
        "commit": "0123456789",
        "date": "2026-07-01T12:00:00Z",
        "hardware": HARDWARE,
        "wall_time_s": 100.0 * num_sleep_passes,
        "tokens": 1000,
        "steps": 10,
        "parameters": 1_234_567,
        "chance": Chance(by_depth={depth: 0.25 for depth in score["by_depth"]}, exact=0.01),
        "curve": [],
    }
    return RunCard(model=model, num_sleep_passes=num_sleep_passes, seed=seed, score=score, **{**fields, **changes})


def curve(model: ModelKind, passes: int, seed: int, depths: list[int], points: int, guess: float) -> list[CurvePoint]:
    """Learning curves: deeper questions later, more passes earlier and higher, a transformer never."""
    noise = random.Random(f"{model}-{passes}-{seed}")
    delay = noise.uniform(0.8, 1.3)
    found = []
    for i in range(points + 1):
        accuracies = {}
        for depth in depths:
            middle = 0.08 * delay * (depth / passes) ** 0.9 + 0.05
            top = 1 / (1 + math.exp(1.2 * (depth / passes - 7 * delay)))
            learned = 0.0 if model == "transformer" else top / (1 + math.exp(-22 * (i / points - middle)))
            accuracies[depth] = min(1.0, max(0.0, guess + (1 - guess) * learned + noise.gauss(0, 0.012)))
        exact = math.prod(accuracies.values()) if len(depths) > 1 else accuracies[depths[0]] ** 4
        score = summary(accuracies, exact, loss=4 * (1 - exact))
        found.append(
            CurvePoint(
                step=100 * i, tokens=4_608_000 * i, wall_time_s=61.3 * i * passes, train_loss=4.4 - exact, score=score
            )
        )
    return found


def comparison(seeds: int = 3, depths: tuple[int, ...] = (1, 2, 4, 8, 12, 16), **changes: Any) -> ComparisonCard:
    """A comparison as of Depo, or of Rule 110 if there is one depth."""
    one = len(depths) == 1
    guess = 0.5 if one else 1 / 74
    chance = Chance(by_depth={str(d): guess for d in depths}, exact=guess**4)
    runs = []
    for model, passes in GROUPS:
        for seed in range(seeds):
            points = curve(model, passes, seed, list(depths), changes.get("points", 40), guess)
            last = points[-1]
            runs.append(
                run_card(
                    model, passes, seed, last.score, name="depo/small", chance=chance, curve=points, steps=last.step,
                    tokens=last.tokens, wall_time_s=last.wall_time_s,
                )
            )  # fmt: skip
    return compare_runs("depo/small", "exact" if one else "question", runs)


def passes_card(
    regimes: Sequence[int | RandomPasses], seeds: int = 3, numbers: Sequence[int] = range(1, 9), **changes: Any
) -> PassesCard:
    """Depo at two depths: fixed N fall off on both sides of theirs, random ones rise and stay; chance is 0.25."""
    tolerances = changes.pop("tolerances", [0.5, 0.1])
    runs = [_passes_run(trained, seed, numbers, tolerances) for trained in regimes for seed in range(seeds)]
    fields: dict[str, Any] = {
        "name": "fake",
        "metric": "deepest",
        "num_sleep_passes": list(numbers),
        "tolerances": tolerances,
        "examples": 512,
        "commit": "0123456789",
        "date": "2026-07-01T12:00:00Z",
        "hardware": HARDWARE,
        "wall_time_s": 12.0,
        "chance": Chance(by_depth={"2": 0.25, "4": 0.25}, exact=0.01),
        "metric_chance": 0.25,
        "regimes": regimes_of(runs, "deepest"),
        "runs": runs,
    }
    return PassesCard(**{**fields, **changes})


def _passes_run(
    trained: int | RandomPasses, seed: int, numbers: Sequence[int], tolerances: Sequence[float]
) -> PassesRun:
    def accuracy(n: float) -> float:
        risen = 0.25 + 0.75 / (1 + math.exp(2.5 - 1.5 * n)) - 0.01 * seed
        return risen - 0.1 * abs(n - trained) if isinstance(trained, int) else risen

    def point(n: int, spent: float, tolerance: float | None = None) -> Evaluated:
        score = summary({2: 1.0, 4: min(1.0, max(0.0, accuracy(spent)))}, exact=0.1)
        return Evaluated(num_sleep_passes=n, tolerance=tolerance, mean_passes=spent, wall_time_s=1.0, score=score)

    most = max(numbers)
    return PassesRun(
        name="fake",
        seed=seed,
        trained_with=trained,
        parameters=1000,
        recipe={"train": {"steps": 10}},
        training=Training(steps=10, tokens=1000, wall_time_s=9.0, commit=None, hardware=None),
        fixed=[point(n, float(n)) for n in numbers],
        adaptive=[point(most, most * (1 - t) ** 0.5 - 0.1 * seed, t) for t in tolerances],
    )
