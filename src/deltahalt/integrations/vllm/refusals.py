"""What vLLM cannot do beside halting, each with what to set instead. All of it is refused before the engine starts."""

from collections.abc import Iterator
from typing import Any

from deltahalt.errors import UnsupportedError
from deltahalt.integrations.vllm.options import Settings
from deltahalt.integrations.vllm.versions import installed, refuse_unknown

MODELS = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")


def refuse_unsupported(config: Any, settings: Settings) -> None:
    """Raise UnsupportedError with everything in a VllmConfig that does not work with halting, and what to set.

    Raises InputError and PolicyError for a policy that does not exist or does not fit the model.
    """
    refuse_unknown(installed())
    if problems := list(_problems(config)):
        raise UnsupportedError(
            "halting does not work with these settings of vLLM:\n"
            + "\n".join(f"- {problem}: {advice}" for problem, advice in problems)
            + '\nor turn halting off: --additional-config \'{"deltahalt": {"policy": "off"}}\''
        )
    settings.check(config.model_config.hf_text_config.num_hidden_layers)


def _problems(config: Any) -> Iterator[tuple[str, str]]:
    """What does not work, and what to set, as options of the command; Python has them without dashes."""
    model, cache, parallel, scheduler = (
        config.model_config,
        config.cache_config,
        config.parallel_config,
        config.scheduler_config,
    )
    if model.architecture not in MODELS:
        yield f"the model is {model.architecture}", f"choose one of {', '.join(MODELS)}"
    if model.runner_type != "generate":
        yield "the model embeds or classifies, which reads tokens that halt", "set --runner generate"
    if any(_windows(model.hf_text_config)):
        yield "layers of this model have a sliding window", "choose a model whose layers see the whole prompt"
    if cache.enable_prefix_caching:
        yield "prefix caching: deep layers hold other tokens than the prompt's first", "set --no-enable-prefix-caching"
    if scheduler.enable_chunked_prefill:
        yield (
            "chunked prefill: tokens are scored once, when the whole prompt is there",
            f"set --no-enable-chunked-prefill --max-num-batched-tokens {model.max_model_len} or more",
        )
    if scheduler.long_prefill_token_threshold:
        yield "long_prefill_token_threshold splits prompts", "set --long-prefill-token-threshold 0"
    if not model.enforce_eager:
        yield "compiled graphs: the number of tokens changes inside the model", "set --enforce-eager"
    if config.speculative_config is not None:
        yield "speculative decoding: draft tokens would be counted as tokens of the prompt", "leave --speculative-config out"
    if config.lora_config is not None:
        yield "LoRA: adapters are laid out for all tokens of a step", "leave --enable-lora out"
    if config.kv_transfer_config is not None or getattr(cache, "kv_offloading_size", None) is not None:
        yield "moving the KV cache: layers hold different tokens", "leave --kv-transfer-config and --kv-offloading-size out"
    if getattr(model, "enable_prompt_embeds", False):
        yield "prompts given as embeddings", "leave --enable-prompt-embeds out"
    if cache.kv_sharing_fast_prefill:
        yield "fast prefill, which also shortens the prompt", "leave --kv-sharing-fast-prefill out"
    if not model.disable_cascade_attn:
        yield "cascade attention, which shares a prefix", "set --disable-cascade-attn"
    if parallel.enable_dbo:
        yield "two batches in flight", "leave --enable-dbo out"
    for name, size in _split(parallel).items():
        if size > 1:
            yield f"{name} is {size}", f"set --{name.replace('_', '-')} 1"


def _split(parallel: Any) -> dict[str, int]:
    """By option of parallel_config, over how many processes vLLM spreads what halting needs in one."""
    names = (
        "pipeline_parallel_size",
        "tensor_parallel_size",
        "data_parallel_size",
        "decode_context_parallel_size",
        "prefill_context_parallel_size",
    )
    return {name: getattr(parallel, name, 1) for name in names}


def _windows(config: Any) -> list[bool]:
    """For each layer, whether it has a sliding window."""
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        return [bool(getattr(config, "sliding_window", None))]
    return [kind != "full_attention" for kind in kinds]
