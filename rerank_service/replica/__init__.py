"""Ray actors with models: they tokenise, schedule and score the shards they receive."""
