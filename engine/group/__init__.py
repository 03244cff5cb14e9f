"""One model over several hosts: what each process of a worker group does."""
