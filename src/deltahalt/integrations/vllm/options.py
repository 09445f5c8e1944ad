"""What the user writes: the entry `deltahalt` of vLLM's additional_config, and that of a request's extra_args."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deltahalt.errors import DeltahaltError, InputError, PolicyError, UnsupportedError
from deltahalt.policies.base import AnyPolicy, Policy, Progressive, place
from deltahalt.policies.text import format_policy, override, parse_policy, read
from deltahalt.profile import check_profile, resolve
from deltahalt.profile_names import AUTO, names_profile

KEY = "deltahalt"
OFF = "off"
POLICIES = (
    "both-ends",
    "max-sim",
    "dash",
    "dash-layer",
    "window-attention",
    "last-token-attention",
    "key-norm",
    "random",
    "uniform",
)
OF_THE_PROMPT = ("prompt_logprobs", "prompt_logprob_token_ids")  # of SamplingParams: they read tokens that halt
PREFIX = "prefix"
PER_REQUEST = ("pruning_ratio", "keep", PREFIX)
EXAMPLE = '{"deltahalt": {"policy": "auto", "min_prompt_tokens": 2048}}'
PER_REQUEST_EXAMPLES = '"off", "pruning_ratio=0.5", "keep=2048" or "prefix=1200,keep=2048"'


@dataclass(frozen=True)
class Settings:
    """How an engine halts.

    policy: text of a policy or profile. min_prompt_tokens: number of tokens below which a prompt stays whole.
    """

    policy: str
    min_prompt_tokens: int

    @classmethod
    def of(cls, additional_config: Any) -> "Settings | None":
        """The settings in vLLM's additional_config; None where halting is off.

        Raises InputError for an entry, option or value that is not known.
        """
        given = additional_config.get(KEY) if isinstance(additional_config, Mapping) else None
        if given is None:
            return None
        if not isinstance(given, Mapping):
            raise InputError(f"{KEY} in additional_config is {given!r}: write options by name, such as {EXAMPLE}")
        known = ("policy", "min_prompt_tokens")
        if unknown := [name for name in given if name not in known]:
            raise InputError(f"{KEY} in additional_config has no option {unknown[0]!r}: it has {', '.join(known)}")
        policy, shortest = given.get("policy", AUTO), given.get("min_prompt_tokens", 0)
        if not isinstance(policy, str):
            raise InputError(f'policy is {policy!r}: write its text, such as "auto" or "dash:start=0.4"')
        if not isinstance(shortest, int) or isinstance(shortest, bool) or shortest < 0:
            raise InputError(f"min_prompt_tokens is {shortest!r}: write a number of tokens, 0 or more")
        return None if policy == OFF else cls(policy, shortest)

    def check(self, layers: int) -> None:
        """Raise as `resolved` does for a model of `layers` layers, as far as that is known without its weights."""
        if names_profile(self.policy):
            check_profile(self.policy)
            return
        placed(parse_policy(self.policy), layers)

    def resolved(self, decoder: Any) -> Policy:
        """The policy on a loaded decoder.

        Raises PolicyError and InputError for a policy or profile that does not fit, and UnsupportedError for a policy
        that vLLM cannot run.
        """
        text = resolve(self.policy, decoder).text
        return placed(parse_policy(text), decoder.config.num_hidden_layers)


def name_policy(config: Any, policy: Policy) -> None:
    """Name the policy that was found in a VllmConfig, by which vLLM knows what it compiled before."""
    given = config.additional_config
    config.additional_config = {**given, KEY: {**given[KEY], "policy": format_policy(policy)}}


def check_runs(policy: AnyPolicy) -> None:
    """Raise UnsupportedError for a policy that vLLM cannot run in any model."""
    if isinstance(policy, Progressive):
        raise UnsupportedError("in vLLM tokens halt at one layer: name a policy of one stage, such as both-ends")
    if policy.name not in POLICIES:
        raise UnsupportedError(
            f"{policy.name} is not supported in vLLM, where policies are of text and halted tokens have no K/V in deep "
            f'layers: choose auto or one of {", ".join(POLICIES)}; "off" turns halting off'
        )
    if policy.scored_layers > 1 or policy.layers_ahead:
        raise UnsupportedError(
            f"in vLLM {policy.name} reads only the layer that decides: leave layers and ahead out of its options"
        )


def placed(policy: AnyPolicy, layers: int) -> Policy:
    """The same policy, if vLLM can run it in a model of `layers` layers, with its start as an index."""
    check_runs(policy)
    (stage,) = place(policy, layers)
    start: Any = override(policy, start=stage.last)
    return start


@dataclass(frozen=True)
class Choice:
    """How the prompt of one request halts.

    policy: None where it stays whole. prefix: number of its first tokens that never halt. The policy sees those after
    them alone, as those of a later turn.
    """

    policy: Policy | None
    prefix: int = 0

    def may_halt(self, prompt: int, shortest: int) -> bool:
        """Whether tokens of a prompt of `prompt` tokens may halt, where parts below `shortest` tokens stay whole."""
        return self.policy is not None and prompt - self.prefix >= max(1, shortest)

    def dropped(self, prompt: int, shortest: int) -> int:
        """Number of tokens that halt in a prompt of `prompt` tokens."""
        if self.policy is None or not self.may_halt(prompt, shortest):
            return 0
        return prompt - self.prefix - self.policy.kept(prompt - self.prefix)


def request_choice(policy: Policy, params: Any) -> Choice:
    """What one request has chosen in its SamplingParams, where others halt by `policy`.

    Raises InputError for an entry in extra_args that is not known, or where logits of the prompt are wanted, and
    PolicyError for a value out of range.
    """
    extra_args = params.extra_args or {}
    if wrong := [name for name in extra_args if name.startswith(KEY) and name != KEY]:
        raise InputError(f'there is no option {wrong[0]!r}: write "{KEY}", with the value {PER_REQUEST_EXAMPLES}')
    text = extra_args.get(KEY)
    if text is not None and not isinstance(text, str):
        raise InputError(f"{KEY} is {text!r}: write {PER_REQUEST_EXAMPLES}")
    if text is not None and text.strip() == OFF:
        return Choice(None)
    for name in OF_THE_PROMPT:
        if getattr(params, name, None) is not None:
            raise InputError(
                f'{name} needs all tokens of the prompt in all layers: add "vllm_xargs": {{"{KEY}": "{OFF}"}} to the '
                f'request, or in Python extra_args={{"{KEY}": "{OFF}"}} to its SamplingParams'
            )
    if text is None:
        return Choice(policy)
    options = dict(read(f"{policy.name}:{text}")[0].options)
    if not options or any(name not in PER_REQUEST for name in options) or "+" in text:
        raise InputError(f"{KEY} is {text!r}: a request may have {PER_REQUEST_EXAMPLES}")
    prefix = options.pop(PREFIX, "0")
    if not prefix.isdecimal():
        raise InputError(f"{PREFIX} is {prefix!r}: write a number of tokens, 0 or more, such as {PREFIX}=1200")
    own: Any = override(policy, **options)
    if "keep" in options and not own.keep:
        raise PolicyError("keep is 0: give 1 token or more, or pruning_ratio=1")
    return Choice(own, int(prefix))


def checked_choice(policy: Policy, params: Any) -> Choice:
    """As `request_choice`, for a request that vLLM took.

    It refuses what does not work, but for requests of its own warm-up, whose prompts stay whole.
    """
    try:
        return request_choice(policy, params)
    except DeltahaltError:
        return Choice(None)
