"""What is refused by a model's configuration, before its weights are loaded."""

from collections.abc import Iterable
from typing import Any

from deltahalt.cli.common import require_pillow
from deltahalt.errors import InputError
from deltahalt.host.families import family_of, vision_family_of
from deltahalt.methods.base import Method
from deltahalt.methods.halting import method_of
from deltahalt.policies.base import AnyPolicy
from deltahalt.vision.policy import VisionPolicy


def check_text_model(
    model: str,
    methods: Iterable[Method | None],
    *,
    device: str | None = None,
    **options: Any,
) -> Any:
    """The configuration of a text model that each of `methods` can run on; None stands for one that is not known yet.

    options: those of `Method.check`. Raises what `load` and `applying` would, as far as the configuration shows it.
    """
    from deltahalt.loading.models import find_device, load_config, require_causal

    find_device(device)
    config = load_config(model)
    require_causal(config, model)
    family_of(config.get_text_config())
    for method in methods:
        if method is not None:
            method.check(config, **options)
    return config


def check_answer(new_tokens: int, config: Any) -> None:
    """Raise InputError for an answer that leaves the model no room for a prompt."""
    from deltahalt.answering.documents import context_size

    if new_tokens >= (limit := context_size(config)):
        raise InputError(
            f"--max-new-tokens is {new_tokens:,}, but the model takes {limit:,} tokens, prompt and answer together: "
            "give fewer"
        )


def check_vision_model(
    model: str,
    policies: Iterable[tuple[AnyPolicy | None, VisionPolicy | None]],
    *,
    device: str | None = None,
) -> Any:
    """The configuration of a vision-language model that each pair of policies, LLM and ViT, can run on.

    Raises what `load_vision` and `halting` would, as far as the configuration shows it, and InputError without Pillow.
    """
    from deltahalt.answering.picture_inputs import require_family
    from deltahalt.loading.models import find_device, load_config, require_vision
    from deltahalt.vision.towers import tower_of

    require_pillow()
    find_device(device)
    config = load_config(model)
    require_vision(config, model)
    vision_family_of(config)
    family_of(config.get_text_config())
    require_family(config)
    for policy, vision in policies:
        if policy is not None:
            method_of(policy).check(config)
        if vision is not None:
            tower_of(config)
            vision.blocks(config.vision_config.depth)
    return config
