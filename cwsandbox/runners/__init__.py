"""What sandboxes run on. `base` is the contract; every sub-package is one kind of runner."""
