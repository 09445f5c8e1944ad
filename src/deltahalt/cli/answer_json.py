"""Answers as JSON, in one shape for any number of policies and questions."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from deltahalt.answering.ask import Answer


def answers_json(
    model: str, questions: Sequence[str], answers: Mapping[str, Sequence[Answer]], ran: Mapping[str, str]
) -> str:
    """An object with the model's name and a list `answers`, an entry for each policy and question.

    answers: for each policy, by the name it was given, one for each question. ran: the text of the policy that ran.
    """
    entries = [
        {"question": question, "policy": name, "ran": ran[name], **asdict(answer)}
        for name, own in answers.items()
        for question, answer in zip(questions, own, strict=True)
    ]
    return json.dumps({"model": model, "answers": entries}, indent=2)
