"""Check kernels, compiled models and models of transformers on this machine against the reference.

    python benchmarks/gpu/check_kernels.py
    python benchmarks/gpu/check_kernels.py --device cpu --only rules

Values and all gradients, in float32 and bfloat16, on fresh random inputs each time; on CPU at reduced size. Models are
compiled ones, and models of transformers too. A line for each comparison; what is not installed is left out, with the
reason. The exit code is 1 if something is wrong.
"""

import argparse
import random
import sys
from collections.abc import Iterator, Sequence

import check_models
import check_rules
import torch
from found import Found

from reverie.cli.options import device_named
from reverie.errors import UserError
from reverie.recipe import Recipe, load_recipe

PARTS = ("rules", "models", "graph", "pretrained")
ALL_MIXERS = 'model.layers=["attn","gdn","attn","jet"]'
PAPER = (
    "rule110/paper-t32",
    ["sleep.num_sleep_passes=2", "train.batch_size=64", "train.eval_examples=256", ALL_MIXERS],
)
SMALL = ("rule110/nano", ["sleep.num_sleep_passes=2", "train.batch_size=8", "train.eval_examples=8", ALL_MIXERS])


def check(parts: Sequence[str], device: torch.device, seed: int) -> Iterator[Found]:
    """Yield what each comparison has found."""
    cuda = device.type == "cuda"
    name, overrides = PAPER if cuda else SMALL
    recipe: Recipe = load_recipe(name, overrides)
    if "rules" in parts:
        yield from check_rules.check_rules(
            device, check_rules.PAPER if cuda else check_rules.SMALL, torch.Generator().manual_seed(seed)
        )
    if "models" in parts:
        yield from check_models.check_ways(recipe, device)
    if "graph" in parts:
        yield from check_models.check_graph(recipe, device)
    if "pretrained" in parts:
        yield from check_models.check_pretrained(
            device, width=256 if cuda else 128, windows=3, window=64 if cuda else 16
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Return the exit code: 1 if something is wrong, 2 if the arguments are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto", help="cpu, cuda, or auto: cuda where there is one")
    parser.add_argument("--only", default=",".join(PARTS), help="parts to check, such as rules,graph; all if absent")
    parser.add_argument("--seed", type=int, help="of the inputs; a new one each time if absent")
    given = parser.parse_args(arguments)
    parts, seed = given.only.split(","), random.SystemRandom().randrange(2**31) if given.seed is None else given.seed
    try:
        if unknown := sorted(set(parts) - set(PARTS)):
            raise UserError(f"--only takes {', '.join(PARTS)}, got {unknown[0]!r}")
        device = device_named(given.device)
        machine = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU, at reduced size"
        print(f"{machine}, torch {torch.__version__}, seed {seed}", flush=True)
        found = []
        for one in check(parts, device, seed):
            print(one, flush=True)
            found.append(one)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    wrong, left_out = sum(one.wrong for one in found), sum(one.error is None for one in found)
    print(f"{len(found) - wrong - left_out} right, {wrong} wrong, {left_out} left out")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
