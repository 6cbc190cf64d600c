"""A stand-in on loopback for the Hugging Face hub: what ``snapshot_download`` and ``list_repo_refs`` ask it for."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def hub(repository: str, folder: Path, tag: str) -> Iterator[str]:
    """Serve one model repository, and give the address.

    Args:
        repository: ``owner/name``.
        folder: its files.
        tag: the one that it has, besides the branch main.
    """
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    about = {"id": repository, "modelId": repository, "sha": COMMIT, "private": False, "tags": [], "downloads": 0}
    about["siblings"] = [{"rfilename": name} for name in files]
    refs = {
        "tags": [{"name": tag, "ref": f"refs/tags/{tag}", "targetCommit": COMMIT}],
        "branches": [{"name": "main", "ref": "refs/heads/main", "targetCommit": COMMIT}],
        "converts": [],
    }
    entries = [
        {"type": "file", "path": name, "size": path.stat().st_size, "oid": hashlib.sha1(path.read_bytes()).hexdigest()}
        for name, path in files.items()
    ]
    answers = {f"/api/models/{repository}/refs": refs, f"/api/models/{repository}/tree/{COMMIT}": entries}
    answers |= {f"/api/models/{repository}/revision/{name}": about for name in ("main", tag, COMMIT)}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            path = unquote(self.path.partition("?")[0])
            name = path.removeprefix(f"/{repository}/resolve/").partition("/")[2]
            if path in answers:
                self.answer(json.dumps(answers[path]).encode(), {"Content-Type": "application/json"})
            elif path.startswith(f"/{repository}/resolve/") and name in files:
                content = files[name].read_bytes()
                self.answer(content, {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT})
            else:
                self.answer(b"", {"X-Error-Code": "EntryNotFound"}, 404)

        do_GET = do_HEAD  # noqa: N815

        def answer(self, content: bytes, headers: dict[str, str], status: int = 200) -> None:
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    with serving(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as address:
        yield address


@contextmanager
def serving(server: ThreadingHTTPServer) -> Iterator[str]:
    """Run a server in a thread, and give its address."""
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
