"""The entry point of lmms-eval: it gives the model's name without importing torch or transformers."""

from lmms_eval.models.registry_v2 import ModelManifest

MANIFEST = ModelManifest("deltahalt_qwen2_vl", simple_class_path="deltahalt.integrations.lmms_eval.DeltahaltQwen2VL")
