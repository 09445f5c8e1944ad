"""The shapes by name, and prompts made of them."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from deltahalt.errors import InputError
from deltahalt.files import is_folder
from deltahalt.lab.evaluation.shapes import asking, extraction, joining, languages, source, summaries
from deltahalt.lab.evaluation.shapes.base import Order, Shape, ShapedPrompt
from deltahalt.lab.evaluation.shapes.draw import Draw
from deltahalt.lab.evaluation.shapes.other_words import other_words
from deltahalt.lab.evaluation.shapes.tools import tool_choice

SHAPES: dict[str, Shape] = {
    "question-last": asking.question_last,
    "question-first": asking.question_first,
    "question-both": asking.question_both,
    "question-between": asking.question_between,
    "question-next-turn": asking.question_next_turn,
    "third-turn": asking.third_turn,
    "style-after": asking.style_after,
    "step-by-step": asking.step_by_step,
    "system-rule": asking.system_rule,
    "several-questions": asking.several_questions,
    "tool-choice": tool_choice,
    "json-extraction": extraction.json_extraction,
    "table-extraction": extraction.table_extraction,
    "other-words": other_words,
    "two-facts": joining.two_facts,
    "variable-chain": joining.variable_chain,
    "counting": joining.counting,
    "quote-lines": source.quote_lines,
    "code-to-go-on": source.code_to_go_on,
    "minutes-summary": summaries.minutes_summary,
    "news-summary": summaries.news_summary,
    "german-fact": languages.german_fact,
    "chinese-fact": languages.chinese_fact,
    "code-alone": source.code_alone,
    "continuation": summaries.continuation,
}
FEWEST_TOKENS = 500


def calibration_seeds(count: int) -> list[int]:
    """Seeds for calibration: even ones, see `Draw`."""
    return list(range(0, 2 * count, 2))


def held_out_seeds(count: int) -> list[int]:
    """Seeds for measurements that calibration has no part in: odd ones, see `Draw`."""
    return list(range(1, 2 * count, 2))


def shape_names(names: Iterable[str] = ()) -> list[str]:
    """The shapes of these names; all shapes for none. Raises InputError for a name that is unknown."""
    wanted = list(names) or list(SHAPES)
    for name in wanted:
        if name not in SHAPES:
            raise InputError(f"there is no shape {name!r}: choose among {', '.join(SHAPES)}")
    return wanted


def make_prompt(shape: str, seed: int, tokens: int = 4_000, folder: Path | None = None) -> ShapedPrompt:
    """The prompt of a shape and a seed, about `tokens` long; the same arguments give the same prompt.

    folder: texts of the user's that documents are also made of; without it, they are generated and taken from Python
    and its packages. Raises InputError for an unknown shape or too few tokens, and for a folder without texts.
    """
    (name,) = shape_names([shape])
    if tokens < FEWEST_TOKENS:
        raise InputError(f"a prompt of {tokens} tokens has no room for a text: ask for {FEWEST_TOKENS} or more")
    if folder is not None and not is_folder(folder):
        raise InputError(f"{str(folder)[:80]!r} is not a folder: give a folder of text files, or leave it out")
    made = SHAPES[name](Order(Draw(name, seed), tokens, folder))
    return ShapedPrompt(shape=name, seed=seed, **vars(made))


def make_prompts(
    shapes: Iterable[str],
    seeds: Iterable[int],
    lengths: Sequence[int] = (2_000, 4_000, 8_000),
    folder: Path | None = None,
) -> list[ShapedPrompt]:
    """A prompt for each seed and shape, the shapes in turn; lengths take turns, too. Raises as `make_prompt`."""
    names = list(shapes)
    return [
        make_prompt(name, seed, lengths[(number + seed // 2) % len(lengths)], folder)
        for seed in seeds
        for number, name in enumerate(names)
    ]
