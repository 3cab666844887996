"""From a predicted direction to files: an adapter of any rank, or a merged model, and where it came from."""
