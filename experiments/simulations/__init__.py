"""Simulations of the verdicts: how often a rule raises false alarms, whatever is asked, and what it finds."""
