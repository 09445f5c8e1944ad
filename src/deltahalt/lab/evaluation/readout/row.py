"""A row of `deltahalt embed`: what a model gives for one text under one policy."""

from dataclasses import dataclass
from typing import Any, ClassVar

from deltahalt.lab.rows.base import RanRow


@dataclass(frozen=True)
class EmbedRow(RanRow):
    """One text under one policy; "dense" is the full model.

    sample, document: digests of the text and of its document. query: as in `Text`. ending: what follows the document;
    empty where there is a query. tokens: number of the text's tokens. vector: the embedding [D], of unit length, with
    four digits; or, for a query, one number: the logit of yes minus that of no. seconds: from token ids to the vector,
    what chooses tokens included. speedup: ratio of true FLOPs, full model to policy.
    """

    kind: ClassVar[str] = "embed"
    signed: ClassVar[frozenset[str]] = frozenset({"vector"})

    sample: str
    document: str
    query: str
    ending: str
    model: str
    policy: str
    tokens: int
    vector: tuple[float, ...]
    seconds: float
    speedup: float

    @classmethod
    def of(cls, fields: dict[str, Any]) -> "EmbedRow":
        return cls(**fields | {"vector": tuple(fields["vector"])})
