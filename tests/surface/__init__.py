"""The public surface, row by row, against the real gateway and the real local runner."""
