"""Qwen2.5-VL."""

from deltahalt.host.families.qwen2_vl import Qwen2VL, Qwen2VLText


class Qwen25VLText(Qwen2VLText):
    """The decoder of Qwen2.5-VL, which is that of Qwen2-VL."""

    model_types = ("qwen2_5_vl_text",)


class Qwen25VL(Qwen2VL):
    """Qwen2.5-VL, which inserts image features as Qwen2-VL does."""

    model_types = ("qwen2_5_vl",)
