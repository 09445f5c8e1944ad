"""Rows of a sweep as a figure draws them."""

from dataclasses import replace

from deltahalt.lab.evaluation.sweep import SweepRow

DASH, KEYS = "dash:start=11,pruning_ratio=0.667", "key-norm:pruning_ratio=0.5,start=0.25,keep_first=8"
STAGES = "key-norm:start=7,pruning_ratio=0.5+window-attention:start=14,pruning_ratio=0.9,chunk=16"


def row(policy: str, sample: str = "a", task: str = "needle", **values: object) -> SweepRow:
    """A row of a policy that is 2x as fast as the full model and as good."""
    plain = SweepRow(
        sample=sample,
        task=task,
        model="small",
        policy=policy,
        prompt=100,
        answer_tokens=2,
        exact=True,
        nll=1.0,
        full_exact=True,
        full_nll=1.0,
        agreement=1.0,
        speedup=3.0,
        reference_speedup=2.0,
    )
    return replace(plain, **values)  # type: ignore[arg-type]


ROWS = [
    row("dense", reference_speedup=1.0),
    row(DASH, nll=1.5),
    row(KEYS, nll=1.2, reference_speedup=1.5),
    row(STAGES, nll=3.0, exact=False, reference_speedup=2.5),
]
