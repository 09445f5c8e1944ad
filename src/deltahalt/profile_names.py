"""The texts that name a profile rather than a policy: two names, and files."""

AUTO = "auto"
AUTO_QUERY_FREE = "auto-query-free"


def names_profile(text: str) -> bool:
    """Whether a text names a profile, rather than a policy."""
    name = text.partition(":")[0]
    return name in (AUTO, AUTO_QUERY_FREE) or name.endswith(".json")
