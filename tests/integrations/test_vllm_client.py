"""The openai client at vLLM's server: answers and numbers stay true where prompts halt, and errors do not end it."""

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from transformers import AutoTokenizer

from deltahalt import parse_policy
from deltahalt.lab.bench.vllm_server import fetched, serving
from helpers.vllm_engine import HALF, NEW, V2, config, expected, saved

openai = pytest.importorskip("openai")
pytestmark = pytest.mark.skipif(V2, reason="its server is another process, without the Triton that runner V2 needs")

POLICY = f"both-ends:{HALF}"
PROMPT = "A module is a file of definitions. " * 6
MESSAGES = [{"role": "system", "content": "Answer in one word. " * 4}, {"role": "user", "content": PROMPT}]
TOOL = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "Look a word up in the index of the standard library. " * 3,
        "parameters": {
            "type": "object",
            "properties": {"word": {"type": "string", "enum": ["module", "file"]}},  # so that random weights end
            "required": ["word"],
            "additionalProperties": False,
        },
    },
}
TEMPLATE = """
{%- for tool in tools or [] %}{{ tool.function.name }}: {{ tool.function.description }}
{% for name in tool.function.parameters.properties %}{{ name }} {% endfor %}
{% endfor %}
{%- for message in messages %}<{{ message.role }}>{{ message.content }}
{% endfor %}
{%- if add_generation_prompt %}<assistant>{% endif %}"""
OPTIONS = (
    *("--dtype", "float32", "--enforce-eager", "--max-model-len", "2048", "--max-num-batched-tokens", "128"),
    *("--block-size", "32", "--num-gpu-blocks-override", "256", "--served-model-name", "tiny"),
    *("--enable-auto-tool-choice", "--tool-call-parser", "hermes"),
)
EXACT: dict[str, Any] = {"ignore_eos": True, "return_token_ids": True}
GREEDY: dict[str, Any] = {"model": "tiny", "temperature": 0}


class Served(NamedTuple):
    """A server. client: connected to it. model, tokenizer: what it serves. address: without a path."""

    client: Any
    model: Any
    tokenizer: Any
    address: str

    def ids(self, messages: Any, tools: Any = None) -> list[int]:
        """The prompt that the chat template makes of messages and tools."""
        text = self.tokenizer.apply_chat_template(
            messages, tools=tools, chat_template=TEMPLATE, add_generation_prompt=True, tokenize=False
        )
        return self.tokenizer.encode(text, add_special_tokens=False)

    def wanted(self, ids: list[int]) -> list[int]:
        """The tokens of the core engine."""
        return expected(self.model, [ids], POLICY)[0]

    def metrics(self) -> dict[str, float]:
        """The numbers of the server's metrics, by name."""
        shown = fetched(f"{self.address}/metrics")
        lines = re.findall(r'(?m)^([\w:]+)\{[^}]*model_name="tiny"[^}]*\} (\S+)$', shown)
        return {name: float(value) for name, value in lines}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path, byte_vocabulary: list[str]) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    torch.set_num_threads(1)
    model = saved(folder, vocab_size=len(byte_vocabulary), max_position_embeddings=2048)
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    tokenizer.save_pretrained(folder)
    (folder / "template.jinja").write_text(TEMPLATE)
    halting = ("--additional-config", json.dumps(config(POLICY)), "--chat-template", str(folder / "template.jinja"))
    with serving(str(folder), [*OPTIONS, *halting], folder / "log.txt") as address:
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        yield Served(client, model, tokenizer, address)


def completed(server: Served, ids: list[int], **options: Any) -> Any:
    body = EXACT | options.pop("extra_body", {})
    return server.client.completions.create(prompt=ids, **GREEDY, **{"max_tokens": NEW} | options, extra_body=body)


def works(server: Served) -> None:
    ids = server.tokenizer.encode(PROMPT)
    assert completed(server, ids).choices[0].token_ids == server.wanted(ids)


def test_usage_counts_all_tokens_of_a_prompt_that_halts(server: Served) -> None:
    ids, before = server.tokenizer.encode(PROMPT), server.metrics()
    done = completed(server, ids)
    assert done.choices[0].token_ids == server.wanted(ids)
    assert done.choices[0].token_ids != expected(server.model, [ids], "dense")[0]
    assert (done.usage.prompt_tokens, done.usage.completion_tokens) == (len(ids), NEW)
    whole = completed(server, ids, extra_body={"vllm_xargs": {"deltahalt": "off"}})
    assert whole.choices[0].token_ids == expected(server.model, [ids], "dense")[0]
    assert whole.usage.prompt_tokens == len(ids)
    added = {name: number - before[name] for name, number in server.metrics().items()}
    assert added["deltahalt:prompts_halted_total"] == 1
    assert added["deltahalt:prompt_tokens_total"] == len(ids)
    assert added["deltahalt:prompt_tokens_kept_total"] == parse_policy(POLICY).kept(len(ids))
    assert added["vllm:prompt_tokens_total"] == 2 * len(ids)


def test_a_stream_gives_the_same_text_and_usage(server: Served) -> None:
    given: dict[str, Any] = {"messages": MESSAGES, "max_tokens": NEW, "extra_body": {"ignore_eos": True}}
    whole = server.client.chat.completions.create(**GREEDY, **given)
    stream = server.client.chat.completions.create(
        **GREEDY, **given, stream=True, stream_options={"include_usage": True}
    )
    *parts, last = stream
    assert "".join(part.choices[0].delta.content or "" for part in parts) == whole.choices[0].message.content
    assert last.usage == whole.usage
    assert last.usage.prompt_tokens == len(server.ids(MESSAGES))


@pytest.mark.parametrize("choice", ["auto", "none"])
def test_tools_are_part_of_the_prompt(server: Served, choice: str) -> None:
    ids, before = server.ids(MESSAGES, [TOOL]), server.metrics()
    assert len(ids) > len(server.ids(MESSAGES)) + 150
    done = server.client.chat.completions.create(
        **GREEDY, messages=MESSAGES, tools=[TOOL], tool_choice=choice, max_tokens=NEW, extra_body=EXACT
    )
    assert done.prompt_token_ids == ids
    assert done.usage.prompt_tokens == len(ids)
    assert done.choices[0].token_ids == server.wanted(ids)
    kept = "deltahalt:prompt_tokens_kept_total"
    assert server.metrics()[kept] - before[kept] == parse_policy(POLICY).kept(len(ids))


def test_a_tool_that_has_to_be_called_is_called(server: Served) -> None:
    done = server.client.chat.completions.create(
        **GREEDY,
        messages=MESSAGES,
        tools=[TOOL],
        tool_choice={"type": "function", "function": {"name": "look_up"}},
        max_tokens=400,
        extra_body={"return_token_ids": True},
    )
    (call,) = done.choices[0].message.tool_calls
    assert call.function.name == "look_up"
    assert done.prompt_token_ids == server.ids(MESSAGES, [TOOL])


def test_a_timeout_and_its_retries_leave_nothing(server: Served) -> None:
    ids, impatient = server.tokenizer.encode(PROMPT), server.client.with_options(timeout=0.2, max_retries=2)
    before = server.metrics()
    with pytest.raises(openai.APITimeoutError):
        impatient.completions.create(prompt=ids, **GREEDY, max_tokens=1800, extra_body=EXACT)
    end = time.monotonic() + 10
    while server.metrics()["vllm:num_requests_running"] and time.monotonic() < end:
        time.sleep(0.1)
    after = server.metrics()
    assert after["vllm:num_requests_running"] == after["vllm:kv_cache_usage_perc"] == 0
    assert after["vllm:generation_tokens_total"] - before["vllm:generation_tokens_total"] < 3 * 1800
    works(server)


REFUSED = [
    ({"vllm_xargs": {"deltahalt": "ratio=0.5"}}, "a request may have"),
    ({"vllm_xargs": {"deltahalt": "pruning_ratio=2"}}, r"must lie in \[0, 1\]"),
    ({"vllm_xargs": {"deltahalt_keep": 20}}, "there is no option"),
    ({"prompt_logprobs": 1}, "prompt_logprobs needs all tokens"),
]


@pytest.mark.parametrize(("body", "message"), REFUSED)
def test_a_malformed_option_gets_status_400(server: Served, body: dict[str, Any], message: str) -> None:
    with pytest.raises(openai.BadRequestError, match=message) as caught:
        completed(server, server.tokenizer.encode(PROMPT), extra_body=body)
    assert caught.value.status_code == 400
    works(server)


@pytest.mark.parametrize(("body", "message"), REFUSED[:3])  # vLLM itself refuses the last one in a stream
def test_a_stream_with_a_malformed_option_ends_with_the_error(
    server: Served, body: dict[str, Any], message: str
) -> None:
    with pytest.raises(openai.APIError, match=message) as caught:
        list(completed(server, server.tokenizer.encode(PROMPT), stream=True, extra_body=body))
    assert caught.value.code == "400"  # in the stream, whose own status was sent
    works(server)
