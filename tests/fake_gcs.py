"""Replaces the key-value store of Ray's control store (GCS), which needs a running cluster."""

__all__ = ["FakeGcs"]


class FakeGcs:
    """Stands in for `GcsClient`. All clients of an address share their keys."""

    clusters: dict[str, dict[tuple[bytes, bytes], bytes]] = {}  # noqa: RUF012 - a test clears it

    def __init__(self, address: str) -> None:
        self._keys = self.clusters.setdefault(address, {})
        self.is_down = False

    def internal_kv_keys(self, prefix: bytes, namespace: bytes, timeout_s: float) -> list[bytes]:
        return [key for space, key in self._keys if space == namespace and key.startswith(prefix)]

    def internal_kv_get(self, key: bytes, namespace: bytes, timeout_s: float) -> bytes | None:
        if self.is_down:
            raise ConnectionError
        return self._keys.get((namespace, key))

    def internal_kv_put(self, key: bytes, value: bytes, overwrite: bool, namespace: bytes, timeout_s: float) -> int:
        assert overwrite
        self._keys[namespace, key] = value
        return 1
