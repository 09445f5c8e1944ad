"""Pictures and questions drawn from seeds, methods compared on them, and what both stages do by one entry."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from packaging.version import Version
from PIL import Image

from deltahalt import (
    Dash,
    Dense,
    InputError,
    ModelError,
    PolicyError,
    UnsupportedError,
    format_policy,
    halting,
    parse_policy,
)
from deltahalt.answering.picture_inputs import picture_inputs
from deltahalt.host.compat import CACHE
from deltahalt.lab.evaluation.pictures import sweep
from deltahalt.lab.evaluation.pictures.combinations import FULL, combinations
from deltahalt.lab.evaluation.pictures.questions import ASKED
from deltahalt.lab.evaluation.pictures.row import VisionRow
from deltahalt.lab.evaluation.pictures.samples import SIDE, Picture, held_out_pictures
from deltahalt.lab.evaluation.pictures.sweep import measure, rounds, seeing_once, vision_sweep
from deltahalt.lab.evaluation.pictures.table import adr, beside, markdown
from deltahalt.lab.figures.tables import markdown as report
from deltahalt.lab.rows.base import read_rows
from deltahalt.loading.models import LoadedVisionModel, load_vision
from deltahalt.policies import POLICIES
from deltahalt.vision import VISION_POLICIES, VisionDash, halting_vision, parse_vision_policy
from helpers.command import deltahalt
from helpers.tiny import tiny
from helpers.tiny_vision import BATCH, tiny_vision, vision_prompts

ASSET = Path(__file__).parents[2] / "assets/small-vlm"
BOTH = "vision-dash:start=2/dash:start=4"


@pytest.fixture(scope="module")
def small() -> LoadedVisionModel:
    """The small Qwen2-VL of recipes/small_vlm, which is in the repository."""
    return load_vision(ASSET, dtype="float32", device="cpu")


# --- both stages by one entry ---


def test_both_stages_by_one_entry_are_the_two_seams() -> None:
    model = tiny_vision()
    call = vision_prompts(model, "qwen2_vl", BATCH).call() | {"max_new_tokens": 3, "do_sample": False}
    policy, vision = Dash(scope="visual", start=2, pruning_ratio=0.5), VisionDash(retain=0.5)
    with halting_vision(model, vision) as tower, halting(model, policy):
        expected = model.generate(**call)
    with halting(model, policy, vision="vision-dash:retain=0.5") as halted:
        assert torch.equal(model.generate(**call), expected)
    for ours, theirs in zip(halted.vision_report.kept, tower.report.kept, strict=True):
        assert torch.equal(ours, theirs)
    assert sum(map(len, halted.vision_report.kept)) < sum(halted.vision_report.groups)
    assert "forward" not in model.model.visual.__dict__


def test_both_seams_are_gone_after_an_error() -> None:
    model = tiny_vision()
    with pytest.raises(UnsupportedError, match="labels"), halting(model, Dense(), vision=VisionDash()):
        model(torch.ones(1, 4, dtype=torch.long), labels=torch.ones(1, 4, dtype=torch.long))
    assert "forward" not in model.model.visual.__dict__
    assert "forward" not in model.get_decoder().__dict__


def test_what_cannot_act_in_the_vit_is_refused() -> None:
    model: Any = tiny_vision()
    with pytest.raises(PolicyError, match="Dash does not act in the ViT"), halting(model, Dense(), vision=Dash()):  # type: ignore[arg-type]
        pass
    with pytest.raises(UnsupportedError, match="tower is not known"), halting(tiny(), Dense(), vision="tome"):
        pass
    with halting(model, Dense()) as halted, pytest.raises(InputError, match="no policy acts in the ViT"):
        _ = halted.vision_report
    assert "forward" not in model.model.visual.__dict__


# --- pictures ---


def test_every_kind_is_asked_as_often_as_any_other_and_nothing_changes_from_draw_to_draw() -> None:
    pictures = held_out_pictures(8)
    assert Counter(question.kind for picture in pictures for question in picture.questions) == dict.fromkeys(ASKED, 4)
    for picture, again in zip(pictures, held_out_pictures(9), strict=False):
        assert picture.questions == again.questions
        assert np.array_equal(picture.pixels, again.pixels)
    assert pictures[0].pixels.shape == (SIDE, SIDE, 3)


# --- combinations ---


def test_a_share_becomes_the_option_of_each_stage() -> None:
    texts = [(one.vision_policy, one.policy) for one in combinations(["tome:start=1", "dash:chunk=4", BOTH], [0.25])]
    assert texts == [
        ("tome:start=1,retain=0.25", None),
        (None, "dash:chunk=4,scope=visual,pruning_ratio=0.75"),
        ("vision-dash:start=2,retain=0.25", "dash:start=4,scope=visual,pruning_ratio=0.75"),
    ]


def test_a_method_with_its_own_share_is_measured_once() -> None:
    texts = [(one.method, one.retain) for one in combinations(["auto", "dash:pruning_ratio=0.4", "dash"], [0.5, 0.25])]
    own = [("auto", None), ("dash:pruning_ratio=0.4", None)]
    assert texts == [*own, ("dash", 0.5), ("dash", 0.25)]
    assert [one.policy for one in combinations(["visionzip/auto"], [0.5])] == ["auto"]


def test_shares_of_several_stages_fall_evenly_and_own_options_win() -> None:
    v2drop, joined, own = combinations(["v2drop", "dash:start=2+fastv:start=5", "vision-dash:retain=0.7"], [0.064])
    assert v2drop.policy == "v2drop:scope=visual,pruning_ratio=0.6,second_ratio=0.84,third_ratio=0.936"
    assert joined.policy is not None
    assert [stage.pruning_ratio for stage in parse_policy(joined.policy).stages] == [0.747, 0.936]
    assert own.vision_policy == "vision-dash:retain=0.7"


@pytest.mark.parametrize(
    "name", [name for name in (*POLICIES, *VISION_POLICIES) if name not in ("dense", "single-input-kv", "forecast")]
)
def test_every_method_takes_a_share(name: str) -> None:
    (one,) = combinations([name], [0.35])
    if one.policy is None:
        assert parse_vision_policy(str(one.vision_policy)).retain == 0.35
    else:
        assert parse_policy(one.policy).stages[-1].pruning_ratio == 0.65


@pytest.mark.parametrize(
    "name",
    ["dash/tome", "dash/dash", "tome/dash/dash", "tome/tome", "snapkv", "dash:odd=1", "single-input-kv", "forecast"],
)
def test_what_is_no_combination_is_refused(name: str) -> None:
    with pytest.raises(PolicyError):
        combinations([name], [0.5])


# --- measured ---


@torch.inference_mode()
def one_by_one(loaded: LoadedVisionModel, pictures: int, policy: str, vision: str | None) -> Counter[str]:
    """Right answers of each kind, by one call of `generate` a question."""
    right = Counter[str]()
    for picture in held_out_pictures(pictures):
        for question in picture.questions:
            image = Image.fromarray(picture.pixels)
            inputs = picture_inputs(loaded.model, loaded.tokenizer, loaded.image_processor, [[image]], [question.text])
            with halting(loaded.model, policy, vision=vision):
                tokens = loaded.model.generate(**inputs, max_new_tokens=12, do_sample=False)  # type: ignore[operator]
            text = loaded.tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            right[question.kind] += text == question.answer
    return right


def test_rows_are_what_one_question_at_a_time_gives(
    small: LoadedVisionModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "BATCH", 2)
    full, llm, both = vision_sweep(small, combinations([BOTH, "dash:start=4"], [0.25]), 3, tmp_path / "rows.jsonl")
    assert both.right == one_by_one(small, 3, str(both.policy), both.vision_policy)
    assert sum(both.right.values()) < sum(full.right.values()) >= 14
    assert full.asked == both.asked == llm.asked
    assert (full.kept, full.flops, full.vision_flops) == (1, 1, 1)
    assert (both.kept, llm.kept, llm.vision_flops) == (0.0625, 0.25, 1)
    assert both.flops < llm.flops < 0.6
    (first, *_) = rounds(small, held_out_pictures(1))
    with halting(small.model, Dense(), vision=both.vision_policy) as halted:
        small.model.generate(**first.inputs, max_new_tokens=1)  # type: ignore[operator]
    assert both.vision_flops == pytest.approx(1 / halted.vision_report.speedup_bound)


@pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.3"),
    reason="in transformers 5.2 Qwen2-VL needs positions with single tokens, which the reference does not pass",
)
@torch.inference_mode()
def test_the_nll_is_that_of_the_right_answers_after_the_halted_prompt(
    small: LoadedVisionModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "BATCH", 2)
    chosen = combinations(["random:start=1"], [0.1])
    full, halted = vision_sweep(small, chosen, 3, tmp_path / "rows.jsonl")
    assert sum(halted.by_picture) == sum(halted.right.values()) < sum(full.by_picture)
    for row in (full, halted):
        assert row.nll == pytest.approx(
            [nll_one_by_one(small, picture, row.policy) for picture in held_out_pictures(3)]
        )
    assert read_rows(tmp_path / "rows.jsonl", VisionRow) == [full, halted]


def nll_one_by_one(loaded: LoadedVisionModel, picture: Picture, policy: str | None) -> float:
    """NLL of the right answers, their ends included, by a prefill and single tokens; the mean over the questions."""
    model: Any = loaded.model
    image, losses = Image.fromarray(picture.pixels), []
    for question in picture.questions:
        inputs = picture_inputs(model, loaded.tokenizer, loaded.image_processor, [[image]], [question.text])
        answer = loaded.tokenizer(question.answer)["input_ids"] + [loaded.tokenizer.eos_token_id]
        with halting(model, policy or "dense"):
            out = model(**inputs, use_cache=True, logits_to_keep=1)
            logits = [out.logits[0, -1]]
            for token in answer[:-1]:
                out = model(input_ids=torch.tensor([[token]]), **{CACHE: out[CACHE]})
                logits.append(out.logits[0, -1])
        losses.append(float(torch.nn.functional.cross_entropy(torch.stack(logits), torch.tensor(answer))))
    return sum(losses) / len(losses)


def test_pictures_that_were_seen_are_left_out(small: LoadedVisionModel, tmp_path: Path) -> None:
    (row,) = vision_sweep(small, [], 2, tmp_path / "rows.jsonl", skip=1)
    assert (row.pictures, row.skip) == (2, 1)
    assert set(row.asked) == {question.kind for picture in held_out_pictures(3)[1:] for question in picture.questions}


def test_the_question_may_stand_before_the_picture(small: LoadedVisionModel, tmp_path: Path) -> None:
    (first,) = rounds(small, held_out_pictures(1), "before")[:1]
    ids = first.inputs["input_ids"][0].tolist()
    image = ids.index(small.model.config.image_token_id)
    assert small.tokenizer.decode(ids[:image]).endswith(f"{first.questions[0].text}<|vision_start|>")
    file = tmp_path / "rows.jsonl"
    with pytest.raises(InputError, match="no question right when it stands before the picture"):
        list(vision_sweep(small, combinations(["dash"], [0.5]), 2, file, question="before"))
    (full,) = read_rows(file, VisionRow)
    assert (full.question, sum(full.by_picture)) == ("before", 0)
    assert [row.question for row in vision_sweep(small, [], 2, file)] == ["after"]


def test_auto_is_the_policy_that_halting_gives(small: LoadedVisionModel, tmp_path: Path) -> None:
    _, row = vision_sweep(small, combinations(["auto"], [0.5]), 2, tmp_path / "rows.jsonl")
    assert (row.method, row.retain) == ("auto", None)
    with halting(small.model, "auto") as halted:
        assert row.policy == format_policy(halted.policy)
    assert len(list(vision_sweep(small, combinations(["auto"], [0.5]), 2, tmp_path / "rows.jsonl"))) == 2
    assert len(read_rows(tmp_path / "rows.jsonl", VisionRow)) == 2


def test_the_vit_runs_once_on_each_batch(small: LoadedVisionModel) -> None:
    asked = rounds(small, held_out_pictures(2))
    with seeing_once(small.model, "vision-dash:retain=0.25") as seen:
        for method in ("dash", "random"):
            measure(small, asked, combinations([method], [0.5])[0], seen, 2)
        assert len(seen.reports) == 1
    assert "forward" not in small.model.model.visual.__dict__


def test_a_second_run_adds_only_what_is_missing(small: LoadedVisionModel, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    options = ["--model", str(ASSET), "--rows", str(file), "--pictures", "2", "--device", "cpu"]
    assert deltahalt("vision-sweep", *options, "--methods", "dash", "--retains", "0.25") == 0
    before = file.read_text()
    assert deltahalt("vision-sweep", *options, "--methods", "uniform-groups dash", "--retains", "0.25,0.1") == 0
    assert file.read_text().startswith(before)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(rows) == 5
    assert {row["dtype"] for row in rows} == {"float32"}


def test_what_does_not_fit_the_model_is_refused_before_anything_is_measured(
    small: LoadedVisionModel, tmp_path: Path
) -> None:
    with pytest.raises(PolicyError, match=r"tome with step=0\.8 cannot reduce to retain"):
        list(vision_sweep(small, combinations(["uniform-groups", "tome"], [0.1]), 2, tmp_path / "rows.jsonl"))
    assert not (tmp_path / "rows.jsonl").exists()


def test_a_model_that_sees_nothing_is_refused(tiny_folder: Path) -> None:
    with pytest.raises(ModelError, match="not a vision-language model"):
        load_vision(tiny_folder)


# --- tables ---


def row(method: str = "dash", **fields: Any) -> VisionRow:
    own = {"model": "m", "retain": 0.25, "vision_policy": None, "policy": method, "pictures": 4, "kept": 0.25}
    own |= {"vision_flops": 1.0, "flops": 0.5, "dtype": "float32", "machine": "x"}
    own |= {"asked": {"word": 10, "count": 20, "chart": 5}, "right": {"word": 10, "count": 10, "chart": 0}}
    return VisionRow(**own | {"method": method} | fields)


def test_adr_is_the_mean_over_kinds_of_what_is_left_of_the_full_model() -> None:
    whole = row(FULL.method, retain=1.0, right={"word": 10, "count": 16, "chart": 0})
    assert adr(row(right={"word": 5, "count": 4, "chart": 0}), whole) == pytest.approx(100 * (0.5 + 0.25) / 2)
    overview, details = report([whole, row(), row("tome", retain=0.5)]).split("\n\n")
    assert overview.splitlines()[0] == "| model | method | 50 % | 25 % |"
    assert overview.splitlines()[2:] == ["| m | `dash` |  | 81.2 |", "| m | `tome` | 81.2 |  |"]
    assert details.splitlines()[-1] == "| m | `dash` | 25 % | 25.0 % | 100 % | 50 % | 100 | 50 | 0 | 50.0 | 81.2 |"


def test_answers_beside_the_full_model_have_standard_errors_over_pictures() -> None:
    asked: dict[str, Any] = {"asked": {"word": 20}, "right": {"word": 19}}
    whole = row(FULL.method, retain=1.0, flops=1.0, kept=1.0, by_picture=(5, 5, 4, 5), nll=(0.0,) * 4, **asked)
    own = row(retain=None, by_picture=(5, 4, 4, 3), nll=(0.1, 0.3, 0.1, 0.3), **asked)
    lines = beside([whole, own, row("tome")]).splitlines()[2:]
    assert lines == [
        "| after | `full model` | 100 % | 100 % | 20 | 95.0 |  |  |",
        "| after | `dash` | 50 % | 25 % | 20 | 80.0 | -15.0 ± 9.6 | +0.200 ± 0.058 |",
    ]


@pytest.mark.parametrize("other", [{"pictures": 8}, {"model": "n"}, {"skip": 4}, {"question": "before"}])
def test_a_full_model_of_another_run_is_no_reference(other: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="no row of the full m on these 4 pictures"):
        markdown([row(FULL.method, **other), row()])


def test_nothing_is_compared_with_a_model_that_answers_nothing() -> None:
    with pytest.raises(InputError, match="answers no question"):
        markdown([row(FULL.method, right={"word": 0, "count": 0, "chart": 0})])


def test_a_place_of_the_question_that_is_none_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert deltahalt("vision-sweep", "--model", "m", "--rows", "r", "--question", "first") == 2
    assert "'first' is not one of 'before', 'after'" in capsys.readouterr().err


@pytest.mark.parametrize("retains", ["0", "1.5", "half"])
def test_shares_that_are_none_are_refused(retains: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert deltahalt("vision-sweep", "--model", "m", "--rows", "r", "--retains", retains) == 2
    assert "share" in capsys.readouterr().err
