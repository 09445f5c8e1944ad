"""Names and words to fill sentences with: large lists, and invented names that no text has."""

from deltahalt.lab.evaluation.shapes.draw import Draw


def words(text: str) -> list[str]:
    """The words of a text, as a list."""
    return text.split()


BEGINNINGS = words(
    "Bal Cor Dru Fen Gal Hal Ix Jor Kel Lum Mar Nor Orl Pel Quor Rav Sel Tor Ulm Var Wes Yar Zan Bri Cal Dor Esk Fal "
    "Gri Hol Ist Jun Kar Lor Mel Nev Ost Pra Rem Sil Tal Umb Vel Wil Yor Zel Ard Bren Cas Del Ern Fro Gan Har Ing Jas"
)
MIDDLES = words("a e i o u an en ar el or in ad ov is eth om ul ir am ed")
PLACE_ENDS = words("ford wick mere stead burgh holm dale mouth haven brook gate field moor ton ness")
FAMILY_ENDS = words("ska rin vold tane sen mann dotti lund quist berg ner zak wyn ello dian ric")
MAKERS = words("Works Systems Instruments Foods Freight Textiles Optics Marine Energy Ceramics Seeds Logistics")
GIVEN = words(
    "Agnes Bastian Celia Dario Edith Florian Gwen Henrik Irene Jasper Klara Leon Mirela Nikolai Odette Pavel Quirin "
    "Rosalind Stefan Teodora Ulrich Vera Wendel Xenia Yusuf Zelda Aurel Bettina Casimir Dagny Emil Fiona Gregor Hanne "
    "Ilias Jolanta Kasimir Linnea Matteo Nadira Orson Petra Rafael Sunniva Tibor Una Viktor Wanda"
)
ADJECTIVES = words(
    "amber brisk copper dormant eastern faded granite hollow inland jagged keen lunar marble narrow olive pale quiet "
    "rustic silver timber upper velvet woven young ashen bronze coastal dusty emerald frosty golden hidden ivory"
)
THINGS = words(
    "archive boiler canal depot engine furnace garden hangar irrigation jetty kiln laboratory mill nursery observatory "
    "pump quarry reservoir sluice tunnel viaduct warehouse yard turbine beacon crane dock elevator ferry greenhouse"
)
TRADES = words(
    "surveyor baker welder botanist archivist pilot potter geologist tailor nurse carpenter chemist editor glazier "
    "harbourmaster joiner librarian mason notary optician plumber roofer saddler translator upholsterer weaver"
)
MONTHS = words("January February March April May June July August September October November December")
COLOURS = words("crimson teal ochre indigo maroon turquoise violet scarlet beige lilac navy khaki magenta mustard")
GOODS = words(
    "barley linseed cork slate felt paraffin tin hemp rubber malt gypsum rye flax zinc tallow lime jute resin clay "
    "cotton graphite wool soda peat copper salt glass paper honey cement"
)
FIELDS = words("hydrology acoustics metallurgy botany optics seismology ceramics zoology meteorology cartography")


def person(draw: Draw) -> str:
    """A given name and a family name."""
    return f"{draw.one(GIVEN)} {_invented(draw, FAMILY_ENDS)}"


def place(draw: Draw) -> str:
    """A town that is on no map."""
    return _invented(draw, PLACE_ENDS)


def firm(draw: Draw) -> str:
    """A company."""
    return f"{_invented(draw, FAMILY_ENDS)} {draw.one(MAKERS)}"


def project(draw: Draw) -> str:
    """A project, such as silver viaduct."""
    return f"{draw.one(ADJECTIVES)} {draw.one(THINGS)}"


def code(draw: Draw) -> str:
    """Letters and digits, such as KX-4821."""
    letters = "".join(draw.random.choices("ABCDEFGHJKLMNPQRSTUVWXYZ", k=2))
    return f"{letters}-{draw.number(4)}"


def date(draw: Draw) -> str:
    """A day, such as 14 March 1987."""
    return f"{draw.between(1, 28)} {draw.one(MONTHS)} {draw.between(1951, 2031)}"


def slots(draw: Draw) -> dict[str, str]:
    """A word for everything that a sentence may have a place for."""
    return {
        "person": person(draw),
        "other": person(draw),
        "place": place(draw),
        "firm": firm(draw),
        "project": project(draw),
        "trade": draw.one(TRADES),
        "goods": draw.one(GOODS),
        "thing": draw.one(THINGS),
        "adjective": draw.one(ADJECTIVES),
        "month": draw.one(MONTHS),
        "field": draw.one(FIELDS),
        "colour": draw.one(COLOURS),
        "year": str(draw.between(1951, 2031)),
        "few": str(draw.between(3, 48)),
        "many": f"{draw.between(2, 98)},{draw.between(0, 999):03d}",
        "share": str(draw.between(2, 97)),
    }


def _invented(draw: Draw, ends: list[str]) -> str:
    middle = draw.one(MIDDLES) if draw.random.random() < 0.6 else ""
    return draw.one(BEGINNINGS) + middle + draw.one(ends)
