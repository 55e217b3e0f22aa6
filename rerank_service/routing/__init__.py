"""From a model's name to logits: shards, the choice of a replica, autoscaling."""
