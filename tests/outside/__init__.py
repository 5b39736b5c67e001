"""A package of its own, installed beside ours: a task and a selector, one file each."""
