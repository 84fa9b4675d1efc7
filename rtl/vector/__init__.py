"""VectorParameters unit: norms, rotary embedding, quantisation, gated activations, residual addition."""
