"""A Ray actor: tokenise, schedule, score."""
