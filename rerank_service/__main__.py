"""`python -m rerank_service` runs the `rerank-service` command."""

from rerank_service.tools.cli import main

if __name__ == "__main__":
    main()
