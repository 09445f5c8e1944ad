"""Models without a decode: `embed`."""

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from deltahalt.cli.base import DeviceOption, DtypeOption, ModelOption, measured, out
from deltahalt.cli.common import load_model, parse_names, resolve_methods
from deltahalt.cli.tables import of_policies
from deltahalt.errors import InputError
from deltahalt.files import require_apart
from deltahalt.methods.registry import check_method
from deltahalt.profile_names import AUTO, AUTO_QUERY_FREE

MOST_DOCUMENTS, MOST_TOKENS = 10_000, 1_000_000
CHUNKS = "pruning_ratio=0.425,chunk=64,keep_first=256,keep_last=128"  # of `auto` on the bundled model
EVERY = (
    f"{AUTO} {AUTO_QUERY_FREE} dash both-ends:start=0.1,{CHUNKS} key-norm:start=0.1,{CHUNKS} "
    f"random:start=0.1,{CHUNKS} uniform:start=0.1,{CHUNKS}"
)


def embed(
    rows: Annotated[
        Path | None, typer.Option(help="JSONL file that rows go to; those already in it are not run again.")
    ] = None,
    model: ModelOption = "smollm2-135m",
    policies: Annotated[str, typer.Option(help="Policies, separated by blanks.")] = EVERY,
    documents: Annotated[int, typer.Option(min=3, max=MOST_DOCUMENTS, help="Number of documents.")] = 40,
    tokens: Annotated[int, typer.Option(min=1, max=MOST_TOKENS, help="Tokens that each text is cut to.")] = 4096,
    queries: Annotated[
        int,
        typer.Option(
            min=0, max=MOST_DOCUMENTS, help="Rank the documents for this many queries, in place of embeddings."
        ),
    ] = 0,
    ending: Annotated[
        str | None, typer.Option(help="Text after each document, such as an embedder's end token; '' for none.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of texts to embed: *.txt or essays/*.txt.")] = None,
    dtype: DtypeOption = "auto",
    device: DeviceOption = None,
) -> None:
    """Measure what embeddings and rankings lose under policies, beside the full model (see docs/embeddings.md)."""
    from deltahalt.answering.documents import require_room
    from deltahalt.cli.before import check_text_model
    from deltahalt.lab.evaluation.readout.measure import measure_texts
    from deltahalt.lab.evaluation.readout.row import EmbedRow
    from deltahalt.lab.evaluation.readout.texts import ENDING, make_documents, to_embed, to_rank
    from deltahalt.lab.rows.base import require_rows

    named = parse_names(policies, "--policies")
    if rows is not None:
        require_apart(rows, [model, *named])
        require_rows(rows, EmbedRow)
    if queries and ending is not None:
        raise InputError("--ending is for embeddings: leave it out, or --queries")
    config = check_text_model(model, [check_method(policy) for policy in named], device=device)
    require_room(tokens, 0, config, "give fewer --tokens")
    made = make_documents(documents, tokens, data)
    texts = to_rank(made, queries) if queries else to_embed(made, ENDING if ending is None else ending)
    loaded = load_model(model, dtype=dtype, device=device)
    chosen = resolve_methods(named, loaded.model)
    what = f"{len(chosen)} policies on {len(texts)} texts"
    measured(what, len(texts), partial(measure_texts, loaded, texts, chosen, tokens, rows), _show)


def _show(rows: list[Any]) -> None:
    """A table with a line for each policy."""
    from deltahalt.lab.evaluation.readout.summary import columns, summarize

    lines = summarize(rows)
    if not lines:
        return
    shown = columns(lines)
    policies = [policy.strip("`") for policy in shown.pop("policy")]
    caption = "" if lines[0].apart is None else f"cosine between different documents: {lines[0].apart:.4f}"
    out.print(of_policies(policies, shown, common=("documents", "queries", "tokens"), caption=caption))
