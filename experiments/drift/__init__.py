"""The drift of a repeated run: what rounding alone changes from epoch to epoch, and what another config changes."""
