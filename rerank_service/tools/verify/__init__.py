"""Is what is served what the checkpoint says? The served path against a plain run and against recorded logits."""
