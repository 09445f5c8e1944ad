"""The folder that hostile commands run in: good files and bad ones, none of which a refused command may change."""

import json
import shutil
from pathlib import Path

from transformers import BertConfig, GPT2Config

TEXT = "A module is a file of definitions. " * 8
HUGE = 100 * 2**20  # bytes


def make_place(folder: Path, tiny: Path, small: Path) -> dict[str, str]:
    """Fill a folder, and return the names that commands of the tables stand for in braces."""
    names = {
        "doc": _write(folder / "document.txt", TEXT),
        "empty": _write(folder / "empty.txt", " \n"),
        "binary": _write(folder / "binary.bin", b"\x00\x01\x02" * 99),
        "latin": _write(folder / "latin.txt", b"caf\xe9 " * 99),
        "long": _write(folder / "long.txt", "words and words " * 20_000),
        "data": _write(folder / "data.jsonl", json.dumps({"task": "qa", "prompt": TEXT, "answer": "a file"}) + "\n"),
        "bad": _write(folder / "bad.jsonl", '{"task": "qa", "prompt": ["a", "list"], "answer": "a"}\n'),
        "deep": _write(folder / "deep.jsonl", "[" * 200_000 + "\n"),
        "halves": _write(folder / "halves.jsonl", json.dumps({"task": "qa", "prompt": TEXT + "\ud800", "answer": "a"})),
        "numbers": _write(folder / "numbers.jsonl", '{"kind": "sweep", "exact": "many"}\n'),
        "other": _write(folder / "other.jsonl", '{"kind": "weather", "rain": 1}\n'),
        "profile": _write(folder / "profile.json", '{"format": 1}\n'),
        "notes": _write(folder / "notes.svg", "Somebody's notes.\n"),
        "picture": str(folder / "picture.png"),
        "slim": str(folder / "slim.png"),
        "cut": str(folder / "cut.png"),
        "huge": str(folder / "huge.txt"),
        "folder": str(folder / "nothing"),
        "gpt2": str(folder / "gpt2"),
        "bert": str(folder / "bert"),
        "new": str(folder / "new"),
        "tiny": str(tiny),
        "small": str(small),
    }
    with (folder / "huge.txt").open("wb") as file:
        file.truncate(HUGE)
    _draw(folder)
    (folder / "nothing").mkdir()
    for name, config in {"gpt2": GPT2Config(), "bert": BertConfig()}.items():
        (folder / name).mkdir()
        config.save_pretrained(folder / name)
        shutil.copy(tiny / "tokenizer.json", folder / name)
    return names


def contents(folder: Path) -> dict[str, bytes | int]:
    """Every file of a folder, by its name; of a large one its size."""
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    return {str(file.relative_to(folder)): _content(file) for file in files}


def _content(file: Path) -> bytes | int:
    size = file.stat().st_size
    return size if size >= HUGE else file.read_bytes()


def _write(file: Path, content: str | bytes) -> str:
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(file)


def _draw(folder: Path) -> None:
    """Pictures, where Pillow is installed: one to look at, one too slim, and one cut short."""
    try:
        from PIL import Image
    except ModuleNotFoundError:
        return
    Image.effect_noise((64, 64), 50).save(folder / "picture.png")
    Image.new("RGB", (1, 5000)).save(folder / "slim.png")
    (folder / "cut.png").write_bytes((folder / "picture.png").read_bytes()[:900])
