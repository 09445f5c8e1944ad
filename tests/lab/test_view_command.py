"""`deltahalt view`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from helpers.viewing import DASH, DOCUMENT, PRUNED, QUESTION, SEEN, SMALL


def test_the_command_shows_an_image(deltahalt: Callable[..., int], tmp_path: Path, scenes: list[Image.Image]) -> None:
    picture, page = tmp_path / "scene.png", tmp_path / "page.html"
    scenes[0].save(picture)
    asked = ("view", "--model", SMALL, "--image", picture, "--image", picture, "--question", "What?", "--out", page)
    asked += ("--max-new-tokens", 2)
    assert deltahalt(*asked, "--policies", f"{PRUNED} {SEEN[1]}") == 0
    html = page.read_text(encoding="utf-8")
    assert html.count('"uri":"data:image/png;base64,') == 2
    assert f'"policy":"{SEEN[1]}"' in html
    assert str(tmp_path) not in html
    assert deltahalt(*asked) == 0
    assert '"policy":"dash:scope=visual"' in page.read_text(encoding="utf-8")


def test_the_command_refuses_images_that_cannot_be_shown(
    deltahalt: Callable[..., int], tiny_folder: Path, tmp_path: Path, scenes: list[Image.Image], capsys: Any
) -> None:
    picture, broken = tmp_path / "scene.png", tmp_path / "broken.png"
    scenes[0].save(picture)
    broken.write_bytes(picture.read_bytes()[:200])
    asked = ("view", "--question", "What?", "--out", tmp_path / "page.html", "--policies", PRUNED)
    for file in (broken, tmp_path / "none.png"):
        assert deltahalt(*asked, "--model", SMALL, "--image", file) == 2
        assert f"cannot read {file}" in capsys.readouterr().err
    assert deltahalt(*asked, "--model", tiny_folder, "--image", picture) == 2
    assert "is not a vision-language model" in capsys.readouterr().err
    assert deltahalt(*asked[:-1], "auto", "--model", "no/such", "--image", picture) == 2
    assert "auto is for prompts of text" in capsys.readouterr().err
    assert deltahalt(*asked, "--model", SMALL) == 2
    assert "give --document, --image, or both" in capsys.readouterr().err
    assert deltahalt(*asked[:-1], SEEN[1], "--model", SMALL, "--document", "-") == 2
    assert "give an --image" in capsys.readouterr().err


def test_the_command_writes_a_page(deltahalt: Callable[..., int], tiny_folder: Path, tmp_path: Path) -> None:
    document, page = tmp_path / "document.txt", tmp_path / "new" / "page.html"
    document.write_text(DOCUMENT)
    asked = ("view", "--model", tiny_folder, "--document", document, "--question", QUESTION, "--out", page)
    assert deltahalt(*asked, "--policies", f"{DASH} dense {DASH}", "--max-new-tokens", 0) == 0
    html = page.read_text(encoding="utf-8")
    assert html.count(f'"policy":"{DASH}"') == 1
    assert '"policy":"dense"' in html


def test_the_command_refuses_no_policy_and_an_unknown_one_before_it_loads_a_model(
    deltahalt: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ("view", "--model", "no/such", "--document", "-", "--question", "?", "--out", tmp_path / "page.html")
    assert deltahalt(*asked, "--policies", " ") == 2
    assert "--policies is ' ': give one or more" in capsys.readouterr().err
    assert deltahalt(*asked, "--policies", "dash magic") == 2
    assert "no policy 'magic'" in capsys.readouterr().err
    assert deltahalt(*asked, "--policies", "gemfilter") == 2
    assert "no policy 'gemfilter'" in capsys.readouterr().err


@pytest.mark.parametrize("given", ["--document", "--image"])
def test_the_command_refuses_a_page_it_cannot_write_before_it_reads_anything(
    given: str, deltahalt: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ("view", given, "none", "--question", "?", "--model", "no/such", "--out", "/dev/null/page.html")
    assert deltahalt(*asked) == 2
    assert "cannot write to /dev/null/page.html" in capsys.readouterr().err


@pytest.mark.parametrize("longest", [0, 3])
def test_the_command_writes_answers_as_long_as_wanted(
    longest: int, deltahalt: Callable[..., int], tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document, page = tmp_path / "document.txt", tmp_path / "page.html"
    document.write_text(DOCUMENT)
    asked = ("view", "--model", tiny_folder, "--document", document, "--question", QUESTION, "--out", page)
    assert deltahalt(*asked, "--policies", DASH, "--max-new-tokens", longest) == 0
    assert page.read_text(encoding="utf-8").count('"tokens":3,"cut":true') == (2 if longest else 0)
    assert deltahalt(*asked, "--max-new-tokens", -1) == 2
    assert deltahalt(*asked, "--max-new-tokens", 100_000) == 2
    assert "--max-new-tokens is 100,000" in capsys.readouterr().err
