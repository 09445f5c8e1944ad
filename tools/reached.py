"""What policies keep on prompts that calibration never saw, from rows of `deltahalt sweep` in results/.

Two figures count: needles found, and the change of the answers' negative log-likelihood on documents, nats a token.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import fmean, median, stdev

from deltahalt.lab.evaluation.sweep import SweepRow, read_sweep
from deltahalt.lab.rows.markdown import table
from deltahalt.profile import shipped
from tools.briefly import brief
from tools.rows_files import rows_file

RESULTS = Path(__file__).parents[1] / "results"
KINDS = ("finding", "heldout", "resembling", "frontier")  # of files in results/, on prompts that calibration never saw
# The paper's setting, as rows name it.
DASH = ("dash:start=0.4,pruning_ratio=0.667", "dash:start=11,pruning_ratio=0.667")
BLIND = ("query-free", "query-free-signals")  # of those measured with the question kept from the policy
DOCUMENTS = ("loogle", "multi_news")  # tasks whose names begin so


@dataclass(frozen=True)
class Aim:
    """At a speedup or more: `needles`, change in the share found, or above; `nll`, mean change, or below.

    query_free: measured with the question kept from the policy.
    """

    model: str
    speedup: float
    needles: float
    nll: float | None = None
    query_free: bool = False

    @property
    def kinds(self) -> tuple[str, ...]:
        """Of files with what was measured so."""
        return BLIND if self.query_free else KINDS

    @property
    def shown(self) -> str:
        return f"needles {self.needles:+.2f}" + ("" if self.nll is None else f", NLL {self.nll:+.2f}")


AIMS = [
    Aim("qwen2.5-coder-1.5b", 1.7, -0.03, 0.05),
    Aim("qwen2.5-coder-1.5b", 2.5, -0.05, 0.15),
    Aim("qwen2.5-coder-0.5b", 1.7, -0.05, 0.08),
    Aim("smollm2-135m", 1.7, -0.05, 0.08),
    Aim("gemma3-270m", 1.7, -0.05, 0.08),
    *(
        Aim(model, 1.5, -0.10, query_free=True)
        for model in ("qwen2.5-coder-1.5b", "qwen2.5-coder-0.5b", "smollm2-135m")
    ),
]


@dataclass(frozen=True)
class Kept:
    """What one policy keeps. speedup: on Qwen2.5-7B's shape. prompts: all tasks. losses: NLL changes on documents."""

    policy: str
    speedup: float
    prompts: int
    found: int
    full_found: int
    needles: int
    losses: tuple[float, ...]

    @classmethod
    def of(cls, rows: Sequence[SweepRow]) -> "Kept":
        """From the policy's rows on one set of prompts."""
        needles = [row for row in rows if row.task == "needle"]
        return cls(
            policy=rows[0].policy,
            speedup=rows[0].reference_speedup,
            prompts=len(rows),
            found=sum(row.exact for row in needles),
            full_found=sum(row.full_exact for row in needles),
            needles=len(needles),
            losses=tuple(row.nll - row.full_nll for row in rows if row.task.startswith(DOCUMENTS)),
        )

    @property
    def loss(self) -> str:
        """The mean loss and one standard error, and the median."""
        error = stdev(self.losses) / len(self.losses) ** 0.5
        return f"{fmean(self.losses):+.2f} ± {error:.2f}, median {median(self.losses):+.2f}"

    def meets(self, aim: Aim) -> str:
        """Which parts of the aim are met."""
        parts = {"needles": (self.found - self.full_found) / self.needles >= aim.needles}
        if aim.nll is not None:
            parts["NLL"] = fmean(self.losses) <= aim.nll
        return ", ".join(part for part, met in parts.items() if met) or "nothing"


def auto_table() -> str:
    """What `auto` keeps and what DASH keeps at the paper's setting, for each model with a profile."""
    return _choices_table([line for line in _choice_lines() if line[1] in {"auto", "dash"}])


def choices_table() -> str:
    """What every choice of the shipped profiles keeps, and what DASH keeps at the paper's setting."""
    return _choices_table(_choice_lines())


def _choices_table(lines: Sequence[tuple[str, str, Kept | None]]) -> str:
    kept = [one for *_, one in lines]
    return table(
        {
            "model": [model for model, *_ in lines],
            "policy": [f"`{name}`" for _, name, _ in lines],
            "speed": [f"{one.speedup:.2f}x" if one else "" for one in kept],
            **_figures(kept),
        }
    )


def _choice_lines() -> list[tuple[str, str, Kept | None]]:
    """Model, what a user writes for the policy, and what it keeps; None where that was not measured."""
    lines: list[tuple[str, str, Kept | None]] = []
    for profile in shipped():
        kinds = BLIND if profile.query_free else KINDS
        for number, choice in enumerate(profile.choices):
            name = "auto-query-free" if profile.query_free else "auto"
            name += f":{choice.speedup:.1f}" if number else ""
            lines.append((profile.model, name, measured(profile.model, choice.policy, kinds)))
        if not profile.query_free:
            dash = (measured(profile.model, policy, KINDS) for policy in DASH)
            lines.append((profile.model, "dash", next(filter(None, dash), None)))
    return lines


def reached_table() -> str:
    """For each aim a line for the profile's policy, if there is one, and one for the best measured."""
    lines = [(aim, *line) for aim in AIMS for line in _lines(aim)]
    policies = [policy for _, _, policy, _ in lines]
    shown = table(
        {
            "model": [aim.model + (", query-free" if aim.query_free else "") for aim, *_ in lines],
            "at least": [f"{aim.speedup}x" for aim, *_ in lines],
            "": [which for _, which, *_ in lines],
            "policy": [f"`{policy}`" for policy in policies],
            **_figures([kept for *_, kept in lines]),
            "aimed at": [aim.shown for aim, *_ in lines],
            "met": ["" if kept is None else kept.meets(aim) for aim, *_, kept in lines],
        }
    )
    return brief(shown, policies)


def measured(model: str, policy: str, kinds: Sequence[str]) -> Kept | None:
    """What a policy keeps, on the largest set of prompts that it was measured on; None if it was on none."""
    return next((Kept.of(rows[policy]) for rows in _sets(model, *kinds) if policy in rows), None)


def best(aim: Aim) -> Kept:
    """Of policies that are fast enough the one that finds most needles, and then loses least, on most prompts."""
    sets = _sets(aim.model, *aim.kinds)
    fast = ([own for own in rows.values() if round(own[0].reference_speedup, 2) >= aim.speedup] for rows in sets)
    return max(map(Kept.of, next(filter(None, fast))), key=lambda kept: (kept.found, -fmean(kept.losses)))


def _lines(aim: Aim) -> list[tuple[str, str, Kept | None]]:
    """What a policy is, the policy, and what it keeps; None where that was not measured."""
    top = best(aim)
    fitting = (one for one in shipped() if (one.model, one.query_free) == (aim.model, aim.query_free))
    profile = next(fitting, None)
    if profile is None:
        return [("best measured", top.policy, top)]
    own = profile.choose(aim.speedup)
    if own == top.policy:
        return [("profile, best measured", own, top)]
    return [("profile", own, measured(aim.model, own, aim.kinds)), ("best measured", top.policy, top)]


def _sets(model: str, *kinds: str) -> list[dict[str, list[SweepRow]]]:
    """The rows of the model's files by policy, a dict for each number of prompts, the largest first.

    Files of as many prompts are of the same ones; of a policy that is in several the first file's rows count.
    """
    sets: dict[int, dict[str, list[SweepRow]]] = {}
    for kind in kinds:
        for policy, rows in _by_policy(rows_file(RESULTS, f"{kind}-{model}")).items():
            sets.setdefault(len(rows), {}).setdefault(policy, rows)
    return [sets[prompts] for prompts in sorted(sets, reverse=True)]


@cache
def _by_policy(file: Path) -> dict[str, list[SweepRow]]:
    """A file's rows by policy, read once although several tables are made of them."""
    by_policy: dict[str, list[SweepRow]] = {}
    for row in read_sweep(file):
        by_policy.setdefault(row.policy, []).append(row)
    return by_policy


def _figures(kept: Sequence[Kept | None]) -> dict[str, list[str]]:
    """Columns; a policy that was not measured has empty cells."""
    return {
        "prompts": [str(one.prompts) if one else "not measured" for one in kept],
        "needles (full model)": [f"{one.found} of {one.needles} ({one.full_found})" if one else "" for one in kept],
        "NLL change on documents": [one.loss if one else "" for one in kept],
    }
