"""Settings, as dataclasses; no module here imports torch."""
