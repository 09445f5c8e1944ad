"""LLaVA 1.5 and LLaVA-OneVision, which have a Llama or Qwen2 decoder."""

from deltahalt.host.families.vision import VisionFamily


class Llava(VisionFamily):
    """LLaVA, for images, and LLaVA-OneVision, also for videos."""

    model_types = ("llava", "llava_onevision")
