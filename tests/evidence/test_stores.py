"""The stores of large artifacts: the same promises of a directory and of an S3-compatible server."""

from __future__ import annotations

import hashlib
from collections.abc import Generator
from io import BytesIO
from pathlib import Path

import pytest

from jobforge_mcp.evidence.stores import (
    ContentStore,
    DirectoryStore,
    StoreUnavailableError,
    lay_down,
    open_store,
)
from jobforge_mcp.settings import Settings
from tests.evidence.bucket import Bucket, running_bucket


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Generator[Bucket]:
    with running_bucket() as running:
        monkeypatch.setenv("AWS_ENDPOINT", f"http://127.0.0.1:{running.server_port}")
        monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test-test")
        monkeypatch.setenv("AWS_REGION", "eu-west-1")
        yield running


@pytest.fixture(params=["directory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path, bucket: Bucket) -> ContentStore:
    url = "s3://evidence/prefix" if request.param == "s3" else None
    return open_store(Settings(artifact_dir=tmp_path, artifact_url=url))


def put(store: ContentStore, content: bytes, tenant: str = "acme") -> str:
    laid, size, sha256 = lay_down(store.incoming, BytesIO(content), 10**9)
    assert (size, sha256) == (len(content), hashlib.sha256(content).hexdigest())
    store.keep(tenant, sha256, laid)
    laid.unlink(missing_ok=True)
    return sha256


@pytest.mark.requirement("evidence.artifacts")
@pytest.mark.parametrize("size", [0, 5, 20 * 1024 * 1024 + 1])
def test_what_was_put_is_read_and_can_be_put_and_deleted_twice(
    store: ContentStore, size: int
) -> None:
    content = (b"0123456789" * (size // 10 + 1))[:size]

    sha256 = put(store, content)
    assert put(store, content) == sha256
    read = b"".join(store.chunks("acme", sha256))
    store.delete("acme", sha256)
    store.delete("acme", sha256)

    assert read == content
    with pytest.raises(FileNotFoundError):
        list(store.chunks("acme", sha256))


@pytest.mark.requirement("isolation.functions")
def test_equal_content_of_two_tenants_is_two_objects(store: ContentStore) -> None:
    sha256 = put(store, b"the same", "acme")
    with pytest.raises(FileNotFoundError):
        list(store.chunks("globex", sha256))
    put(store, b"the same", "globex")

    store.delete("acme", sha256)

    assert b"".join(store.chunks("globex", sha256)) == b"the same"


def test_a_server_that_refuses_is_told_without_its_address(bucket: Bucket, tmp_path: Path) -> None:
    store = open_store(Settings(artifact_dir=tmp_path, artifact_url="s3://evidence"))
    sha256 = put(store, b"hello")
    bucket.is_down = True

    for act in (
        lambda: list(store.chunks("acme", sha256)),
        lambda: store.delete("acme", sha256),
        lambda: put(store, b"again"),
    ):
        with pytest.raises(StoreUnavailableError) as caught:
            act()
        assert "127.0.0.1" not in caught.value.message
        assert caught.value.retryable


def test_a_directory_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    store = DirectoryStore(tmp_path / "file" / "artifacts")

    with pytest.raises(StoreUnavailableError):
        put(store, b"hello")


def test_what_is_longer_than_allowed_is_not_read_to_its_end(tmp_path: Path) -> None:
    source = BytesIO(b"x" * 1_000_000)

    _, size, _ = lay_down(tmp_path, source, 10)

    assert size == 11
    assert source.tell() == 11
