"""What vLLM cannot do beside halting is refused by name, before the engine starts or before a request reaches it."""

import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from deltahalt import UnsupportedError
from deltahalt.integrations.vllm import versions
from helpers.vllm_engine import HALF, SETTINGS, V2, config, engine, expected, sampling, saved, served, token_ids

POLICY = f"dash:{HALF}"
COMPILED: dict[str, Any] = {"enforce_eager": False, "compilation_config": {"mode": 1}}  # as a whole


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    saved(folder)
    return folder


def configured(folder: Path, additional: Any, **settings: Any) -> Any:
    from vllm import EngineArgs

    return EngineArgs(str(folder), **SETTINGS | {"additional_config": additional} | settings).create_engine_config()


@pytest.mark.parametrize(
    ("settings", "advice"),
    [
        ({"scheduler_cls": "vllm.v1.core.sched.scheduler.Scheduler"}, "leave --scheduler-cls out"),
        ({"long_prefill_token_threshold": 64}, "--long-prefill-token-threshold 0"),
        (COMPILED, "leave mode out of --compilation-config"),
        (
            {"enforce_eager": False, "compilation_config": {"cudagraph_mode": "FULL"}},
            "leave cudagraph_mode out",
        ),
        ({"pipeline_parallel_size": 2}, "--pipeline-parallel-size 1"),
        ({"enable_lora": True}, "leave --enable-lora out"),
        ({"speculative_config": {"method": "ngram", "num_speculative_tokens": 2}}, "leave --speculative-config out"),
        ({"kv_transfer_config": {"kv_connector": "ExampleConnector", "kv_role": "kv_both"}}, "--kv-transfer-config"),
        ({"runner": "pooling"}, "--runner generate"),
    ],
)
def test_a_setting_is_refused_with_what_to_set(folder: Path, settings: dict[str, Any], advice: str) -> None:
    with pytest.raises(UnsupportedError, match="halting does not work with these settings of vLLM") as caught:
        configured(folder, config(POLICY), **settings)
    assert advice in str(caught.value)


@pytest.mark.parametrize("graphs", ["FULL_DECODE_ONLY", "NONE"])
def test_graphs_of_steps_that_only_decode_are_not_refused(folder: Path, graphs: str) -> None:
    configured(folder, config(POLICY), enforce_eager=False, compilation_config={"mode": 0, "cudagraph_mode": graphs})


def test_graphs_of_steps_that_only_decode_are_the_default(folder: Path) -> None:
    """A CPU has no graphs, so this looks at what vLLM is given before it looks at the platform."""
    from deltahalt.integrations.vllm.plugin import choose_graphs

    open_config = SimpleNamespace(compilation_config=SimpleNamespace(cudagraph_mode=None))
    choose_graphs(open_config)
    assert open_config.compilation_config.cudagraph_mode.name == "FULL_DECODE_ONLY"


@pytest.mark.parametrize("policy", [POLICY, "off"])
def test_layers_are_compiled_as_in_stock_vllm(folder: Path, policy: str) -> None:
    by_default, eager = (
        configured(folder, config(policy), enforce_eager=eager).compilation_config.mode for eager in (False, True)
    )
    assert by_default == configured(folder, {}, enforce_eager=False).compilation_config.mode != eager
    assert eager.name == "NONE"


@pytest.mark.skipif(V2, reason="runner V2 has no worker class of ours")
def test_another_worker_is_refused(folder: Path) -> None:
    with pytest.raises(UnsupportedError, match="leave --worker-cls out"):
        configured(folder, config(POLICY), worker_cls="vllm.v1.worker.cpu_worker.CPUWorker")


def test_all_settings_are_named_at_once(folder: Path) -> None:
    with pytest.raises(UnsupportedError) as caught:
        configured(folder, config(POLICY), long_prefill_token_threshold=64, enable_lora=True, **COMPILED)
    assert str(caught.value).count("\n- ") == 3
    configured(folder, config("off"), long_prefill_token_threshold=64, enable_lora=True, **COMPILED)


@pytest.mark.parametrize(("variant", "reason"), [("phi3", "Phi3ForCausalLM"), ("mistral-sliding", "sliding window")])
def test_a_model_is_refused(tmp_path: Path, variant: str, reason: str) -> None:
    saved(tmp_path, variant)
    with pytest.raises(UnsupportedError, match=reason):
        configured(tmp_path, config(POLICY))


@pytest.mark.parametrize(
    ("additional", "message"),
    [
        ({"deltahalt": "auto"}, "write options by name"),
        ({"deltahalt": {"ratio": 0.5}}, "has no option 'ratio'"),
        ({"deltahalt": {"policy": 5}}, "write its text"),
        ({"deltahalt": {"min_prompt_tokens": "many"}}, "write a number of tokens"),
        (config("dahs"), "there is no policy 'dahs'"),
        (config("dash:start=3"), "leaves no deeper layer"),
        (config("single-input-kv"), "single-input-kv is not supported in vLLM.*both-ends, max-sim"),
        (config("window-attention:start=2,layers=2"), "leave layers and ahead out"),
        (config("window-attention:start=1,ahead=1"), "leave layers and ahead out"),
        (config("dash:start=1+dash:start=2"), "one layer"),
        (config("auto:fast"), "write 1 or more"),
    ],
)
def test_options_are_refused(folder: Path, additional: Any, message: str) -> None:
    with pytest.raises((ValueError, UnsupportedError), match=message):  # vLLM shows ours in its own ValueError
        configured(folder, additional)


@pytest.mark.parametrize("version", ["0.25.1", "0.33.0", "1.0.0"])
def test_an_unknown_version_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr("deltahalt.integrations.vllm.refusals.installed", lambda: version)
    with pytest.raises(UnsupportedError, match=rf"vLLM {version} is not supported"):
        configured(folder, config(POLICY))
    configured(folder, {})
    assert versions.minor(versions.installed()) in versions.SUPPORTED


def test_a_refused_request_leaves_the_engine_alive(folder: Path) -> None:
    from vllm.exceptions import VLLMValidationError

    model, ids = saved(folder), token_ids(150, 90)
    refused = [
        ({"prompt_logprobs": 0}, "prompt_logprobs needs all tokens"),
        ({"extra_args": {"deltahalt": "ratio=0.5"}}, "a request may have"),
        ({"extra_args": {"deltahalt": "pruning_ratio=2"}}, r"must lie in \[0, 1\]"),
        ({"extra_args": {"deltahalt": "keep=0"}}, "give 1 token or more"),
        ({"extra_args": {"deltahalt": 0.5}}, 'write "off"'),
        ({"extra_args": {"deltahalt_keep": 20}}, "there is no option 'deltahalt_keep'"),
    ]
    with engine(folder, POLICY) as llm:
        for options, message in refused:
            with pytest.raises((ValueError, VLLMValidationError), match=message):
                llm.generate({"prompt_token_ids": ids[0]}, sampling(**options), use_tqdm=False)
        assert served(llm, ids) == expected(model, ids, POLICY)
        whole = sampling(prompt_logprobs=1, extra_args={"deltahalt": "off"})
        done = llm.generate({"prompt_token_ids": ids[0]}, whole, use_tqdm=False)[0]
    assert list(done.outputs[0].token_ids) == expected(model, ids[:1], "dense")[0]
    assert len(done.prompt_logprobs) == 150


def test_the_check_does_not_keep_vllm_026_from_runner_v2(monkeypatch: pytest.MonkeyPatch) -> None:
    """It chooses V1 where it sees logits processors."""
    monkeypatch.setattr(versions, "installed", lambda: "0.26.0")
    given = pickle.loads(pickle.dumps(versions.with_check(None, runner_v2=True)))  # as it goes to other processes
    assert not given
    assert tuple(given) == ("deltahalt.integrations.vllm.check_v1:RequestCheckV1",)
    assert versions.with_check(["own"], runner_v2=False) == ["own", *given]


def test_runner_v2_has_nothing_against_the_check(folder: Path) -> None:
    checked = configured(folder, config(POLICY))
    assert checked.model_config.logits_processors is not None
    if V2:
        assert "custom logits processors" not in checked._get_v2_model_runner_unsupported_features()
