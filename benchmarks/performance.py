"""Tables of docs/PERFORMANCE.md, from the cards of `reverie bench` in results/performance.

    make performance                    the six benchmarks, then this
    python benchmarks/performance.py    this alone

rewrites what stands in the page between <!-- table: NAME --> and <!-- end -->, and leaves the rest as it is.
"""

import re
import sys
from pathlib import Path

from reverie.bench.card import BenchmarkCard
from reverie.bench.tables import markdown
from reverie.errors import UserError
from reverie.files import write_atomic
from reverie.results.card import read_card

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "PERFORMANCE.md"
CARDS = ROOT / "results" / "performance"


def filled(page: str, folder: Path) -> str:
    """The page with its tables as the cards in a folder have them."""
    place = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
    return place.sub(lambda found: f"{found[1]}{_tables(folder / f'{found[2]}.json')}\n{found[3]}", page)


def _tables(path: Path) -> str:
    if not path.exists():
        return "Not measured yet."
    card = read_card(path, {"benchmark": BenchmarkCard})
    place = f"../results/performance/{card.name}.json"
    return f"{markdown(card)}\n\n[Card]({place}) of {card.date[:10]}, commit {card.commit}."


def main() -> None:
    write_atomic(PAGE, filled(PAGE.read_text(encoding="utf-8"), CARDS).encode())


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
