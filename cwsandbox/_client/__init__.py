"""The way to a gateway: find it, authenticate, call it, stream over the exec channel, and name what went wrong."""
