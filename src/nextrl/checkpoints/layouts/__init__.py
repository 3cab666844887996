"""Where a trainer puts its checkpoints: one file a layout."""
