"""Code that runs inside Serve's proxies: retries, headers, and HAProxy's configuration."""
