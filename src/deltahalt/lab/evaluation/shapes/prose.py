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
    "What remains of the {thing} can be seen from the platform in {place}.",
    "Every {month} the {goods} are counted anew, and every time {few} crates are missing.",
    "A letter to the editor, signed by {person}, called the {project} a folly.",
    "Critics pointed to {firm}, where a similar plan had failed within {few} months.",
    "The {colour} paint on the {thing} hides a crack that runs down to the foundation.",
    "For {share} percent of the loans there is no written agreement at all.",
    "During the war the {thing} served as a store for {goods}.",
    "{other} learned the trade of a {trade} late in life, after {few} years at sea.",
    "Measurements in {year} showed that the water had risen by {few} centimetres.",
    "The harvest of {month} was poor, so {firm} bought {goods} abroad.",
    "People in {place} still argue about who first thought of the {adjective} {thing}.",
    "Under the new rules a {trade} may inspect the {thing} without notice.",
    "The exhibition on {field} drew {many} guests, more than the hall could hold.",
    "With the second loan came conditions that {person} never made public.",
    "Students of {field} mapped the ground around the {thing} over {few} summers.",
    "Not until {year} did anybody compare the two ledgers.",
    "The keys hung on a {colour} board next to the door of the {thing}.",
    "A fire in {month} spared the {adjective} {thing} but ruined most of the {goods}.",
    "{firm} has offices in {place}, where {few} people work on the {project}.",
    "Nothing in the archive explains the {share} percent that the {trade} wrote off.",
    "The bridge inspector from {place} gave the {thing} the lowest grade but one.",
    "Whether the {goods} can be stored for {few} years is an open question.",
    "On market days the stalls reach from the {thing} to the church.",
    "{person} bought the {colour} house in {year} and never moved in.",
)
MINUTES = (
    "{person}: We have looked at the {thing} again, and I would rather wait until {month}.",
    "{person}: Fine by me, as long as {firm} is informed before the weekend.",
    "{person}: The figures for {goods} are in. They are {share} percent lower than in {year}.",
    "{person}: Is that with or without the {adjective} {thing}?",
    "{person}: Without. I can send the table around if anybody wants it.",
    "{person}: My colleagues in {place} asked the same. There are about {few} open points.",
    "{person}: Then let us take the {project} first and come back to the {goods} later.",
    "{person}: The {trade} cannot start before {month}, that much is certain.",
    "{person}: Could somebody please check the contract with {firm}?",
    "{person}: I did. It says {few} days, and it says nothing about the {thing}.",
    "{person}: We had {many} calls about it last quarter, mostly from {place}.",
    "{person}: Let me note that. Anything else on the {adjective} {thing}? No? Then we go on.",
    "{person}: I would like to hear what the {trade} in {place} thinks before we vote.",
    "{person}: Last time we spent {few} minutes on the {goods} and settled nothing.",
    "{person}: The letter from {firm} arrived on Tuesday; it is four pages long.",
    "{person}: Our insurance does not cover the {thing} if the {goods} stay there.",
    "{person}: Sorry, I was late. Have you talked about the {project} already?",
    "{person}: {share} percent sounds like a lot to me, given what happened in {year}.",
    "{person}: Could the people in {place} send photographs of the {adjective} {thing}?",
    "{person}: There is a rumour that {firm} wants to leave by {month}.",
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
    """Turns of a meeting, some at a time, without end."""
    said = turns(draw)
    while True:
        yield "\n".join(next(said) for _ in range(draw.between(3, 6)))


def turns(draw: Draw) -> Iterator[str]:
    """Turns of a meeting, one at a time, without end. The same four people speak throughout."""
    people = [person(draw) for _ in range(4)]
    while True:
        for line in draw.some(MINUTES, len(MINUTES)):
            yield line.format(**slots(draw) | {"person": draw.random.choice(people)})


def contract(draw: Draw) -> Iterator[str]:
    """Numbered sections of a contract, without end."""
    number = draw.between(1, 9)
    while True:
        yield f"{number}. " + " ".join(_sentences(draw, CONTRACT, draw.between(2, 4)))
        number += 1


def _sentences(draw: Draw, templates: tuple[str, ...], count: int) -> list[str]:
    return [template.format(**slots(draw)) for template in draw.some(templates, count)]
