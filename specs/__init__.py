"""The written format, its tables for programs, and a validator written from the text alone."""
