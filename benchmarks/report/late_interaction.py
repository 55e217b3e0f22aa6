"""Sections of `docs/appendix/late-interaction.md`."""

from benchmarks.report.pages import PageSection, ResultFile, markdown_table, origin

__all__ = ["SECTIONS"]


def _cache_table(result: ResultFile) -> str:
    heads = ("model", "precision", "without the cache", "with it", "saved", "memory per passage")
    rows = [
        (
            row["model"],
            row["dtype"],
            f"{row['without_cache_cpu_ms']:,.0f} CPU-ms",
            f"{row['with_cache_cpu_ms']:,.0f} CPU-ms",
            f"{1 - row['with_cache_cpu_ms'] / row['without_cache_cpu_ms']:.0%}",
            f"{row['cached_bytes_per_passage'] / 1_000:.0f} KB",
        )
        for row in result["rows"]
    ]
    tokens = result["rows"][0]["passage_tokens"]
    return (
        f"{markdown_table(heads, rows, 2)}\n\nA request of {result['passages']} passages of {tokens:.0f} tokens, all "
        f"ranked before, and a new query; tokenising included, one thread.\n"
        f"{origin(result)}"
    )


SECTIONS: dict[str, PageSection] = {"passage-cache": ("passage-cache.json", _cache_table)}
