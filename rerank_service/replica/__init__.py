"""A Ray actor with a model: it tokenises, schedules and scores the shards it receives."""
