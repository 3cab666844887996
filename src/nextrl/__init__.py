"""nextrl: leap ahead along an RLVR run's LoRA trajectory where it pays."""

__version__ = "0.1.0"
