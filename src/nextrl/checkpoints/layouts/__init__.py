"""Where a trainer puts its checkpoints: one file per layout."""
