"""A policy as a method: halting in decoder layers, with the interface of methods of all stages."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar

from deltahalt.engine.attach import halting
from deltahalt.engine.halted import Halted
from deltahalt.engine.prefill import refuse_halted_kv
from deltahalt.engine.question import question_of
from deltahalt.flops import ModelShape, policy_loads, true_flops
from deltahalt.methods.base import Asked, Method, scaled
from deltahalt.policies import Dense
from deltahalt.policies.base import AnyPolicy, Stage, place
from deltahalt.policies.text import joined, require_policy


@dataclass(frozen=True, kw_only=True)
class Halting(Method):
    """Halt prompt tokens in decoder layers by a policy: see `deltahalt.halting`.

    Attributes:
        policy: A `Policy` or `Progressive`.

    Raises:
        PolicyError: For an object that is not a policy.

    Example:
        >>> method = Halting(policy=parse_policy("dash:start=0.4"))
        >>> [stage.last for stage in method.stages(layers=32)]
        [12]
    """

    name: ClassVar[str] = "halting"
    stage: ClassVar[str] = "LLM"
    shares_prefill: ClassVar[bool] = True

    policy: AnyPolicy

    def __post_init__(self) -> None:
        require_policy(self.policy)

    @property
    def is_dense(self) -> bool:
        return not self.policy.stages

    def check(self, config: Any, *, min_prompt_tokens: int = 0) -> None:
        decoder = config.get_text_config()
        shape = ModelShape.of(decoder)
        refuse_halted_kv(shape, place(self.policy, shape.layers, vision=decoder is not config))

    @property
    def reads_question(self) -> bool:
        return any(stage.reads_question for stage in self.policy.stages)

    def attach(
        self, model: Any, tokenizer: Any = None, *, min_prompt_tokens: int = 0, question: Asked | None = None
    ) -> AbstractContextManager[Halted]:
        asked = None if question is None else question_of(question, tokenizer)
        return halting(model, self.policy, min_prompt_tokens=min_prompt_tokens, question=asked)

    def attached(self, model: Any) -> AbstractContextManager[Halted]:
        return self.attach(model)

    def flops(self, shape: ModelShape, tokens: int) -> int:
        """True FLOPs of a prefill in which all active tokens run through the last layer: see `policy_loads`."""
        return true_flops(shape, policy_loads(self.policy, shape.layers, tokens), tokens)

    def stages(self, layers: int) -> tuple[Stage, ...]:
        return place(self.policy, layers)

    def scaled(self, layers: int, to: int) -> "Halting":
        stages = [scaled(stage, layers, to) for stage in self.policy.stages]
        return Halting(policy=joined(stages) if stages else Dense())


def method_of(given: Any) -> Method:
    """The given method, or a `Halting` by the given policy. Raises PolicyError for anything else."""
    match given:
        case Method():
            return given
        case _:
            return Halting(policy=given)
