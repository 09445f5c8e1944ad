"""lmms-eval's Qwen2-VL with halting: dense is its own model exactly, and halting is there while it generates only."""

import argparse
import base64
import io
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import BatchFeature, PreTrainedTokenizerFast, Qwen2VLImageProcessor

from deltahalt import InputError, PolicyError, halting
from deltahalt.vision import halting_vision
from helpers.tiny import attributes
from helpers.tiny_vision import IMAGE, PATCH, tiny_vision
from tools import vision_tables

pytest.importorskip("lmms_eval", reason="lmms-eval is not installed: make test-lmms")

from lmms_eval.api.instance import Instance
from lmms_eval.evaluator import simple_evaluate
from lmms_eval.models import get_model
from lmms_eval.models.model_utils import gen_metrics
from lmms_eval.models.simple import qwen2_vl

from deltahalt.integrations.lmms_eval import DeltahaltQwen2VL
from deltahalt.integrations.lmms_manifest import MANIFEST

END, PLACEHOLDER = "<|endoftext|>", "<|image_pad|>"
SPECIAL = [PLACEHOLDER, "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"]  # where tiny_vision has them
TEMPLATE = (
    "{% for message in messages %}{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}{% endfor %}"
)
POLICY = "dash:start=1,scope=visual,pruning_ratio=0.6"
VISION = "vision-dash:start=1,retain=0.4"
QUESTIONS = [
    "What is there?",
    "Is it on the left of the other one?",
    "How many?",
    "Which of the two is older, and by how much?",
]


class Processor:
    """What Qwen2-VL's processor does with chats and images; its own needs torchvision."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        self.images = Qwen2VLImageProcessor(patch_size=PATCH, merge_size=2, min_pixels=64, max_pixels=2**14)
        self.apply_chat_template = self.tokenizer.apply_chat_template

    def batch_decode(self, tokens: Any, **options: Any) -> list[str]:
        """Without control characters, which the table that MMBench writes cannot hold."""
        return ["".join(filter(str.isprintable, answer)) for answer in self.tokenizer.batch_decode(tokens, **options)]

    def __call__(self, text: list[str], images: list[Image.Image], videos: None, **options: Any) -> BatchFeature:
        inputs = self.images(images, return_tensors="pt")
        counts = iter((inputs["image_grid_thw"].prod(dim=1) // 4).tolist())
        for number, chat in enumerate(text):
            first, *others = chat.split(PLACEHOLDER)
            text[number] = first + "".join(PLACEHOLDER * next(counts) + other for other in others)
        inputs.update(self.tokenizer(text, **options))
        inputs.pop("token_type_ids", None)
        inputs["mm_token_type_ids"] = (inputs["input_ids"] == IMAGE).int()
        return inputs


def pictures(chats: list[Any]) -> tuple[list[Image.Image], None]:
    """What qwen-vl-utils finds in chats; it needs torchvision."""
    parts = [part for chat in chats for message in chat for part in message["content"] if isinstance(part, dict)]
    urls = [part["image"] for part in parts if part["type"] == "image"]
    return [Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) for url in urls], None


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Qwen2-VL with random weights, beside a tokenizer of bytes."""
    folder = tmp_path_factory.mktemp("tiny-qwen2-vl")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [END, *alphabet[: IMAGE - 1], *SPECIAL, *alphabet[IMAGE - 1 :]]
    tokenizer = Tokenizer(models.BPE({word: index for index, word in enumerate(words)}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    options: dict[str, Any] = {"additional_special_tokens": SPECIAL, "eos_token": END, "pad_token": END}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, padding_side="left", chat_template=TEMPLATE, **options)
    fast.save_pretrained(folder)
    tiny_vision("qwen2_vl", seed=5, vocab_size=len(words)).save_pretrained(folder)
    return folder


@pytest.fixture
def make(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A model class of lmms-eval with the tiny model, and something to ask it."""

    class Processors:
        from_pretrained = staticmethod(lambda *_, **__: Processor(folder))

    monkeypatch.setattr(qwen2_vl, "AutoProcessor", Processors)
    monkeypatch.setattr(qwen2_vl, "process_vision_info", pictures)

    def make(kind: type[Any] = DeltahaltQwen2VL, **options: Any) -> Any:
        placed = {"device_map": "cpu"} if kind is qwen2_vl.Qwen2_VL else {}
        lm = kind(str(folder), device="cpu", **placed, **options)
        lm.task_dict = {"asked": {"test": DOCS}}
        return lm

    return make


def picture(height: int, width: int) -> Image.Image:
    pixels = np.random.default_rng(height).integers(0, 255, (height, width, 3))
    return Image.fromarray(pixels.astype(np.uint8))


DOCS = [
    {"images": [picture(40, 64)]},
    {"images": [picture(64, 24), picture(32, 32)]},
    {"images": [picture(48, 48)]},
    {"images": [picture(24, 80)]},
]


def requests() -> list[Instance]:
    """As a task makes them, anew: lmms-eval takes `until` out of the settings that it is given."""
    return [
        Instance(
            "generate_until",
            (question, {"max_new_tokens": 6, "until": ["\n\n"]}, lambda doc: doc["images"], number, "asked", "test"),
            0,
            {"task": "asked", "doc_id": number, "repeats": 1},
        )
        for number, question in enumerate(QUESTIONS)
    ]


def by_hand(lm: Any, policy: str, vision: str | None) -> list[str]:
    """Each question alone, with the two blocks around `generate`."""
    answers = []
    for question, doc in zip(QUESTIONS, DOCS, strict=True):
        user = [{"type": "image", "image": lm._encode_image_data_url(image)} for image in doc["images"]]
        chat = [
            {"role": "system", "content": lm.system_prompt},
            {"role": "user", "content": [*user, {"type": "text", "text": question}]},
        ]
        text = lm.processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        inputs = lm.processor([text], pictures([chat])[0], None, return_tensors="pt")
        with halting_vision(lm.model, vision or "uniform-groups:retain=1"), halting(lm.model, policy):
            tokens = lm.model.generate(**inputs, max_new_tokens=6, do_sample=False, eos_token_id=0, pad_token_id=0)
        (answer,) = lm.processor.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        answers.append(answer.partition("\n\n")[0].strip())
    return answers


@pytest.mark.parametrize("batch", [1, 3])
def test_dense_is_lmms_evals_own_model_exactly(batch: int, make: Any) -> None:
    own, dense = make(qwen2_vl.Qwen2_VL, batch_size=batch), make(batch_size=batch)
    answers = dense.generate_until(requests())
    assert answers == own.generate_until(requests())
    assert len(set(answers)) > 1


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(("policy", "vision"), [(POLICY, None), ("dense", VISION), (POLICY, VISION)])
def test_answers_are_those_of_both_blocks_around_generate(
    policy: str, vision: str | None, batch: int, make: Any
) -> None:
    lm = make(policy=policy, vision_policy=vision, batch_size=batch)
    answers = lm.generate_until(requests())
    assert answers == by_hand(lm, policy, vision)
    assert answers != by_hand(lm, "dense", None)


def test_the_model_is_as_before(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = make(policy=POLICY, vision_policy=VISION)
    before = attributes(lm.model)
    lm.generate_until(requests())
    lm.model.model.rope_deltas = None  # the host's own, set by every generate
    assert attributes(lm.model) == before
    monkeypatch.setattr(qwen2_vl, "process_vision_info", None)
    with pytest.raises(TypeError):
        lm.generate_until(requests())
    assert attributes(lm.model) == before


def test_options_stand_beside_the_policies(make: Any) -> None:
    whole = make(policy=POLICY, vision_policy=VISION)
    options = {"start": 1, "scope": "visual", "pruning_ratio": 0.6, "vision_start": 1, "vision_retain": 0.4}
    apart = make(policy="dash", vision_policy="vision-dash", **options)
    assert (apart.policy, apart.vision_policy) == (whole.policy, whole.vision_policy)


@pytest.mark.parametrize(
    ("options", "error", "complaint"),
    [
        ({"policy": "dash", "revision": "main"}, PolicyError, "no option 'revision'"),
        ({"policy": "vision-dash"}, PolicyError, "no policy 'vision-dash'"),
        ({"policy": "dash:start=7"}, PolicyError, "leaves no deeper layer"),
        ({"vision_retain": 0.5}, InputError, "vision_retain without a policy"),
        ({"vision_policy": "dash"}, PolicyError, "no policy 'dash'"),
        ({"vision_policy": "tome", "vision_pivots": 4}, PolicyError, "no option 'pivots'"),
        ({"vision_policy": "vision-dash", "vision_retain": "half"}, PolicyError, "retain is 'half'"),
        ({"vision_policy": "vision-dash", "vision_start": 9}, PolicyError, "start"),
    ],
)
def test_what_cannot_run_is_refused_at_once(options: dict[str, Any], error: type, complaint: str, make: Any) -> None:
    with pytest.raises(error, match=complaint):
        make(**options)


def test_what_generation_took_goes_to_lmms_evals_results(make: Any) -> None:
    whole, less = {"vision_policy": "uniform-groups", "vision_retain": 1}, {"policy": POLICY, "vision_policy": VISION}
    took = []
    for options in (whole, less):
        for batch in (1, 4):
            gen_metrics.reset_logged_metrics()
            make(batch_size=batch, **options).generate_until(requests())
            took.append(gen_metrics.summarize_logged_metrics())
    full, _, halted, _ = took
    for one, batched in (took[:2], took[2:]):
        assert 0 < one["avg_prefill_seconds"] < one["avg_latency"]
        for name in ("avg_llm_prefill_tflops", "avg_vit_tflops"):
            assert one[name] == pytest.approx(batched[name])  # a prompt's, whatever its batch mates
    for name in ("avg_llm_prefill_tflops", "avg_vit_tflops", "avg_kv_cache_mb"):
        assert 0 < halted[name] < full[name]
    gen_metrics.reset_logged_metrics()
    make().generate_until(requests())
    assert "avg_vit_tflops" not in gen_metrics.summarize_logged_metrics()


def test_lmms_eval_knows_the_model_by_name() -> None:
    assert get_model("deltahalt_qwen2_vl") is DeltahaltQwen2VL
    (entry,) = entry_points(group="lmms_eval.models", name="deltahalt")
    assert entry.load() is MANIFEST


def seen(number: int) -> dict[str, Any]:
    """An image as datasets stores it."""
    file = io.BytesIO()
    picture(24 + 8 * (number % 4), 40).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


def rows(count: int, **fields: Any) -> list[dict[str, Any]]:
    """Rows with these fields; a function is of the row's number."""
    return [{key: value(n) if callable(value) else value for key, value in fields.items()} for n in range(count)]


CHOICES = {"A": "red", "B": "green", "C": "blue", "D": "none"}
MMSTAR = ["coarse perception", "fine-grained perception", "instance reasoning"]
MMSTAR += ["logical reasoning", "science & technology", "math"]
ASKED: dict[str, Any] = {"question": "Is it red?", "answer": lambda n: ("yes", "no")[n % 2], "image": seen}
DATA: dict[str, dict[tuple[str, str], list[dict[str, Any]]]] = {  # docs/vision-evaluate.md: by config and split
    "lmms-lab-encoder/GQA": {
        ("testdev_balanced_instructions", "testdev"): rows(2, question="Is it red?", answer="yes", imageId=str),
        ("testdev_balanced_images", "testdev"): rows(2, id=str, image=seen),
    },
    "lmms-lab-encoder/MME": {
        ("default", "test"): [
            row for kind in ("color", "code_reasoning") for row in rows(2, question_id="1", category=kind, **ASKED)
        ]
    },
    "lmms-lab-encoder/POPE": {("default", "test"): rows(2, question_id=str, category="random", **ASKED)},
    "Lin-Chen/MMStar": {
        ("val", "val"): rows(6, index=int, category=MMSTAR.__getitem__, l2_category="any", **ASKED | {"answer": "A"})
    },
    "echo840/OCRBench": {
        ("default", "test"): rows(
            2, dataset="IIIT5K", question_type="Regular Text Recognition", **ASKED | {"answer": ["CENTRE"]}
        )
    },
    "lmms-lab-encoder/ChartQA": {
        ("default", "test"): rows(2, type=["human_test", "augmented_test"].__getitem__, **ASKED | {"answer": "14"})
    },
    "lmms-lab-encoder/SEED-Bench": {
        ("default", "test"): rows(
            2,
            question_id=str,
            data_type=["image", "video"].__getitem__,
            **{f"choice_{key.lower()}": value for key, value in CHOICES.items()},
            **ASKED | {"answer": "A", "image": lambda n: [seen(n)] * (n + 1)},
        )
    },
    "lmms-lab-encoder/textvqa": {
        ("default", "validation"): rows(2, question_id=int, answers=["red"] * 10, ocr_tokens=["RED"], **ASKED)
    },
    "lmms-lab-encoder/MMBench": {
        ("en", "dev"): rows(
            2, index=int, hint="", source="", split="dev", category="a", **{"L2-category": "b"}, **CHOICES, **ASKED
        )
    },
}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder of small data sets in the hub's own layout, one folder each."""
    for name, parts in DATA.items():
        settings = ["---", "configs:"]
        for (config, split), content in parts.items():
            file = tmp_path / name / config / f"{split}-00000-of-00001.parquet"
            table = datasets.Dataset.from_list(content)
            if "image" in table.column_names:
                several = isinstance(content[0]["image"], list)
                table = table.cast_column("image", datasets.List(datasets.Image()) if several else datasets.Image())
            file.parent.mkdir(parents=True, exist_ok=True)
            table.to_parquet(file)
            settings += [f"- config_name: {config}", "  data_files:", f"  - split: {split}"]
            settings += [f"    path: {config}/*.parquet"]
        (tmp_path / name / "README.md").write_text("\n".join([*settings, "---"]))
    return tmp_path


def test_the_tasks_of_the_papers_tables_run_from_local_files(
    data: Path, folder: Path, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(data)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", data / "cache")
    names = dict.fromkeys(
        task for table in vision_tables.TABLES for task, _, _ in vision_tables.PAPER[table]["columns"].values()
    )
    assert len(names) == 9
    results = simple_evaluate(
        "deltahalt_qwen2_vl",
        f"pretrained={folder},policy=dash,scope=visual,start=1,vision_policy=vision-dash,vision_start=1",
        tasks=list(names),
        device="cpu",
        batch_size=2,
        cli_args=argparse.Namespace(output_path=str(data / "out"), process_with_media=False),
    )
    assert {name: count["effective"] for name, count in results["n-samples"].items()} == dict.fromkeys(names, 2) | {
        "mme": 4,
        "mmstar": 6,
    }
    for table in vision_tables.TABLES:
        assert None not in vision_tables.scores(table, results)
    assert None not in vision_tables.efficiency(results, results)
