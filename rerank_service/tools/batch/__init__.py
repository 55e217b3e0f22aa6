"""Files of pairs scored outside a service: planned in chunks, resumable, on Ray Data or in one process."""
