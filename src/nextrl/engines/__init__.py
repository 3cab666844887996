"""What trains: one package a trainer, and what they share. Only these packages know a trainer."""
