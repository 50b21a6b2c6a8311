"""Settings: dataclasses, presets, and the rules that join them to a DeepSpeed JSON."""
