"""igrun's tests."""
