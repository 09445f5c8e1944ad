"""Choose again from the rows of a calibration, by the rule as it is now, and write the choices into its profile.

usage: choose_again.py ROWS.jsonl PROFILE.json [SPEEDUP,...]

Nothing is measured, so no seconds are told. Speedups are 1.7 and 2.5 if not given. Of policies that were left on the
way only the usual ones count, on the samples that they were measured on.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from deltahalt.lab.evaluation.candidates import ASKED, BLIND, exit_of, layer_of, usual_policies
from deltahalt.lab.evaluation.rating import Rated, choose, evidence, rate
from deltahalt.lab.evaluation.sweep import read_sweep
from deltahalt.profile import Profile


def again(rated: list[Rated], profile: Profile, targets: list[float]) -> Profile:
    """The profile with choices anew."""
    search = BLIND if profile.query_free else ASKED
    alone = [one.policy for one in rated if len(one.policy.stages) == 1 and exit_of(one.policy) is None]
    exits = any(exit_of(one.policy) is not None for one in rated)
    layers, windows = [layer_of(policy) for policy in alone], (None if exits else 1,) * profile.signature.layers
    usual = {target: usual_policies(layers, target, windows, search) for target in targets}
    most = max(len(one.changes) for one in rated)
    kept = {policy for some in usual.values() for policy in some if exit_of(policy) is None}
    last = [one for one in rated if len(one.changes) == most or one.policy in kept]
    chosen = choose(last, targets, None, usual)
    measurements = sum(len(one.changes) for one in rated)
    known = {name: value for name, value in profile.evidence.items() if name != "seconds"}
    known |= {"tried": evidence(rated), "samples": most, "measurements": measurements}
    return replace(profile, choices=chosen, evidence=known)


def main() -> None:
    """Write the profile."""
    parser = argparse.ArgumentParser(usage=__doc__, allow_abbrev=False)
    parser.add_argument("rows", type=Path)
    parser.add_argument("profile", type=Path)
    parser.add_argument("speedups", nargs="?", default="1.7,2.5")
    given = parser.parse_args()
    for file in (given.rows, given.profile):
        if not file.is_file():
            parser.error(f"there is no file {file}: give those that `deltahalt calibrate` wrote")
    targets = [float(word) for word in given.speedups.split(",")]
    profile = Profile.parse(given.profile.read_text(encoding="utf-8"), str(given.profile))
    again(rate(read_sweep(given.rows)), profile, targets).write(given.profile)


if __name__ == "__main__":
    main()
