"""Tests of experiments/parts."""
