"""What runs in a worker process, and what talks to one."""
