"""From the LoRA factors of a run's checkpoints to numbers, exactly, and without forming a dense matrix."""
