"""Bridges to other tools. Each loads when it is used, and none makes its tool a requirement."""
