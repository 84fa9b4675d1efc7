"""From logits to a token: sampler and short-list."""
