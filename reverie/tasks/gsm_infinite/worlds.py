"""The three worlds of problems: vocabulary of our own, structured like the benchmark's.

A world has places, types of things in them, and an attribute of each thing. All core places of a problem come from one
place group and all its types from one type group. Padding has places and types of its own, of two words each, so no
padding place is a core place. No name contains a comma, a period or a digit.
"""

from dataclasses import dataclass
from itertools import product
from typing import Literal

WorldName = Literal["wildlife", "education", "film"]


@dataclass(frozen=True)
class World:
    """Names and nouns of a world; every group has five names."""

    name: str
    place_groups: tuple[tuple[str, ...], ...]
    type_groups: tuple[tuple[str, ...], ...]
    attribute: str  # "the average number of {attribute} per {type} in {place}"
    plain_noun: str  # "the total number of {plain_noun} in {place}": things of all types
    weighted_noun: str  # "the total number of {weighted_noun} in {place}": count times average, over all types
    padding_places: tuple[str, ...]
    padding_types: tuple[str, ...]


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(", "))


def _pairs(first: str, second: str, form: str = "{} {}") -> tuple[str, ...]:
    """Names of all pairs of a word of `first` and one of `second`."""
    return tuple(form.format(a, b) for a, b in product(first.split(), second.split()))


WILDLIFE = World(
    name="wildlife",
    place_groups=(
        _names("Heron Marsh, Silver Fen, Larch Hollow, Gull Island, Thornfield Moor"),
        _names("Ostrey Reserve, Linden Sanctuary, Bramwell Park, Karsten Wetlands, Dunmore Warren"),
    ),
    type_groups=(
        _names("grown otter, grown badger, grown lynx, grown hare, grown stoat"),
        _names("grown heron, grown puffin, grown kestrel, grown curlew, grown wagtail"),
    ),
    attribute="young ones",
    plain_noun="grown animals",
    weighted_noun="young animals",
    padding_places=_pairs(
        "Amber Basalt Copper Dusky Ember Frosty Golden Hidden Ivory Jade Lonely Misty",
        "Lagoon Canyon Plateau Thicket Glacier Dunes Cove Delta Steppe Ravine",
    ),
    padding_types=_pairs(
        "striped spotted horned crested dwarf giant masked desert tundra jungle",
        "gecko tapir ibex gibbon marmot toad crane viper lemur bison heath-hen mongoose",
        "grown {} {}",
    ),
)

EDUCATION = World(
    name="education",
    place_groups=(
        _names("Ashcombe, Port Selwyn, Dellbrook City, Marrowgate, Upper Tarn"),
        _names("Saltmere Bay, Eastquay City, Lowen Harbour, Coralport, Whitecliff City"),
    ),
    type_groups=(
        _names(
            "nursing college, music college, evening trade college, veterinary training college, private drama college"
        ),
    ),
    attribute="tutors",
    plain_noun="colleges",
    weighted_noun="tutors from all colleges",
    padding_places=_pairs(
        "Norwick Halden Brisby Caldern Fenwold Grantley Ilmouth Kelsworth Ormsby Penhallow Radbourne Stavely",
        "Heights Crossing Junction Village Borough Quarter Terrace Meadows Springs Gardens",
    ),
    padding_types=_pairs(
        "weekend federal coastal rural bilingual experimental municipal alpine online classical",
        "pottery forestry aviation baking fencing surveying weaving accounting astronomy carpentry brewing law",
        "{} {} college",
    ),
)

FILM = World(
    name="film",
    place_groups=(
        _names(
            "Harbour Lights Film Week, Stonebridge Film Week, Red Kite Film Week, Winterhall Film Week, "
            "Old Mill Film Week"
        ),
        _names(
            "Semaine du Vieux Moulin, Semaine de Clairbois, Semaine des Trois Ponts, Semaine de Belmont-sur-Mer, "
            "Semaine du Phare"
        ),
    ),
    type_groups=(
        _names(
            "silent slapstick comedy, slow courtroom drama, deep-space adventure, snowy mountain western, "
            "colourful family musical"
        ),
    ),
    attribute="prizes",
    plain_noun="films",
    weighted_noun="film prizes",
    padding_places=_pairs(
        "Lanterna Aurelia Bellamar Corvina Delphin Estrella Fontaine Giralda Helvetia Isolde Jacaranda Kalinka",
        "Screenings Retrospective Showcase Biennale Gala Matinee Premieres Marathon Panorama Forum",
    ),
    padding_types=_pairs(
        "grainy dreamlike handheld animated wordless satirical tender brooding breathless experimental",
        "heist romance biopic travelogue whodunit fable melodrama documentary farce pirate-epic noir ballad-film",
    ),
)

WORLDS: dict[str, World] = {world.name: world for world in (WILDLIFE, EDUCATION, FILM)}
