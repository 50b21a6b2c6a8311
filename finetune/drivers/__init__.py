"""Many fine-tunings as one: sweeps over settings and suites of benchmarks, in processes of their own."""
