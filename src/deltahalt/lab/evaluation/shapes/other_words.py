"""A fact that is asked for in other words than the text uses: the two share none but the smallest."""

from deltahalt.lab.evaluation.shapes.base import ROOM, Made, Order, asked_after
from deltahalt.lab.evaluation.shapes.documents import stated
from deltahalt.lab.evaluation.shapes.facts import different
from deltahalt.lab.evaluation.shapes.scorers import Names

# What the text says, what is asked, what kind of answer that has. Neighbours in the list go to different halves.
PAIRS = (
    ("{0} mends violins in a cellar by the river.", "Who is the luthier?", "person"),
    ("{0} cannot eat nuts without falling gravely ill.", "Who suffers from a dangerous food allergy?", "person"),
    ("{0} outran everyone at the regional games.", "Who won the race?", "person"),
    ("After the fire {0} took in the orphans.", "Who adopted the children that had no parents left?", "person"),
    ("{0} lost both eyes as a boy.", "Who has been blind since childhood?", "person"),
    ("Strangers pay {0} to carry their rucksacks to the summit.", "Who works as a mountain porter?", "person"),
    ("The oldest oak for miles stands in {0}.", "Where does the most ancient tree grow?", "place"),
    ("Trains no longer stop in {0}.", "Which town has lost its railway connection?", "place"),
    ("The choir rehearses in {0}, as its own hall has no heating.", "Where do the singers practise?", "place"),
    ("In {0} waves have swallowed three streets since the war.", "Which town loses land to the sea?", "place"),
    ("Snow cut off {0} for most of the winter.", "Which settlement was unreachable in the cold season?", "place"),
    ("Nobody under sixty is left in {0}.", "Which community consists of elderly people only?", "place"),
    ("The heirs parted with the cello for {0} crowns.", "At what price did they sell the instrument?", "number"),
    ("The physician's bill came to {0} crowns.", "How much did the doctor charge?", "number"),
    ("Whoever finds the lost dog should ring {0}.", "What telephone line is there for the missing pet?", "number"),
    ("All told, {0} bees survived the frost.", "How many of the insects were still alive after the cold?", "number"),
    ("On {0} the flood carried off the mill wheel.", "When did high water destroy the grinding works?", "date"),
    ("The bride and groom exchanged rings on {0}.", "What day was the wedding?", "date"),
    ("The twins were delivered at home on {0}.", "What day did the mother give birth?", "date"),
    ("The stolen painting turned up again on {0}.", "When was the missing artwork recovered?", "date"),
    ("All trucks of {0} run on used frying fat.", "Which company fuels its vehicles with kitchen waste?", "firm"),
    ("{0} went bankrupt last autumn.", "Which business became insolvent?", "firm"),
    ("{0} pays apprentices better than any rival.", "Where do trainees earn the highest wages?", "firm"),
    ("Half of those who assemble clocks at {0} are deaf.", "Which employer hires many hard-of-hearing people?", "firm"),
    ("To get into the vault, type {0}.", "What combination opens the strongroom?", "code"),
    ("The box with the medicine bears the label {0}.", "How is the package of drugs marked?", "code"),
    ("Luggage from the wrecked bus was tagged {0}.", "What mark do suitcases of the crash victims have?", "code"),
    ("Her spectacles were handed in as item {0}.", "What was the woman's pair of glasses registered as?", "code"),
)
OTHERS = 3  # facts of other pairs in the same text


def other_words(order: Order) -> Made:
    """The document, then a question that shares no word with the fact it is about."""
    draw = order.draw
    pairs = draw.some(PAIRS, OTHERS + 1)
    values = different(draw, [kind for _, _, kind in pairs])
    sentences = [sentence.format(value) for (sentence, _, _), value in zip(pairs, values, strict=True)]
    question, answer = pairs[0][1], values[0]
    text = stated(order, order.tokens - ROOM, sentences)
    return asked_after(text, question, f"{answer}.", Names(answer, tuple(values[1:])))
