"""One tool to be chosen among many that are described in JSON."""

import json
from dataclasses import dataclass
from itertools import product

from deltahalt.lab.evaluation.shapes.base import WIDE_ROOM, Made, Order, system, user
from deltahalt.lab.evaluation.shapes.draw import Draw, count_tokens
from deltahalt.lab.evaluation.shapes.names import code, words
from deltahalt.lab.evaluation.shapes.scorers import Both, Names, holds

# What a tool does, how that is described, and how somebody wants it.
ACTIONS = (
    ("create", "Makes a new {0} and returns its number.", "Set up another {0} with the reference {1}, please."),
    ("cancel", "Calls off a {0} that has not been completed.", "We no longer need the {0} {1}. Stop it."),
    ("approve", "Gives consent to a {0} that is waiting for a decision.", "I agree with the {0} {1}, go ahead."),
    ("export", "Writes a {0} to a file that can be downloaded.", "Could I have the {0} {1} as a file?"),
    ("duplicate", "Makes a second {0} with the same content.", "I want the {0} {1} twice, with the same content."),
    ("translate", "Renders the text of a {0} in another language.", "Our partners cannot read the {0} {1} in English."),
    ("archive", "Puts a {0} away for the legal period.", "The {0} {1} is done with, but we have to keep it."),
    ("escalate", "Hands a {0} to the next level of management.", "My boss should take care of the {0} {1} now."),
    ("postpone", "Moves the date of a {0} to a later day.", "The {0} {1} will have to wait until next week."),
    ("encrypt", "Protects a {0} with a password.", "Nobody without a password should be able to open the {0} {1}."),
)
OBJECTS = words(
    "invoice appointment parcel booking prescription contract album playlist recipe ticket claim subscription payroll "
    "survey backup newsletter reservation timesheet inspection warranty donation lease permit shipment quotation "
    "certificate transcript auction itinerary refund"
)
PARAMETERS = (
    ("comment", "string", "A remark that is kept with the entry."),
    ("priority", "integer", "From 1 for urgent to 5 for whenever."),
    ("notify", "boolean", "Whether everybody concerned gets a message."),
    ("language", "string", "Two letters, such as de or fr."),
    ("deadline", "string", "The last day, as YYYY-MM-DD."),
    ("department", "string", "The department that pays for it."),
    ("dry_run", "boolean", "Only check, change nothing."),
    ("recipient", "string", "Who receives the result."),
)
REQUESTS = (
    "Choose the one tool that does what I want, and reply with a JSON object that has its name and its arguments.",
    "Which of the tools fits? Answer with a call as JSON: name and arguments.",
    'Reply only with {"name": ..., "arguments": {...}} for the tool that fits.',
    "Pick the right tool and give the call in JSON, with the name of the tool and the arguments.",
)


@dataclass(frozen=True)
class Mentions:
    """Whether an answer has a word or number in it."""

    wanted: str

    def __call__(self, said: str) -> bool:
        return holds(said, self.wanted)


def tool_choice(order: Order) -> Made:
    """A list of tools in the system prompt or before the request, of which one fits."""
    draw = order.draw
    every = draw.shuffled(product(draw.own(ACTIONS), OBJECTS))
    tools: list[tuple[str, str]] = []
    size = 0
    for (action, description, _), thing in every:
        described = _described(draw, f"{action}_{thing}", description.format(thing))
        size += count_tokens(described)
        if size > order.tokens - WIDE_ROOM and len(tools) > 1:
            break
        tools.append((f"{action}_{thing}", described))
    (action, _, wish), thing = every[draw.random.randrange(len(tools))]
    right, reference = f"{action}_{thing}", code(draw)
    listed = "[\n" + ",\n".join(described for _, described in tools) + "\n]"
    request = f"{wish.format(thing, reference)} {draw.one(REQUESTS)}"
    offer = f"These tools are available:\n{listed}"
    asked = (system(offer), user(request)) if draw.between(0, 1) else (user(f"{offer}\n\n{request}"),)
    others = tuple(name for name, _ in tools if name != right)
    answer = json.dumps({"name": right, "arguments": {"reference": reference}})
    return Made(asked, answer, Both(Names(right, others), Mentions(reference)), limit=128, question=request)


def _described(draw: Draw, name: str, description: str) -> str:
    chosen = sorted(draw.random.sample(PARAMETERS, draw.between(1, 4)))
    properties = {"reference": {"type": "string", "description": "The reference of the entry, such as AB-1234."}}
    properties |= {key: {"type": kind, "description": text} for key, kind, text in chosen}
    return json.dumps(
        {
            "name": name,
            "description": description,
            "parameters": {"type": "object", "properties": properties, "required": ["reference"]},
        }
    )
