"""What lmms-eval reads by entry point: the name of our model, before anything heavy is loaded."""

from lmms_eval.models.registry_v2 import ModelManifest

MANIFEST = ModelManifest("deltahalt_qwen2_vl", simple_class_path="deltahalt.integrations.lmms_eval.DeltahaltQwen2VL")
