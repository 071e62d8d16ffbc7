"""The way out of sandboxes with the egress mode "internet": a proxy, and the policy of what it connects to."""
