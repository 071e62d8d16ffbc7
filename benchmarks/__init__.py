"""What an operation costs, beside what the same costs without a sandbox: `python -m benchmarks`."""
