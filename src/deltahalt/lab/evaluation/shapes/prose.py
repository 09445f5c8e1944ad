"""Generated prose: reports, minutes and contracts about people and places that never were."""

from collections.abc import Iterator

from deltahalt.lab.evaluation.shapes.draw import Draw
from deltahalt.lab.evaluation.shapes.names import person, slots

REPORT = (
    "Work on the {project} stood still for {few} weeks because the {goods} had not arrived.",
    "According to {person}, a {trade} from {place}, the old {thing} could have been saved.",
    "In {month} {year} the council set aside a further sum for the {adjective} {thing}.",
    "{firm} answered the complaint after {few} days and offered to replace the {goods}.",
    "About {share} percent of the households had never heard of the plan.",
    "The {trade} disagreed: too little was known about the ground under the {thing}.",
    "Since then {many} visitors have walked through the {adjective} {thing} each season.",
    "A study from the institute of {field} had warned of exactly this in {year}.",
    "What the letters of {person} leave out is how the {goods} came to {place} at all.",
    "Two of the {few} applicants withdrew, and {other} took over the {thing}.",
    "Prices for {goods} fell by {share} percent, which nobody in {place} had expected.",
    "The minutes of that year mention the {project} only in passing.",
    "Rain delayed the delivery; the {goods} stood in the open for {few} nights.",
    "{other} kept the plans of the {thing} in a {colour} folder and showed them to no one.",
    "Between {place} and the coast there are {few} stations, most of them without staff.",
    "The {adjective} {thing} was sold to {firm}, and the proceeds went to the school.",
    "It took {person} {few} attempts to have the {goods} weighed correctly.",
    "The insurer paid {many} crowns for the {thing} and nothing for the {goods}.",
    "Visitors often ask why the {thing} has {few} windows on one side and none on the other.",
    "By {month} the {trade} had repaired everything except the {colour} door.",
    "Nobody at {firm} could say who had ordered the {goods}.",
    "A second survey, led by {other}, came to a different result for the {thing}.",
    "The road to {place} is closed whenever the {goods} are loaded.",
    "In the end the {project} cost {share} percent more than planned.",
)
MINUTES = (
    "{person}: We have looked at the {thing} again, and I would rather wait until {month}.",
    "{other}: Fine by me, as long as {firm} is informed before the weekend.",
    "{person}: The figures for {goods} are in. They are {share} percent lower than in {year}.",
    "{other}: Is that with or without the {adjective} {thing}?",
    "{person}: Without. I can send the table around if anybody wants it.",
    "{other}: My colleagues in {place} asked the same. There are about {few} open points.",
    "{person}: Then let us take the {project} first and come back to the {goods} later.",
    "{other}: The {trade} cannot start before {month}, that much is certain.",
    "{person}: Could somebody please check the contract with {firm}?",
    "{other}: I did. It says {few} days, and it says nothing about the {thing}.",
    "{person}: We had {many} calls about it last quarter, mostly from {place}.",
    "{other}: Let me note that. Anything else on the {adjective} {thing}? No? Then we go on.",
)
CONTRACT = (
    "The Supplier shall deliver the {goods} to the {thing} in {place} within {few} days of a written order.",
    "Where the {goods} do not meet the sample, the Customer may reject up to {share} percent of a delivery.",
    "Neither party is liable for delays that arise from repairs to the {adjective} {thing}.",
    "Notices under this section are addressed to {person} and, in copy, to {firm}.",
    "The Customer keeps records of the {goods} for {few} years after the end of this agreement.",
    "An adjustment of prices takes effect in {month} and may not exceed {share} percent.",
    "Disputes about the {project} are first put before a {trade} whom both parties accept.",
    "The Supplier insures the {thing} for {many} crowns at its own cost.",
    "This section survives the end of the agreement by {few} months.",
    "Sub-contractors in {place} need the prior consent of {other}.",
    "Part deliveries of {goods} are permitted unless the order says otherwise.",
    "The parties meet every {month} to review the {adjective} {thing} and its upkeep.",
)


def report(draw: Draw) -> Iterator[str]:
    """Paragraphs of a report, without end."""
    while True:
        yield " ".join(_sentences(draw, REPORT, draw.between(3, 7)))


def minutes(draw: Draw) -> Iterator[str]:
    """Turns of a meeting, some at a time, without end. The same four people speak throughout."""
    people = [person(draw) for _ in range(4)]
    while True:
        speakers = draw.random.sample(people, 2)
        lines = draw.random.sample(MINUTES, draw.between(3, 6))
        named = {"person": speakers[0], "other": speakers[1]}
        yield "\n".join(line.format(**slots(draw) | named) for line in lines)


def contract(draw: Draw) -> Iterator[str]:
    """Numbered sections of a contract, without end."""
    number = draw.between(1, 9)
    while True:
        yield f"{number}. " + " ".join(_sentences(draw, CONTRACT, draw.between(2, 4)))
        number += 1


def _sentences(draw: Draw, templates: tuple[str, ...], count: int) -> list[str]:
    return [template.format(**slots(draw)) for template in draw.random.sample(templates, count)]
