"""From a configuration to a run of the engine's trainer."""
