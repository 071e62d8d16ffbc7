"""The gateway: the server that owns sandboxes, embedded for one user or on a port for a team."""
