"""What stands behind remote functions: capture, payload, the driver in the sandbox, calls, standby sandboxes."""
