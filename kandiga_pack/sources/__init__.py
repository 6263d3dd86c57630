"""What can be packed: every kind of input, presented as an MLX checkpoint (see base.Source)."""
