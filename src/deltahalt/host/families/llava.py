"""LLaVA 1.5 and LLaVA-OneVision, around a Llama or Qwen2 decoder."""

from deltahalt.host.families.vision import VisionFamily


class Llava(VisionFamily):
    """Images, and videos in OneVision."""

    model_types = ("llava", "llava_onevision")
