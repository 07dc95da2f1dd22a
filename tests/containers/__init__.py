"""Tests with real container engines."""
