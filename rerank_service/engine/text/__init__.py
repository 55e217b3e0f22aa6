"""Turns texts into token ids: tokenizers, prompts, truncation and windows."""
