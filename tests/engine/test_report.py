"""What a report says of itself in a console."""

import torch

from deltahalt import Dash, halting
from deltahalt.vision.report import VisionReport
from helpers.tiny import prompts, tiny


def test_a_report_s_repr_is_one_short_line() -> None:
    model = tiny()
    ids, mask = prompts(120, 90)
    with torch.no_grad(), halting(model, Dash(start=2, pruning_ratio=0.5, keep_first=4, keep_last=8)) as halted:
        model(ids, attention_mask=mask, logits_to_keep=1)
    report = halted.report
    shown = repr(report)
    assert len(shown) < 200
    assert "\n" not in shown
    kept = [len(positions) for positions in report.kept]
    assert shown.startswith("Report(prompts of 120 and 90 tokens, ")
    assert f"{kept[0]} and {kept[1]} active after layer 2" in shown
    assert f"{report.speedup_bound:.2f}x" in shown


def test_a_report_of_many_prompts_or_of_none_halted_stays_short() -> None:
    model = tiny()
    ids, mask = prompts(*[60] * 9)
    with torch.no_grad(), halting(model, Dash(start=2)) as halted:
        model(ids, attention_mask=mask, logits_to_keep=1)
    assert repr(halted.report).startswith("Report(prompts of 60 to 60 (9) tokens, none halted, ")


def test_a_report_of_a_vit_is_as_short() -> None:
    report = VisionReport(None, (100,), (torch.arange(50),), (), (), 50)  # type: ignore[arg-type]
    assert repr(report) == "VisionReport(images of 100 visual tokens, 50 kept)"
