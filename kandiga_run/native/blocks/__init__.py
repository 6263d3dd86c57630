"""The parts a decoder is made of, one a file. Shapes: T tokens of the chunk, H hidden_size."""
