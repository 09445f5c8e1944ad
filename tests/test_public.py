"""What can be imported from `deltahalt`, and what that costs."""

import subprocess
import sys

import pytest

import deltahalt
from deltahalt.policies import POLICIES
from deltahalt.vision import VISION_POLICIES

QUICK = """
import sys
import torch
import {module}
assert not [name for name in sys.modules if name.partition(".")[0] == "transformers"]
"""


@pytest.mark.parametrize(
    "module", ["deltahalt", "deltahalt.policies", "deltahalt.policies.text", "deltahalt.policies.usual"]
)
def test_transformers_is_not_imported_with(module: str) -> None:
    subprocess.run([sys.executable, "-c", QUICK.format(module=module)], check=True)


def test_policies_are_found_and_parsed_without_transformers() -> None:
    code = (
        QUICK.format(module="deltahalt")
        + "deltahalt.parse_policy('dash'), deltahalt.VisionDash, deltahalt.policies.POLICIES\n"
    )
    subprocess.run([sys.executable, "-c", code + QUICK.format(module="deltahalt.policies")], check=True)


def test_the_package_imports_nothing_heavy_by_itself() -> None:
    code = "import sys, deltahalt; assert not {'torch', 'transformers', 'numpy'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", deltahalt.__all__)
def test_every_public_name_can_be_imported(name: str) -> None:
    assert getattr(deltahalt, name).__name__ == name
    assert name in dir(deltahalt)


def test_every_policy_is_public() -> None:
    for kind in (*POLICIES.values(), *VISION_POLICIES.values()):
        assert getattr(deltahalt, kind.__name__) is kind


def test_a_name_that_there_is_not_is_no_attribute() -> None:
    for module in (deltahalt, deltahalt.policies, deltahalt.vision):
        assert not hasattr(module, "Dahs")
