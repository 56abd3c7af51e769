"""A real HTTP server on this machine that answers requests for a range of bytes."""

import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace


@contextmanager
def served(folder: Path):
    """The server of a folder: `url`; `drops`, requests that it loses from now on; `ranges`; and
    `asked`, the files.
    """
    server = SimpleNamespace(drops=0, ranges=True, asked=[])

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            path = folder / self.path.lstrip("/")
            server.asked.append(path.name)
            if server.drops:
                server.drops -= 1
                self.close_connection = True
                return
            if not path.is_file():
                self.send_error(404)
                return
            content = path.read_bytes()
            wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "")
            if wanted and server.ranges:
                start, last = map(int, wanted.groups())
                if start >= len(content):
                    self.send_error(416)
                    return
                content = content[start : last + 1]
            self.send_response(206 if wanted and server.ranges else 200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
    server.url = f"http://127.0.0.1:{http.server_port}"
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
