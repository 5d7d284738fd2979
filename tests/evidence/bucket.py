"""The part of an S3-compatible server that artifacts need, over a dictionary: put, upload in parts, get, delete."""

from __future__ import annotations

import re
import threading
from collections.abc import Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit


class Bucket(ThreadingHTTPServer):
    """Objects by their path."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects: dict[str, bytes] = {}
        self.parts: dict[str, dict[int, bytes]] = {}
        self.is_down = False


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def bucket(self) -> Bucket:
        assert isinstance(self.server, Bucket)
        return self.server

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_PUT(self) -> None:
        path, query = self._asked()
        body = self._body()
        if "partNumber" in query:
            self.bucket.parts[path][int(query["partNumber"][0])] = body
        else:
            self.bucket.objects[path] = body
        self._answer(200, headers={"ETag": '"made"'})

    def do_POST(self) -> None:
        path, query = self._asked()
        body = self._body()
        if "uploads" in query:
            self.bucket.parts[path] = {}
            self._answer(200, f"<R><UploadId>{len(self.bucket.parts)}</UploadId></R>".encode())
        elif "uploadId" in query:
            parts = self.bucket.parts.pop(path)
            self.bucket.objects[path] = b"".join(parts[number] for number in sorted(parts))
            self._answer(200, b'<R><ETag>"made"</ETag></R>')
        else:
            keys = re.findall(r"<Key>(.*?)</Key>", body.decode())
            for key in keys:
                self.bucket.objects.pop(f"{path.rstrip('/')}/{key}", None)
            deleted = "".join(f"<Deleted><Key>{key}</Key></Deleted>" for key in keys)
            self._answer(200, f"<DeleteResult>{deleted}</DeleteResult>".encode())

    def do_GET(self) -> None:
        path, _ = self._asked()
        found = self.bucket.objects.get(path)
        if found is None:
            self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
        else:
            made = {"ETag": '"made"', "Last-Modified": "Sun, 22 Nov 2026 08:00:00 GMT"}
            self._answer(200, found, made)

    def do_DELETE(self) -> None:
        path, _ = self._asked()
        self.bucket.objects.pop(path, None)
        self._answer(204)

    def _asked(self) -> tuple[str, dict[str, list[str]]]:
        parts = urlsplit(self.path)
        return parts.path, parse_qs(parts.query, keep_blank_values=True)

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _answer(
        self, status: int, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> None:
        if self.bucket.is_down:
            status, body, headers = 403, b"<Error><Code>AccessDenied</Code></Error>", {}
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def running_bucket() -> Generator[Bucket]:
    """Serve an empty bucket on loopback."""
    with Bucket() as bucket:
        thread = threading.Thread(target=bucket.serve_forever, daemon=True)
        thread.start()
        try:
            yield bucket
        finally:
            bucket.shutdown()
            thread.join()
