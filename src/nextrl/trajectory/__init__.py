"""From the LoRA factors of a run's checkpoints to numbers: exact, and without a dense matrix anywhere."""
