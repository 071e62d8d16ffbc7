"""Who owns a running operation: scopes, handles on operations, the portal for sync code, output spools."""
