"""Any policy, with halted tokens whose K and V stay in deeper layers."""

from dataclasses import fields

from deltahalt.policies.base import AnyPolicy, Progressive
from deltahalt.policies.halted_states import LastState


def frozen(policy: AnyPolicy) -> AnyPolicy:
    """The policy, whose halted tokens keep K/V of their last state in deeper layers."""
    if isinstance(policy, Progressive):
        return Progressive([frozen(stage) for stage in policy.stages])
    twin = type(f"Frozen{type(policy).__name__}", (type(policy),), {"halted_states": LastState()})
    return twin(**{field.name: getattr(policy, field.name) for field in fields(policy)})


def plain(policy: AnyPolicy) -> AnyPolicy:
    """The policy as it is."""
    return policy
