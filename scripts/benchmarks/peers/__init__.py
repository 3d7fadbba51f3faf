"""What the benches run beside the mesh: each a process of its own, hand-written and minimal."""
