"""Source code: a function to be quoted, code to go on with."""

import ast

from deltahalt.lab.evaluation.shapes.base import ROOM, Made, Order, asked_after, user
from deltahalt.lab.evaluation.shapes.draw import Draw, count_tokens
from deltahalt.lab.evaluation.shapes.scorers import Quotes
from deltahalt.lab.evaluation.shapes.sources import source_file

SHORTEST, LONGEST = 14, 24  # lines of a function to be quoted
NEXT_LINES = 12
QUOTES = (
    "Quote the whole function {0} from the code above, word for word, in a code block and without comment.",
    "Repeat the definition of {0} exactly as it stands above, every line of it, and nothing else.",
    "Show me the complete source of {0} as it is in the file, without changes.",
    "Copy out {0} from the source above, line by line, from its def to its last line.",
)
GO_ON = (
    "Here is the beginning of a Python file. Write the lines that come next, code only.",
    "Continue this Python code where it breaks off. Reply with code only.",
    "The following file is incomplete: write what comes next.",
    "Go on with this code:",
)


def quote_lines(order: Order) -> Made:
    """A source file, and a function of about twenty lines to be quoted from it."""
    draw = order.draw
    text, (first, last, name) = _with_function(draw, order.tokens)
    lines = text.splitlines()
    begin, end = _window(draw, lines, first, last, order.tokens - ROOM)
    question = draw.one(QUOTES).format(name)
    quoted = lines[first:last]
    text = f"```python\n{chr(10).join(lines[begin:end])}\n```"
    answer = f"```python\n{chr(10).join(quoted)}\n```"
    return asked_after(text, question, answer, Quotes(tuple(quoted)), limit=64 + 2 * count_tokens(answer))


def code_to_go_on(order: Order) -> Made:
    """The request to go on with a source file, which breaks off."""
    before, after = _broken_off(order.draw, order.tokens - ROOM)
    return Made((user(f"{order.draw.one(GO_ON)}\n\n```python\n{before}"),), after)


def code_alone(order: Order) -> Made:
    """A source file that breaks off, as plain text without a question."""
    before, after = _broken_off(order.draw, order.tokens)
    return Made((user(f"{before}\n"),), after, chat=False)


def _broken_off(draw: Draw, tokens: int) -> tuple[str, str]:
    """Source code of about `tokens`, and the lines that follow."""
    lines = _long_source(draw, tokens + 400).splitlines()
    end, size = 0, 0
    while size < tokens and end < len(lines) - NEXT_LINES:
        size += count_tokens(lines[end]) + 1
        end += 1
    return "\n".join(lines[:end]), "\n".join(lines[end : end + NEXT_LINES])


def _long_source(draw: Draw, tokens: int) -> str:
    """Source files one after the other, until there are `tokens`; the last one is long enough to go on from."""
    text = source_file(draw)
    while count_tokens(text) < tokens:
        text = f"{text}\n\n{source_file(draw)}"
    return text


def _with_function(draw: Draw, tokens: int) -> tuple[str, tuple[int, int, str]]:
    """Source code of `tokens` and more, and the first line, the line after the last, and the name of a function in it.

    Other files follow a file that is too short.
    """
    text = ""
    found: list[tuple[int, int, str]] = []
    while not found:
        text = source_file(draw)
        found = functions(text)
    function = draw.random.choice(found)
    while count_tokens(text) < tokens:
        other = source_file(draw)
        if f"def {function[2]}(" not in other:
            text = f"{text}\n\n{other}"
    return text, function


def functions(text: str) -> list[tuple[int, int, str]]:
    """Functions of a fitting length whose name the text defines once: first line, line after the last, name."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef) and node.end_lineno is not None and not node.name.startswith("__"):
            long_enough = SHORTEST <= node.end_lineno - node.lineno + 1 <= LONGEST
            if long_enough and text.count(f"def {node.name}(") == 1:
                found.append((node.lineno - 1, node.end_lineno, node.name))
    return sorted(found)


def _window(draw: Draw, lines: list[str], first: int, last: int, tokens: int) -> tuple[int, int]:
    """Lines of about `tokens` around a function, which stands anywhere among them."""
    sizes = [count_tokens(line) + 1 for line in lines]
    begin, end, room = first, last, tokens - sum(sizes[first:last])
    before = int(room * draw.random.random())
    while begin > 0 and before > 0:
        begin -= 1
        before, room = before - sizes[begin], room - sizes[begin]
    while end < len(lines) and room > 0:
        room -= sizes[end]
        end += 1
    while begin > 0 and room > 0:
        begin -= 1
        room -= sizes[begin]
    return begin, end
