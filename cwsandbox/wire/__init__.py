"""What both sides of the wire share: plain data and sans-I/O code.

Nothing in here awaits, sleeps or opens anything, except that `packing` and `unpacking` read and write folders.

- `errors`: `google.rpc.Status` and the exceptions of this package.
- `channel`: the exec channel, and everything its users need. Below it: `frames` (the smallest units), `flow` (one
  direction of one substream), `opening` and `stream_state` (one stream), `receiving` (incoming frames), `events`.
- `streams`: what an OPEN carries, by kind of stream.
- `resources`, `discovery`, `codec`, `openapi`: the HTTP resources, their JSON, and their description.
- `quantity`: Kubernetes quantities.
- `folderstream`, `packing`, `unpacking`: how a folder travels, how it is read, and how it is made. Standard library
  only: agents use them.
- `signals`: signal names as the channel spells them, and the queue of those that were sent.
"""
