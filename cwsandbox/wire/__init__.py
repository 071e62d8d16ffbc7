"""What both sides of the wire share: plain data and sans-I/O code. Nothing in here awaits, sleeps or opens anything.

- `errors`: `google.rpc.Status` and the exceptions of this package.
- `frames`, `flow`, `stream_state`, `events`, `channel`: the exec channel. Users import from `channel`.
- `streams`: what an OPEN carries, by kind of stream.
- `resources`, `codec`, `openapi`: the HTTP resources, their JSON, and their description.
- `signals`: signal names as the channel spells them.
"""
