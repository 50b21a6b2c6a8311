"""What runs did, as one HTML page: ``python -m engine.report RUN...``."""
