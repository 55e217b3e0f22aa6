"""How the candidates for a better embedded default were trained and judged; nothing here is shipped or imported."""
